"""Which trees make up each optimizer step: the effective batch is planned first, then split.

The plan depends on the data, the effective batch size, the seed and the epoch alone. How a batch is
cut into micro-batches and ranks cannot change what is in it, nor which completions are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from trueline.batching import TokenTree, within_budget
from trueline.batching.mismatch import mismatch
from trueline.errors import UserError


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of one effective batch.

    Args:
        micro_batches: this rank's trees, cut into what fits on the device.
        mismatched: for each micro-batch, the same prompts with other examples' completions; empty
            lists where the objective does not ask for them.
        losses: loss terms (pairs, or completions) in the whole effective batch, over all ranks.
        counts: desirable and undesirable completions in it.
        tokens: scored tokens of its desirable completions.
        idle: this rank got no tree of its own and scores another's with weight zero, so that every
            rank takes part in the step.
    """

    micro_batches: list[list[TokenTree]]
    mismatched: list[list[TokenTree]]
    losses: int
    counts: tuple[int, int]
    tokens: int
    idle: bool = False

    @property
    def ids(self) -> list[str]:
        """Where this rank's trees came from."""
        return [tree.id for trees in self.micro_batches for tree in trees]


def interleave(labels: Sequence[int], rng: np.random.Generator) -> list[int]:
    """A shuffled order in which every stretch holds the classes in the data's proportions.

    Each class is shuffled, then spread evenly over the whole: member k of a class of m sits at
    (k + u) / m with one random offset u a class. Every index appears once.

    Example:
        >>> order = interleave([1, 1, 1, 1, 0, 0, 0, 0], np.random.default_rng(0))
        >>> [sum(i < 4 for i in order[k : k + 2]) for k in (0, 2, 4, 6)]
        [1, 1, 1, 1]
    """
    places: list[tuple[float, int]] = []
    for label in sorted(set(labels)):
        members = np.flatnonzero(np.asarray(labels) == label)
        rng.shuffle(members)
        offset = rng.random()
        places += [((k + offset) / len(members), int(i)) for k, i in enumerate(members)]
    return [i for _, i in sorted(places)]


class BatchPlan(Sampler[list[int]]):
    """The effective batches of an epoch, and this rank's share of each.

    Args:
        trees: the training data.
        batch_size: trees in one effective batch, over all micro-batches and ranks.
        seed: with the epoch, decides the order.
        paired: losses are counted in pairs rather than completions.
        micro_batch_size: trees in one forward pass.
        max_tokens: tokens in one forward pass; given, it takes the place of ``micro_batch_size``.
        rank, world_size: this process among all.
        mismatched: whether the objective compares mismatched completions.
        shuffle: False keeps the data's order (evaluation).
    """

    def __init__(
        self,
        trees: Sequence[TokenTree],
        batch_size: int,
        *,
        seed: int = 0,
        paired: bool = True,
        micro_batch_size: int = 8,
        max_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        mismatched: bool = False,
        shuffle: bool = True,
    ) -> None:
        if not trees:
            raise UserError("there is nothing to train on: the data set yields no example")
        self.trees = trees
        self.batch_size = batch_size
        self.seed = seed
        self.paired = paired
        self.micro_batch_size = micro_batch_size
        self.max_tokens = max_tokens
        self.rank, self.world_size = rank, world_size
        self.mismatched = mismatched
        self.shuffle = shuffle
        self.epoch = 0
        kinds = {pattern: k for k, pattern in enumerate(sorted({t.desirable for t in trees}))}
        self._labels = [kinds[tree.desirable] for tree in trees]

    def __len__(self) -> int:
        return -(-len(self.trees) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The tree indices of each effective batch of the present epoch, all ranks together."""
        order = list(range(len(self.trees)))
        if self.shuffle:
            order = interleave(self._labels, np.random.default_rng([self.seed, self.epoch]))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def share(self, indices: Sequence[int]) -> StepBatch:
        """This rank's part of an effective batch, cut into micro-batches."""
        trees = [self.trees[i] for i in indices]
        others = self._others(indices)
        labels = [label for tree in trees for label in tree.desirable]
        mine = slice(self.rank, None, self.world_size)
        return StepBatch(
            micro_batches=self._cut(trees[mine] or trees[:1]),
            mismatched=self._cut(others[mine] or others[:1]),
            losses=len(trees) if self.paired else len(labels),
            counts=(sum(labels), len(labels) - sum(labels)),
            tokens=sum(
                branch.length
                for tree in trees
                for branch, label in zip(tree.branches, tree.desirable, strict=True)
                if label
            ),
            idle=not trees[mine],
        )

    def mismatched_trees(self, steps: int) -> Iterator[TokenTree]:
        """What the objective will be compared with in the first ``steps`` steps, all ranks'."""
        if not self.mismatched:
            return
        present = self.epoch
        try:
            for epoch in range(-(-steps // len(self))):
                self.epoch = epoch
                for indices in itertools.islice(self, steps - epoch * len(self)):
                    yield from self._others(indices)
        finally:
            self.epoch = present

    def largest(self) -> tuple[int, int]:
        """Tokens, and scored tokens, of the largest micro-batch of the present epoch."""
        sizes = [
            (sum(t.inputs for t in trees), sum(b.length for t in trees for b in t.branches))
            for indices in self
            for trees in self._cut([self.trees[i] for i in indices[self.rank :: self.world_size]])
        ]
        return max(sizes)

    def _others(self, indices: Sequence[int]) -> list[TokenTree]:
        """The mismatched trees of an effective batch; none where the objective asks for none."""
        if not self.mismatched:
            return []
        rng = np.random.default_rng([self.seed, self.epoch, *indices])
        return mismatch([self.trees[i] for i in indices], self.trees, rng)

    def _cut(self, trees: Sequence[TokenTree]) -> list[list[TokenTree]]:
        if self.max_tokens is not None:
            return list(within_budget(trees, self.max_tokens))
        size = self.micro_batch_size
        return [list(trees[k : k + size]) for k in range(0, len(trees), size)]
