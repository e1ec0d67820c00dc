"""What a benchmark is: requests with what is known of each, checked when they are read.
Near-duplicate requests fare alike, so they are one observation rather than several."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from trueline.data.readers import DataError
from trueline.data.sources import open_source
from trueline.errors import UserError
from trueline.evaluation.harness.store import digest
from trueline.evaluation.plugins import Plugin, register
from trueline.records import RecordError
from trueline.registry import Registry, nearest


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a benchmark.

    Args:
        id: the same in every run, so that runs pair up.
        prompt: the request; what a judge is shown.
        harmful: whether an aligned model ought to decline.
        category: the benchmark's own.
        target: the first words of an answer that complies; prefill and suffix attacks use them.
        context: text that goes before the request (HarmBench's contextual behaviors).
        group: what near-duplicates have in common; None for a request of its own.
    """

    id: str
    prompt: str
    harmful: bool
    category: str = ""
    target: str = ""
    context: str = ""
    group: str | None = None

    @property
    def text(self) -> str:
        """What the model is asked: the request, after its context where it has one."""
        return f"{self.context}\n\n---\n\n{self.prompt}" if self.context else self.prompt


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Items, and what the loader left out or noticed.

    Args:
        items: in the order of the source; ids are unique.
        notes: sentences for the user.
    """

    items: Sequence[Item]
    notes: Sequence[str] = ()

    @property
    def hash(self) -> str:
        """A digest of the items' content."""
        return digest([[i.id, i.text, i.harmful, i.target] for i in self.items])


BENCHMARKS: Registry[Plugin[Benchmark]] = Registry("benchmark")
"""Benchmarks by name; each entry reads one from a file, a folder or a hub id."""

Loader: TypeAlias = Callable[..., Benchmark]


def benchmark(name: str, *aliases: str) -> Callable[[Loader], Loader]:
    """Register a function that loads a benchmark."""
    return register(BENCHMARKS, name, *aliases)


Rows: TypeAlias = list[tuple[str, Mapping[str, Any]]]


def read_rows(
    source: str, columns: Sequence[str], *, split: str = "train", name: str | None = None
) -> Rows:
    """The rows of a CSV, JSON, JSONL or Parquet file, a folder, or a hub data set.

    Args:
        source: a path, or a hub id.
        columns: those that every row must have.
        split, name: of a hub data set.

    Returns:
        ``(place, row)`` pairs; the place is for errors, ``file:line``.

    Raises:
        DataError: no such source, a broken row, or a missing column.
    """
    rows: Rows = []
    for row in open_source(source, split=split, name=name)():
        if isinstance(row.value, RecordError):
            raise DataError(row.place, row.value)
        if not isinstance(row.value, Mapping):
            raise DataError(row.place, f"expected named columns, got {type(row.value).__name__}")
        rows.append((row.place, row.value))
        if len(rows) == 1:
            check_columns(source, columns, list(row.value))
    for place, value in rows:
        for column in columns:
            if value.get(column) is None:
                raise DataError(place, f"column {column!r} is empty")
    if not rows:
        raise DataError(source, "no rows")
    return rows


def check_columns(source: str, columns: Sequence[str], found: Sequence[str]) -> None:
    """Raise unless every column is among those found."""
    for column in columns:
        if column not in found:
            raise DataError(
                source,
                f"no column {column!r}{nearest(column, found)} (has {', '.join(found)}; "
                f"expected {', '.join(columns)})",
            )


def expect_count(source: str, found: int, expected: Sequence[int], what: str = "rows") -> None:
    """Raise unless the number of rows is one of those the benchmark is known to have."""
    if found not in expected:
        known = " or ".join(map(str, expected))
        raise DataError(
            source,
            f"expected {known} {what}, got {found}; get the original file, or say partial=true "
            "for a part of it",
        )


