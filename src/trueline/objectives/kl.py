"""KLDO and its variants: variational forms of KL(D+ || D-), minus the loss an estimate of it.

r = beta * log-ratio plays the critic; D+ is the law of desirable completions, D- of undesirable
ones, and E+, E- are means over the classes of the whole effective batch, whatever their numbers.
Each is a scalar.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trueline.divergences import donsker_varadhan, nwj
from trueline.logprobs import UnpairedLogProbs
from trueline.objectives.base import Statistic, objective
from trueline.objectives.guards import (
    UNDESIRABLE,
    Clip,
    anchored,
    bounded_exp,
    concentration,
    log_bounded_exp,
    log_mean_exp,
    split,
)
from trueline.options import NonNegative, Positive

SOURCE = "Haldar et al. 2025, arXiv 2502.00657"


def _log_normalizer(
    batch: UnpairedLogProbs, *, beta: float = 0.1, clip: float | None = None
) -> Tensor:
    """ln E- e^r."""
    return log_mean_exp(log_bounded_exp(beta * batch.log_ratio, clip), ~batch.desirable)


def _metrics(
    batch: UnpairedLogProbs, *, beta: float = 0.1, clip: float | None = None
) -> dict[str, Tensor]:
    """The Donsker-Varadhan value, and how many undesirable completions carry the weight."""
    aligned, unaligned = split(batch, beta)
    metrics = concentration(unaligned.clamp(max=clip or math.inf), UNDESIRABLE)
    if len(aligned) and len(unaligned):
        metrics["divergence/kl"] = donsker_varadhan(aligned, unaligned)
    return metrics


@objective(
    "kldo",
    layout="unpaired",
    coupled=True,
    equation="-E+ r + ln E- e^r, r = beta log-ratio",
    estimates="-KL(D+ || D-), Donsker-Varadhan",
    source=f"{SOURCE} (KLDO)",
    statistic=Statistic("log_normalizer", _log_normalizer, decay=0.9, log_space=True),
    metrics=_metrics,
)
def kldo(
    batch: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    clip: Clip = None,
    anchor: NonNegative = 0.0,
    log_normalizer: Tensor | None = None,
) -> Tensor:
    """KL divergence optimization: the Donsker-Varadhan bound between aligned and unaligned.

    L = -E+ r + ln E- e^r, r = beta * log-ratio; its infimum over r is -KL(D+ || D-), reached at
    r = ln D+/D- + c. An undesirable completion's weight is its share of e^r in the effective batch.

    Args:
        batch: B labeled completions with reference log-probs; the whole effective batch, because
            ln E- e^r of parts does not add up.
        beta: scale of the rewards, > 0.
        clip: weights are proportional to min(e^r, e^clip); none where None.
        anchor: weight of E+[-ln pi(y|x) / |y|], which holds the desirable ones' likelihood up.
        log_normalizer: Z, a detached estimate of ln E- e^r. With it the loss is the logarithm's
            tangent at Z, E- (e^(r - Z) + Z - 1) in place of ln E- e^r: never below it, equal where
            Z is right, and a sum over completions, so that no first pass is needed.

    Returns:
        A scalar. A class without members contributes a connected 0.

    Example:
        >>> from trueline.objectives.examples import BATCH  # -0.05 + ln((e^.1 + e^-.5) / 2)
        >>> round(kldo(BATCH).item(), 6)
        -0.205659

    Source: Haldar et al. 2025; the tangent is NWJ's bound with a moving offset.
    """
    reward = beta * batch.log_ratio
    exponent = log_bounded_exp(reward, clip)
    if log_normalizer is None:
        unaligned = log_mean_exp(exponent, ~batch.desirable)
    else:
        tangent = bounded_exp(exponent - log_normalizer) + log_normalizer - 1
        unaligned = batch.undesirable_mean(tangent)
    return anchored(unaligned - batch.desirable_mean(reward), batch, anchor)


@objective(
    "kldo_ema",
    layout="unpaired",
    equation="-E+ r + E- (e^(r - Z) + Z - 1), Z = ln of the moving average of E- e^r",
    estimates="-KL(D+ || D-), Donsker-Varadhan, corrected by a moving average",
    source=f"{SOURCE} (KLDO, its released default)",
    statistic=Statistic("log_normalizer", _log_normalizer, decay=0.9, log_space=True),
    metrics=_metrics,
)
def kldo_ema(
    batch: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    clip: Clip = None,
    anchor: NonNegative = 0.0,
    log_normalizer: Tensor | float = 0.0,
) -> Tensor:
    """KLDO with a moving average of E- e^r in the gradient's denominator, this batch included.

    L = -E+ r + E- (e^(r - Z) + Z - 1). The average over steps (rate 0.1) takes away most of the
    bias that ln of one batch's mean has. It is debiased here, so that the first step's Z is that of
    its batch; the paper's release starts it undebiased and sets ``normalize: true``, which can turn
    the rejected completions' gradient around near the start and is left out here. The value to
    read is ``divergence/kl``, not the loss.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards, > 0.
        clip: weights are proportional to min(e^r, e^clip); none where None.
        anchor: weight of E+[-ln pi(y|x) / |y|].
        log_normalizer: Z, detached; 0 is right where policy and reference agree.

    Returns:
        A scalar.

    Example:
        >>> from trueline.objectives.examples import BATCH  # -0.05 + (e^.1 + e^-.5) / 2 - 1
        >>> round(kldo_ema(BATCH).item(), 6)
        -0.194149

    Source: Haldar et al. 2025; the correction is Belghazi et al. 2018, arXiv 1801.04062 (MINE).
    """
    offset = torch.as_tensor(log_normalizer).to(batch.log_ratio)
    return kldo(batch, beta=beta, clip=clip, anchor=anchor, log_normalizer=offset)


def _nwj_metrics(
    batch: UnpairedLogProbs, *, beta: float = 0.1, clip: float | None = None
) -> dict[str, Tensor]:
    metrics = _metrics(batch, beta=beta, clip=clip)
    aligned, unaligned = split(batch, beta)
    if len(aligned) and len(unaligned):
        metrics["divergence/kl"] = nwj(aligned, unaligned)
    return metrics


@objective(
    "kldo_nwj",
    layout="unpaired",
    equation="-E+ r + E- e^(r - 1), r = beta log-ratio",
    estimates="-KL(D+ || D-), Nguyen-Wainwright-Jordan",
    source=f"{SOURCE} (KLDO, NWJ variant)",
    metrics=_nwj_metrics,
)
def kldo_nwj(
    batch: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    clip: Clip = None,
    anchor: NonNegative = 0.0,
) -> Tensor:
    """KLDO without a normalizer: the Nguyen-Wainwright-Jordan bound, a plain sum over completions.

    L = -E+ r + E- e^(r - 1); its infimum is -KL(D+ || D-), at r = 1 + ln D+/D- alone.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards, > 0.
        clip: e^r grows linearly beyond e^clip; at 50 in any case, beyond which no weight trains.
        anchor: weight of E+[-ln pi(y|x) / |y|].

    Returns:
        A scalar. A class without members contributes a connected 0.

    Example:
        >>> from trueline.objectives.examples import BATCH  # -0.05 + (e^-.9 + e^-1.5) / 2
        >>> round(kldo_nwj(BATCH).item(), 6)
        0.26485

    Source: Haldar et al. 2025; Nguyen, Wainwright and Jordan 2010.
    """
    reward = beta * batch.log_ratio
    unaligned = batch.undesirable_mean(bounded_exp(reward, clip) / math.e)
    return anchored(unaligned - batch.desirable_mean(reward), batch, anchor)
