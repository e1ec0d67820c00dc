"""Chunks of examples, what was found out about them, and which process does which."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from trueline.data.readers import ending
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
