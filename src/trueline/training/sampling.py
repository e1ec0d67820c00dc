"""Which trees make up each optimizer step: the effective batch is planned first, then split.

The plan depends on the data, the effective batch size, the seed and the epoch alone. How a batch is
cut into micro-batches and ranks cannot change what is in it, nor which completions are compared.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch.utils.data import Sampler

from trueline.batching import TokenTree, Trees
from trueline.batching.trees import mismatch
from trueline.errors import UserError
from trueline.files import checksum

Column: TypeAlias = np.ndarray[Any, Any]


class Passes(list[list[TokenTree]]):
    """One rank's forward passes over its share of some trees, as many as every other rank's.

    Sharded weights meet in every pass, so a rank with fewer trees goes on with fillers of weight
    zero: the last ``fillers`` passes repeat a short tree and nothing of them counts.

    Args:
        batches: the trees of each pass that counts.
        fillers: passes added behind them, over ``filler``.
        sizes: completions of each rank's share, fillers not counted.
    """

    def __init__(
        self,
        batches: Iterable[list[TokenTree]],
        fillers: int = 0,
        filler: TokenTree | None = None,
        sizes: Sequence[int] = (),
    ) -> None:
        super().__init__(batches)
        self.fillers = fillers
        self.sizes = tuple(sizes)
        self.extend([] if filler is None else [filler] for _ in range(fillers))

    @property
    def trees(self) -> list[TokenTree]:
        """This rank's own trees, in order."""
        return [tree for trees in self[: len(self) - self.fillers] for tree in trees]

    def marked(self) -> Iterator[tuple[list[TokenTree], bool]]:
        """Each pass's trees, and whether they are a filler."""
        own = len(self) - self.fillers
        return ((trees, index >= own) for index, trees in enumerate(self))


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of one effective batch.

    Args:
        micro_batches: this rank's trees, cut into what fits on the device.
        mismatched: the same prompts with other examples' completions; none where the objective
            does not ask for them.
        losses: loss terms (pairs, or completions) in the whole effective batch, over all ranks.
        counts: desirable and undesirable completions in it.
        tokens: scored tokens of its desirable completions.
    """

    micro_batches: Passes
    mismatched: Passes
    losses: int
    counts: tuple[int, int]
    tokens: int

    @property
    def ids(self) -> list[str]:
        """Where this rank's trees came from."""
        return [tree.id for tree in self.micro_batches.trees]


