"""Guards of objectives that weigh completions by e^r: bounded exponents, an anchor, and a warning.

Where D+ and D- hardly overlap, few completions carry all the weight. These say so, and bound it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from trueline.logprobs import UnpairedLogProbs
from trueline.options import Range

LIMIT = 50.0
"""Exponents above this go on along the tangent even where no ``clip`` is asked for: e^50 is far
beyond any weight that trains, and its square still fits float32."""

Clip: TypeAlias = Annotated[float, Range(0, LIMIT, open="low")] | None

DOMINANT_SHARE = 0.5
FEW = 4
"""Below this many completions a large share says nothing."""


def bounded_exp(exponent: Tensor, clip: float | None = None) -> Tensor:
    """e^x up to x = c, its tangent e^c (1 + x - c) beyond: the weight is clipped, the pull stays.

    Cutting the value off instead would take the gradient of just those completions that most need
    it to 0.

    Args:
        exponent: any shape, nats.
        clip: c; the limit that keeps float32 finite where None.

    Returns:
        Values of the same shape: increasing, convex, finite.

    Example:
        >>> bounded_exp(torch.tensor([0.0, 3.0]), clip=1.0).tolist()
        [1.0, 8.154845237731934]
    """
    limit = LIMIT if clip is None else clip
    inside = exponent.clamp(max=limit)
    return inside.exp() * (1 + exponent - inside)


def log_bounded_exp(exponent: Tensor, clip: float | None = None) -> Tensor:
    """ln of :func:`bounded_exp`, without a limit where ``clip`` is None: the exponent itself."""
    if clip is None:
        return exponent
    inside = exponent.clamp(max=clip)
    return inside + torch.log1p(exponent - inside)


def anchored(loss: Tensor, batch: UnpairedLogProbs, weight: float) -> Tensor:
    """``loss`` plus ``weight`` times E+[-log pi(y|x) / |y|], so that desirable completions do not
    lose likelihood while the difference between the classes grows."""
    if weight == 0:
        return loss
    return loss - weight * batch.desirable_mean(batch.completions.mean)


def log_mean_exp(values: Tensor, members: Tensor) -> Tensor:
    """ln of the mean of e^values over ``members`` (bool), stable; a connected 0 where none.

    Nothing here asks the device for a number: where there is no member all values are taken, so
    that the gradient of what is then not chosen stays finite.
    """
    count = members.sum()
    taken = torch.where(members | (count == 0), values, -torch.inf)
    mean = taken.logsumexp(0) - count.clamp(min=1).to(values.dtype).log()
    return torch.where(count > 0, mean, 0.0)


def split(batch: UnpairedLogProbs, beta: float) -> tuple[Tensor, Tensor]:
    """Rewards of the desirable and of the undesirable completions, detached."""
    reward = beta * batch.log_ratio.detach()
    return reward[batch.desirable], reward[~batch.desirable]


def concentration(log_weights: Tensor, prefix: str = "weights/") -> dict[str, Tensor]:
    """How many completions carry the gradient: n, the effective sample size, the largest share.

    With w the weights' shares, the effective sample size is 1 / sum w_i^2: n where all are equal, 1
    where one has everything.

    Args:
        log_weights: (n,) logarithms of weights, up to a constant.
        prefix: of the metrics' names.

    Returns:
        Three scalars; none where n = 0.

    Example:
        >>> {key: round(value.item(), 4) for key, value in concentration(torch.zeros(4)).items()}
        {'weights/count': 4.0, 'weights/effective_sample_size': 4.0, 'weights/top_share': 0.25}
    """
    if not len(log_weights):
        return {}
    shares = log_weights.detach().softmax(0)
    return {
        f"{prefix}count": shares.new_tensor(float(len(shares))),
        f"{prefix}effective_sample_size": 1 / (shares**2).sum(),
        f"{prefix}top_share": shares.max(),
    }


UNDESIRABLE, DESIRABLE = "weights/", "weights_desirable/"


def weight_warning(metrics: Mapping[str, float | Tensor]) -> str | None:
    """What to tell the user, once, when one completion carries most of a class's weight.

    Args:
        metrics: a step's metrics over the whole effective batch.

    Returns:
        One sentence or two, or None where there is nothing to say.

    Example:
        >>> print(weight_warning(concentration(torch.tensor([9.0, 0.0, 0.0, 0.0]))))
        One undesirable completion carries 100% of the weight of all 4 in the batch (effective \
sample size 1.0): the objective learns from it alone. Set clip (for example 5), add an anchor on \
the desirable ones' likelihood, lower beta, or take larger batches.
    """
    for prefix, kind in ((UNDESIRABLE, "undesirable"), (DESIRABLE, "desirable")):
        share = float(metrics.get(f"{prefix}top_share", 0.0))
        count = float(metrics.get(f"{prefix}count", 0.0))
        if share > DOMINANT_SHARE and count >= FEW:
            effective = float(metrics.get(f"{prefix}effective_sample_size", math.nan))
            return (
                f"One {kind} completion carries {share:.0%} of the weight of all {count:.0f} in "
                f"the batch (effective sample size {effective:.1f}): the objective learns from it "
                "alone. Set clip (for example 5), add an anchor on the desirable ones' likelihood, "
                "lower beta, or take larger batches."
            )
    return None
