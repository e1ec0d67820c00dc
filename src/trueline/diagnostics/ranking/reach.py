"""What an objective's optimum can rank right, and the loss at which it does; and what scored
completions tell beyond pairs: rater shares, whole rankings, ties."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from trueline.diagnostics.ranking.scores import PairIndex, Scores
from trueline.diagnostics.ranking.theory import (
    Array,
    Flags,
    dpo_threshold,
    exact_ranking,
    gamma_dpo_threshold,
    idealized,
    ipo_threshold,
    rater_logit,
    ties_right,
)
from trueline.errors import UserError
from trueline.logprobs import PairedLogProbs
from trueline.objectives import bind, find
from trueline.records import Example
from trueline.results import Metric
from trueline.stats import clustered_rate, rate

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


def rater_shares(examples: Sequence[Example], index: PairIndex) -> Array:
    """(P,) shares of raters who prefer each pair's chosen completion, from votes in the scores.

        alpha = score(chosen) / (score(chosen) + score(rejected))

    Raises:
        UserError: a completion of a pair has no score, or the scores cannot be votes.
    """
    shares = np.empty(len(index))
    for row, (i, w, loser) in enumerate(
        zip(index.example, index.chosen, index.rejected, strict=True)
    ):
        completions = examples[i].completions
        scores = (completions[w].score, completions[loser].score)
        if scores[0] is None or scores[1] is None:
            raise UserError(
                f"{examples[i].id or f'example {i}'}: no score on a completion of a pair; rater "
                "shares from scores need one on each (or give the share itself)"
            )
        if min(scores[0], scores[1]) < 0 or scores[0] + scores[1] <= 0:
            raise UserError(
                f"{examples[i].id or f'example {i}'}: scores {scores[0]:g} and {scores[1]:g} are "
                "no votes; rater shares need counts or shares of at least 0"
            )
        shares[row] = scores[0] / (scores[0] + scores[1])
    return shares


def rankings(examples: Sequence[Example], policy: Scores) -> Iterator[Metric]:
    """How often the order of all of three or more completions is that of their scores."""
    hits: list[bool] = []
    chances: list[float] = []
    for example, log_probs in zip(examples, policy.log_probs, strict=True):
        scores = [c.score for c in example.completions if c.score is not None]
        if len(scores) >= 3 and len(set(scores)) == len(scores) == len(example.completions):
            hits.append(exact_ranking(scores, log_probs.tolist()))
            chances.append(1 / math.factorial(len(scores)))
    if hits:
        yield rate("gap/exact_ranking", hits)
        yield Metric("gap/exact_ranking_chance", float(np.mean(chances)), n=len(hits), unit="rate")


def ties(examples: Sequence[Example], policy: Scores) -> Iterator[Metric]:
    """How often two completions of equal score are equally likely: by sequence and per token."""
    rows = [
        (i, j, k)
        for i, example in enumerate(examples)
        for j, k in combinations(range(len(example.completions)), 2)
        if example.completions[j].score is not None
        and example.completions[j].score == example.completions[k].score
    ]
    if not rows:
        return
    groups = [i for i, _, _ in rows]
    means = [p / n for p, n in zip(policy.log_probs, policy.lengths, strict=True)]
    for name, values in (("ties", policy.log_probs), ("ties_per_token", means)):
        first, second = _both(values, rows)
        yield clustered_rate(f"gap/{name}", ties_right(first, second).tolist(), groups)


def _both(values: Sequence[Any], rows: Sequence[tuple[int, int, int]]) -> tuple[Array, Array]:
    return (
        np.asarray([values[i][j] for i, j, _ in rows]),
        np.asarray([values[i][k] for i, _, k in rows]),
    )
