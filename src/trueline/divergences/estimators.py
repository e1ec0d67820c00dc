"""Divergences estimated from samples and a critic: what can be reported, and what can be trained.

``aligned`` (n,) and ``unaligned`` (m,) hold a critic's values r on samples of P and of Q. A value
to report is a plain estimate of the divergence. A training surrogate (``*_loss``) is a loss to
minimize whose gradient is meant, while its value need not be the estimate. All are scalars, nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trueline.divergences.family import FDivergence


def log_mean_exp(values: Tensor) -> Tensor:
    """ln of the mean of e^values, (n,) -> scalar, without overflow."""
    return values.logsumexp(0) - math.log(len(values))


def donsker_varadhan(aligned: Tensor, unaligned: Tensor) -> Tensor:
    """Donsker-Varadhan's value of KL(P || Q): E_P r - ln E_Q e^r.

    With expectations it is a lower bound, exact at r = ln P/Q + c for any c. With samples the
    logarithm of a mean is biased low, so the value is biased high, the more the fewer the samples.

    Args:
        aligned: (n,) critic's values on samples of P.
        unaligned: (m,) on samples of Q.

    Returns:
        A scalar, detached: a report, not a loss.

    Example:
        >>> donsker_varadhan(torch.tensor([1.0, 3.0]), torch.zeros(2)).item()
        2.0

    Source: Donsker and Varadhan 1983; Belghazi et al. 2018, arXiv 1801.04062 (MINE).
    """
    return (aligned.mean() - log_mean_exp(unaligned)).detach()


def donsker_varadhan_loss(aligned: Tensor, unaligned: Tensor) -> Tensor:
    """The biased surrogate -E_P r + ln E_Q e^r: value and gradient use this batch's mean.

    The gradient of ln of a batch's mean is biased: E[1/mean] is not 1/E[mean].
    """
    return log_mean_exp(unaligned) - aligned.mean()


def donsker_varadhan_corrected_loss(
    aligned: Tensor, unaligned: Tensor, log_normalizer: Tensor | float
) -> Tensor:
    """The surrogate with a moving average in the gradient's denominator: unbiased as it settles.

    L = -E_P r + E_Q (e^(r - Z) + Z - 1): the logarithm's tangent at Z, never below ln E_Q e^r, so
    that the gradient of the second term is E_Q e^r grad r / e^Z.

    Args:
        aligned, unaligned: as in :func:`donsker_varadhan`.
        log_normalizer: Z, ln of a moving average of E_Q e^r, detached; it is carried by the caller.

    Returns:
        A scalar with a gradient. Report :func:`donsker_varadhan`, not this.

    Source: Belghazi et al. 2018 (MINE), the correction of its gradient.
    """
    tangent = (unaligned - log_normalizer).exp() + log_normalizer - 1
    return tangent.mean() - aligned.mean()


def donsker_varadhan_clipped(aligned: Tensor, unaligned: Tensor, clip: float) -> Tensor:
    """E_P r - ln E_Q clip(e^r, e^-c, e^c): less variance, a bias where the ratio leaves the band.

    Args:
        aligned, unaligned: as in :func:`donsker_varadhan`.
        clip: c > 0, nats.

    Source: Song and Ermon 2020, arXiv 1910.06222 (SMILE).
    """
    return (aligned.mean() - log_mean_exp(unaligned.clamp(-clip, clip))).detach()


def donsker_varadhan_clipped_loss(aligned: Tensor, unaligned: Tensor, clip: float) -> Tensor:
    """-E_P r + ln E_Q h(r), h = e^r up to c and its tangent beyond: the weight of a sample of Q is
    proportional to min(e^r, e^c), where cutting e^r off would stop its gradient altogether."""
    inside = unaligned.clamp(max=clip)
    return log_mean_exp(inside + torch.log1p(unaligned - inside)) - aligned.mean()


def nwj(aligned: Tensor, unaligned: Tensor) -> Tensor:
    """Nguyen-Wainwright-Jordan's value of KL(P || Q): E_P r - E_Q e^(r-1).

    Unbiased for its own bound, exact at r = 1 + ln P/Q alone, with a variance that grows as e^KL.

    Source: Nguyen, Wainwright and Jordan 2010, arXiv 0809.0853.
    """
    return -nwj_loss(aligned, unaligned).detach()


def nwj_loss(aligned: Tensor, unaligned: Tensor) -> Tensor:
    """-E_P r + E_Q e^(r-1); here value and surrogate agree up to the sign."""
    return (unaligned - 1).exp().mean() - aligned.mean()


def dual(divergence: FDivergence, aligned: Tensor, unaligned: Tensor) -> Tensor:
    """The value E_P g(r) - E_Q f*(g(r)) of any D_f(P || Q); ``js`` is twice Jensen-Shannon.

    Example:
        >>> from trueline.divergences import DIVERGENCES
        >>> dual(DIVERGENCES["tv"], torch.full((3,), 50.0), torch.full((3,), -50.0)).item()
        1.0
    """
    return -dual_loss(divergence, aligned, unaligned).detach()


def dual_loss(divergence: FDivergence, aligned: Tensor, unaligned: Tensor) -> Tensor:
    """-E_P g(r) + E_Q f*(g(r)), to be minimized over r; its infimum is -D_f(P || Q)."""
    return divergence.dual(unaligned).mean() - divergence.link(aligned).mean()


def donsker_varadhan_error(aligned: Tensor, unaligned: Tensor) -> Tensor:
    """Standard error of :func:`donsker_varadhan`, by the delta method.

    sqrt(var_P r / n + var_Q e^r / (m (E_Q e^r)^2)), for a critic not fitted to these samples.

    It is blind to the rare large ratios that were not drawn: where KL exceeds ln m it is far too
    small.
    """
    shares = (unaligned - unaligned.max()).exp()
    relative = shares.var() / shares.mean() ** 2
    return (aligned.var() / len(aligned) + relative / len(unaligned)).sqrt().detach()


def dual_error(divergence: FDivergence, aligned: Tensor, unaligned: Tensor) -> Tensor:
    """Standard error of :func:`dual`, for a critic that was not fitted to these samples."""
    a, b = divergence.link(aligned), divergence.dual(unaligned)
    return (a.var() / len(a) + b.var() / len(b)).sqrt().detach()
