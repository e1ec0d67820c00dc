"""Runs: what is done once for each seed, named by its content, and read by any number of claims.

An experiment is one decorated function. An arm is an experiment with its options; a run is an arm
at one seed and one scale. Claims name arms. So claims that need the same model share its run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from trueline.registry import Registry

Values: TypeAlias = Mapping[str, float | None]
"""What an experiment measured, by name; None is unscored."""


@dataclass(frozen=True)
class Arm:
    """An experiment with its options.

    Args:
        experiment: its name.
        options: what sets this arm apart; plain values that JSON can hold.
        title: in tables.
    """

    experiment: str
    options: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def key(self) -> str:
        """The same for two arms that are one and the same thing, whatever their titles."""
        return json.dumps([self.experiment, self.options], sort_keys=True)


@cache
def _release() -> str:
    return metadata.version("trueline")  # reads a file, and keys are asked for in thousands


@dataclass(frozen=True)
class Run:
    """An arm at one seed, with every option it has.

    Args:
        experiment: its name.
        options: all of them, the scale's among them.
        seed: another world, other data, other weights.
        title: for progress.
    """

    experiment: str
    options: Mapping[str, Any]
    seed: int
    title: str = ""

    @property
    def key(self) -> str:
        """A digest of all that decides the result."""
        facts = [
            _release(),
            EXPERIMENTS[self.experiment].version,
            self.options,
            self.seed,
        ]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"{self.experiment}-{digest[:16]}"

    @property
    def needs(self) -> Sequence[Run]:
        """The runs that must be there before this one."""
        return EXPERIMENTS[self.experiment].needs(self)


Function: TypeAlias = Callable[[Run, Path, Sequence[Path]], Values]


@dataclass(frozen=True)
class Experiment:
    """A registered experiment.

    Args:
        name: in arms.
        function: called with the run, a folder of its own and the folders of the runs it needs.
        version: raised whenever the same options come to give other values, so that what was kept
            is measured again.
        needs: which runs must be there first.
    """

    name: str
    function: Function
    version: int
    needs: Callable[[Run], Sequence[Run]]


EXPERIMENTS: Registry[Experiment] = Registry("experiment")


def _nothing(_: Run) -> Sequence[Run]:
    return ()


def experiment(
    name: str, *, version: int = 1, needs: Callable[[Run], Sequence[Run]] = _nothing
) -> Callable[[Function], Function]:
    """Register an experiment; see :class:`Experiment`."""

    def add(function: Function) -> Function:
        EXPERIMENTS.add(name, Experiment(name, function, version, needs))
        return function

    return add


def load_all(package: str) -> None:
    """Import every module of a package, so that what is decorated in it is registered."""
    found = importlib.import_module(package)
    for module in pkgutil.iter_modules(found.__path__):
        importlib.import_module(f"{package}.{module.name}")
