"""What is told on the way: the console on stderr, where progress and notes go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Watch: TypeAlias = Callable[[str], Callable[[int, int], None]]
"""Called with a stage's title; gives what is called with (done, all)."""

console = Console(stderr=True)


@contextmanager
def watching(quiet: bool) -> Iterator[Watch]:
    """A bar for each stage that does something, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:

        def watch(title: str) -> Any:
            task: Any = None

            def told(done: int, total: int) -> None:
                nonlocal task
                if task is None or done < bar.tasks[bar.task_ids.index(task)].completed:
                    if task is not None:
                        bar.remove_task(task)
                    task = bar.add_task(title, total=total)
                bar.update(task, completed=done, total=total)

            return told

        yield watch


def counted_bar(quiet: bool) -> Progress:
    """The bar: title, count, times, and a status behind them."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", style="dim"),
        console=Console(stderr=True),
        disable=quiet,
        transient=True,
    )


def say(line: str, *, quiet: bool = False) -> None:
    """One plain line on stderr."""
    if not quiet:
        Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)


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
