"""Objectives that read no reference model.

Throughout, a and b are the policy's log-probs of chosen and rejected, summed over |w| and |l|
tokens, nats; s the logistic sigmoid.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.objectives.base import objective
from trueline.options import NonNegative, Positive


@objective(
    "simpo",
    layout="paired",
    reference=False,
    per_token=True,
    equation="-ln s(beta (a/|w| - b/|l|) - gamma)",
    source="Meng et al. 2024, arXiv 2405.14734, eq. 6",
)
def simpo(pairs: PairedLogProbs, *, beta: Positive = 2.0, simpo_gamma: NonNegative = 0.5) -> Tensor:
    """Simple preference optimization: length-averaged log-probs with a target margin.

    L = -ln s(beta (a/|w| - b/|l|) - gamma). TRL (CPO's loss_type simpo) has beta 0.1 and adds the
    chosen completions' likelihood, ``sft`` over tokens, unless ``cpo_alpha`` is 0.

    Args:
        pairs: B pairs; reference log-probs are not read.
        beta: scale of the averaged log-probs, > 0.
        simpo_gamma: target margin gamma, in units of the logit.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # -ln s(2 (-2 + 1.1) - 0.5)
        >>> round(simpo(PAIR).item(), 6)
        2.395545

    Source: Meng et al. 2024, eq. 6.
    """
    return -F.logsigmoid(beta * (pairs.chosen.mean - pairs.rejected.mean) - simpo_gamma)


@objective(
    "orpo",
    layout="paired",
    reference=False,
    per_token=True,
    equation="-a/|w| - beta ln s(o_w - o_l), o = ln(p / (1 - p)), p = e^(mean log-prob)",
    source="Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7",
)
def orpo(pairs: PairedLogProbs, *, beta: NonNegative = 0.1) -> Tensor:
    """Odds ratio preference optimization: imitate the chosen one, and favor its odds.

    L = -a/|w| - beta ln s(o_w - o_l), o = ln(p / (1 - p)) with p the completion's geometric mean
    probability per token. The first term is a mean over the completion's own tokens, as in the
    paper; TRL averages it over all tokens of the batch, the prompts' too.

    Args:
        pairs: B pairs; reference log-probs are not read.
        beta: the paper's lambda, weight of the odds ratio.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(orpo(PAIR).item(), 6)
        2.14322

    Source: Hong et al. 2024, eq. 6 and 7.
    """
    chosen, rejected = pairs.chosen.mean, pairs.rejected.mean
    return -chosen - beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(mean: Tensor) -> Tensor:
    """ln(p / (1 - p)) of p = e^mean; a certainty counts as 1 - eps, so that odds stay finite."""
    mean = mean.clamp(max=-torch.finfo(mean.dtype).eps)
    return mean - (-torch.expm1(mean)).log()


@objective(
    "cpo",
    layout="paired",
    reference=False,
    equation="-ln s(beta (a - b)) - alpha a",
    source="Xu et al. 2024, arXiv 2401.08417 (CPO)",
)
def cpo(pairs: PairedLogProbs, *, beta: Positive = 0.1, cpo_alpha: NonNegative = 1.0) -> Tensor:
    """Contrastive preference optimization: DPO with a uniform reference, plus imitation.

    L = -ln s(beta (a - b)) - alpha a. The imitation is summed over tokens, as in the paper; TRL
    averages it over the tokens of all chosen completions of the batch, which is the sum of this
    with ``cpo_alpha=0`` and ``sft`` over tokens.

    Args:
        pairs: B pairs; reference log-probs are not read.
        beta: scale of the logits, > 0.
        cpo_alpha: alpha, weight of the chosen one's negative log-likelihood; 0 leaves it out.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # -ln s(1.5) + 40
        >>> round(cpo(PAIR, beta=0.1).item(), 6)
        40.201413

    Source: Xu et al. 2024, the sum of its preference and likelihood losses.
    """
    margin = pairs.chosen.policy - pairs.rejected.policy
    return -F.logsigmoid(beta * margin) - cpo_alpha * pairs.chosen.policy


@objective(
    "slic",
    layout="paired",
    reference=False,
    equation="max(0, delta - a + b) - lambda a",
    source="Zhao et al. 2023, arXiv 2305.10425 (SLiC-HF)",
)
def slic(
    pairs: PairedLogProbs, *, slic_delta: NonNegative = 1.0, slic_lambda: NonNegative = 0.1
) -> Tensor:
    """Sequence likelihood calibration: a hinge on log-probs, plus imitation of the chosen one.

    L = max(0, delta - a + b) - lambda a; the completion to imitate is the chosen one. With
    log-ratios in place of log-probs, the hinge is ``hinge``.

    Args:
        pairs: B pairs; reference log-probs are not read.
        slic_delta: delta, the margin wanted, nats.
        slic_lambda: lambda, weight of the chosen one's negative log-likelihood.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # max(0, 1 - 15) + 4
        >>> slic(PAIR).item()
        4.0

    Source: Zhao et al. 2023, the calibration loss.
    """
    margin = pairs.chosen.policy - pairs.rejected.policy
    return F.relu(slic_delta - margin) - slic_lambda * pairs.chosen.policy


@objective(
    "rrhf",
    layout="paired",
    reference=False,
    per_token=True,
    equation="max(0, b/|l| - a/|w|) - lambda a",
    source="Yuan et al. 2023, arXiv 2304.05302 (RRHF, two completions)",
)
def rrhf(pairs: PairedLogProbs, *, rrhf_lambda: NonNegative = 1.0) -> Tensor:
    """Rank responses: length-averaged log-probs in the right order, plus imitation of the best.

    L = max(0, b/|l| - a/|w|) - lambda a.

    Args:
        pairs: B pairs; reference log-probs are not read.
        rrhf_lambda: lambda, weight of the chosen one's negative log-likelihood, summed over tokens.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # (-1.1 + 2) + 40
        >>> round(rrhf(PAIR).item(), 6)
        40.9

    Source: Yuan et al. 2023, ranking plus fine-tuning loss.
    """
    order = F.relu(pairs.rejected.mean - pairs.chosen.mean)
    return order - rrhf_lambda * pairs.chosen.policy


@objective(
    "sft",
    layout="completion",
    reference=False,
    equation="-ln pi(y|x) / |y|",
    estimates="KL(data || policy) up to the data's entropy",
    source="maximum likelihood",
)
def sft(
    completions: CompletionLogProbs,
    *,
    sft_reduction: Literal["completions", "tokens"] = "completions",
) -> Tensor:
    """Supervised fine-tuning: negative log-likelihood per token of the completions to imitate.

    L = -ln pi(y|x) / |y|, so each completion weighs the same whatever its length.

    Args:
        completions: B completions to imitate (chosen, desirable, or all where none is labeled).
        sft_reduction: ``"completions"`` averages over completions; ``"tokens"`` over all their
            tokens in the effective batch, so that each token weighs the same, as TRL does.

    Returns:
        (B,) losses, nats per token; the mean over tokens as a scalar.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> sft(PAIR.chosen).item()
        2.0

    Source: maximum likelihood.
    """
    if sft_reduction == "completions":
        return -completions.mean
    tokens = completions.length.sum() if completions.tokens is None else completions.tokens
    return -completions.policy.sum() / max(int(tokens), 1)
