"""A run's identity: the facts that decide its outcome, and whether another run has the same.

A checkpoint holds the identity of the run that wrote it. What resumes from it compares: a fact that
may change (how long, how often to save, on how many processes) is taken and said, any other
difference stops the run, named. So no option given to a resumed run is silently ignored, and no
run goes on from another's work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from trueline.errors import UserError
from trueline.files import read_json, write_json

RESUME = (
    "give the former to go on with --resume, or start anew in another folder or with --overwrite"
)
May: TypeAlias = Callable[[Any, Any], bool]
"""Called with the kept and the present value: whether a run may go on with the present one."""


def freely(kept: Any, now: Any) -> bool:
    """Any change is taken."""
    return True


def upwards(kept: Any, now: Any) -> bool:
    """A number may grow, so that a run is prolonged."""
    numbers = isinstance(kept, int | float) and isinstance(now, int | float)
    return numbers and (now >= kept if kept >= 0 else True)


@dataclass(frozen=True)
class Identity:
    """What a run is.

    Args:
        facts: by name, JSON-ready; nested ones are compared by dotted name.
        free: which facts may change on resuming, and how; all others must be the same.

    Example:
        >>> old = Identity({"beta": 0.1, "max_steps": 60})
        >>> new = Identity({"beta": 0.1, "max_steps": 90}, {"max_steps": upwards})
        >>> new.take_over(old, "runs/a")
        ['max_steps: 60 before, 90 now']
        >>> Identity({"beta": 0.2, "max_steps": 60}).take_over(old, "runs/a")
        Traceback (most recent call last):
            ...
        trueline.errors.UserError: runs/a was begun with other settings (beta: 0.1 before, 0.2 \
now); give the former to go on with --resume, or start anew in another folder or with --overwrite
    """

    facts: Mapping[str, Any]
    free: Mapping[str, May] = field(default_factory=dict)

    def take_over(self, kept: Identity, where: str | Path, remedy: str = RESUME) -> list[str]:
        """The differences that a run of this identity takes when it goes on from ``kept``.

        Raises:
            UserError: any other difference, all of them named.
        """
        before, now = _flat(kept.facts), _flat(self.facts)
        taken: list[str] = []
        refused: list[str] = []
        for name in dict.fromkeys((*before, *now)):
            old, new = before.get(name), now.get(name)
            if old == new:
                continue
            may = self.free.get(name.split(".", 1)[0])
            line = f"{name}: {_short(old)} before, {_short(new)} now"
            (taken if may is not None and may(old, new) else refused).append(line)
        if refused:
            raise UserError(
                f"{where} was begun with other settings ({'; '.join(refused)}); {remedy}"
            )
        return taken

    @property
    def id(self) -> str:
        """12 hexadecimal digits of the facts."""
        text = json.dumps(self.facts, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()

    def write(self, path: str | Path) -> None:
        """Keep the facts, whole or not at all."""
        write_json(path, self.facts)

    @classmethod
    def read(cls, path: str | Path) -> Identity:
        """What :meth:`write` kept.

        Raises:
            UserError: it is not there or cannot be read.
        """
        facts = read_json(path, "it does not say which run it belongs to, so nothing resumes it")
        if not isinstance(facts, dict):
            raise UserError(f"{path} does not hold a run's identity")
        return cls(facts)

    @classmethod
    def of(cls, facts: Mapping[str, Any], free: Mapping[str, May]) -> Identity:
        """An identity whose facts are as they will be read back from JSON."""
        return cls(json.loads(json.dumps(facts, default=str)), free)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
