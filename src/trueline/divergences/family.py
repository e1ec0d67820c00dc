"""f-divergences, each as (f, f*, f', link): from these four an objective follows by itself.

D_f(P || Q) = E_Q f(P/Q) = sup over r of E_P g(r) - E_Q f*(g(r)), for any link g that reaches the
image of f'; the supremum is where g(r) = f'(P/Q).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from trueline.divergences.checks import check
from trueline.divergences.closed import probabilities
from trueline.registry import Registry

Map: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FDivergence:
    """An f-divergence with what its variational form needs; all maps are elementwise on tensors.

    Args:
        name: what ``fdo`` calls it.
        f: the generator on t > 0: convex, f(1) = 0.
        conjugate: f*(u) = sup over t of t u - f(t), on ``domain``.
        derivative: f'(t), or a subgradient.
        link: g(r), not decreasing, from all reals into ``domain``; f' o exp is the canonical
            choice, and then the optimal r is ln P/Q.
        domain: lowest and highest u that ``link`` may reach; the image of f', ends included.
        unaligned: f*(g(r)) in a form that does not cancel; composed where not given.

    Raises:
        ValueError: the four do not belong together; the message says which property fails, and
            where.

    Example:
        >>> FDivergence("double_kl", lambda t: t * t.log(), lambda u: (2 * u).exp(),
        ...             lambda t: t.log() + 1, lambda r: r + 1)
        Traceback (most recent call last):
        ...
        ValueError: divergence 'double_kl': conjugate is not f*: at u = f'(1) = 1 it is 7.38906, \
and t u - f(t) is 1
    """

    name: str
    f: Map = field(repr=False)
    conjugate: Map = field(repr=False)
    derivative: Map = field(repr=False)
    link: Map = field(repr=False)
    domain: tuple[float, float] = (-math.inf, math.inf)
    unaligned: Map | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check(self)

    def dual(self, rewards: Tensor) -> Tensor:
        """f*(g(r)), of the shape of ``rewards``: what the unaligned side adds to the loss."""
        if self.unaligned is not None:
            return self.unaligned(rewards)
        return self.conjugate(self.link(rewards))

    def between(self, p: Tensor, q: Tensor) -> Tensor:
        """D_f(p || q) of discrete distributions (..., K): sum q f(p/q).

        Where q is 0 a term is p f'(inf), the domain's upper end; where p is 0 it is q f(0), and
        f(0) = -f* at the domain's lower end.

        Example:
            >>> p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5])
            >>> DIVERGENCES["tv"].between(p, q).item(), DIVERGENCES["kl"].between(p, q).item()
            (0.5, inf)
        """
        p, q = probabilities(p), probabilities(q)
        at_zero = -self.conjugate(torch.full_like(p, self.domain[0]))
        both = (p > 0) & (q > 0)
        inside = q * self.f(torch.where(both, p / q, 1.0))
        outside = torch.where(p > 0, p * self.domain[1], torch.where(q > 0, q * at_zero, 0.0))
        return torch.where(both, inside, outside).sum(-1)


DIVERGENCES: Registry[FDivergence] = Registry("divergence")
"""What ``fdo`` can estimate; your own: ``DIVERGENCES.add("mine", FDivergence("mine", ...))``."""


def _add(name: str, *maps: Map, domain: tuple[float, float], unaligned: Map) -> None:
    f, conjugate, derivative, link = maps
    entry = FDivergence(name, f, conjugate, derivative, link, domain, unaligned)
    DIVERGENCES.add(name, entry)


_add(
    "kl",
    lambda t: t * t.log(),
    lambda u: (u - 1).exp(),
    lambda t: 1 + t.log(),
    lambda r: 1 + r,
    domain=(-math.inf, math.inf),
    unaligned=torch.exp,
)
_add(
    "reverse_kl",
    lambda t: -t.log(),
    lambda u: -1 - (-u).log(),
    lambda t: -1 / t,
    lambda r: -(-r).exp(),
    domain=(-math.inf, 0.0),
    unaligned=lambda r: r - 1,
)
_add(  # twice the Jensen-Shannon divergence
    "js",
    lambda t: t * t.log() - (t + 1) * ((1 + t) / 2).log(),
    lambda u: -(2 - u.exp()).log(),
    lambda t: (2 * t / (1 + t)).log(),
    lambda r: math.log(2) + F.logsigmoid(r),
    domain=(-math.inf, math.log(2)),
    unaligned=lambda r: -math.log(2) - F.logsigmoid(-r),
)
_add(  # the kink at t = 1 leaves the whole interval between the two slopes to the link
    "tv",
    lambda t: (t - 1).abs() / 2,
    lambda u: u,
    lambda t: (t - 1).sign() / 2,
    lambda r: r.sigmoid() - 0.5,
    domain=(-0.5, 0.5),
    unaligned=lambda r: r.sigmoid() - 0.5,
)
_add(
    "hellinger2",
    lambda t: (t.sqrt() - 1) ** 2,
    lambda u: 1 / (1 - u) - 1,
    lambda t: 1 - t.rsqrt(),
    lambda r: -torch.expm1(-r / 2),
    domain=(-math.inf, 1.0),
    unaligned=lambda r: torch.expm1(r / 2),
)
_add(
    "chi2",
    lambda t: (t - 1) ** 2,
    lambda u: u + u**2 / 4,
    lambda t: 2 * (t - 1),
    lambda r: 2 * torch.expm1(r),
    domain=(-2.0, math.inf),
    unaligned=lambda r: torch.expm1(2 * r),
)
