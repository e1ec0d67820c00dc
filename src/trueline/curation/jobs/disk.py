"""Keys to values on disk, so that what must be remembered of millions of rows is not in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

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
