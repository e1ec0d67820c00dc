"""The algebra of gradient entanglement: what inner products and coefficients say of a pair.

With g_w, g_l the gradients of log pi(y_w|x), log pi(y_l|x), I = <g_w, g_l>, and an objective's pull
d_w = -dL/dlog pi_w, d_l = dL/dlog pi_l, a small step of plain gradient descent on one pair changes,
for each unit of learning rate,

    log pi_w by d_w |g_w|^2 - d_l I,      log pi_l by d_w I - d_l |g_l|^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.objectives.base import BoundObjective, coefficients
from trueline.objectives.combined import seen_as

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

CASES: Mapping[str, str] = {
    "ideal": "the chosen rises and the rejected falls",
    "both_fall": "both fall",
    "both_rise": "both rise",
    "other": "neither rises as wanted, or nothing moves",
}


@dataclass(frozen=True)
class Entangled:
    """P pairs: inner products of their gradients, and an objective's pull on them.

    Args:
        inner: (P,) I = <g_w, g_l>.
        chosen: (P,) |g_w|^2.
        rejected: (P,) |g_l|^2.
        d_chosen: (P,) d_w, how hard the objective pushes the chosen up.
        d_rejected: (P,) d_l, how hard it pushes the rejected down.

    Example:
        >>> one = np.ones(1)
        >>> pair = Entangled(inner=2 * one, chosen=one, rejected=4 * one, d_chosen=one,
        ...                  d_rejected=one)
        >>> pair.change_chosen.tolist(), pair.change_rejected.tolist(), pair.cases.tolist()
        ([-1.0], [-2.0], ['both_fall'])

    Source: Yuan et al. 2024, arXiv 2410.13828, section 3.
    """

    inner: Array
    chosen: Array
    rejected: Array
    d_chosen: Array
    d_rejected: Array

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def cosine(self) -> Array:
        """(P,) of the angle between the two gradients; 0 where one of them vanishes."""
        scale = np.sqrt(self.chosen * self.rejected)
        return np.divide(self.inner, scale, out=np.zeros_like(self.inner), where=scale > 0)

    @property
    def over_smaller(self) -> Array:
        """(P,) I / min(|g_w|^2, |g_l|^2): above 1, an equal pull moves one of them the wrong way.

        The paper's released code takes |g_w|^2 for both terms of its minimum; this takes both.
        """
        return _ratio(self.inner, np.minimum(self.chosen, self.rejected))

    @property
    def change_chosen(self) -> Array:
        """(P,) nats for each unit of learning rate, of log pi_w under a step on this pair alone."""
        return self.d_chosen * self.chosen - self.d_rejected * self.inner

    @property
    def change_rejected(self) -> Array:
        """(P,) likewise of log pi_l."""
        return self.d_chosen * self.inner - self.d_rejected * self.rejected

    @property
    def condition_chosen(self) -> Array:
        """(P,) d_l I / (d_w |g_w|^2): the chosen rises where it is below 1. NaN where a pull is
        not positive: there only the changes themselves tell."""
        return self._condition(self.d_rejected, self.d_chosen * self.chosen)

    @property
    def condition_rejected(self) -> Array:
        """(P,) d_w I / (d_l |g_l|^2): the rejected falls where it is below 1. NaN likewise."""
        return self._condition(self.d_chosen, self.d_rejected * self.rejected)

    def _condition(self, pull: Array, bound: Array) -> Array:
        defined = (self.d_chosen > 0) & (self.d_rejected > 0)
        return np.where(defined, _ratio(pull * self.inner, bound), np.nan)

    @cached_property
    def cases(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        """(P,) names of :data:`CASES`."""
        up, down = self.change_chosen, self.change_rejected
        moves = (up != 0) | (down != 0)
        return np.select(
            [moves & (up >= 0) & (down <= 0), (up < 0) & (down <= 0), (up >= 0) & (down > 0)],
            ["ideal", "both_fall", "both_rise"],
            "other",
        )

    def columns(self) -> dict[str, Array]:
        """Each quantity of a pair by its metric's name, (P,); NaN where it is not defined."""
        return {
            "cosine": self.cosine,
            "inner_product": self.inner,
            "inner_over_smaller": self.over_smaller,
            "norm_chosen": np.sqrt(self.chosen),
            "norm_rejected": np.sqrt(self.rejected),
            "d_chosen": self.d_chosen,
            "d_rejected": self.d_rejected,
            "condition_chosen": self.condition_chosen,
            "condition_rejected": self.condition_rejected,
            "change_chosen": self.change_chosen,
            "change_rejected": self.change_rejected,
        }

    def flags(self) -> dict[str, Flags]:
        """What is true of a pair by its metric's name, (P,)."""
        cases = {f"case_{case}": self.cases == case for case in CASES}
        return {**cases, "chosen_falls": self.change_chosen < 0}


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def statistics_of(
    objective: BoundObjective, pairs: PairedLogProbs, mismatched: CompletionLogProbs | None = None
) -> dict[str, Tensor]:
    """The baseline, shift or normalizer that an objective takes of all pairs, where it takes one.

    Args:
        mismatched: completions behind other prompts, for an objective whose baseline they are
            (KTO).
    """
    statistic = objective.spec.statistic
    if statistic is None or objective.spec.coupled:
        return {}
    measured = seen_as(objective.layout, pairs, None)[0] if mismatched is None else mismatched
    return {statistic.argument: objective.measure(measured)}


def pulls(
    objective: BoundObjective, pairs: PairedLogProbs, statistics: Mapping[str, Tensor] | None = None
) -> tuple[Array, Array]:
    """(d_w, d_l), (P,) each, of any objective, from its coefficients by autograd.

    They are those of a loss a pair: P times the coefficients of the batch's mean loss. An objective
    of unpaired completions sees the chosen as desirable and the rejected as undesirable; one that
    imitates completions sees the chosen.

    Args:
        statistics: what the objective takes of a whole batch; see :func:`statistics_of`.

    Example:
        >>> from trueline.objectives import bind
        >>> from trueline.objectives.examples import PAIR        # margin 7, beta 0.1
        >>> up, down = pulls(bind("dpo"), PAIR)                  # 0.1 sigmoid(-0.7)
        >>> up.round(6).tolist(), down.round(6).tolist()
        ([0.033181], [0.033181])
    """
    count = len(pairs)

    def loss(policy: Tensor) -> Tensor:
        given = PairedLogProbs(
            replace(pairs.chosen, policy=policy[:count]),
            replace(pairs.rejected, policy=policy[count:]),
        )
        batch, _ = seen_as(objective.layout, given, None)
        return objective.loss(batch, total=None, **(statistics or {}))

    _, found = coefficients(loss, torch.cat([pairs.chosen.policy, pairs.rejected.policy]))
    slopes = count * found.double().cpu().numpy()
    return -slopes[:count], slopes[count:]