def interleave(labels: Sequence[int] | Column, rng: np.random.Generator) -> Column:
    """A shuffled order in which every stretch holds the classes in the data's proportions.

    Each class is shuffled, then spread evenly over the whole: member k of a class of m sits at
    (k + u) / m with one random offset u a class. Every index appears once.

    Example:
        >>> order = interleave([1, 1, 1, 1, 0, 0, 0, 0], np.random.default_rng(0)).tolist()
        >>> [sum(i < 4 for i in order[k : k + 2]) for k in (0, 2, 4, 6)]
        [1, 1, 1, 1]
    """
    labels = np.asarray(labels)
    members, places = [], []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rng.shuffle(own)
        members.append(own)
        places.append((np.arange(len(own)) + rng.random()) / len(own))
    found = np.concatenate(members)
    order: Column = found[np.lexsort((found, np.concatenate(places)))]
    return order


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
        drop_last: leave out an epoch's last effective batch where it is not full.
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
        drop_last: bool = False,
    ) -> None:
        if not trees:
            raise UserError("there is nothing to train on: the data set yields no example")
        if drop_last and len(trees) < batch_size:
            raise UserError(
                f"dataloader_drop_last leaves nothing: {len(trees)} examples do not fill one "
                f"effective batch of {batch_size}"
            )
        self.trees = Trees.of(trees)
        self.batch_size = batch_size
        self.seed = seed
        self.paired = paired
        self.micro_batch_size = micro_batch_size
        self.max_tokens = max_tokens
        self.rank, self.world_size = rank, world_size
        self.mismatched = mismatched
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0

    @property
    def size(self) -> int:
        """Trees of an epoch."""
        return len(self.trees)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.trees), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        """The tree indices of each effective batch of the present epoch, all ranks together."""
        order = np.arange(len(self.trees))
        if self.shuffle:
            _, labels = self.trees.patterns
            order = interleave(labels, np.random.default_rng([self.seed, self.epoch]))
        for step in range(len(self)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size].tolist()

    def share(self, indices: Sequence[int]) -> StepBatch:
        """This rank's part of an effective batch, cut into micro-batches."""
        trees = [self.trees[i] for i in indices]
        return self.part(trees, self._others(indices))

    def part(self, trees: Sequence[TokenTree], others: Sequence[TokenTree]) -> StepBatch:
        """This rank's part of an effective batch and of its mismatched trees."""
        labels = [label for tree in trees for label in tree.desirable]
        return StepBatch(
            micro_batches=self.passes(trees),
            mismatched=self.passes(others),
            losses=len(trees) if self.paired else len(labels),
            counts=(sum(labels), len(labels) - sum(labels)),
            tokens=sum(
                branch.length
                for tree in trees
                for branch, label in zip(tree.branches, tree.desirable, strict=True)
                if label
            ),
        )

    def passes(self, trees: Sequence[TokenTree]) -> Passes:
        """This rank's passes over its share: every rank knows all shares, so none has to ask."""
        shares = [trees[rank :: self.world_size] for rank in range(self.world_size)]
        cuts = [self._cut(share) for share in shares]
        return Passes(
            cuts[self.rank],
            max(map(len, cuts)) - len(cuts[self.rank]),
            min(trees, key=lambda tree: tree.inputs, default=None),
            [sum(len(tree.branches) for tree in share) for share in shares],
        )

    def mismatched_trees(self, steps: int) -> Mismatched:
        """What the objective will be compared with in the first ``steps`` steps, all ranks'."""
        return Mismatched(self, steps)

    def largest(self) -> tuple[int, int]:
        """Tokens, and scored tokens, of the largest micro-batch of the present epoch."""
        tokens, scored = self.trees.inputs, self.trees.targets
        most = (0, 0)
        for indices in self:
            mine = indices[self.rank :: self.world_size]
            sizes = tokens[mine].tolist()
            starts = _starts(sizes, self.max_tokens, self.micro_batch_size)
            if starts:
                sums = (np.add.reduceat(column[mine], starts) for column in (tokens, scored))
                most = max(most, *zip(*(column.tolist() for column in sums), strict=True))
        return most

    def _others(self, indices: Sequence[int]) -> list[TokenTree]:
        if not self.mismatched:
            return []
        return self.others([self.trees[i] for i in indices], self.trees, indices)

    def others(
        self, trees: Sequence[TokenTree], everything: Sequence[TokenTree], indices: Sequence[int]
    ) -> list[TokenTree]:
        """The mismatched trees of an effective batch; none where the objective asks for none."""
        if not self.mismatched:
            return []
        rng = np.random.default_rng([self.seed, self.epoch, *indices])
        return mismatch(trees, everything, rng)

    def _cut(self, trees: Sequence[TokenTree]) -> list[list[TokenTree]]:
        starts = _starts([t.inputs for t in trees], self.max_tokens, self.micro_batch_size)
        return [list(trees[i:j]) for i, j in itertools.pairwise([*starts, len(trees)])]


class Mismatched:
    """The trees that an objective compares with in a plan's first steps, one after the other.

    Args:
        plan: of any epoch, which stays as it is.
        steps: from the first step on.
    """

    def __init__(self, plan: BatchPlan, steps: int) -> None:
        self.plan, self.steps = plan, steps

    def __iter__(self) -> Iterator[TokenTree]:
        plan = self.plan
        if not plan.mismatched:
            return
        present = plan.epoch
        try:
            for epoch in range(-(-self.steps // len(plan))):
                plan.epoch = epoch
                for indices in itertools.islice(plan, self.steps - epoch * len(plan)):
                    yield from plan._others(indices)
        finally:
            plan.epoch = present

    @property
    def name(self) -> str | None:
        """32 hexadecimal digits of what decides which trees these are; None where there are
        none."""
        plan = self.plan
        if not plan.mismatched:
            return None
        facts = [
            plan.trees.content, plan.batch_size, plan.seed, plan.shuffle, plan.drop_last,
            self.steps, np.__version__, _source(__name__), _source(mismatch.__module__),
        ]  # fmt: skip
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _source(module: str) -> str:
    """What a module's file is."""
    return checksum(Path(str(sys.modules[module].__file__)))


def _starts(sizes: Sequence[int], max_tokens: int | None, count: int) -> list[int]:
    """Where the passes over trees of these sizes begin: so many trees each, or as many as fit."""
    if max_tokens is None:
        return list(range(0, len(sizes), count))
    starts, total = [], 0
    for index, size in enumerate(sizes):
        if not index or total + size > max_tokens:
            starts.append(index)
            total = 0
        total += size
    return starts
