"""Objectives that read no reference model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.objectives.base import objective


@objective(
    "simpo",
    layout="paired",
    reference=False,
    equation="-ln s(beta (a/|w| - b/|l|) - gamma)",
    source="Meng et al. 2024, arXiv 2405.14734, eq. 6",
)
def simpo(pairs: PairedLogProbs, *, beta: float = 2.0, simpo_gamma: float = 0.5) -> Tensor:
    """Simple preference optimization: length-averaged log-probs with a target margin.

    L = -ln s(beta (a/|w| - b/|l|) - gamma), with a and b the policy's log-probs of chosen and
    rejected.

    Args:
        pairs: B pairs; reference log-probs are not read.
        beta: scale of the averaged log-probs.
        simpo_gamma: target margin gamma, in units of the logit.

    Returns:
        (B,) losses.

    Source: Meng et al. 2024, eq. 6.
    """
    return -F.logsigmoid(beta * (pairs.chosen.mean - pairs.rejected.mean) - simpo_gamma)


@objective(
    "sft",
    layout="completion",
    reference=False,
    equation="-ln pi(y|x) / |y|",
    estimates="KL(data || policy) up to the data's entropy",
    source="maximum likelihood",
)
def sft(completions: CompletionLogProbs) -> Tensor:
    """Supervised fine-tuning: negative log-likelihood per token of the completions to imitate.

    L = -log pi(y|x) / |y|, so each completion weighs the same whatever its length.

    Args:
        completions: B completions to imitate (chosen, desirable, or all where none is labeled).

    Returns:
        (B,) losses, nats per token.
    """
    return -completions.mean
