"""Keys to values on disk, so that what must be remembered of millions of rows is not in memory;
and the k smallest of any number of values, exactly, in constant memory.

A float32 and an unsigned 32-bit integer sort alike once the float's bits are turned over. Two
passes over the values, counting the upper 16 bits and then the lower ones, find the k-th smallest.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from trueline.errors import UserError

T = TypeVar("T")

BATCH = 500  # keys asked for in one query
CACHE = 64_000  # KiB of pages a table may hold in memory


def digest(*parts: object) -> bytes:
    """16 bytes that identify the parts by their content.

    Example:
        >>> digest("a", "b") == digest("a", "b"), digest("a", "b") == digest("ab")
        (True, False)
    """
    text = repr(parts).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def connect(path: Path | None) -> sqlite3.Connection:
    """A database file, or a private temporary one that vanishes when closed."""
    database = sqlite3.connect("" if path is None else path, timeout=60)
    database.execute(f"PRAGMA cache_size = -{CACHE}")
    if path is None:
        database.execute("PRAGMA synchronous = OFF")
    return database


class DiskTable:
    """Bytes by key. The first value of a key stays, as in a cache keyed by content.

    Args:
        path: where the table is kept; None for a temporary one.

    Example:
        >>> table = DiskTable()
        >>> table.put([(b"k", b"first")])
        >>> table.put([(b"k", b"second")])
        >>> table.get([b"k", b"missing"])
        [b'first', None]
    """

    def __init__(self, path: Path | None = None) -> None:
        self.database = connect(path)
        self.database.execute("CREATE TABLE IF NOT EXISTS items (key BLOB UNIQUE, value BLOB)")

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none."""
        found: dict[bytes, bytes] = {}
        for batch in batched(keys, BATCH):
            marks = ",".join("?" * len(batch))
            query = f"SELECT key, value FROM items WHERE key IN ({marks})"
            found.update(self.database.execute(query, batch))
        return [found.get(key) for key in keys]

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep the values whose keys are new, all or none of them."""
        with self.database:
            self.database.executemany("INSERT OR IGNORE INTO items VALUES (?, ?)", items)

    def __len__(self) -> int:
        return int(self.database.execute("SELECT COUNT(*) FROM items").fetchone()[0])

    def close(self) -> None:
        """Give the file (or the temporary space) back."""
        self.database.close()


class Seen:
    """Which keys have come before, told one by one; the keys are on disk.

    Example:
        >>> seen = Seen()
        >>> [seen.add(key) for key in (b"a", b"b", b"a")]
        [True, True, False]
    """

    def __init__(self) -> None:
        self.database = connect(None)
        self.database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, key: bytes) -> bool:
        """Whether the key is new; afterwards it is not."""
        cursor = self.database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,))
        return cursor.rowcount == 1


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of ``size``, the last one shorter.

    Example:
        >>> list(batched("abc", 2))
        [['a', 'b'], ['c']]
    """
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


Keys: TypeAlias = np.ndarray[Any, np.dtype[np.uint32]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


def float_keys(values: Any, *, descending: bool = False) -> Keys:
    """Unsigned integers in the order of float32 values (or in the opposite order).

    Example:
        >>> keys = float_keys([-1.0, 0.5, -2.0])
        >>> np.argsort(keys).tolist()
        [2, 0, 1]
    """
    # Adding zero makes -0.0 and 0.0, which are equal, the same bits.
    bits = (np.asarray(values, dtype=np.float32) + np.float32(0)).view(np.uint32)
    keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return ~keys if descending else keys


def random_key(seed: int, *content: object) -> int:
    """A 32-bit number that depends on seed and content alone: the same in any order of rows."""
    text = repr((seed, content)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


@dataclass
class Cut:
    """Takes the k smallest keys of a stream as it passes: every one below ``key`` and the first
    ``ties`` that equal it."""

    key: int
    ties: int

    def take(self, keys: Keys) -> Bools:
        """Which of the next keys of the stream are among the k smallest."""
        equal = keys == self.key
        equal &= equal.cumsum() <= self.ties
        self.ties -= int(equal.sum())
        return (keys < self.key) | equal


def smallest(keys: Callable[[], Iterable[Keys]], k: int) -> Cut:
    """Where the k smallest of the keys end. Of equal keys the earlier ones are taken.

    Args:
        keys: gives the same arrays of keys each time it is called.
        k: how many to take, 0 to all.

    Raises:
        UserError: there are fewer than k.

    Example:
        >>> stream = [np.array([5, 1, 9, 5], dtype=np.uint32)]
        >>> smallest(lambda: stream, 2).take(stream[0]).tolist()
        [True, True, False, False]
    """
    if k == 0:
        return Cut(0, 0)
    upper = np.zeros(1 << 16, dtype=np.int64)
    for array in keys():
        upper += np.bincount(array >> 16, minlength=1 << 16)
    if k > upper.sum():
        raise UserError(f"cannot take {k} of {upper.sum()}")
    high = int(np.searchsorted(np.cumsum(upper), k))
    left = k - int(upper[:high].sum())
    lower = np.zeros(1 << 16, dtype=np.int64)
    for array in keys():
        lower += np.bincount(array[array >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low = int(np.searchsorted(np.cumsum(lower), left))
    return Cut(high << 16 | low, left - int(lower[:low].sum()))
