"""Packages whose names are verbs, too: ``tl.report(run)``, ``tl.data.dedup(...)``.

The package stays a package; called, or asked for a step's name, it hands over to
:mod:`trueline.runs`, which is imported then.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def verb(name: str) -> Callable[..., Any]:
    """The function ``trueline.runs.NAME.NAME``, by its name: what a run hands itself over to,
    and what those verbs make is a run."""
    found: Callable[..., Any] = getattr(import_module(f"trueline.runs.{name}"), name)
    return found


class Called(ModuleType):
    """A package that is called: ``trueline.report`` is ``trueline.runs.report.report``."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The verb of the package's name."""
        return verb(self.__name__.rpartition(".")[2])(*args, **options)


def _shadowing(name: str) -> Any:
    """The function in ``trueline.runs.data``, in place of the submodule of the same name."""

    def get(self: ModuleType) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(import_module("trueline.runs.data"), name)
        return found

    def put(self: ModuleType, module: ModuleType) -> None:
        """What an import of the submodule would set; it stays reachable by its full name."""

    return property(get, put)


class Data(ModuleType):
    """``trueline.data``, with inspect, convert and every curation step as functions."""

    inspect = _shadowing("inspect")
    convert = _shadowing("convert")

    def __getattr__(self, name: str) -> Any:
        """A curation step by its name."""
        if not name.startswith("_"):
            curate = import_module("trueline.runs.curate")
            step = name.rstrip("_").replace("_", "-")
            if step in curate.every():
                return curate.verb(step)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class Diffusion(ModuleType):
    """``trueline.diffusion``, with ``align(...)`` and ``evaluate(...)``."""

    def __getattr__(self, name: str) -> Any:
        """A verb on text-to-image models."""
        if name in ("align", "evaluate"):
            return getattr(import_module(f"trueline.runs.diffusion.{name}"), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class Runs(ModuleType):
    """``trueline.runs(folder)``, the list of runs, and ``trueline.runs.open_run(folder)``."""

    def __call__(self, folder: Any = "runs") -> Any:
        """The runs in a folder and below it."""
        return import_module("trueline.runs.listing").listed(folder)

    def __getattr__(self, name: str) -> Any:
        """A run by its folder."""
        homes = {"open_run": "opened", "Run": "Run"}
        if name in homes:
            return getattr(import_module("trueline.runs.run"), homes[name])
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
