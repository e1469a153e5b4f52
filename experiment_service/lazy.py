"""Modules that load when they are first used, where their import would delay a start."""

from importlib import import_module


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
