"""Every error of the service on one screen.

A message names the thing, the value and the rule. `api/app.py` maps the tree to
status codes; the CLI prints the message and exits with 2.
"""

from collections.abc import Iterable


class ExperimentServiceError(Exception):
    """Base of every error that a caller can act on.

    Parameters
    ----------
    message : str
        Names the thing, the value and the rule.
    field : str, optional
        Path of the offending input field, such as ``variants.0.weight``.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class NotFound(ExperimentServiceError):  # noqa: N818
    """The named thing does not exist; the message lists the names that do."""


class Conflict(ExperimentServiceError):  # noqa: N818
    """The change collides with something stored, such as a key in use."""


class InvalidRequest(ExperimentServiceError):  # noqa: N818
    """A value breaks a rule; nothing was stored."""


class InvalidState(ExperimentServiceError):  # noqa: N818
    """The thing exists but is not in a state that allows the action."""


class Unavailable(ExperimentServiceError):  # noqa: N818
    """Something the action needs is down for now; try again later.

    Parameters
    ----------
    message : str
        Says what is down and what to do.
    retry_after : int
        Seconds after which a retry makes sense.
    """

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def known(names: Iterable[object]) -> str:
    """Join names for an error message, or say that there are none."""
    listed = ", ".join(sorted(str(name) for name in names))
    return listed or "none yet"
