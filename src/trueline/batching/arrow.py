"""Token trees as Arrow columns, in memory or in memory-mapped files: no Python object a row.

A shard is one record batch: lists of token ids and masks, and what is asked of every row (its
tokens, its labels, its completions' keys) as columns of their own. Its checksum stands in its
schema, so that a damaged file is told from a whole one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from trueline.batching.trees import Branch, TokenTree, completion_key
from trueline.files import whole

Column = np.ndarray[Any, Any]
BLOCK = 4096
"""Trees in a shard made of a stream of them."""
LISTS = {
    "prompt": np.int32, "reference": np.int32, "tokens": np.int32, "scored": np.uint8,
    "lengths": np.int32, "desirable": np.uint8, "keys": np.uint64,
}  # fmt: skip
NUMBERS = {"referenced": np.uint8, "inputs": np.int32, "targets": np.int32}


class DamagedError(ValueError):
    """A shard that is not as it was written."""


class Shard:
    """Some trees as columns; ``facts`` is what else was written beside them.

    Args:
        batch: as :meth:`of` makes it.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.facts: dict[str, Any] = json.loads((batch.schema.metadata or {}).get(b"facts", b"{}"))
        self.offsets: dict[str, Column] = {}
        self.values: dict[str, Column] = {}
        for name in LISTS:
            column = batch.column(name)
            self.offsets[name] = column.offsets.to_numpy()
            self.values[name] = column.values.to_numpy()
        for name in NUMBERS:
            self.values[name] = batch.column(name).to_numpy()
        self._ids = batch.column("id")

    @classmethod
    def of(cls, trees: Sequence[TokenTree], facts: Mapping[str, Any] | None = None) -> Shard:
        """The trees' columns, in memory."""
        none = np.zeros(0, dtype=np.int32)
        lists: dict[str, list[Any]] = {
            "prompt": [tree.prompt for tree in trees],
            "reference": [
                none if t.reference_prompt is None else t.reference_prompt for t in trees
            ],
            "tokens": [np.concatenate([b.ids for b in tree.branches]) for tree in trees],
            "scored": [np.concatenate([b.mask for b in tree.branches]) for tree in trees],
            "lengths": [[len(b.ids) for b in tree.branches] for tree in trees],
            "desirable": [tree.desirable for tree in trees],
            "keys": [keys_of(tree).reshape(-1) for tree in trees],
        }
        numbers = {
            "referenced": [tree.reference_prompt is not None for tree in trees],
            "inputs": [tree.inputs for tree in trees],
            "targets": [sum(branch.length for branch in tree.branches) for tree in trees],
        }
        columns = {name: _lists(rows, LISTS[name]) for name, rows in lists.items()}
        columns |= {k: pa.array(np.asarray(v, dtype=NUMBERS[k])) for k, v in numbers.items()}
        ids = [tree.id.encode("utf-8", "replace").decode() for tree in trees]
        columns["id"] = pa.array(ids, pa.string())
        batch = pa.RecordBatch.from_pydict(columns)
        told = json.dumps({**(facts or {}), "sum": _checksum(batch)})
        return cls(batch.replace_schema_metadata({"facts": told}))

    @classmethod
    def open(cls, path: Path, *, check: bool = True) -> Shard:
        """A file's columns, memory-mapped.

        Raises:
            DamagedError: they are not what was written; looked for unless told not to.
            OSError: the file cannot be read.
        """
        try:
            with pa.memory_map(str(path)) as source:
                shard = cls(pa.ipc.open_file(source).get_batch(0))
        except (pa.ArrowInvalid, ValueError, KeyError) as error:
            raise DamagedError(str(error)) from None
        if check and shard.facts.get("sum") != _checksum(shard.batch):
            raise DamagedError("its checksum does not match")
        return shard

    def write(self, path: Path) -> None:
        """Into a file, whole or not at all."""
        with whole(path) as part, pa.OSFile(str(part), "wb") as sink:
            self.into(sink)

    def into(self, sink: Any) -> None:
        """Into anything that Arrow writes to."""
        with pa.ipc.new_file(sink, self.batch.schema) as writer:
            writer.write_batch(self.batch)

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def row(self, name: str, index: int) -> Column:
        """One row's list, a view."""
        start, stop = self.offsets[name][index : index + 2]
        return self.values[name][start:stop]

    def __getitem__(self, index: int) -> TokenTree:
        tokens, scored = self.row("tokens", index), self.row("scored", index).view(np.bool_)
        ends = np.cumsum(self.row("lengths", index)).tolist()
        branches = tuple(
            Branch(tokens[start:stop], scored[start:stop])
            for start, stop in itertools.pairwise([0, *ends])
        )
        return TokenTree(
            self.row("prompt", index),
            branches,
            tuple(map(bool, self.row("desirable", index).tolist())),
            self.row("reference", index) if self.values["referenced"][index] else None,
            self._ids[index].as_py(),
        )

    @property
    def keys(self) -> Column:
        """(C, 2) uint64: every completion's key under the reference."""
        return self.values["keys"].reshape(-1, 2)

    def patterns(self) -> tuple[list[tuple[bool, ...]], Column]:
        """The different labelings of its trees, and which each tree has."""
        sizes = np.diff(self.offsets["desirable"])
        found: dict[tuple[bool, ...], int] = {}
        codes = np.zeros(len(self), dtype=np.int32)
        for size in np.unique(sizes).tolist():
            where = np.flatnonzero(sizes == size)
            starts = self.offsets["desirable"][:-1][where]
            labels = self.values["desirable"][starts[:, None] + np.arange(size)]
            kinds, which = np.unique(labels, axis=0, return_inverse=True)
            ours = [found.setdefault(tuple(map(bool, kind)), len(found)) for kind in kinds.tolist()]
            codes[where] = np.asarray(ours, dtype=np.int32)[which.reshape(-1)]
        return list(found), codes


