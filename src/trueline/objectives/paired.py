"""DPO and what grew out of it: logistic losses on the difference of log-ratios of a pair.

Throughout, a and b are the policy's log-probs of chosen and rejected, u and v their log-ratios to
the reference, |w| and |l| their lengths in tokens, s the logistic sigmoid; sums over tokens, nats.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import PairedLogProbs
from trueline.objectives.base import objective
from trueline.options import NonNegative, Positive, Range, Reduction, Smoothing


@objective(
    "dpo",
    layout="paired",
    equation="-(1 - e) ln s(beta (u - v)) - e ln s(-beta (u - v))",
    estimates="ln 2 - JS(D+ x D-, D- x D+) where chosen and rejected are independent",
    source="Rafailov et al. 2023, arXiv 2305.18290, eq. 7; smoothing: Mitchell 2023 (cDPO)",
    aliases=("sigmoid",),
)
def dpo(
    pairs: PairedLogProbs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
    dpo_reduction: Reduction = "sum",
) -> Tensor:
    """Direct preference optimization: logistic loss on the difference of log-ratios.

    L = -(1 - e) ln s(beta (u - v)) - e ln s(-beta (u - v)), e the label smoothing of conservative
    DPO (cDPO): the loss expected where a share e of the labels is flipped, so its optimum is a
    margin of logit(1 - e) / beta. ``robust_dpo`` instead undoes the flips.

    Args:
        pairs: B pairs with reference log-probs, nats, summed over tokens.
        beta: strength of the pull to the reference, > 0.
        label_smoothing: assumed share of flipped labels, in [0, 1/2).
        dpo_reduction: ``"sum"`` takes log-ratios of whole sequences, as the paper; ``"mean"``
            divides each by its completion's length (TRL's sigmoid_norm).

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # u = 2, v = -5
        >>> round(dpo(PAIR, beta=0.1).item(), 6)
        0.403186

    Source: Rafailov et al. 2023, eq. 7; Mitchell 2023 for the smoothing.
    """
    margin = pairs.margin
    if dpo_reduction == "mean":
        w, l = pairs.chosen, pairs.rejected  # noqa: E741
        margin = w.log_ratio / w.length - l.log_ratio / l.length
    logits = beta * margin
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


@objective(
    "e_dpo",
    layout="paired",
    equation="dpo with v, u = ln pi(y|x) - ln pi_ref(y|x_s), x_s the reference_prompt",
    estimates="ln 2 - JS(D+ x D-, D- x D+) where chosen and rejected are independent",
    source="Su, Kempe and Ullrich 2024, arXiv 2408.01420 (E-DPO)",
    requires=("reference_prompt",),
)
def e_dpo(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0
) -> Tensor:
    """DPO whose reference is conditioned on a safe prompt x_s, the policy on the prompt x itself.

    L = -ln s(beta (u - v)), u = ln pi(y_w|x) - ln pi_ref(y_w|x_s), v alike. The function is
    ``dpo``: the change lies in what the reference reads, the data's ``reference_prompt``, which
    works with every reference-based objective. This name only insists that the data has it.

    Args:
        pairs: B pairs whose reference log-probs were taken behind x_s.
        beta: strength of the pull to the reference, > 0.
        label_smoothing: as in ``dpo``.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> bool(e_dpo(PAIR) == dpo(PAIR))
        True

    Source: Su, Kempe and Ullrich 2024, the E-DPO loss.
    """
    return dpo(pairs, beta=beta, label_smoothing=label_smoothing)


@objective(
    "robust_dpo",
    layout="paired",
    equation="(-(1 - e) ln s(beta (u - v)) + e ln s(-beta (u - v))) / (1 - 2 e)",
    source="Chowdhury et al. 2024, arXiv 2403.00409 (robust DPO)",
    aliases=("robust",),
)
def robust_dpo(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.1
) -> Tensor:
    """Provably robust DPO: an unbiased estimate of DPO's loss on clean labels from flipped ones.

    L = (-(1 - e) ln s(beta (u - v)) + e ln s(-beta (u - v))) / (1 - 2 e). Averaged over labels that
    are flipped with probability e, it is dpo's loss on the true ones; cDPO (``dpo`` with smoothing)
    is not.

    Args:
        pairs: B pairs with reference log-probs.
        beta: strength of the pull to the reference, > 0.
        label_smoothing: e, the probability of a flipped label, in [0, 1/2); 0.1 as the paper takes
            it, where TRL's default is 0, which is dpo.

    Returns:
        (B,) losses; they can be negative.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(robust_dpo(PAIR, beta=0.1, label_smoothing=0.1).item(), 6)
        0.315686

    Source: Chowdhury et al. 2024, the robust loss.
    """
    logits = beta * pairs.margin
    e = label_smoothing
    return (-(1 - e) * F.logsigmoid(logits) + e * F.logsigmoid(-logits)) / (1 - 2 * e)


@objective(
    "r_dpo",
    layout="paired",
    equation="-ln s(beta (u - v) + alpha (|w| - |l|))",
    source="Park et al. 2024, arXiv 2403.19159 (R-DPO)",
)
def r_dpo(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, length_alpha: NonNegative = 0.01
) -> Tensor:
    """Length-regularized DPO: a pair whose chosen completion is longer counts for less.

    L = -ln s(beta (u - v) + alpha (|w| - |l|)).

    Args:
        pairs: B pairs with reference log-probs.
        beta: strength of the pull to the reference, > 0.
        length_alpha: alpha, logits for each token of difference.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # lengths 20 and 50
        >>> round(r_dpo(PAIR, beta=0.1, length_alpha=0.01).item(), 6)
        0.513015

    Source: Park et al. 2024, the R-DPO loss.
    """
    margin = pairs.margin
    difference = (pairs.chosen.length - pairs.rejected.length).to(margin)
    return -F.logsigmoid(beta * margin + length_alpha * difference)


@objective(
    "dpop",
    layout="paired",
    equation="-ln s(beta (u - v - lambda max(0, -u)))",
    source="Pal et al. 2024, arXiv 2402.13228 (DPO-positive)",
)
def dpop(pairs: PairedLogProbs, *, beta: Positive = 0.1, dpop_lambda: NonNegative = 50.0) -> Tensor:
    """DPO-positive: DPO with a penalty while the chosen one is below its reference likelihood.

    L = -ln s(beta (u - v - lambda max(0, -u))).

    Args:
        pairs: B pairs with reference log-probs.
        beta: strength of the pull to the reference, > 0.
        dpop_lambda: lambda, the penalty's weight; 50 in the paper's main runs (with beta 0.3).

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # u > 0: no penalty
        >>> round(dpop(PAIR, beta=0.1).item(), 6)
        0.403186

    Source: Pal et al. 2024, the DPOP loss.
    """
    penalty = dpop_lambda * F.relu(-pairs.chosen.log_ratio)
    return -F.logsigmoid(beta * (pairs.margin - penalty))


@objective(
    "gamma_dpo",
    layout="paired",
    equation="-ln s(beta (a - b - gamma (ln pi_ref(y_w|x) - ln pi_ref(y_l|x))))",
    source="Chen et al. 2024, arXiv 2405.19534 (gamma-scaled reference)",
)
def gamma_dpo(pairs: PairedLogProbs, *, beta: Positive = 0.1, gamma: NonNegative = 0.5) -> Tensor:
    """DPO with the reference's say scaled by gamma: 1 is dpo, 0 leaves the reference out.

    L = -ln s(beta (a - b - gamma (a_ref - b_ref))). A loss below -ln s(beta gamma c), with
    c = b_ref - a_ref, means that the policy ranks the pair right: the smaller gamma, the easier.

    Args:
        pairs: B pairs with reference log-probs.
        beta: scale of the logits, > 0.
        gamma: weight of the reference's log-probs.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(gamma_dpo(PAIR, beta=0.1, gamma=0.5).item(), 6)
        0.287335

    Source: Chen et al. 2024, the loss with a scaled reference.
    """
    margin = pairs.chosen.policy - pairs.rejected.policy
    return -F.logsigmoid(beta * (margin - gamma * (margin - pairs.margin)))


@objective(
    "discopop",
    layout="paired",
    equation="(1 - m) (-ln s(x)) + m e^-x, x = beta (u - v), m = s(x / tau)",
    source="Lu et al. 2024, arXiv 2406.08414, eq. 5 (log-ratio modulated loss)",
)
def discopop(
    pairs: PairedLogProbs,
    *,
    beta: Positive = 0.05,
    discopop_tau: Annotated[float, Range(0, 1, open="both")] = 0.05,
) -> Tensor:
    """The discovered loss: logistic where the margin is wrong, exponential where it is right.

    L = (1 - m) (-ln s(x)) + m e^-x with x = beta (u - v) and m = s(x / tau). It is not monotone:
    with the paper's beta = tau = 0.05 it has a minimum at a margin of -2.37 nats and a maximum at
    1.44, so that where policy and reference agree it pushes the margin down, not up.

    Args:
        pairs: B pairs with reference log-probs.
        beta: strength of the pull to the reference, > 0; 0.05 in the paper, 0.1 in TRL.
        discopop_tau: tau, the width of the passage from one to the other, in (0, 1); from 1 on e^-x
            would win over m.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # x = 0.7, m = s(14)
        >>> round(discopop(PAIR, beta=0.1).item(), 6)
        0.496585

    Source: Lu et al. 2024, eq. 5.
    """
    x = beta * pairs.margin
    logistic = -F.logsigmoid(x) * (-x / discopop_tau).sigmoid()
    exponential = (F.logsigmoid(x / discopop_tau) - x).exp()  # in log space: m underflows first
    return logistic + exponential
