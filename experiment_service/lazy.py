"""Modules that load when they are first used, or may not be there at all."""

from importlib import import_module
from importlib.util import find_spec

from experiment_service.errors import InvalidRequest


class LazyModule:
    """A module by its name; importing is safe from many threads.

    Write it beside an import for the type checker, which then knows the module::

        if TYPE_CHECKING:
            from experiment_service import reporting
        else:
            reporting = LazyModule("experiment_service.reporting")
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> object:
        return getattr(import_module(self._name), name)


def require(name: str, *, extra: str, why: str) -> None:
    """Check that a module of an extra is installed, without loading it.

    Raises
    ------
    InvalidRequest
        Says why it is needed and how to install it.
    """
    if find_spec(name) is None:
        raise InvalidRequest(
            f"{why}, but {name} is not installed; "
            f"pip install 'experiment-service[{extra}]'"
        )
