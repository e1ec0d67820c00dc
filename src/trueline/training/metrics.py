"""What a step says of itself: TRL's names, chosen and rejected apart, with counts behind means."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives.base import BoundObjective, LogProbs
from trueline.training.coupling import world_size

ROUNDING = 1e-6
"""Of the log-probs that a margin is made of: float32's rounding, a few times over. That of bf16 is
larger and cannot be told from a difference."""

Sums = dict[str, tuple[Tensor, Tensor | int]]
"""Metric name to (sum, count): means of parts add up to the mean of the whole. Both stay on the
device until they are read: a mask is multiplied, never indexed with, which would wait for it."""


def step_metrics(
    batch: LogProbs, objective: BoundObjective, pairs: PairedLogProbs | None = None
) -> Sums:
    """rewards/*, logps/* and gap/* of a batch of log-probs, as sums and counts.

    ``pairs`` are the same completions as pairs, where labeled completions came as pairs.
    """
    if isinstance(batch, CompletionLogProbs):
        return {
            "logps/chosen": _sum(batch.policy),
            "nll/token": (-batch.policy.sum(), batch.length.sum()),
        }
    chosen: Tensor | None = None
    rejected: Tensor | None = None
    if isinstance(batch, UnpairedLogProbs):
        chosen, rejected = batch.desirable, ~batch.desirable
        sides = {"chosen": batch.completions, "rejected": batch.completions}
    else:
        sides = {"chosen": batch.chosen, "rejected": batch.rejected}
    masks = {"chosen": chosen, "rejected": rejected}
    sums = {f"logps/{name}": _sum(side.policy, masks[name]) for name, side in sides.items()}
    for name, side in sides.items():
        sums[f"rewards/{name}"] = _sum(objective.reward(side), masks[name])
    pairs = batch if isinstance(batch, PairedLogProbs) else pairs
    return sums if pairs is None else sums | _pair_metrics(pairs, objective)


def _pair_metrics(pairs: PairedLogProbs, objective: BoundObjective) -> Sums:
    """Accuracies: by reward, where a tie counts one half, and by ranking (without the reference,
    where the paper counts a tie as right)."""
    sums: Sums = {
        "gap/ranking_accuracy": _sum(pairs.chosen.policy >= pairs.rejected.policy),
        "gap/ranking_accuracy_per_token": _sum(pairs.chosen.mean >= pairs.rejected.mean),
    }
    margin = objective.reward(pairs.chosen) - objective.reward(pairs.rejected)
    sums["rewards/margins"] = _sum(margin)
    sums["rewards/accuracies"] = _sum(_wins(margin, objective.beta * _rounding(pairs)))
    return sums


def _wins(margin: Tensor, rounding: Tensor) -> Tensor:
    """(B,) 1 where the chosen answer has the higher reward, 0 where the lower, 1/2 at a tie.

    A margin within ``rounding`` is a tie: before the first update every margin is noise.
    """
    return torch.where(margin.abs() <= rounding, 0.5, (margin > 0).to(margin.dtype))


def _rounding(pairs: PairedLogProbs) -> Tensor:
    """(B,) nats within which float32 sums of a pair's log-probs cannot be told apart."""
    terms = [
        sums.detach().abs()
        for side in (pairs.chosen, pairs.rejected)
        for sums in (side.policy, side.reference)
        if sums is not None
    ]
    return ROUNDING * torch.stack(terms).sum(dim=0)


def _sum(values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
    values = values.detach().double()
    if mask is None:
        return values.sum(), values.numel()
    return torch.where(mask, values, 0.0).sum(), mask.sum()


class MetricAccumulator:
    """Sums on the device; one packed reduction over ranks when they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, sums: Mapping[str, tuple[Tensor, Tensor | int]]) -> None:
        """Take in a step's sums and counts."""
        for name, (total, count) in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + total.detach().double()
            self._counts[name] = self._counts.get(name, 0.0) + count

    def add_value(self, name: str, value: float | Tensor) -> None:
        """Take in one value that all ranks share."""
        self.add({name: (torch.as_tensor(value, dtype=torch.float64), 1)})

    def read(self, device: torch.device) -> dict[str, float]:
        """Means over everything since the last reading, over all ranks; then start anew.

        Rewards' margin of unpaired data is the difference of the two means.
        """
        names = sorted(self._sums)
        if world_size() > 1:
            everyone: list[list[str]] = [[] for _ in range(world_size())]
            dist.all_gather_object(everyone, names)
            names = sorted(set().union(*everyone))
        if not names:
            return {}
        packed = torch.stack(
            [torch.as_tensor(self._sums.get(n, 0.0), device=device).double() for n in names]
            + [torch.as_tensor(self._counts.get(n, 0.0), device=device).double() for n in names]
        )
        if world_size() > 1:
            dist.all_reduce(packed)
        self._sums, self._counts = {}, {}
        totals, counts = packed.cpu().chunk(2)
        means = {
            name: float(total / count)
            for name, total, count in zip(names, totals, counts, strict=True)
            if count
        }
        if "rewards/margins" not in means and {"rewards/chosen", "rewards/rejected"} <= set(means):
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means
