"""A curation step over several machines: each finds out about its share of the rows, one writes.

What a step finds out is kept in files named by the rows' content, in a work folder beside the
output. So a share (``--shard 2/8``) does its part of each stage and leaves its files there, and the
merge (``--merge``) writes from them what one machine would have written. Machines without a file
system in common copy their work folders together: the files of different shares have different
names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from trueline.errors import UserError


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
