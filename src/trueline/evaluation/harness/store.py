"""Work that is kept as it is done: append-only JSON lines by content key, shared out over ranks.

A row is written and flushed as soon as it is known, so a process killed at any moment loses at
most the row it was writing. What the kill cut off is taken out before the file grows again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.files import append, mend
from trueline.interrupts import shared
from trueline.processes import meet, rank, started

Row = dict[str, Any]


def digest(value: Any) -> str:
    """32 hexadecimal digits that name JSON-ready data by its content.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Store:
    """Rows by content key, in ``folder/name.jsonl``; each further rank has a file of its own.

    Args:
        folder: where the files are.
        name: what they are called; files ``name*.jsonl`` of all ranks are read.
        rank: which file this process appends to.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Store(folder, "answers").add("k", {"text": "hello"})
        >>> Store(folder, "answers")["k"]
        {'text': 'hello'}
    """

    def __init__(self, folder: Path, name: str, rank: int = 0) -> None:
        self.folder, self.name = folder, name
        self.path = folder / (f"{name}.jsonl" if rank == 0 else f"{name}-{rank}.jsonl")
        mend(self.path)
        self._rows: dict[str, Row] = {}
        self.reload()

    def reload(self) -> None:
        """Read what any rank has written.

        Raises:
            UserError: a line in the middle of a file is broken.
        """
        for path in sorted(self.folder.glob(f"{self.name}*.jsonl")):
            for key, row in _read(path):
                if not (row.get("failed") and key in self._rows):
                    self._rows[key] = row

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Row:
        return self._rows[key]

    def rows(self) -> Iterable[Row]:
        """All that is kept."""
        return self._rows.values()

    def __len__(self) -> int:
        return len(self._rows)

    def forget(self, which: Callable[[Row], bool]) -> None:
        """Rows to be done again; what is added for them takes their place."""
        self._rows = {key: row for key, row in self._rows.items() if not which(row)}

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a row, in memory and on disk."""
        append(self.path, {"key": key, **row})
        self._rows[key] = dict(row)


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    lines = path.read_text("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            key = row.pop("key")
        except (ValueError, KeyError, AttributeError):
            if number == len(lines):
                return  # another rank is writing it, or was killed while it did
            raise UserError(
                f"{path}:{number} is broken; take the line out and what it held is done again"
            ) from None
        yield str(key), row


def complete(
    store: Store,
    keys: Sequence[str],
    work: Callable[[list[int], Callable[[int, Mapping[str, Any]], None]], None],
) -> int:
    """Have a row for every key: what is missing is done once, by whichever rank's turn it is.

    Args:
        store: holds what is done.
        keys: content keys; the same key twice is one piece of work.
        work: ``work(indices, keep)`` does the pieces at those indices into ``keys`` and calls
            ``keep(index, row)`` with each as soon as it is done.

    Returns:
        How many pieces this process did.

    Raises:
        UserError: the work left a piece undone.
        Interrupted: a signal came, to this process or to another; what was done is kept.
    """
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key not in store:
            first.setdefault(key, index)
    meet()  # nobody writes before everybody has seen the same list
    mine = list(first.values())[rank() :: started()]
    with shared():
        if mine:
            work(mine, lambda index, row: store.add(keys[index], row))
        undone = sum(keys[index] not in store for index in mine)
        if undone:
            raise UserError(
                f"expected {len(mine)} new rows in {store.path.name}, got {len(mine) - undone}"
            )
    if started() > 1:
        store.reload()
    return len(mine)
