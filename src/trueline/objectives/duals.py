"""Objectives that follow from an f-divergence: three written out, and ``fdo`` for any other.

L = -E+ g(r) + E- f*(g(r)), r = beta * log-ratio the critic, E+ and E- means over the desirable and
the undesirable completions of the whole effective batch, whatever their numbers. Each is a scalar.
Exponents above ``clip`` (50 at most, beyond which no weight trains) go on along the tangent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from trueline.divergences import DIVERGENCES, dual
from trueline.logprobs import UnpairedLogProbs
from trueline.objectives.base import objective
from trueline.objectives.guards import (
    DESIRABLE,
    UNDESIRABLE,
    Clip,
    anchored,
    bounded_exp,
    concentration,
    split,
)
from trueline.options import NameIn, NonNegative, Positive, Range

SOURCE = "Haldar et al. 2025, arXiv 2502.00657"

REACH = 30.0
"""Rewards beyond it take any f-divergence along its tangent; e^(2 * 30) still fits float32."""


def _hdo_metrics(batch: UnpairedLogProbs, *, beta: float = 0.1) -> dict[str, Tensor]:
    aligned, unaligned = split(batch, beta)
    return concentration(unaligned / 2, UNDESIRABLE) | concentration(-aligned / 2, DESIRABLE)


@objective(
    "hdo",
    layout="unpaired",
    equation="E+ e^(-r/2) + E- e^(r/2), r = beta log-ratio",
    estimates="2 BC(D+, D-) = 2 - squared Hellinger distance",
    source=f"{SOURCE} (FDO, Hellinger)",
    metrics=_hdo_metrics,
)
def hdo(
    batch: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    clip: Clip = None,
    anchor: NonNegative = 0.0,
) -> Tensor:
    """Hellinger distance optimization: the exponential loss of boosting, on rewards.

    L = E+ e^(-r/2) + E- e^(r/2); its infimum is 2 - H^2(D+, D-), at r = ln D+/D-.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards, > 0.
        clip: exponents +-r/2 beyond it grow linearly.
        anchor: weight of E+[-ln pi(y|x) / |y|].

    Returns:
        A scalar. A class without members contributes a connected 0.

    Example:
        >>> from trueline.objectives.examples import BATCH
        >>> round(hdo(BATCH).item(), 6)
        1.89309

    Source: Haldar et al. 2025, the FDO family with the squared Hellinger distance.
    """
    half = beta * batch.log_ratio / 2
    aligned = batch.desirable_mean(bounded_exp(-half, clip))
    return anchored(aligned + batch.undesirable_mean(bounded_exp(half, clip)), batch, anchor)


def _reverse_kl_metrics(batch: UnpairedLogProbs, *, beta: float = 0.1) -> dict[str, Tensor]:
    return concentration(-split(batch, beta)[0], DESIRABLE)


@objective(
    "reverse_kl",
    layout="unpaired",
    equation="E+ e^-r + E- (r - 1), r = beta log-ratio",
    estimates="-KL(D- || D+)",
    source=f"{SOURCE} (FDO, reverse KL)",
    metrics=_reverse_kl_metrics,
)
def reverse_kl(
    batch: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    clip: Clip = None,
    anchor: NonNegative = 0.0,
) -> Tensor:
    """Reverse KL optimization: desirable completions are weighed by e^-r, undesirable ones alike.

    L = E+ e^-r + E- (r - 1); its infimum is -KL(D- || D+), at r = ln D+/D-. The undesirable side is
    linear: it never stops pushing down.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards, > 0.
        clip: the exponent -r beyond it grows linearly.
        anchor: weight of E+[-ln pi(y|x) / |y|].

    Returns:
        A scalar. A class without members contributes a connected 0.

    Example:
        >>> from trueline.objectives.examples import BATCH
        >>> round(reverse_kl(BATCH).item(), 6)
        -0.238049

    Source: Haldar et al. 2025, the FDO family with the reverse KL.
    """
    reward = beta * batch.log_ratio
    aligned = batch.desirable_mean(bounded_exp(-reward, clip))
    return anchored(aligned + batch.undesirable_mean(reward - 1), batch, anchor)


def _chi2_metrics(batch: UnpairedLogProbs, *, beta: float = 0.1) -> dict[str, Tensor]:
    aligned, unaligned = split(batch, beta)
    return concentration(2 * unaligned, UNDESIRABLE) | concentration(aligned, DESIRABLE)


@objective(
    "chi2",
    layout="unpaired",
    equation="-2 E+ (e^r - 1) + E- (e^(2 r) - 1), r = beta log-ratio",
    estimates="-chi2(D+ || D-), Pearson",
    source=f"{SOURCE} (FDO, Pearson)",
    metrics=_chi2_metrics,
)
def chi2(
    batch: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    clip: Clip = None,
    anchor: NonNegative = 0.0,
) -> Tensor:
    """Pearson chi-squared optimization: undesirable completions are weighed by e^(2r).

    L = -2 E+ (e^r - 1) + E- (e^(2r) - 1); its infimum is -chi2(D+ || D-), at r = ln D+/D-. It is
    ``dil``'s least squares with a beta, times 2.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards, > 0.
        clip: exponents r and 2r beyond it grow linearly.
        anchor: weight of E+[-ln pi(y|x) / |y|].

    Returns:
        A scalar. A class without members contributes a connected 0.

    Example:
        >>> from trueline.objectives.examples import BATCH
        >>> round(chi2(BATCH).item(), 6)
        -0.331599

    Source: Haldar et al. 2025, the FDO family with Pearson's divergence.
    """
    reward = beta * batch.log_ratio
    aligned = batch.desirable_mean(bounded_exp(reward, clip) - 1)
    unaligned = batch.undesirable_mean(bounded_exp(2 * reward, clip) - 1)
    return anchored(unaligned - 2 * aligned, batch, anchor)


def _slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = at.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return slope


def _within(function: Callable[[Tensor], Tensor], rewards: Tensor, limit: float) -> Tensor:
    """``function`` where abs(r) <= limit, its tangent at the limit beyond: finite, with a pull."""
    inside = rewards.clamp(-limit, limit)
    return function(inside) + _slope(function, inside) * (rewards - inside)


def _fdo_metrics(
    batch: UnpairedLogProbs, *, beta: float = 0.1, divergence: str = "kl", clip: float = REACH
) -> dict[str, Tensor]:
    """The divergence's estimate, and how many completions of each class carry the gradient."""
    family = DIVERGENCES[divergence]
    aligned, unaligned = (rewards.clamp(-clip, clip) for rewards in split(batch, beta))
    metrics = concentration(_slope(family.dual, unaligned).abs().log(), UNDESIRABLE)
    metrics |= concentration(_slope(family.link, aligned).abs().log(), DESIRABLE)
    if len(aligned) and len(unaligned):
        metrics[f"divergence/{divergence}"] = dual(family, aligned, unaligned)
    return metrics