class Trees(Sequence[TokenTree]):
    """Token trees by index, made when asked for; what is asked of all of them is in columns.

    Example:
        >>> ids = np.arange(3, dtype=np.int32)
        >>> tree = TokenTree(ids, (Branch(ids, ids > 0),), (True,), id="a.jsonl:1")
        >>> trees = Trees.of([tree, tree])
        >>> len(trees), trees[1].id, trees.inputs.tolist(), trees.targets.tolist()
        (2, 'a.jsonl:1', [5, 5], [2, 2])
    """

    about: dict[str, Any]
    """What was said of the rows when they were read; JSON-ready."""

    def __init__(self, shards: Sequence[Shard], content: str | None = None) -> None:
        self.shards = list(shards)
        self._starts = np.cumsum([0, *map(len, self.shards)])
        self.about = {}
        if content is not None:
            self.__dict__["content"] = content

    @classmethod
    def of(cls, trees: Iterable[TokenTree]) -> Trees:
        """The same trees in columns."""
        if isinstance(trees, Trees):
            return trees
        stream = iter(trees)
        return cls([Shard.of(b) for b in iter(lambda: list(itertools.islice(stream, BLOCK)), [])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> TokenTree: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenTree]: ...
    def __getitem__(self, index: int | slice) -> TokenTree | list[TokenTree]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= at < len(self):
            raise IndexError(f"tree {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, at, side="right")) - 1
        return self.shards[shard][at - int(self._starts[shard])]

    def __iter__(self) -> Iterator[TokenTree]:
        return (shard[i] for shard in self.shards for i in range(len(shard)))

    def _column(self, name: str) -> Column:
        parts = [shard.values[name] for shard in self.shards]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=NUMBERS[name])

    @cached_property
    def inputs(self) -> Column:
        """(N,) tokens that a model reads of each tree."""
        return self._column("inputs")

    @cached_property
    def targets(self) -> Column:
        """(N,) scored tokens of each tree."""
        return self._column("targets")

    @property
    def keys(self) -> Column:
        """(C, 2) uint64: every completion's key under the reference."""
        none = np.zeros((0, 2), dtype=np.uint64)
        return np.concatenate([none, *(shard.keys for shard in self.shards)])

    @property
    def referenced(self) -> bool:
        """Whether any tree has another prompt for the reference."""
        return any(shard.values["referenced"].any() for shard in self.shards)

    @cached_property
    def patterns(self) -> tuple[list[tuple[bool, ...]], Column]:
        """The different labelings in order, and (N,) which each tree has."""
        parts = [shard.patterns() for shard in self.shards]
        known = sorted({pattern for patterns, _ in parts for pattern in patterns})
        codes = [
            np.asarray([known.index(pattern) for pattern in patterns], dtype=np.int32)[own]
            for patterns, own in parts
        ]
        return known, np.concatenate(codes) if codes else np.zeros(0, dtype=np.int32)

    @cached_property
    def content(self) -> str:
        """32 hexadecimal digits of the data as the model sees it: tokens, masks, labels, order."""
        digest = hashlib.blake2b(digest_size=16)
        for tree in self:
            arrays = [tree.prompt, *(part for b in tree.branches for part in (b.ids, b.mask))]
            if tree.reference_prompt is not None:
                arrays.append(tree.reference_prompt)
            head = [len(tree.branches), *map(int, tree.desirable), *map(len, arrays)]
            digest.update(np.asarray(head, dtype=np.int64).tobytes())
            for array in arrays:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def keys_of(tree: TokenTree) -> Column:
    """(completions, 2) uint64: the keys under which the reference's log-probs are kept."""
    seen = tree.for_reference()
    raw = b"".join(completion_key(seen.prompt, branch) for branch in seen.branches)
    return np.frombuffer(raw, dtype="<u8").reshape(-1, 2)


def _lists(rows: Sequence[Any], dtype: Any) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    none = np.zeros(0, dtype=dtype)
    values = np.concatenate([none, *(np.asarray(row, dtype=dtype) for row in rows)])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _checksum(batch: pa.RecordBatch) -> str:
    """Of every column's buffers, as they are read."""
    digest = hashlib.blake2b(digest_size=16)
    for name in LISTS:
        column = batch.column(name)
        for array in (column.offsets, column.values):
            digest.update(array.to_numpy().tobytes())
    for name in NUMBERS:
        digest.update(batch.column(name).to_numpy().tobytes())
    digest.update(json.dumps(batch.column("id").to_pylist()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
