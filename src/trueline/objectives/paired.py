"""Objectives on preference pairs, with a reference model."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import PairedLogProbs
from trueline.objectives.base import objective


@objective(
    "dpo",
    layout="paired",
    equation="-(1 - e) ln s(beta (u - v)) - e ln s(-beta (u - v))",
    estimates="ln 2 - JS(D+ x D-, D- x D+) where chosen and rejected are independent",
    source="Rafailov et al. 2023, arXiv 2305.18290, eq. 7; smoothing: Mitchell 2023 (cDPO)",
    aliases=("sigmoid",),
)
def dpo(pairs: PairedLogProbs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimization: logistic loss on the difference of log-ratios.

    L = -(1 - e) ln s(beta (u - v)) - e ln s(-beta (u - v)), with u and v the log-ratios of chosen
    and rejected, s the logistic sigmoid and e the label smoothing (cDPO's conservative loss).

    Args:
        pairs: B pairs with reference log-probs, nats, summed over tokens.
        beta: strength of the pull to the reference, > 0.
        label_smoothing: assumed share of flipped labels, in [0, 1/2).

    Returns:
        (B,) losses.

    Example:
        >>> import torch
        >>> from trueline.logprobs import CompletionLogProbs
        >>> w = CompletionLogProbs(torch.tensor([-40.0]), torch.tensor([20]), torch.tensor([-42.0]))
        >>> l = CompletionLogProbs(torch.tensor([-55.0]), torch.tensor([50]), torch.tensor([-50.0]))
        >>> round(dpo(PairedLogProbs(w, l), beta=0.1).item(), 6)
        0.403186

    Source: Rafailov et al. 2023, eq. 7; Mitchell 2023 for the smoothing.
    """
    logits = beta * pairs.margin
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


@objective(
    "ipo",
    layout="paired",
    equation="(u - v - 1 / (2 beta))^2",
    source="Azar et al. 2023, arXiv 2310.12036, eq. 17",
)
def ipo(
    pairs: PairedLogProbs, *, beta: float = 0.1, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Identity preference optimization: squared distance of the margin from its target.

    L = (u - v - 1/(2 beta))^2.

    Args:
        pairs: B pairs with reference log-probs.
        beta: the paper's tau, > 0; the target margin is 1 / (2 beta) nats.
        reduction: ``"sum"`` takes log-ratios of whole sequences, as the paper; ``"mean"`` divides
            each by its completion's length, as popular code does.

    Returns:
        (B,) losses.

    Source: Azar et al. 2023, eq. 17.
    """
    chosen, rejected = pairs.chosen.log_ratio, pairs.rejected.log_ratio
    if reduction == "mean":
        chosen, rejected = chosen / pairs.chosen.length, rejected / pairs.rejected.length
    return (chosen - rejected - 1 / (2 * beta)) ** 2
