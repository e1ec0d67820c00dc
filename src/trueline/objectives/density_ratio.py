"""Direct imitation learning: match pi / pi_ref to pi_chosen / pi_ref by density-ratio estimation.

A Bregman divergence with generator h compares the ratio r: E_ref[h'(r) r - h(r)] - E_chosen[h'(r)],
the rejected completions standing in for the reference's samples. u and v are the log-ratios of
chosen and rejected, nats. The paper's formula takes whole sequences (``reduction="sum"``), its
released code log-ratios per token (``"mean"``); the published results are the code's, and so is the
default.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.objectives.base import objective
from trueline.objectives.guards import bounded_exp
from trueline.options import Positive, Reduction

SOURCE = "Xiao et al. 2025, arXiv 2503.05079"


def _log_ratio(completions: CompletionLogProbs, reduction: Reduction) -> Tensor:
    log_ratio = completions.log_ratio
    return log_ratio / completions.length if reduction == "mean" else log_ratio


@objective(
    "dil",
    layout="paired",
    equation="-e^u + e^(2 v) / 2",
    estimates="the ratio pi_chosen / pi_ref by least squares, h(r) = (r - 1)^2 / 2",
    source=f"{SOURCE} (LSIF)",
    aliases=("dil_lsif",),
)
def dil(pairs: PairedLogProbs, *, reduction: Reduction = "mean") -> Tensor:
    """Direct imitation learning by least-squares importance fitting (LSIF), its main variant.

    L = -e^u + e^(2v) / 2; exponents beyond 50 go on along the tangent, so that nothing overflows.

    Args:
        pairs: B pairs with reference log-probs.
        reduction: log-ratios as ``"sum"`` over a completion or ``"mean"`` per token.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # per token u = 0.1, v = -0.1
        >>> round(dil(PAIR).item(), 6)
        -0.695806

    Source: Xiao et al. 2025, the LSIF row.
    """
    u, v = _log_ratio(pairs.chosen, reduction), _log_ratio(pairs.rejected, reduction)
    return -bounded_exp(u) + bounded_exp(2 * v) / 2


@objective(
    "dil_ukl",
    layout="paired",
    equation="-u + e^v",
    estimates="the ratio pi_chosen / pi_ref by unnormalized KL, h(r) = r ln r - r",
    source=f"{SOURCE} (UKL)",
)
def dil_ukl(pairs: PairedLogProbs, *, reduction: Reduction = "mean") -> Tensor:
    """Direct imitation learning by the unnormalized Kullback-Leibler divergence.

    L = -u + e^v.

    Args:
        pairs: B pairs with reference log-probs.
        reduction: log-ratios as ``"sum"`` over a completion or ``"mean"`` per token.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(dil_ukl(PAIR).item(), 6)
        0.804837

    Source: Xiao et al. 2025, the UKL row.
    """
    return -_log_ratio(pairs.chosen, reduction) + bounded_exp(_log_ratio(pairs.rejected, reduction))


@objective(
    "dil_bce",
    layout="paired",
    equation="ln(1 + e^-u) + ln(1 + e^v)",
    estimates="the ratio pi_chosen / pi_ref by classification, h(r) = r ln r - (r + 1) ln(r + 1)",
    source=f"{SOURCE} (BCE)",
)
def dil_bce(pairs: PairedLogProbs, *, reduction: Reduction = "mean") -> Tensor:
    """Direct imitation learning by binary cross-entropy.

    L = ln(1 + e^-u) + ln(1 + e^v).

    Args:
        pairs: B pairs with reference log-probs.
        reduction: log-ratios as ``"sum"`` over a completion or ``"mean"`` per token.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(dil_bce(PAIR).item(), 6)
        1.288793

    Source: Xiao et al. 2025, the BCE row.
    """
    u, v = _log_ratio(pairs.chosen, reduction), _log_ratio(pairs.rejected, reduction)
    return -F.logsigmoid(u) - F.logsigmoid(-v)


@objective(
    "dil_cpc",
    layout="paired",
    equation="-ln s(beta (u - v))",
    estimates="the ratio pi_chosen / pi_ref by contrast with one negative: dpo, where summed",
    source=f"{SOURCE} (CPC)",
)
def dil_cpc(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, reduction: Reduction = "mean"
) -> Tensor:
    """Direct imitation learning by contrastive coding with one negative; summed, it is DPO.

    L = -ln s(beta (u - v)).

    Args:
        pairs: B pairs with reference log-probs.
        beta: scale of the logits, > 0; the other variants have none.
        reduction: log-ratios as ``"sum"`` over a completion or ``"mean"`` per token.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(dil_cpc(PAIR, reduction="sum").item(), 6)
        0.403186

    Source: Xiao et al. 2025, the CPC row.
    """
    u, v = _log_ratio(pairs.chosen, reduction), _log_ratio(pairs.rejected, reduction)
    return -F.logsigmoid(beta * (u - v))
