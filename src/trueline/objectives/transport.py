"""Objectives on the order of a batch: chosen rewards dominate rejected ones in every quantile.

A sort belongs to the whole effective batch: sorting its parts compares other quantiles.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import PairedLogProbs
from trueline.objectives.base import objective
from trueline.options import Positive, Smoothing


@objective(
    "aot",
    layout="paired",
    coupled=True,
    equation="mean_i of -(1 - e) ln s(beta q_i) - e ln s(-beta q_i), "
    "q = sort(a - b) - sort(a_ref - b_ref)",
    estimates="a violation of first-order dominance of the policy's margins over the reference's",
    source="Melnyk et al. 2024, arXiv 2406.05882, algorithm 1 (paired)",
    aliases=("aot_pair",),
)
def aot(pairs: PairedLogProbs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0) -> Tensor:
    """Alignment by optimal transport: the policy's margins dominate the reference's.

    L = mean_i -(1 - e) ln s(beta q_i) - e ln s(-beta q_i), where q_i is the i-th smallest of the
    policy's margins a - b minus the i-th smallest of the reference's.

    Args:
        pairs: B pairs with reference log-probs: the whole effective batch.
        beta: scale of the logits, > 0.
        label_smoothing: as in ``dpo``.

    Returns:
        A scalar.

    Example:
        >>> from trueline.objectives.examples import PAIR  # one pair: dpo
        >>> round(aot(PAIR, beta=0.1).item(), 6)
        0.403186

    Source: Melnyk et al. 2024, algorithm 1.
    """
    margin = pairs.chosen.policy - pairs.rejected.policy
    reference = (margin - pairs.margin).detach()
    return _dominance(margin.sort().values - reference.sort().values, beta, label_smoothing)


@objective(
    "aot_unpaired",
    layout="paired",
    coupled=True,
    equation="mean_i of -(1 - e) ln s(beta q_i) - e ln s(-beta q_i), q = sort(u) - sort(v)",
    estimates="a violation of first-order dominance of chosen over rejected log-ratios",
    source="Melnyk et al. 2024, arXiv 2406.05882, algorithm 1 (unpaired)",
)
def aot_unpaired(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0
) -> Tensor:
    """Alignment by optimal transport between all chosen and all rejected log-ratios of the batch.

    L = mean_i -(1 - e) ln s(beta q_i) - e ln s(-beta q_i), where q_i is the i-th smallest chosen
    log-ratio minus the i-th smallest rejected one; which pair either came from does not matter.

    Args:
        pairs: B chosen and B rejected completions with reference log-probs: the whole batch.
        beta: scale of the logits, > 0.
        label_smoothing: as in ``dpo``.

    Returns:
        A scalar.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(aot_unpaired(PAIR, beta=0.1).item(), 6)
        0.403186

    Source: Melnyk et al. 2024, algorithm 1.
    """
    chosen, rejected = pairs.chosen.log_ratio.sort().values, pairs.rejected.log_ratio.sort().values
    return _dominance(chosen - rejected, beta, label_smoothing)


def _dominance(gaps: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The mean logistic loss of (B,) gaps between quantiles; a connected 0 where there are none."""
    logits = beta * gaps
    losses = -(1 - label_smoothing) * F.logsigmoid(logits)
    return (losses - label_smoothing * F.logsigmoid(-logits)).sum() / max(len(gaps), 1)
