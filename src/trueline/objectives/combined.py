"""Weighted sums of objectives: L = sum_k w_k L_k, with an objective's own interface."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trueline.batching import View
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives.base import BoundObjective, LogProbs, Objective


@dataclass(frozen=True)
class Combined(BoundObjective):
    """Several objectives on the same batch, each as it would see it alone, added with weights.

    The batch has the richest layout among the parts: pairs where one part needs pairs. On pairs, an
    unpaired part sees the chosen as desirable and the rejected as undesirable; a part that imitates
    completions sees the chosen, or the desirable.

    At most one part may take a statistic of the batch, and then no other may be coupled: a step
    carries one statistic.
    """

    parts: tuple[BoundObjective, ...] = ()
    weights: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, parts: Sequence[BoundObjective], weights: Sequence[float] | None = None
    ) -> Combined:
        """The sum of ``parts`` with ``weights``, 1 each where not given.

        Raises:
            UserError: no part, a part named twice, weights that do not fit, or parts that couple
                the batch in ways that one step cannot carry.
        """
        given = [1.0] * len(parts) if weights is None else list(weights)
        _check([part.spec for part in parts], given)
        name = " + ".join(
            part.spec.name if w == 1 else f"{w:g} {part.spec.name}"
            for part, w in zip(parts, given, strict=True)
        )
        options = {key: value for part in reversed(parts) for key, value in part.options.items()}
        spec = _sum([part.spec for part in parts], name)
        return cls(spec, options, tuple(parts), tuple(map(float, given)))

    @property
    def _rewarding(self) -> BoundObjective:
        """The part whose rewards the sum's metrics tell: the first that has a beta."""
        return next((part for part in self.parts if "beta" in part.options), self.parts[0])

    @property
    def beta(self) -> float:
        """The first part's beta; it scales rewards in metrics."""
        return self._rewarding.beta

    def reward(self, completions: CompletionLogProbs) -> Tensor:
        """(B,) the first part's implicit rewards, nats."""
        return self._rewarding.reward(completions)

    def losses(self, batch: LogProbs, **statistics: Tensor) -> Tensor:
        """The scalar sum; parts differ in what a row is."""
        return self.loss(batch, total=None, **statistics)

    def loss(self, batch: LogProbs, *, total: int | None = None, **statistics: Tensor) -> Tensor:
        """sum_k w_k L_k, each part's loss averaged over its own rows of the effective batch."""
        value = torch.zeros((), dtype=_policy(batch).dtype, device=_policy(batch).device)
        for part, weight in zip(self.parts, self.weights, strict=True):
            own, count = seen_as(part.layout, batch, total)
            statistic = part.spec.statistic
            argument = None if statistic is None else statistic.argument
            given = {key: x for key, x in statistics.items() if key == argument}
            value = value + weight * part.loss(own, total=count, **given)
        return value

    def measure(self, batch: LogProbs) -> Tensor:
        """The statistic of the one part that has one; mismatched completions stay as they are."""
        part = next(part for part in self.parts if part.spec.statistic is not None)
        if isinstance(batch, CompletionLogProbs):
            return part.measure(batch)
        return part.measure(seen_as(part.layout, batch, None)[0])

    def metrics(self, batch: LogProbs) -> Mapping[str, Tensor]:
        """All parts' metrics."""
        return {
            key: value
            for part in self.parts
            for key, value in part.metrics(seen_as(part.layout, batch, None)[0]).items()
        }


def seen_as(layout: View, batch: LogProbs, total: int | None) -> tuple[LogProbs, int | None]:
    """``batch`` in another layout, with the number of its losses in the whole effective batch."""
    if layout == "unpaired" and isinstance(batch, PairedLogProbs):
        return _unpaired(batch, total), None if total is None else 2 * total
    if layout == "completion" and isinstance(batch, PairedLogProbs):
        return batch.chosen, total
    if layout == "completion" and isinstance(batch, UnpairedLogProbs):
        chosen = batch.completions.map(lambda tensor: tensor[batch.desirable])
        return chosen, None if batch.counts is None else batch.counts[0]
    return batch, total


def _unpaired(pairs: PairedLogProbs, total: int | None) -> UnpairedLogProbs:
    w, l = pairs.chosen, pairs.rejected  # noqa: E741
    reference = None
    if w.reference is not None and l.reference is not None:
        reference = torch.cat([w.reference, l.reference])
    completions = CompletionLogProbs(
        torch.cat([w.policy, l.policy]), torch.cat([w.length, l.length]), reference
    )
    desirable = torch.arange(len(completions), device=w.policy.device) < len(pairs)
    return UnpairedLogProbs(completions, desirable, None if total is None else (total, total))


def _policy(batch: LogProbs) -> Tensor:
    if isinstance(batch, PairedLogProbs):
        return batch.chosen.policy
    return (batch.completions if isinstance(batch, UnpairedLogProbs) else batch).policy


def _sum(specs: Sequence[Objective], name: str) -> Objective:
    """The facts of the sum."""
    layouts = [spec.layout for spec in specs]
    layout = next(kind for kind in ("paired", "unpaired", "completion") if kind in layouts)

    def function(batch: LogProbs) -> Tensor:
        raise NotImplementedError("a sum has no single function; call Combined.loss")

    function.__doc__ = f"The weighted sum {name}."
    return Objective(
        name=name,
        function=function,
        layout=layout,
        reference=any(spec.reference for spec in specs),
        coupled=any(spec.coupled for spec in specs),
        statistic=next((spec.statistic for spec in specs if spec.statistic is not None), None),
        equation=name,
        estimates="",
        source="; ".join(spec.source for spec in specs),
        options={key: value for spec in specs for key, value in spec.options.items()},
        declared={key: option for spec in specs for key, option in spec.declared.items()},
        requires=tuple(dict.fromkeys(column for spec in specs for column in spec.requires)),
    )


def _check(specs: Sequence[Objective], weights: Sequence[float]) -> None:
    names = [spec.name for spec in specs]
    if not names:
        raise UserError("a list of objectives needs at least one name")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"objective {min(twice)!r} is in the list twice; add up its weights")
    if len(weights) != len(names):
        raise UserError(
            f"give one weight for each objective: {len(names)} in {names}, got {list(weights)}"
        )
    for name, weight in zip(names, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(f"the weight of {name!r} must be a number, got {weight!r}")
        if not 0 < weight < math.inf:
            raise UserError(
                f"the weight of {name!r} must be a positive number, got {weight}; "
                "leave an objective out rather than weigh it 0"
            )
    statistics = [spec.name for spec in specs if spec.statistic is not None]
    others = [spec.name for spec in specs if spec.coupled and spec.name not in statistics]
    if len(statistics) + len(others) > 1 and statistics:
        raise UserError(
            f"{' and '.join(repr(name) for name in [*statistics, *others])} each need a value of "
            "the whole batch, and a step carries one; keep one of them"
        )