@objective(
    "fdo",
    layout="unpaired",
    equation="-E+ g(r) + E- f*(g(r)), r = beta log-ratio",
    estimates="-D_f(D+ || D-) of the divergence named (js: of twice Jensen-Shannon)",
    source=f"{SOURCE} (FDO)",
    metrics=_fdo_metrics,
)
def fdo(
    batch: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    divergence: Annotated[str, NameIn(DIVERGENCES)] = "kl",
    clip: Annotated[float, Range(0, REACH, open="low")] = REACH,
    anchor: NonNegative = 0.0,
) -> Tensor:
    """f-divergence optimization: the variational form of any f, with rewards as the critic.

    L = -E+ g(r) + E- f*(g(r)); its infimum is -D_f(D+ || D-), where g(r) = f'(D+/D-). With the
    canonical link g = f' o exp that is r = ln D+/D-.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards, > 0.
        divergence: a name in ``trueline.divergences.DIVERGENCES``, your own among them.
        clip: beyond abs(r) = clip, g and f*(g) go on along their tangents.
        anchor: weight of E+[-ln pi(y|x) / |y|].

    Returns:
        A scalar. A class without members contributes a connected 0.

    Example:
        >>> from trueline.objectives.examples import BATCH
        >>> round(fdo(BATCH, divergence="hellinger2").item(), 6)  # hdo, less its constant 2
        -0.10691

    Source: Haldar et al. 2025; Nguyen, Wainwright and Jordan 2010 for the form.
    """
    family = DIVERGENCES[divergence]
    reward = beta * batch.log_ratio
    aligned = batch.desirable_mean(_within(family.link, reward, clip))
    unaligned = batch.undesirable_mean(_within(family.dual, reward, clip))
    return anchored(unaligned - aligned, batch, anchor)
