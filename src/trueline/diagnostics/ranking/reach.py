"""What an objective's optimum can rank right, and the loss at which it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.diagnostics.ranking.theory import (
    Array,
    Flags,
    dpo_threshold,
    gamma_dpo_threshold,
    idealized,
    ipo_threshold,
    rater_logit,
)
from trueline.logprobs import PairedLogProbs
from trueline.objectives import bind, find

DEFAULT_BETA = 0.1
"""Of the DPO that stands in for an objective without a beta."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far an objective's optimum departs from the reference.

    Args:
        title: what it belongs to, for sentences: ``"DPO at beta 0.1"``.
        beta: the objective's beta (IPO's tau).
        right: (difficulties, rater shares) -> whether the optimum ranks each pair right.
        limit: (rater shares) -> the difficulty beyond which it does not, nats.
        threshold: difficulties -> the largest loss at which a pair is right; NaN where none is.
        loss: pairs -> (B,) the objective's own losses.
        stands_in: the objective that was asked for, where none of this is known for it and DPO's
            stand in; else empty.
    """

    title: str
    beta: float
    right: Callable[[Array, Any], Flags]
    limit: Callable[[Any], Array]
    threshold: Callable[[Array], Array]
    loss: Callable[[PairedLogProbs], Array]
    stands_in: str = ""

    def facts(self, alpha: Any) -> dict[str, Any]:
        """What sentences need to know of it; ``limit`` is the median over the pairs' raters."""
        limit = float(np.median(self.limit(alpha)))
        return {
            "title": self.title,
            "stands_in": self.stands_in,
            "limit": limit if np.isfinite(limit) else None,
        }


def reach_of(
    objective: str | Sequence[str] = "dpo", options: Mapping[str, Any] | None = None
) -> Reach:
    """The reach of an objective by name; DPO's at the same beta where only that is known.

    Args:
        objective: a name (an alias, or a list of them, as ``loss_type``).
        options: the objective's options.

    Raises:
        UserError: an unknown objective, or an option that it does not have or not allow.

    Example:
        >>> reach_of("dpo", {"beta": 0.2}).title, reach_of("kldo").stands_in
        ('DPO at beta 0.2', 'kldo')
    """
    bound = bind(objective, options)
    name, given = bound.spec.name, bound.options
    beta = float(given.get("beta", DEFAULT_BETA))
    if name == "dpo" and not given["label_smoothing"]:
        return _dpo(beta)
    if name == "ipo" and given["reduction"] == "sum":
        return _ipo(beta)
    if name == "gamma_dpo":
        return _gamma_dpo(beta, float(given["gamma"]))
    return _dpo(beta, stands_in=name)


def _dpo(beta: float, stands_in: str = "") -> Reach:
    return Reach(
        title=f"DPO at beta {beta:g}",
        beta=beta,
        right=lambda c, alpha: idealized(c, alpha, beta),
        limit=lambda alpha: rater_logit(alpha) / beta,
        threshold=lambda c: dpo_threshold(c, beta),
        loss=lambda pairs: _losses("dpo", pairs, beta=beta),
        stands_in=stands_in,
    )


def _ipo(tau: float) -> Reach:
    """With raters split alpha to 1 - alpha, the margin of least loss is (2 alpha - 1) / (2 tau)."""

    def limit(alpha: Any) -> Array:
        rater_logit(alpha)  # refuses what is no share
        return (2 * np.asarray(alpha, dtype=np.float64) - 1) / (2 * tau)

    return Reach(
        title=f"IPO at tau {tau:g}",
        beta=tau,
        right=lambda c, alpha: np.asarray(c) <= limit(alpha),
        limit=limit,
        threshold=lambda c: ipo_threshold(c, tau),
        loss=lambda pairs: _losses("ipo", pairs, beta=tau),
    )


def _gamma_dpo(beta: float, gamma: float) -> Reach:
    """At the optimum ln pi(w)/pi(l) = logit(alpha) / beta - gamma c."""

    def limit(alpha: Any) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):  # gamma 0 reaches any pair
            return rater_logit(alpha) / beta / np.float64(gamma)

    return Reach(
        title=f"gamma-DPO at beta {beta:g}, gamma {gamma:g}",
        beta=beta,
        right=lambda c, alpha: idealized(gamma * np.asarray(c), alpha, beta),
        limit=limit,
        threshold=lambda c: gamma_dpo_threshold(c, beta, gamma),
        loss=lambda pairs: _losses("gamma_dpo", pairs, beta=beta, gamma=gamma),
    )


def _losses(name: str, pairs: PairedLogProbs, **options: float) -> Array:
    losses: Array = find(name).function(pairs, **options).double().cpu().numpy()
    return losses
