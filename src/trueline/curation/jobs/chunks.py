"""Chunks of examples, what was found out about them, and which process does which: of one
machine, or of several that each find out about their share of the rows, where one then writes.

What a step finds out is kept in files named by the rows' content, in a work folder beside the
output. So a share (``--shard 2/8``) does its part of each stage and leaves its files there, and the
merge (``--merge``) writes from them what one machine would have written. Machines without a file
system in common copy their work folders together: the files of different shares have different
names.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from trueline.data.readers import ending
from trueline.errors import UserError
from trueline.records import Example

Note: TypeAlias = Any
"""What a stage found out about one example: anything JSON can hold."""

POLL = 0.1  # seconds between looks for another rank's chunk


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive examples.

    ``digest`` identifies them by their content; ``completions_before`` counts the completions of
    all earlier examples.
    """

    index: int
    examples: Sequence[Example]
    digest: str
    completions_before: int


class Notes:
    """The notes of all examples in their order; another rank's are waited for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __iter__(self) -> Iterator[Note]:
        for chunk in self.chunks():
            yield from chunk

    def chunks(self) -> Iterator[list[Note]]:
        """A chunk's notes at a time."""
        for index in range(len(self.files)):
            yield self.chunk(index)

    def chunk(self, index: int) -> list[Note]:
        """One chunk's notes, as soon as they are there."""
        path = self.files[index]
        while not path.exists():
            time.sleep(POLL)
        notes: list[Note] = json.loads(path.read_text("utf-8"))
        return notes


def sha256(path: Path) -> str:
    """A file's hash."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside(path: Path, name: str) -> Path:
    """A file of the same kind with a further name.

    Example:
        >>> beside(Path("runs/pairs.jsonl.gz"), "random").name
        'pairs.random.jsonl.gz'
    """
    suffix = ending(path) or ""
    return path.with_name(f"{path.name[: len(path.name) - len(suffix)]}.{name}{suffix}")


@dataclass(frozen=True, slots=True)
class Shard:
    """Share ``index`` of ``count``, counted from 1; or, with none, the merge of all.

    Example:
        >>> Shard.parse("2/8")
        Shard(index=2, count=8)
    """

    index: int | None
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n``.

        Raises:
            UserError: it is something else, or i is not among 1 to n.
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text.strip())
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise UserError(f"shard must be i/n with i from 1 to n, such as 2/8, got {text!r}")
        return cls(index, count)


class ShareDone(Exception):
    """A share has done what it can; the message says what comes next."""


_present: ContextVar[Shard | None] = ContextVar("shard", default=None)


@contextmanager
def working_on(shard: Shard | None) -> Iterator[None]:
    """Within it jobs do this share alone, or merge."""
    token = _present.set(shard)
    try:
        yield
    finally:
        _present.reset(token)


def present() -> Shard | None:
    """What this process works on; None for everything."""
    return _present.get()


def after_stage(stage: str, missing: Sequence[Path]) -> None:
    """Go on to the next stage, unless other shares' files are still to come.

    Raises:
        ShareDone: a share has to wait for the others.
        UserError: a merge lacks files.
    """
    shard = present()
    if shard is None or not missing:
        return
    if shard.index is None:
        raise UserError(
            f"{len(missing)} chunks of the stage {stage!r} are not there: run every shard with the "
            f"same options first (and copy their work folders into {missing[0].parent.parent})"
        )
    raise ShareDone(
        f"shard {shard.index}/{shard.count}: {stage!r} is done here, and {len(missing)} chunks of "
        "other shards are not there yet; run them, then this one again for what follows, or --merge"
    )


def before_writing(stages: int) -> None:
    """Only one writes.

    Raises:
        ShareDone: this is a share.
        UserError: the step has no stage that could be shared out.
    """
    shard = present()
    if shard is None:
        return
    if not stages:
        raise UserError("this step finds nothing out that shards could share; leave --shard out")
    if shard.index is not None:
        raise ShareDone(
            f"shard {shard.index}/{shard.count} is done; --merge writes when all of them are"
        )
