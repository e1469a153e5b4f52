"""Declarations as documents: what YAML, JSON and the database hold.

`parse_declaration` and `declaration_document` are inverse to each other. Types and
unknown fields are refused here, rules about values in `domain.experiment`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

from experiment_service.domain.event import check_attributes
from experiment_service.domain.experiment import (
    AssignmentMode,
    Declaration,
    ExperimentKind,
    Outcome,
    PolicySpecification,
    TargetingOperator,
    TargetingRule,
    Variant,
)
from experiment_service.domain.metric import OWN, Metric
from experiment_service.domain.segment import Segmentation
from experiment_service.errors import InvalidRequest, known

_Choice = TypeVar("_Choice", bound=StrEnum)
_Item = TypeVar("_Item")
_Reader = Callable[[str, object], Any]

_SECONDS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _refuse(name: str, value: object, rule: str) -> InvalidRequest:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return InvalidRequest(f"{name} is {shown}; it must be {rule}", field=name)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refuse(name, value, "a text")
    return value


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, value, "true or false")
    return value


def _number(name: str, value: object) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
    ):
        raise _refuse(name, value, "a finite number")
    return float(value)


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(name, value, "a whole number")
    return value


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _refuse(name, value, "a mapping")
    return {_text(f"a key of {name}", key): item for key, item in value.items()}


def _attributes(name: str, value: object) -> Mapping[str, Any]:
    return check_attributes(name, _mapping(name, value))


def _overrides(name: str, value: object) -> Mapping[str, str]:
    return {
        unit: _text(f"{name}.{unit}", variant)
        for unit, variant in _mapping(name, value).items()
    }


def _margins(name: str, value: object) -> Mapping[str, float]:
    return {
        metric: _number(f"{name}.{metric}", margin)
        for metric, margin in _mapping(name, value).items()
    }


def _choice(choices: type[_Choice]) -> Callable[[str, object], _Choice]:
    def read(name: str, value: object) -> _Choice:
        if not isinstance(value, str) or value not in list(choices):
            raise _refuse(name, value, f"one of {known(choices)}")
        return choices(value)

    return read


def _one_of(*choices: str) -> Callable[[str, object], str]:
    def read(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _refuse(name, value, f"one of {', '.join(choices)}")
        return value

    return read


def _list(read: Callable[[str, object], _Item]) -> Callable[..., tuple[_Item, ...]]:
    def read_all(name: str, value: object) -> tuple[_Item, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise _refuse(name, value, "a list")
        return tuple(read(f"{name}.{i}", item) for i, item in enumerate(value))

    return read_all


def parse_duration(name: str, value: object) -> timedelta:
    """Read seconds as a number, or a text such as ``30s``, ``15m``, ``12h``, ``7d``.

    Raises
    ------
    InvalidRequest
        When it is neither, or over 10 years.
    """
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?) ?([smhd])", value.strip())
        seconds = float(match[1]) * _SECONDS[match[2]] if match else None
    if seconds is None or not abs(seconds) <= 3650 * _SECONDS["d"]:
        raise _refuse(name, value, "seconds, or a number with s, m, h or d")
    return timedelta(seconds=seconds)


def _segments(name: str, value: object) -> tuple[int, int]:
    bounds = _list(_whole)(name, value)
    if len(bounds) != 2:
        raise _refuse(name, value, "two whole numbers, start and end")
    return bounds[0], bounds[1]


def _record(
    kind: type[_Item], readers: Mapping[str, _Reader], *required: str
) -> Callable[[str, object], _Item]:
    """Make a reader of a mapping with the given fields into a value of `kind`."""

    def read(name: str, value: object) -> _Item:
        document = _mapping(name, value)
        prefix = f"{name}." if name else ""
        unknown = sorted(set(document) - set(readers))
        if unknown:
            raise InvalidRequest(
                f"{prefix}{unknown[0][:60]} is not a field; the fields are "
                f"{known(readers)}",
                field=f"{prefix}{unknown[0][:60]}",
            )
        for each in required:
            if each not in document:
                raise InvalidRequest(
                    f"{prefix}{each} is missing; it is required",
                    field=f"{prefix}{each}",
                )
        return kind(
            **{key: readers[key](prefix + key, document[key]) for key in document}
        )

    return read


_variant = _record(
    Variant,
    {
        "key": _text,
        "recommender": _text,
        "settings": _attributes,
        "control": _truth,
        "weight": _number,
    },
    "key",
    "recommender",
)


def _scalar(name: str, value: object) -> Any:  # noqa: ANN401 - a text, number or truth
    return check_attributes("values", {name: value})[name]


_rule = _record(
    TargetingRule,
    {
        "attribute": _text,
        "operator": _choice(TargetingOperator),
        "values": _list(_scalar),
    },
    "attribute",
    "operator",
    "values",
)

_values = _list(_scalar)


def _segmentation(name: str, value: object) -> Segmentation:
    return Segmentation(
        by={
            attribute: _values(f"{name}.{attribute}", values)
            for attribute, values in _mapping(name, value).items()
        }
    )


_policy = _record(
    PolicySpecification,
    {
        "name": _text,
        "parameters": _mapping,
        "floor": _number,
        "control_share": _number,
        "interval": parse_duration,
        "minimum_units": _whole,
        "segment_by": _segmentation,
    },
    "name",
)


def _words(name: str, value: object) -> tuple[str, ...]:
    return _list(_text)(name, value)


def _placements(name: str, value: object) -> tuple[str, ...] | str:
    if value == OWN:
        return OWN
    if isinstance(value, str):
        raise _refuse(name, value, "own, or a list of placements")
    return _words(name, value)


def _positions(name: str, value: object) -> tuple[int, int]:
    bounds = _list(_whole)(name, value)
    if len(bounds) != 2:
        raise _refuse(name, value, "two whole numbers, first and last")
    return bounds[0], bounds[1]


_metric = _record(
    Metric,
    {
        "name": _text,
        "title": _text,
        "kind": _one_of("proportion", "mean", "ratio"),
        "event_kinds": _words,
        "of": _one_of("events", "value"),
        "positions": _positions,
        "categories": _words,
        "placements": _placements,
        "cap": _number,
        "trigger": _one_of("served", "viewed"),
        "direction": _one_of("higher", "lower"),
    },
    "name",
    "title",
    "kind",
    "event_kinds",
)

_declaration = _record(
    Declaration,
    {
        "key": _text,
        "kind": _choice(ExperimentKind),
        "placement": _text,
        "variants": _list(_variant),
        "description": _text,
        "layer": _text,
        "segments": _segments,
        "traffic_share": _number,
        "targeting": _list(_rule),
        "overrides": _overrides,
        "metrics": _list(_metric),
        "reward_metric": _text,
        "guardrails": _margins,
        "attribution_window": parse_duration,
        "cuped": _truth,
        "mode": _choice(AssignmentMode),
        "policy": _policy,
    },
    "key",
    "kind",
    "placement",
    "variants",
)


def parse_outcome(name: str, value: object) -> Outcome:
    """Read the outcome of an experiment.

    Raises
    ------
    InvalidRequest
        Lists those that there are.
    """
    return _choice(Outcome)(name, value)


def parse_declaration(document: object) -> Declaration:
    """Build a declaration from a document, as YAML, JSON or the database hold it.

    Raises
    ------
    InvalidRequest
        Names the field, the value and the rule; nothing is half built.
    """
    if not isinstance(document, Mapping):
        raise InvalidRequest(
            f"the experiment is a {type(document).__name__}; it must be a mapping"
        )
    return _declaration("", {k: v for k, v in document.items() if v is not None})


def declaration_document(declaration: Declaration) -> dict[str, Any]:
    """Write a declaration as a document that `parse_declaration` reads back."""
    document = dict(_plain(declaration))
    policy = declaration.policy
    if policy is not None and policy.segment_by is not None:
        document["policy"]["segment_by"] = _plain(policy.segment_by.by)
    return document


def _plain(value: Any) -> Any:  # noqa: ANN401 - walks any value of a declaration
    if hasattr(value, "__dataclass_fields__"):
        return {
            each.name: _plain(getattr(value, each.name))
            for each in fields(value)
            if getattr(value, each.name) is not None
        }
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
