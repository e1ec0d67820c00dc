"""What preference ranking can be: pure functions of log-probs, without a model.

Throughout, l(y) is a completion's log-prob summed over its tokens, in nats, w the chosen and l the
rejected completion of a pair, and s the logistic sigmoid. The optimum of DPO and of RLHF keeps the
reference's preference and adds the raters':

    ln pi*(w)/pi*(l) = ln ref(w)/ref(l) + logit(alpha) / beta

with alpha the share of raters who prefer w. So c = l_ref(l) - l_ref(w), how far the reference
leans to the wrong side, says whether even a perfect optimizer ranks the pair right.

Source: Chen, Malladi, Zhang, Chen, Zhang, Ranganath, Cho, "Preference Learning Algorithms Do Not
Learn Preference Rankings", NeurIPS 2024, arXiv 2405.19534.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from trueline.errors import UserError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
"""The betas over which the paper reports minimum, median and maximum."""

UNANIMOUS_ODDS = 1000.0
"""Unanimous votes would give infinite odds; they count as 1000 to 1, either way around."""

TIE = 0.01
"""Two probabilities that differ by less are a tie."""


def difficulty(reference_chosen: Any, reference_rejected: Any) -> Any:
    """How hard a pair is to rank right: c = l_ref(l) - l_ref(w), nats.

    Above 0 the reference ranks the pair wrong; DPO ranks it right exactly where its margin over
    the reference reaches c, that is where its loss on the pair is at most :func:`dpo_threshold`.

    Args:
        reference_chosen: (B,) log-probs of the chosen completions under the reference, nats.
        reference_rejected: (B,) of the rejected ones.

    Returns:
        (B,) of the arguments' own kind: tensors, arrays or numbers.

    Example:
        >>> difficulty(-60.0, -50.0)
        10.0
    """
    return reference_rejected - reference_chosen


def rater_logit(alpha: Any, odds: float = UNANIMOUS_ODDS) -> Array:
    """ln(alpha / (1 - alpha)), unanimous votes clamped symmetrically to ``odds`` : 1.

    Args:
        alpha: share or shares of raters who prefer the chosen completion, in [0, 1].
        odds: the largest odds, above 1; 1 / odds is the smallest.

    Raises:
        UserError: a share outside [0, 1], or odds of at most 1.

    Example:
        >>> rater_logit([1.0, 0.0, 0.75]).round(4).tolist()
        [6.9078, -6.9078, 1.0986]
    """
    shares = np.asarray(alpha, dtype=np.float64)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise UserError(f"a share of raters must lie in [0, 1], got {alpha!r}")
    if not odds > 1:
        raise UserError(f"the largest odds must be above 1, got {odds}")
    with np.errstate(divide="ignore"):
        logit = np.log(shares) - np.log1p(-shares)
    return np.clip(logit, -math.log(odds), math.log(odds))


def idealized(c: Any, alpha: Any, beta: float, *, odds: float = UNANIMOUS_ODDS) -> Flags:
    """Whether the optimum of DPO and RLHF ranks each pair right: c < logit(alpha) / beta.

    Args:
        c: (B,) difficulties, nats.
        alpha: share of raters who prefer the chosen completion, one number or (B,).
        beta: strength of the pull to the reference, > 0.
        odds: what unanimous votes count as; see :func:`rater_logit`.

    Returns:
        (B,) bool.

    Example:
        >>> idealized([7.0, 20.0], 1.0, 0.1).tolist(), idealized([7.0, 20.0], 1.0, 1.0).tolist()
        ([True, True], [False, False])

    Source: Chen et al. 2024, the idealized ranking accuracy.
    """
    _positive("beta", beta)
    return np.asarray(c, dtype=np.float64) < rater_logit(alpha, odds) / beta


def dpo_threshold(c: Any, beta: float) -> Array:
    """The DPO loss at or below which a pair is ranked right: -ln s(beta c), nats.

    Example:
        >>> dpo_threshold([-5.0, 0.0, 10.0], 0.1).round(6).tolist()
        [0.974077, 0.693147, 0.313262]
    """
    _positive("beta", beta)
    return np.logaddexp(0.0, -beta * np.asarray(c, dtype=np.float64))


def ipo_threshold(c: Any, tau: float) -> Array:
    """The IPO loss at or below which a pair is sure to be ranked right: (1/(2 tau) - c)^2.

    IPO pulls the margin to 1 / (2 tau). Where c lies beyond that target, even a loss of 0 ranks
    the pair wrong, and no loss is small enough: the threshold is NaN.

    Example:
        >>> ipo_threshold([-5.0, 4.0, 6.0], 0.1).tolist()
        [100.0, 1.0, nan]
    """
    _positive("tau", tau)
    room = 1 / (2 * tau) - np.asarray(c, dtype=np.float64)
    return np.where(room >= 0, room**2, np.nan)


def gamma_dpo_threshold(c: Any, beta: float, gamma: float) -> Array:
    """The loss of gamma-DPO at or below which a pair is ranked right: -ln s(beta gamma c).

    gamma scales the reference's say: 1 is DPO; at 0 every pair needs a loss below ln 2 only.

    Example:
        >>> gamma_dpo_threshold([10.0], 0.1, 0.5).round(6).tolist()    # -ln s(0.5)
        [0.474077]
    """
    _positive("beta", beta)
    if not gamma >= 0:
        raise UserError(f"gamma must be at least 0, got {gamma}")
    return np.logaddexp(0.0, -beta * gamma * np.asarray(c, dtype=np.float64))


def ties_right(first: Any, second: Any, eps: float = TIE) -> Flags:
    """Whether a pair that raters split evenly on is held to be a tie: |p - q| < eps.

    Of long completions both probabilities are nearly 0, and every pair is a tie by this measure;
    hand in per-token means, so that p and q are geometric means over tokens, for one that is not.

    Args:
        first: (B,) log-probs, nats.
        second: (B,) log-probs of the other completions.
        eps: how far two probabilities may be apart.

    Example:
        >>> import math
        >>> ties_right([math.log(0.5), math.log(0.5)], [math.log(0.495), math.log(0.4)]).tolist()
        [True, False]
    """
    return np.abs(np.exp(np.asarray(first)) - np.exp(np.asarray(second))) < eps


def exact_ranking(scores: Sequence[float], log_probs: Sequence[float]) -> bool:
    """Whether the log-probs order all of a prompt's n completions as their scores do.

    By chance that happens once in n! times. The scores must differ; equal log-probs of two
    completions count as the right order, as they do for pairs.

    Example:
        >>> exact_ranking([3, 2, 1], [-4.0, -5.0, -9.0]), exact_ranking([3, 2, 1], [-5, -4, -9])
        (True, False)
    """
    ordered = np.asarray(log_probs, dtype=np.float64)[np.argsort(scores)[::-1]]
    return bool((ordered[:-1] >= ordered[1:]).all())


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name} must be above 0, got {value}")
