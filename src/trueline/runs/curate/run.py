"""What `trueline data` does to curate: one step, from a source to an output with its manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trueline.runs.curate.steps  # noqa: F401  (registers the house's own)
from trueline.curation import Curated
from trueline.curation.jobs.chunks import Shard, ShareDone, working_on
from trueline.curation.jobs.job import Progress, alone
from trueline.curation.jobs.step import CURATIONS, Curation, Work
from trueline.data import load_examples
from trueline.errors import UserError
from trueline.interrupts import Signals
from trueline.terminal import say


def curate(
    step: str,
    source: str | None,
    output: str | Path,
    /,
    *main: Any,
    split: str = "train",
    name: str | None = None,
    form: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    to: str | None = None,
    overwrite: bool = False,
    shard: str | None = None,
    merge: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Curated | None:
    """Do one step: read a source, write an output with its manifest.

    Args:
        step: its name.
        source: a file, a directory, or a hub id; None for a step that opens its own.
        output: the file or folder to write.
        main: the step's main argument, where it has one.
        split, name, form, skip_bad, limit: how the source is read.
        to, overwrite: what is written, and whether files that exist are replaced.
        shard: ``"2/8"`` finds out about the second of eight shares of the rows and writes nothing.
        merge: write from what all shards have found out.
        progress: told how far each pass is.
        options: the step's own.

    Returns:
        What was made, on rank 0; None on other ranks and for a shard.

    Raises:
        UserError: whatever the step raises; a shard that is none; a merge that lacks shards.
    """
    if shard is not None and merge:
        raise UserError("a shard does its share and a merge writes; give one of the two")
    part = Shard.parse(shard) if shard is not None else Shard(None) if merge else None
    known = CURATIONS[step]
    examples = None
    if known.reads:
        examples = load_examples(
            str(source), split=split, name=name, form=form, skip_bad=skip_bad, limit=limit
        )
    work = Work(examples, Path(output), to or known.to, split, skip_bad, overwrite, progress)
    share = part is not None and part.index is not None  # several may be at work on one output
    try:
        with (
            Signals("this chunk"),
            contextlib.nullcontext() if share else alone(work.output),
            working_on(part),
        ):
            return known(work, *main, **options)
    except ShareDone as done:
        say(str(done))
        return None


def every() -> Mapping[str, Curation]:
    """All registered steps."""
    return CURATIONS


def verb(step: str) -> Callable[..., Curated | None]:
    """A step as a function: ``trueline.data.dedup("in.jsonl", "out.jsonl", near=0.8)``."""
    known = CURATIONS[step]

    def call(*places: Any, **options: Any) -> Curated | None:
        source, *main, output = places if known.reads else (None, *places)
        return curate(known.name, source, output, *main, **options)

    call.__name__ = step.replace("-", "_")
    call.__doc__ = known.make.__doc__
    return call
