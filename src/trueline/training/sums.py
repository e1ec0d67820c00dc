"""Numbers by 16-byte keys in sorted columns, 24 bytes each, in memory or memory-mapped; and lists
of keys in files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from trueline.files import checksum, read_json, whole, write_json

Column: TypeAlias = np.ndarray[Any, Any]


class Sums:
    """Float64 values by key; a key's first value stays.

    A part is (3, N) uint64: both halves of the keys, sorted, and the values' bits. New values are
    sorted in at once with the parts that are no larger, so there are few parts, and adding N values
    one by one costs N log N.

    Example:
        >>> sums = Sums()
        >>> sums.add(np.array([[1, 2], [3, 4]], dtype=np.uint64), np.array([0.5, -1.0]))
        >>> sums.find(np.array([[3, 4], [3, 5]], dtype=np.uint64))
        (array([ True, False]), array([-1.,  0.]))
    """

    def __init__(self) -> None:
        self.parts: list[Column] = []

    def __len__(self) -> int:
        return sum(part.shape[1] for part in self.parts)

    def find(self, keys: Column) -> tuple[Column, Column]:
        """Which of the (N, 2) keys are known, and their values; 0 for the others."""
        known, values = np.zeros(len(keys), dtype=np.bool_), np.zeros(len(keys))
        for part in self.parts:
            todo = np.flatnonzero(~known)
            if not len(todo):
                break
            high, low = keys[todo].T
            at = np.searchsorted(part[0], high)
            while len(todo):
                inside = at < part.shape[1]
                todo, high, low, at = todo[inside], high[inside], low[inside], at[inside]
                alike = part[0][at] == high
                todo, high, low, at = todo[alike], high[alike], low[alike], at[alike]
                hit = part[1][at] == low
                known[todo[hit]] = True
                values[todo[hit]] = part[2][at[hit]].view(np.float64)
                todo, high, low, at = todo[~hit], high[~hit], low[~hit], at[~hit] + 1
        return known, values

    def add(self, keys: Column, values: Column) -> None:
        """Take in values whose keys are new; of a key that comes twice the first."""
        known, _ = self.find(keys)
        columns = np.stack([*keys[~known].T, values[~known].astype(np.float64).view(np.uint64)])
        if not columns.shape[1]:
            return
        new = _sorted(columns)
        while self.parts and self.parts[-1].shape[1] <= 2 * new.shape[1]:
            new = _sorted(np.concatenate([self.parts.pop(), new], axis=1))
        self.parts.append(new)

    def write(self, path: Path, names: Sequence[str]) -> None:
        """Everything as one part in a file, from now on memory-mapped.

        Args:
            path: ``.npy``; beside it stands what it was made of.
            names: the files whose values it holds.
        """
        every = _sorted(np.concatenate(self.parts, axis=1))
        with whole(path) as part, part.open("wb") as file:
            np.save(file, every)
        facts = {"files": list(names), "sum": checksum(path)}
        write_json(path.with_suffix(".json"), facts)
        self.parts = [np.load(path, mmap_mode="r")]

    def read(self, path: Path) -> list[str]:
        """Take in such a file.

        Returns:
            The files whose values it holds.

        Raises:
            UserError: its description cannot be read.
            ValueError: it is not as it was written.
            OSError: it cannot be read.
        """
        facts = read_json(path.with_suffix(".json"), "it is made again")
        if checksum(path) != facts["sum"]:
            raise ValueError("its checksum does not match")
        self.parts.append(np.load(path, mmap_mode="r"))
        return [str(name) for name in facts["files"]]


def write_keys(path: Path, blocks: Iterable[Column]) -> None:
    """Blocks of (N, 2) keys into a file as they come, behind them their digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(digest_size=16)
    with whole(path) as part, part.open("wb") as file:
        for keys in blocks:
            data = np.ascontiguousarray(keys, dtype="<u8").tobytes()
            digest.update(data)
            file.write(data)
        file.write(digest.digest())


def read_keys(path: Path) -> Column:
    """(N, 2) keys of such a file, memory-mapped.

    Raises:
        ValueError: it is not as it was written.
        OSError: it cannot be read.
    """
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    keys, digest = raw[:-16], raw[-16:]
    if hashlib.blake2b(keys.data, digest_size=16).digest() != digest.tobytes():
        raise ValueError("its digest does not match")
    found: Column = keys.view("<u8").reshape(-1, 2)
    return found


def _sorted(columns: Column) -> Column:
    """In order of the keys, each once: the first of its kind."""
    order = np.lexsort((columns[1], columns[0]))
    columns = columns[:, order]
    again = np.zeros(columns.shape[1], dtype=np.bool_)
    again[1:] = (columns[0, 1:] == columns[0, :-1]) & (columns[1, 1:] == columns[1, :-1])
    kept: Column = np.ascontiguousarray(columns[:, ~again])
    return kept
