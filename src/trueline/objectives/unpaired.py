"""Objectives on single completions, desirable or not: each estimates a divergence D+ from D-."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import CompletionLogProbs, UnpairedLogProbs
from trueline.objectives.base import Statistic, objective


def _kto_baseline(mismatched: CompletionLogProbs) -> Tensor:
    """z0 / beta = max(0, mean log-ratio of mismatched completions), nats."""
    return mismatched.log_ratio.mean().clamp(min=0)


@objective(
    "kto",
    layout="unpaired",
    equation="lambda (1 - s(+-(r - z0))), r = beta log-ratio, z0 = beta KL",
    estimates="1 - TV(D+, D-)",
    source="Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8",
    statistic=Statistic("baseline", _kto_baseline, of="mismatched"),
)
def kto(
    batch: UnpairedLogProbs,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    """Kahneman-Tversky optimization: a saturating gain over a baseline shared by the batch.

    L = lambda_D (1 - s(r - z0)) on desirable, lambda_U (1 - s(z0 - r)) on undesirable completions,
    with r = beta * log-ratio and z0 = beta * baseline.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.
        baseline: the KL estimate, nats: max(0, mean log-ratio of completions behind other
            examples' prompts), over the whole effective batch; detached.

    Returns:
        (B,) losses.

    Source: Ethayarajh et al. 2024, eq. 8.
    """
    gain = beta * (batch.log_ratio - baseline)
    sign = torch.where(batch.desirable, 1.0, -1.0).to(gain)
    weight = torch.where(batch.desirable, desirable_weight, undesirable_weight).to(gain)
    return weight * torch.sigmoid(-sign * gain)


def _bco_shift(batch: UnpairedLogProbs, *, beta: float) -> Tensor:
    """(E+ r + E- r) / 2: the midpoint of the two classes' rewards."""
    reward = beta * batch.log_ratio
    return (batch.desirable_mean(reward) + batch.undesirable_mean(reward)) / 2


@objective(
    "bco",
    layout="unpaired",
    equation="-ln s(+-(r - d)), r = beta log-ratio, d = (E+ r + E- r) / 2 as a moving average",
    estimates="ln 4 - 2 JS(D+, D-) as E+ plus E-",
    source="Jung et al. 2024, arXiv 2404.04656, eq. 10",
    statistic=Statistic("shift", _bco_shift, decay=0.9),
    aliases=("bco_pair",),
)
def bco(batch: UnpairedLogProbs, *, beta: float = 0.1, shift: Tensor | float = 0.0) -> Tensor:
    """Binary classifier optimization: logistic classification of completions by reward.

    L = -ln s(r - d) on desirable, -ln s(d - r) on undesirable completions, r = beta * log-ratio.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards.
        shift: d, the moving average of (E+ r + E- r) / 2 over effective batches; detached. It is
            part of the published method; without it (0) rewards are not centered.

    Returns:
        (B,) losses.

    Source: Jung et al. 2024, eq. 10.
    """
    reward = beta * batch.log_ratio - shift
    return -F.logsigmoid(torch.where(batch.desirable, reward, -reward))


def log_mean_exp(values: Tensor, members: Tensor) -> Tensor:
    """ln of the mean of e^values over ``members`` (bool), stable; a connected 0 where none."""
    count = int(members.sum())
    if count == 0:
        return values.sum() * 0.0
    return values[members].logsumexp(0) - math.log(count)


def _kldo_normalizer(batch: UnpairedLogProbs, *, beta: float) -> Tensor:
    """ln E- e^r."""
    return log_mean_exp(beta * batch.log_ratio, ~batch.desirable)


def _kldo_metrics(batch: UnpairedLogProbs, *, beta: float) -> dict[str, Tensor]:
    """How many undesirable completions carry the weight: effective sample size, largest share."""
    reward = (beta * batch.log_ratio)[~batch.desirable]
    if not len(reward):
        return {}
    weights = reward.softmax(0)
    return {
        "weights/effective_sample_size": 1 / (weights**2).sum(),
        "weights/top_share": weights.max(),
    }


@objective(
    "kldo",
    layout="unpaired",
    coupled=True,
    equation="-E+ r + ln E- e^r, r = beta log-ratio",
    estimates="-KL(D+ || D-), Donsker-Varadhan",
    source="Haldar et al. 2025, arXiv 2502.00657 (KLDO)",
    statistic=Statistic("log_normalizer", _kldo_normalizer, decay=0.9, log_space=True),
    metrics=_kldo_metrics,
)
def kldo(
    batch: UnpairedLogProbs, *, beta: float = 0.1, log_normalizer: Tensor | None = None
) -> Tensor:
    """KL divergence optimization: the Donsker-Varadhan bound between aligned and unaligned.

    L = -E+ r + ln E- e^r, r = beta * log-ratio; its infimum over r is -KL(D+ || D-).

    Args:
        batch: B labeled completions with reference log-probs; the whole effective batch, because
            ln E- e^r of parts does not add up.
        beta: scale of the rewards.
        log_normalizer: Z, a detached estimate of ln E- e^r. With it the loss is the logarithm's
            tangent at Z, E- (e^(r - Z) + Z - 1) in place of ln E- e^r: never below it, equal where Z
            is right, and a sum over completions, so that no first pass is needed.

    Returns:
        A scalar. A class without members contributes a connected 0.

    Source: Haldar et al. 2025; the tangent is NWJ's bound with a moving offset.
    """
    reward = beta * batch.log_ratio
    if log_normalizer is None:
        return -batch.desirable_mean(reward) + log_mean_exp(reward, ~batch.desirable)
    members = torch.where(batch.desirable, 0.0, reward - log_normalizer)
    tangent = members.exp() + log_normalizer - 1
    return -batch.desirable_mean(reward) + batch.undesirable_mean(tangent)
