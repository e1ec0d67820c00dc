"""What is told: results on stdout, where a pipe finds them; progress and notes on stderr.

On a terminal a bar; elsewhere (a log file, a pipe) a line after ten seconds and then ever more
seldom. Both say what is done, how much is left and at what pace.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from rich.console import (
    Console,
    ConsoleDimensions,
    ConsoleOptions,
    ConsoleRenderable,
    RenderHook,
    RenderResult,
)
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from trueline.errors import printable
from trueline.processes import is_first

Watch: TypeAlias = Callable[[str], Callable[[int, int], None]]
"""Called with a stage's title; gives what is called with (done, all)."""

FIRST_LINE, LAST_GAP = 10.0, 600.0
"""Seconds before the first line of a log, and at most between two."""

WIDE = 160
"""Columns of a table that goes into a pipe or a file."""


class _Escaped(RenderHook):
    """What names and texts from outside could tell a terminal is shown as escapes, and not done."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Every renderable, its text made harmless."""
        return [_Harmless(renderable) for renderable in renderables]


@dataclass(frozen=True)
class _Harmless:
    renderable: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self.renderable, options):
            lines = text if control else "\n".join(map(printable, text.split("\n")))
            yield Segment(lines, style, control)


class _Results(Console):
    """Stdout, of the first of several processes; wide where nobody's window sets a width."""

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        found = super().size
        fixed = self.is_terminal or self.is_jupyter or "COLUMNS" in os.environ
        return found if fixed else ConsoleDimensions(WIDE, found.height)

    @size.setter
    def size(self, value: tuple[int, int]) -> None:
        Console.size.fset(self, value)  # type: ignore[attr-defined]

    def print(self, *objects: Any, **how: Any) -> None:
        """Print, on the first process alone."""
        if is_first():
            super().print(*objects, **how)


console = Console(stderr=True)
out = _Results()
for _each in (console, out):
    _each.push_render_hook(_Escaped())


def pace(done: float, seconds: float) -> str:
    """How fast it goes.

    Example:
        >>> pace(30, 10), pace(2, 30), pace(0, 10)
        ('3.0/s', '15 s each', 'no pace yet')
    """
    if done <= 0 or seconds <= 0:
        return "no pace yet"
    return f"{done / seconds:,.1f}/s" if done >= seconds else f"{seconds / done:,.0f} s each"


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(42), duration(200), duration(7300)
        ('42 s', '3 min', '2 h 2 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class _PaceColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        begun = task.fields.get("begun", 0)
        return Text(pace(task.completed - begun, task.elapsed or 0.0), style="dim")


class _Lines(Progress):
    """A bar's stand-in where nobody watches: the same calls, lines instead of a picture."""

    def __init__(self, out: Console, *, quiet: bool) -> None:
        super().__init__(console=out, disable=True)
        self.quiet = quiet
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: set[TaskID] = set()

    def start(self) -> None:
        if not self.quiet and self._thread is None:
            self._thread = threading.Thread(target=self._tell_now_and_then, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        for task in self.tasks:
            if task.id in self._told:
                self._tell(task)

    def remove_task(self, task_id: TaskID) -> None:
        self._told.discard(task_id)
        super().remove_task(task_id)

    def _tell_now_and_then(self) -> None:
        begun = time.monotonic()
        wait = FIRST_LINE
        while not self._ended.wait(wait):
            for task in [t for t in self.tasks if not t.finished][-1:]:
                self._told.add(task.id)
                self._tell(task)
            wait = min(max(FIRST_LINE, (time.monotonic() - begun) / 2), LAST_GAP)

    def _tell(self, task: Task) -> None:
        done = task.completed - task.fields.get("begun", 0)
        elapsed = task.elapsed or 0.0
        parts = [f"{task.completed:,.0f} done"]
        if task.total:
            share = task.completed / task.total
            parts = [f"{task.completed:,.0f} of {task.total:,.0f} ({share:.0%})"]
        parts += [f"{duration(elapsed)} so far", pace(done, elapsed)]
        if task.total and done > 0 and task.completed < task.total:
            left = (task.total - task.completed) * elapsed / done
            parts.append(f"about {duration(left)} left")
        parts += [task.fields["status"]] if task.fields.get("status") else []
        line = f"{task.description}: {', '.join(parts)}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def counted_bar(quiet: bool) -> Progress:
    """The bar: title, count, times, pace, and a status behind them; lines where there is no
    terminal. Of several processes the first one tells."""
    out = Console(stderr=True)
    quiet = quiet or not is_first()
    if not out.is_terminal:
        return _Lines(out, quiet=quiet)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        _PaceColumn(),
        TextColumn("{task.fields[status]}", style="dim"),
        console=out,
        disable=quiet,
        transient=True,
    )


@contextmanager
def watching(quiet: bool) -> Iterator[Watch]:
    """A bar for each stage that does something, on stderr."""
    with counted_bar(quiet) as bar:

        def watch(title: str) -> Any:
            task: Any = None

            def told(done: int, total: int) -> None:
                nonlocal task
                if task is None or done < bar.tasks[bar.task_ids.index(task)].completed:
                    if task is not None:
                        bar.remove_task(task)
                    task = bar.add_task(title, total=total, status="")
                bar.update(task, completed=done, total=total)

            return told

        yield watch


@contextmanager
def counting(what: str) -> Iterator[Callable[[str, int], None]]:
    """A bar for what has no known end; call back with what is being done and how many are done."""
    with counted_bar(quiet=False) as bar:
        task = bar.add_task(what, total=None, status="")

        def told(now: str, done: int) -> None:
            bar.update(task, description=now, completed=done)

        yield told


@contextmanager
def polled(
    what: str, count: Callable[[], int], total: int | None = None, *, quiet: bool = False
) -> Iterator[None]:
    """A bar for work that keeps a count of its own and calls nobody back."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            bar.update(task, completed=count())

    with counted_bar(quiet) as bar:
        task = bar.add_task(what, total=total, status="")
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            bar.update(task, completed=count())


def say(line: str, *, quiet: bool = False) -> None:
    """One plain line on stderr."""
    if not quiet:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(
    title: str, total: int | None, *, quiet: bool = False
) -> Iterator[Callable[..., None]]:
    """A bar for anything that is counted; call back with how many more are done and, where it
    becomes known later, the total."""
    with counted_bar(quiet) as bar:
        task = bar.add_task(title, total=total, status="")

        def advance(done: int, total: int | None = None) -> None:
            bar.update(task, advance=done, total=total)

        yield advance
