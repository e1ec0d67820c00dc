"""Vectors kept on disk by content, so that none is computed twice."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np

from trueline.curation.jobs.chunks import Chunk
from trueline.curation.jobs.disk import DiskTable, digest
from trueline.curation.selection.embed import Array, Embedder
from trueline.processes import rank
from trueline.records import Completion, Example

log = logging.getLogger(__name__)


class Cached:
    """An embedder's vectors, each computed once and kept in a folder by content.

    Each rank writes a file of its own and reads all of them, so no two processes wait for each
    other. A damaged file is set aside with a warning and its vectors are computed again.
    """

    def __init__(self, embedder: Embedder, folder: Path | None) -> None:
        self.embedder = embedder
        self.tables = [DiskTable()] if folder is None else _open(folder)
        self.hits = 0

    def __call__(self, chunk: Chunk) -> list[Array]:
        """Each example's (n, d) vectors."""
        keys = [self._key(e, c) for e in chunk.examples for c in e.completions]
        found: dict[bytes, bytes] = {}
        for table in self.tables:
            missing = [key for key in keys if key not in found]
            values = table.get(missing)
            found |= {k: v for k, v in zip(missing, values, strict=True) if v is not None}
        self.hits += sum(key in found for key in keys)
        todo: dict[bytes, Example] = {}
        for example in chunk.examples:
            for completion in example.completions:
                key = self._key(example, completion)
                if key not in found and key not in todo:
                    todo[key] = Example(example.prompt, (completion,), id=example.id)
        if todo:
            vectors = np.ascontiguousarray(self.embedder(list(todo.values())), dtype=np.float32)
            new = {key: row.tobytes() for key, row in zip(todo, vectors, strict=True)}
            self.tables[0].put(new.items())
            found |= new
        flatly = iter([np.frombuffer(found[key], dtype=np.float32) for key in keys])
        return [np.stack([next(flatly) for _ in e.completions]) for e in chunk.examples]

    def _key(self, example: Example, completion: Completion) -> bytes:
        prompt = example.prompt if self.embedder.context else None
        return digest(self.embedder.identity, prompt, completion.content)


def _open(folder: Path) -> list[DiskTable]:
    """This rank's table first, then those of other ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"vectors-{rank()}.sqlite"
    others = [path for path in sorted(folder.glob("vectors-*.sqlite")) if path != own]
    tables = []
    for path in (own, *others):
        try:
            tables.append(DiskTable(path))
        except sqlite3.DatabaseError as error:
            log.warning("embedding cache: %s is damaged (%s); computed anew", path, error)
            with suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
            if path == own:
                tables.append(DiskTable(path))
    return tables
