"""DSPO and its peers: preference losses on predictions of noised images.

Throughout, e and r are the policy's and the reference's predictions of an image noised with eps at
timestep t (the same for both images of a pair), L and R their mean squared errors, w and l the
chosen and the rejected image, s the logistic sigmoid, and

    z = -(beta / 2) [(L_w - L_l) - (R_w - R_l)],    w = 1 - s(z)

One convention of beta for all: it multiplies the log-ratio (R - L) / 2. Scripts that leave out the
half, or sum errors over a picture's elements, are converted by :func:`beta_from_unhalved` and
:func:`beta_from_summed`.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from trueline.diffusion.declare import diffusion_objective, require_epsilon
from trueline.diffusion.models.predictions import (
    LabeledPredictions,
    PairedPredictions,
    Predictions,
    mean_square,
    per_image,
)
from trueline.objectives.base import Statistic
from trueline.options import NonNegative, Positive, Range

STRENGTH_LIMIT = 0.99
"""DSPO's beta w stays below 1: from there on a step would no longer pull the prediction to the
noise but push it away, without bound."""

SDXL_DRIFT = 0.1
"""Where the official SDXL loss changes branch, in mean squared units of noise."""


def beta_from_unhalved(beta: float) -> float:
    """Trueline's beta for a script whose logit is -beta [(L_w - L_l) - (R_w - R_l)], or whose
    Diffusion-KTO weighs R - L, without the half: twice its value.

    Example:
        >>> beta_from_unhalved(1000.0)
        2000.0
    """
    return 2 * beta


def beta_from_summed(beta: float, elements: int) -> float:
    """Trueline's beta for a script that sums squared errors over a picture's ``elements`` in place
    of averaging them (and keeps the half).

    Example:
        >>> beta_from_summed(0.25, 4 * 64 * 64)  # SD1.5's latent at 512 pixels
        4096.0
    """
    return beta * elements


def preference_weight(pairs: PairedPredictions, beta: float) -> Tensor:
    """(B,) w = 1 - s(z): near 1 where the policy ranks the pair wrong, near 0 where right."""
    return torch.sigmoid(-beta * pairs.margin)


@diffusion_objective(
    "dspo",
    layout="paired",
    equation="mean ((e_w - eps) - beta w (e_w - r_w))^2, w = 1 - s(z)",
    source="Zhu, Xiao and Honavar, ICLR 2025 (DSPO); the official SD1.5 loss",
    one_sided=lambda options: bool(options["detach"]),
    squared_error=True,
)
def dspo(
    pairs: PairedPredictions,
    *,
    beta: Annotated[float, Range(0, 2, open="both")] = 0.01,
    detach: bool = False,
) -> Tensor:
    """Direct score preference optimization: match the data's score plus the preference's.

    The score of p(x_t | c) p(preferred | x_t, c) is the data's plus grad ln s(z). In terms of
    predictions that target is eps + beta w (e_w - r_w), so

        L = mean ((e_w - eps) - beta w (e_w - r_w))^2

    The target of v and of flow predictions is an affine function of the noise at fixed x_t, so the
    same line holds for them; their errors weigh timesteps by 1 / alpha_t^2 against noise errors.

    Where policy and reference agree, w = 1/2 and the gradient is (1 - beta / 2) times that of
    supervised fine-tuning. The rejected image enters through w alone, and the same beta scales the
    correction and the logit in w: a beta small enough to be stable leaves w near 1/2. At the
    official values this is close to fine-tuning on chosen images, with an extrapolation away from
    the reference. beta w is held below 0.99 (``STRENGTH_LIMIT``).

    Args:
        pairs: B pairs with the reference's predictions.
        beta: scale of the correction and of the logit in w, in (0, 2); the paper takes .001 to .05.
        detach: treat the target as fixed, as score matching does; the rejected image then needs no
            backward pass, which makes a step cheaper. Otherwise gradients flow through e_w in the
            correction and through w, as in the official code.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.diffusion.examples import PAIR  # at the reference: the chosen one's error
        >>> round(dspo(PAIR.at_reference(), beta=1.0).item(), 6)
        0.625

    Source: Zhu, Xiao and Honavar 2025; the official SD1.5 code.
    """
    strength = (beta * preference_weight(pairs, beta)).clamp(max=STRENGTH_LIMIT)
    drift = pairs.chosen.drift
    correction = per_image(strength, drift) * drift
    if detach:
        correction = correction.detach()
    return mean_square(pairs.chosen.residual - correction)


@diffusion_objective(
    "dspo_sdxl_official",
    layout="paired",
    equation="mean (w (e_w - r_w))^2 where the batch's mean (e_w - r_w)^2 >= 0.1, else w^2",
    source="the official SDXL code of Zhu, Xiao and Honavar, ICLR 2025",
    epsilon_only=True,
    statistic=Statistic("drift", lambda pairs: mean_square(pairs.chosen.drift)),
)
def dspo_sdxl_official(
    pairs: PairedPredictions, *, beta: Positive = 1000.0, drift: Tensor
) -> Tensor:
    """What DSPO's authors run on SDXL: another function, kept under a name of its own.

    L = mean (w (e_w - r_w))^2 while the effective batch's mean of (e_w - r_w)^2 is at least 0.1,
    and w^2 below. No noise is matched: w pulls the margin apart, as Diffusion-DPO does, until the
    policy has drifted 0.1 from the reference, and is then pulled back.

    Args:
        pairs: B pairs with the reference's predictions of noise.
        beta: scale of the logit in w; the paper's SDXL runs take 1000 to 5000.
        drift: 0-dim, the mean of (e_w - r_w)^2 over the effective batch, detached.

    Returns:
        (B,) losses.

    Raises:
        UserError: the model does not predict noise; the threshold would mean something else.
    """
    require_epsilon("dspo_sdxl_official", pairs)
    weight = preference_weight(pairs, beta)
    if drift < SDXL_DRIFT:
        return weight.square()
    return mean_square(per_image(weight, pairs.chosen.drift) * pairs.chosen.drift)


@diffusion_objective(
    "diffusion_dpo",
    layout="paired",
    equation="-ln s(z)",
    source="Wallace et al. 2023, arXiv 2311.12908, eq. 14 (Diffusion-DPO)",
)
def diffusion_dpo(pairs: PairedPredictions, *, beta: Positive = 2000.0) -> Tensor:
    """Diffusion-DPO: logistic loss on the difference of denoising log-ratios.

    L = -ln s(-(beta / 2) [(L_w - L_l) - (R_w - R_l)]): ``dpo`` with -L/2 for a log-prob. The margin
    grows most easily by making the rejected image's error large, which spoils the model; watch
    ``diffusion/chosen_shift``, or set ``sdpo_mu``.

    Args:
        pairs: B pairs with the reference's predictions.
        beta: strength of the pull to the reference; 2000 for SD1.5, 5000 for SDXL in the paper.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.diffusion.examples import PAIR
        >>> round(diffusion_dpo(PAIR.at_reference()).item(), 6)  # ln 2
        0.693147
    """
    return -F.logsigmoid(beta * pairs.margin)


@diffusion_objective(
    "diffusion_kto",
    layout="unpaired",
    equation="lambda_y (1 - s(y beta (g - z0))), g = (R - L) / 2, z0 = max(0, mean g)",
    source="Li et al. 2024, arXiv 2404.04465 (Diffusion-KTO)",
    statistic=Statistic("baseline", lambda batch: batch.predictions.log_ratio),
)
def diffusion_kto(
    batch: LabeledPredictions,
    *,
    beta: Positive = 2000.0,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
    baseline: Tensor,
) -> Tensor:
    """Diffusion-KTO: each image by itself against the batch's mean log-ratio.

    L = lambda_y (1 - s(y beta (g - z0))) with y = +1 or -1, g = (R - L) / 2, and z0 the mean of g
    over the whole effective batch, at least 0 and without gradient. Scripts that take g = R - L are
    converted by ``beta_from_unhalved``.

    Args:
        batch: B labeled images with the reference's predictions.
        beta: scale of the log-ratios.
        desirable_weight, undesirable_weight: lambda_y of the two classes.
        baseline: 0-dim, the mean of g over the effective batch, detached.

    Returns:
        (B,) losses.
    """
    sign = torch.where(batch.desirable, 1.0, -1.0)
    weight = torch.where(batch.desirable, desirable_weight, undesirable_weight)
    reward = beta * (batch.predictions.log_ratio - baseline.clamp(min=0))
    return weight * torch.sigmoid(-sign * reward)


@diffusion_objective(
    "mapo",
    layout="paired",
    equation="L_w - beta ln s(T [f(L_w) - f(L_l)]), f(L) = c L / (e^(c L) - 1)",
    source="Hong et al. 2024, arXiv 2406.06424 (MaPO)",
    reference=False,
    epsilon_only=True,
)
def mapo(
    pairs: PairedPredictions,
    *,
    beta: Positive = 0.1,
    scale: Positive = 0.5,
    num_timesteps: Positive = 1000.0,
) -> Tensor:
    """Margin-aware preference optimization: fine-tuning plus a margin, without a reference.

    L = L_w - beta ln s(T [f(L_w) - f(L_l)]) with f(L) = c L / (e^(c L) - 1), which falls from f(0)
    = 1 as the error grows.

    Args:
        pairs: B pairs; no reference is read.
        beta: weight of the margin term (not a scale of log-ratios).
        scale: c, per unit of noise error.
        num_timesteps: T, the length of the training schedule.

    Returns:
        (B,) losses.

    Raises:
        UserError: the model does not predict noise, in whose units ``scale`` is measured.
    """
    require_epsilon("mapo", pairs)
    chosen, rejected = pairs.chosen.error, pairs.rejected.error
    margin = _odds(scale * chosen) - _odds(scale * rejected)
    return chosen - beta * F.logsigmoid(num_timesteps * margin)


def _odds(x: Tensor) -> Tensor:
    """x / (e^x - 1), by its series where x is tiny and the quotient would be 0 / 0."""
    tiny = x < 1e-3
    safe = torch.where(tiny, torch.ones_like(x), x)
    quotient = safe * torch.exp(-safe) / -torch.expm1(-safe)  # e^x itself would overflow
    return torch.where(tiny, 1 - x / 2 + x.square() / 12, quotient)


@diffusion_objective(
    "dmpo",
    layout="paired",
    equation="KL(Bernoulli(s(z)) || Bernoulli(1 - alpha))",
    source="Li et al. 2025 (DMPO: divergence minimization preference optimization)",
)
def dmpo(
    pairs: PairedPredictions,
    *,
    beta: Positive = 2000.0,
    alpha: Annotated[float, Range(0, 0.5, open="both")] = 0.01,
) -> Tensor:
    """DMPO: the reverse KL from the model's preference to the data's.

    L = p ln(p / (1 - alpha)) + (1 - p) ln((1 - p) / alpha), p = s(z): zero at p = 1 - alpha, where
    the logistic loss would still pull.

    Args:
        pairs: B pairs with the reference's predictions.
        beta: scale of the log-ratios.
        alpha: assumed share of wrong preferences, in (0, 1/2).

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.diffusion.examples import PAIR
        >>> round(dmpo(PAIR.at_reference()).item(), 5)
        1.61446
    """
    z = beta * pairs.margin
    log_alpha = torch.log(torch.tensor(alpha, dtype=z.dtype))
    log_rest = torch.log1p(torch.tensor(-alpha, dtype=z.dtype))
    right = z.sigmoid() * (F.logsigmoid(z) - log_rest)
    wrong = (-z).sigmoid() * (F.logsigmoid(-z) - log_alpha)
    return right + wrong


@diffusion_objective(
    "diffusion_sft",
    layout="completion",
    equation="L_w",
    source="denoising score matching on the chosen images",
    reference=False,
    squared_error=True,
)
def diffusion_sft(chosen: Predictions) -> Tensor:
    """Supervised fine-tuning: the denoising error of the chosen images.

    Args:
        chosen: B predictions.

    Returns:
        (B,) losses.
    """
    return chosen.error


def sdpo_weight(pairs: PairedPredictions, *, mu: float) -> Tensor:
    """(B,) SDPO's lambda: how much of the rejected error's gradient leaves the chosen one's alone.

    lambda = clip((1 - mu) |rho_w|^2 / d, 0, 1) where d = <rho_w, rho_l> > 0, else 1, with rho =
    e - target. In output space a step along the chosen error's descent minus lambda times the
    rejected one's does not raise the chosen error, to first order.

    Args:
        pairs: B pairs.
        mu: in [0, 1); the share of the chosen error's descent that is kept for certain.
    """
    rho_w = pairs.chosen.residual.detach().flatten(1)
    rho_l = pairs.rejected.residual.detach().flatten(1)
    d = (rho_w * rho_l).sum(1)
    safe = torch.where(d > 0, d, torch.ones_like(d))
    bound = ((1 - mu) * rho_w.square().sum(1) / safe).clamp(0, 1)
    return torch.where(d > 0, bound, torch.ones_like(d))


def sdpo(pairs: PairedPredictions, *, mu: float = 0.1) -> PairedPredictions:
    """The SDPO safeguard: the same values, the rejected prediction's gradient times lambda.

    Works under any paired objective: ``diffusion_dpo(sdpo(pairs), beta=2000)``. Each pair has a
    lambda of its own, so that a step does not depend on how its batch is split; the official code
    takes one for each micro-batch, of sums over it. Its mu is .9 for Diffusion-DPO on SD1.5, .6 on
    SDXL and .2 for DSPO.

    Source: Fu et al. 2025, arXiv 2511.03317 (Diffusion-SDPO).
    """
    loser = pairs.rejected
    weight = per_image(sdpo_weight(pairs, mu=mu), loser.policy)
    scaled = weight * loser.policy + (1 - weight) * loser.policy.detach()
    kept = loser.policy.detach() + (scaled - scaled.detach())  # bit for bit the same value
    return PairedPredictions(
        pairs.chosen, Predictions(kept, loser.target, loser.reference, loser.space)
    )
