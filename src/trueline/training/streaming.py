"""Training on a stream: rows are read, shuffled in a buffer and encoded on the way, none is kept.

The stream is a sequence of trees with positions, the same in every process and every run. So a step
is a range of positions, and a run that is resumed goes on at the very next one: what comes before
is read again and not encoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import Any

import numpy as np

from trueline.batching import Branch, Recipe, TokenTree, view
from trueline.data import Stream
from trueline.errors import UserError
from trueline.records import Example
from trueline.training.sampling import BatchPlan, StepBatch

AHEAD = 256
"""Rows encoded at a time."""


class TreeStream:
    """A stream's trees by position, epoch after epoch, each in another order.

    Args:
        examples: a stream of files or of the hub.
        recipe: what becomes of a row.
        buffer: rows that wait in memory, of which a random one comes next; 1 keeps the order.
        seed: another seed, another order.

    Raises:
        UserError: rows that are in memory already.
    """

    def __init__(self, examples: Stream, recipe: Recipe, *, buffer: int, seed: int) -> None:
        if examples.source is None:
            raise UserError(
                "streaming reads files and the hub; rows that are in memory already gain nothing "
                "by it: leave streaming out"
            )
        self.examples, self.recipe, self.buffer, self.seed = examples, recipe, buffer, seed
        self._at = 0
        self._trees = self._from(0)

    @property
    def content(self) -> str:
        """32 hexadecimal digits of what decides the trees and their order; for the hub its name
        alone."""
        facts = [self.examples.name or self.examples.source, self.buffer, self.seed,
                 self.recipe.key]  # fmt: skip
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    @property
    def about(self) -> dict[str, Any]:
        """What became of the rows that were read so far."""
        return self.examples.report.to_dict()

    def first(self) -> TokenTree:
        """The tree at position 0, which :meth:`take` still gives."""
        tree = next(self._trees)
        self._trees = chain([tree], self._trees)
        return tree

    def take(self, positions: Sequence[int]) -> list[TokenTree]:
        """The trees at consecutive positions, at best right behind those that were taken last."""
        if positions[0] != self._at:
            self._at, self._trees = positions[0], self._from(positions[0])
        self._at += len(positions)
        return [next(self._trees) for _ in positions]

    def _from(self, position: int) -> Iterator[TokenTree]:
        """The trees from a position on; examples whose trees lie before it are not encoded."""
        waiting: list[Example] = []
        first = 0
        for example in self._shuffled():
            if not waiting and position > 0:
                size = trees_of(example, self.recipe)
                if position >= size:
                    position -= size
                    continue
                first, position = position, 0
            waiting.append(example)
            if len(waiting) == AHEAD:
                yield from self._encoded(waiting, first)
                waiting, first = [], 0

    def _encoded(self, examples: list[Example], first: int) -> Iterator[TokenTree]:
        trees: list[TokenTree] = []
        for example, tree in zip(examples, self.recipe.encoder.many(examples), strict=True):
            trees.extend(view(example, tree, self.recipe.layout))
        after = self.recipe.after
        yield from (tree if after is None else after(tree) for tree in trees[first:])

    def _shuffled(self) -> Iterator[Example]:
        for epoch in count():
            rng = np.random.default_rng([self.seed, epoch])
            waiting: list[Example] = []
            for example in self.examples:
                if len(waiting) < self.buffer:
                    waiting.append(example)
                    continue
                place = int(rng.integers(self.buffer))
                yield waiting[place]
                waiting[place] = example
            if not waiting:
                raise UserError("the stream yields no row")
            yield from (waiting[place] for place in rng.permutation(len(waiting)))


def trees_of(example: Example, recipe: Recipe) -> int:
    """How many trees an example yields, without encoding it."""
    none = np.zeros(0, dtype=np.int32)
    branch = Branch(none, none.astype(np.bool_))
    count = len(example.completions)
    empty = TokenTree(none, (branch,) * count, (False,) * count, id=example.id or "")
    return sum(1 for _ in view(example, empty, recipe.layout))


class StreamPlan(BatchPlan):
    """The effective batches of a stream: ``batch_size`` trees after the other.

    Args:
        stream: the trees.
        steps: of the whole run.
        batch_size: trees in one effective batch, over all micro-batches and ranks.
        more: as :class:`BatchPlan` takes them.
    """

    def __init__(self, stream: TreeStream, steps: int, batch_size: int, **more: Any) -> None:
        super().__init__([stream.first()], batch_size, **more)
        self.stream, self.steps = stream, steps

    def __len__(self) -> int:
        return self.steps

    @property
    def size(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """The positions of each effective batch."""
        for start in range(0, self.size, self.batch_size):
            yield list(range(start, start + self.batch_size))

    def share(self, indices: Sequence[int]) -> StepBatch:
        """This rank's part of an effective batch, cut into micro-batches."""
        trees = self.stream.take(indices)
        return self.part(trees, self.others(trees, trees, indices))
