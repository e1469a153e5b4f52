"""Where a search may look: the values that a parameter can take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Value = int | float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """Whole numbers from low to high, both included; tried on a log scale if `log`."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, log=self.log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Numbers from low to high, both included; tried on a log scale if `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, log=self.log)


@dataclass(frozen=True, slots=True)
class Choices:
    """One of some values."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("choices are empty; give at least one value")


Space = Integers | Numbers | Choices


def read_space(name: str, value: object) -> Space:
    """Read the space of a parameter as a declaration writes it.

    Parameters
    ----------
    value : list or mapping
        ``[10, 20, 50]`` for choices, or ``{"low": 0.1, "high": 10, "log": true}``: whole
        numbers when both bounds are.

    Raises
    ------
    ValueError
        When it is neither.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Choices(tuple(value))
    if not isinstance(value, dict) or not _is_range(value):
        raise ValueError(
            f"space of {name} is {value!r}; it must be a list of values, or a mapping "
            "with low, high and optionally log"
        )
    low, high, log = value["low"], value["high"], value.get("log", False)
    if type(low) is int and type(high) is int:
        return Integers(low=low, high=high, log=log)
    return Numbers(low=float(low), high=float(high), log=log)


def _is_range(value: dict[str, object]) -> bool:
    bounds = [value.get("low"), value.get("high")]
    return (
        all(type(bound) in (int, float) for bound in bounds)
        and isinstance(value.get("log", False), bool)
        and set(value) <= {"low", "high", "log"}
    )


def _check_range(low: float, high: float, *, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"range is {low} to {high}; it must be finite and rise")
    if log and low <= 0:
        raise ValueError(f"range is {low} to {high}; a log scale must start above 0")
