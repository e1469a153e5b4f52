"""Numbers as text: percentages, differences in points, spans of time, sizes.

One place, so that a number reads the same in a table, a tile and a tooltip.
"""

from datetime import UTC, datetime, timedelta

from experiment_service.analysis.interval import Estimate, Interval
from experiment_service.domain.metric import MetricKind

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
NO_BREAK = "\N{NO-BREAK SPACE}"


def count(number: float) -> str:
    """Write a count with thousands separated."""
    return f"{number:,.0f}"


def share(number: float, *, digits: int = 1) -> str:
    """Write a share of 1 as a percentage."""
    return f"{100 * number:.{digits}f}%"


def probability(number: float) -> str:
    """Write a probability as a percentage that never claims certainty."""
    if number < 0.001:
        return "< 0.1%"
    return "> 99.9%" if number > 0.999 else share(number)


def p_value(number: float) -> str:
    """Write a p-value; below one in ten thousand only that it is."""
    return "< 0.0001" if number < 0.0001 else f"{number:.2g}"


def kind(name: str) -> str:
    """Write the kind of an experiment; the space does not break."""
    return "Bandit" if name == "bandit" else "A/B\N{NO-BREAK SPACE}test"


def value(number: float, kind: MetricKind) -> str:
    """Write the value of a metric: a percentage, or events per unit."""
    if kind == "mean":
        return f"{number:.3f}"
    return share(number, digits=1 if abs(number) >= 0.1 else 2)


def difference(number: float, kind: MetricKind) -> str:
    """Write a signed difference: in percentage points, or events per unit."""
    if kind == "mean":
        return _signed(number, 3)
    return f"{_signed(100 * number, 2)} pp"


def reward(number: float, *, share: bool) -> str:
    """Write a mean reward per round: a percentage if rewards are 0 or 1."""
    return f"{100 * number:.2f}%" if share else f"{number:.4f}"


def reward_range(low: float, high: float, *, share: bool) -> str:
    """Write the limits of a mean reward."""
    return f"{reward(low, share=share)} to {reward(high, share=share)}"


def reward_difference(number: float, *, share: bool) -> str:
    """Write a signed difference of mean rewards."""
    return f"{_signed(100 * number, 2)} pp" if share else _signed(number, 4)


def loss(number: float, kind: MetricKind) -> str:
    """Write an expected loss, >= 0, in the unit of differences."""
    scale, unit = (1.0, "") if kind == "mean" else (100.0, " pp")
    small = scale * number < 0.001
    return f"{'< 0.001' if small else f'{scale * number:.3f}'}{unit}"


def lift(number: float) -> str:
    """Write a relative lift as a signed percentage."""
    return f"{_signed(100 * number, 1)}%"


def _signed(number: float, digits: int) -> str:
    text = f"{abs(number):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if number > 0 else MINUS) + text


def value_range(interval: Interval, kind: MetricKind) -> str:
    """Write the limits of a value."""
    return f"{value(interval.low, kind)} to {value(interval.high, kind)}"


def difference_range(interval: Interval, kind: MetricKind) -> str:
    """Write the limits of a difference, the unit once."""
    low, high = difference(interval.low, kind), difference(interval.high, kind)
    return f"{low.removesuffix(' pp')} to {high}"


def lift_range(interval: Interval) -> str:
    """Write the limits of a lift."""
    return f"{lift(interval.low)} to {lift(interval.high)}"


def given(estimate: Estimate) -> Interval | None:
    """Return the interval, None when it is withheld."""
    return estimate if isinstance(estimate, Interval) else None


def span(time: timedelta) -> str:
    """Write a span of time in its two largest units."""
    seconds = max(int(time.total_seconds()), 0)
    days, hours = divmod(seconds, 86_400)
    hours, minutes = divmod(hours, 3600)
    minutes, seconds = divmod(minutes, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        del parts[0]
    shown = [
        f"{number}\N{NO-BREAK SPACE}{unit}" for number, unit in parts[:2] if number
    ]
    return " ".join(shown) or "0\N{NO-BREAK SPACE}s"


def ago(instant: datetime | None, now: datetime) -> str:
    """Write how long ago something was."""
    if instant is None:
        return "never"
    return (
        "just now"
        if now - instant < timedelta(seconds=2)
        else f"{span(now - instant)} ago"
    )


def moment(instant: datetime | None) -> str:
    """Write an instant in UTC, to the minute."""
    if instant is None:
        return NOTHING
    return f"{instant.astimezone(UTC):%d %b %Y, %H:%M} UTC"


def size(number: int) -> str:
    """Write a number of bytes."""
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
