"""Signals: the first ends a long verb at the next whole piece of work, the second at once.

While a :class:`Signals` is active, SIGINT, SIGTERM and SIGHUP are noted, and whoever has just kept
a piece of work (a batch of answers, a chunk of notes, a run of a study) calls :func:`piece_done`,
which ends the verb there. A signal that was ignored when the process began (``nohup``) stays
ignored.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from trueline.processes import heard, meet

HANDLED: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COMMAND = "TRUELINE_COMMAND"
"""Where the environment has the command line that began this process, or the one before it."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work after a whole piece of it.

    Args:
        number: the signal's.
        step: training steps done.
        checkpoint: what a resumed training goes on from.
    """

    def __init__(
        self, number: int, step: int | None = None, checkpoint: Path | None = None
    ) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"interrupted by {signal.Signals(number).name}{after}")
        self.number, self.step, self.checkpoint = number, step, checkpoint


class Signals:
    """While active, signals are noted rather than obeyed; within another one it leaves them to it.

    Args:
        what: the piece of work that is done before it ends.

    Example:
        >>> with Signals("this answer") as signals:
        ...     piece_done()
        >>> signals.caught is None
        True
    """

    def __init__(self, what: str = "this piece of work") -> None:
        self.what = what
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        global _active
        self.caught = None
        if _active is None and threading.current_thread() is threading.main_thread():
            taken = [s for s in HANDLED if signal.getsignal(s) is not signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._on_signal) for s in taken}
            _active = self
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        if _active is self:
            _active = None
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.caught is None:
            self.caught = number
            os.write(2, f"\nending after {self.what}; once more ends at once\n".encode())
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


_active: Signals | None = None


def piece_done() -> None:
    """A piece of work is kept: end here, if a signal came, to this process or to another of those
    that share the work.

    Raises:
        Interrupted: one did.
    """
    if _active is not None and (number := heard(_active.caught or 0)):
        raise Interrupted(number)


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Around this process's share of work that several do: they end it together, after the piece
    in which a signal came to any of them.

    Raises:
        Interrupted: one did.
    """
    with contextlib.suppress(Interrupted):
        yield
    number = meet(0 if _active is None else _active.caught or heard())
    if _active is not None and number:
        raise Interrupted(number)


def command() -> str | None:
    """The command line that began this process, without secrets; None where Python did."""
    return os.environ.get(COMMAND)


def note_command(words: Sequence[str]) -> None:
    """Keep the command line, unless it was a launcher's child that was called by it."""
    if COMMAND in os.environ and "LOCAL_RANK" in os.environ:
        return
    shown, hide = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = name.startswith("-") and name.endswith(("token", "key", "secret", "password"))
        shown.append("..." if hide else f"{name}=..." if secret and equals else word)
        hide = secret and not equals
    os.environ[COMMAND] = shlex.join(["trueline", *shown])


def goes_on(begun: bool) -> str | None:
    """The command that goes on after an interruption; None where there is nothing to go on with.

    Args:
        begun: whether the work had begun, so that there is something to resume.
    """
    words = shlex.split(command() or "")[1:]
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb == "diffusion":
        verb = " ".join(words[:2])
    if verb not in RESUMED and verb not in REPEATED:
        return None
    more = ["--resume"] if begun and verb in RESUMED and "--resume" not in words else []
    return shlex.join(["trueline", *words, *more])


RESUMED = ("align", "dpo", "kto", "orpo", "cpo", "bco", "sft", "diffusion align")
"""Verbs that go on with --resume."""
REPEATED = ("evaluate", "data", "reproduce", "diffusion evaluate", "demo")
"""Verbs that go on when the same command is given again."""
