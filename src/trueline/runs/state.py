"""How far a run is: created, prepared, at work, finished or broken off, each with its time.

The record lies in the run's folder from the moment the run is accepted, so that nothing is written
by a command that is refused. It names the process that owns the run: where that has died, the run
reads as broken off. What counts is the order of the states, never their times, so a clock that goes
back confuses nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from trueline.errors import UserError, cause
from trueline.files import LOCK, Lock, Owner
from trueline.identity import Identity
from trueline.interrupts import command
from trueline.runs.record import STATE, Run


class State(StrEnum):
    """Where a run stands."""

    CREATED = "created"
    RESUMED = "resumed"
    PREPARED = "prepared"
    TRAINING = "training"
    WORKING = "working"
    FINISHED = "finished"
    BROKEN_OFF = "broken off"


ENDED = (State.FINISHED, State.BROKEN_OFF)


@dataclass(frozen=True)
class Status:
    """What the record says of a run.

    Args:
        id: digest of its identity; the same settings on the same data have the same.
        verb: which made it.
        objective: what it trains with, if anything.
        data: what it works on.
        command: the command line, without secrets; None where Python began it.
        states: (state, time) in their order.
        owner: the process at work, or the last one that was.
        reason: why it was broken off.
        identity: the facts that decide the outcome.
        facts: whatever else the verb keeps.
        lock: the folder's, by which an owner on another host shows that it lives; never written.
    """

    id: str
    verb: str
    objective: str | None = None
    data: str | None = None
    command: str | None = None
    states: Sequence[tuple[str, str]] = ()
    owner: Owner | None = None
    reason: str = ""
    identity: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    lock: Path = Path(LOCK)

    @property
    def state(self) -> State:
        """The last state; one whose owner has died is broken off."""
        last = State(self.states[-1][0])
        dead = self.owner is None or not self.owner.alive(self.lock)
        return State.BROKEN_OFF if last not in ENDED and dead else last

    @property
    def why(self) -> str:
        """Why it was broken off; empty where it was not."""
        if self.state is not State.BROKEN_OFF:
            return ""
        return self.reason or f"its process ended while it was {self.states[-1][0]}"

    @property
    def since(self) -> str:
        """When the last state was reached."""
        return self.states[-1][1]

    @property
    def mine(self) -> bool:
        """Whether this process is at work on it."""
        return self.owner == Owner.here() and self.states[-1][0] not in ENDED

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], lock: Path) -> Status:
        """What was written, in the folder that this lock holds."""
        states = [(State(name), str(at)) for name, at in value["states"]]
        owner = value["owner"]
        if not states:
            raise ValueError("no state")
        owner = None if owner is None else Owner(**owner)
        return cls(**{**value, "states": states, "owner": owner, "lock": lock})


def status(run: Run | str | os.PathLike[str]) -> Status | None:
    """The record of a run; None where there is none, or none that can be read."""
    path = Path(run) / STATE
    try:
        return Status.from_dict(json.loads(path.read_text("utf-8")), path.with_name(LOCK))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def created(
    run: Run,
    verb: str,
    *,
    objective: str | None = None,
    data: str | None = None,
    identity: Mapping[str, Any] | None = None,
    resumed: bool = False,
) -> None:
    """A run is accepted: its record is written, or taken further where it is resumed."""
    before = status(run) if resumed else None
    facts = dict(identity or {"verb": verb, "objective": objective, "data": data})
    _write(
        run,
        Status(
            Identity(facts).id if before is None else before.id,
            verb,
            objective,
            data,
            command(),
            [(State.CREATED, _now())]
            if before is None
            else [*_closed(before), (State.RESUMED, _now())],
            Owner.here(),
            identity=facts,
            facts={} if before is None else before.facts,
        ),
    )
    _begun.add(run.path.absolute())


def reached(run: Run, state: State, reason: str = "") -> None:
    """The run that this process is at work on is in another state; any other run is left alone."""
    now = status(run)
    if now is None or not now.mine or now.states[-1][0] == state:
        return
    states = [*now.states, (state, _now())]
    _write(run, Status(**{**vars(now), "states": states, "reason": reason}))


def note(run: Run, **facts: Any) -> None:
    """Keep something more in the record of a run."""
    now = status(run)
    if now is not None:
        _write(run, Status(**{**vars(now), "facts": {**now.facts, **facts}}))


@contextlib.contextmanager
def held(folder: str | os.PathLike[str]) -> Iterator[Run]:
    """A folder for one process's work: finished where the block ends, broken off where an error
    ends it. Within another block of the same folder, the outer one decides.

    Raises:
        UserError: another process holds it.
    """
    run = Run.create(folder)
    outermost = run.path.absolute() not in _inside
    with Lock(folder):
        _inside.add(run.path.absolute())
        try:
            yield run
        except BaseException as error:
            if outermost:
                with contextlib.suppress(OSError):  # the disk may be what broke it off
                    reached(run, State.BROKEN_OFF, _reason(error))
            raise
        else:
            if outermost:
                reached(run, State.FINISHED)
        finally:
            if outermost:
                _inside.discard(run.path.absolute())


def begun() -> bool:
    """Whether this process has begun any run."""
    return bool(_begun)


_inside: set[Path] = set()
"""Folders that this process holds."""
_begun: set[Path] = set()
"""Folders of runs that this process was accepted for."""


def _write(run: Run, now: Status) -> None:
    facts = {**asdict(now), "states": [list(pair) for pair in now.states]}
    run.write(STATE, {name: value for name, value in facts.items() if name != "lock"})


def _closed(before: Status) -> list[tuple[str, str]]:
    """The states so far; where their owner died, that it did."""
    states = list(before.states)
    if states[-1][0] not in ENDED:
        states.append((State.BROKEN_OFF, _now()))
    return states


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _reason(error: BaseException) -> str:
    said = cause(error)
    plain = isinstance(error, UserError | KeyboardInterrupt | SystemExit)
    return said if plain else f"{type(error).__name__}: {said}"