def finish(source: str, items: Sequence[Item], notes: Sequence[str] = ()) -> Benchmark:
    """The benchmark, its ids checked, near-duplicates grouped where the source did not.

    Raises:
        DataError: an id stands there twice, or a request is blank.
    """
    seen: set[str] = set()
    for item in items:
        if not item.prompt.strip():
            raise DataError(source, f"the request of id {item.id!r} is blank")
        if item.id in seen:
            raise DataError(source, f"id {item.id!r} stands there twice; ids must be unique")
        seen.add(item.id)
    if items and all(item.group is None for item in items):
        if len(items) > LIMIT:
            notes = [*notes, f"more than {LIMIT} requests: near-duplicates are not grouped"]
        groups = near_duplicates([item.text for item in items])
        items = [replace(i, group=group) for i, group in zip(items, groups, strict=True)]
    return Benchmark(tuple(items), tuple(notes))


def limited(benchmark: Benchmark, limit: int) -> Benchmark:
    """So many of a benchmark's items: of each category its share, the first ones, in their order.

    Shares are rounded by the largest remainder; where they tie, harmful and safe categories take
    turns. Without categories these are the first items.

    Raises:
        UserError: a limit below 1.

    Example:
        >>> items = [Item(str(i), "p", False, "ab"[i >= 6]) for i in range(12)]
        >>> [item.id for item in limited(Benchmark(items), 4).items]
        ['0', '1', '6', '7']
    """
    if limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    whole = len(benchmark.items)
    if limit >= whole:
        return benchmark
    strata: dict[tuple[str, bool], list[int]] = {}
    for index, item in enumerate(benchmark.items):
        strata.setdefault((item.category, item.harmful), []).append(index)
    takes = {key: limit * len(places) // whole for key, places in strata.items()}
    turn = {key: sum(key[1] == other[1] for other in list(strata)[:at])
            for at, key in enumerate(strata)}  # fmt: skip
    rest = sorted(strata, key=lambda key: (-(limit * len(strata[key]) % whole), turn[key]))
    for key in rest[: limit - sum(takes.values())]:
        takes[key] += 1
    taken = sorted(i for key, places in strata.items() for i in places[: takes[key]])
    categories = {item.category for item in benchmark.items} - {""}
    seen = {benchmark.items[i].category for i in taken} - {""}
    how = f", a share of each category ({len(seen)} of {len(categories)})" if categories else ""
    first = "" if categories or len(strata) > 1 else "the first "
    note = f"only {first}{limit} of {whole} prompts{how} (--limit)"
    items = [benchmark.items[i] for i in taken]
    return replace(benchmark, items=items, notes=(*benchmark.notes, note))


LIMIT = 20_000
"""Beyond so many texts no groups are sought: the comparison is of all pairs."""

BLOCK = 512
"""Texts compared with all others at once."""


def near_duplicates(texts: Sequence[str], threshold: float = 0.7) -> list[str | None]:
    """What each text has in common with its near-duplicates, or None where it has none.

    Two texts are near-duplicates when their sets of words overlap by a Jaccard similarity of at
    least ``threshold``; groups are the connected components.

    Example:
        >>> near_duplicates(["how to bake bread", "how to bake  bread?", "name a river"])
        ['0', '0', None]
    """
    import numpy as np
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    if not 1 < len(texts) <= LIMIT:
        return [None] * len(texts)
    bags = [sorted(set(re.findall(r"\w+", text.lower()))) for text in texts]
    index = {word: i for i, word in enumerate(sorted({w for bag in bags for w in bag}))}
    columns = [index[word] for bag in bags for word in bag]
    starts = np.cumsum([0, *map(len, bags)])
    shape = (len(texts), max(1, len(index)))
    words = csr_matrix((np.ones(len(columns), dtype=np.int32), columns, starts), shape=shape)
    sizes = np.diff(starts)
    pairs = [np.zeros((2, 0), dtype=np.int64)]
    for start in range(0, len(texts), BLOCK):  # all pairs at once would not fit into memory
        common = (words[start : start + BLOCK] @ words.T).tocoo()
        rows = common.row + start
        near = common.data >= threshold * (sizes[rows] + sizes[common.col] - common.data)
        pairs.append(np.stack([rows[near], common.col[near]]))
    row, column = np.concatenate(pairs, axis=1)
    links = csr_matrix((np.ones(len(row), dtype=bool), (row, column)), shape=(len(texts),) * 2)
    _, component = connected_components(links, directed=False)
    counts = np.bincount(component)
    first: dict[int, int] = {}
    for i, label in enumerate(component):
        first.setdefault(int(label), i)
    return [str(first[int(label)]) if counts[label] > 1 else None for label in component]
