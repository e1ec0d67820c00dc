"""What makes four maps an f-divergence, checked on a grid in float64 when it is defined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trueline.divergences.family import FDivergence

TOLERANCE = 1e-7
RATIOS = torch.cat(
    [torch.logspace(-3, 3, 60, dtype=torch.float64), torch.ones(1, dtype=torch.float64)]
).sort()[0]
"""t = P/Q from 1/1000 to 1000, 1 among them."""

REWARDS = torch.linspace(-6, 6, 121, dtype=torch.float64)


def check(divergence: FDivergence) -> None:
    """Raise ValueError, naming the property and the place, unless the four maps belong together."""
    t = RATIOS
    one = torch.ones(1, dtype=torch.float64)
    value, slope = divergence.f(t), divergence.derivative(t)
    _finite(divergence, "f", t, value)
    _finite(divergence, "derivative", t, slope)
    _require(divergence, "f(1) must be 0", one, divergence.f(one), torch.zeros_like(one))
    _convex(divergence, t, value, slope)
    _conjugate(divergence, t, value, slope)
    _link(divergence)


def _convex(divergence: FDivergence, t: Tensor, value: Tensor, slope: Tensor) -> None:
    a, b = t[:, None], t[None, :]
    middle = divergence.f((a + b) / 2)
    chord = (value[:, None] + value[None, :]) / 2
    bad = middle > chord + TOLERANCE * (1 + chord.abs())
    if bool(bad.any()):
        i, j = bad.nonzero()[0].tolist()
        raise ValueError(
            f"divergence {divergence.name!r}: f is not convex between t = {t[i]:.4g} and "
            f"{t[j]:.4g}: its value halfway, {middle[i, j]:.6g}, lies above the chord's, "
            f"{chord[i, j]:.6g}"
        )
    tangent = value[:, None] + slope[:, None] * (b - a)
    bad = tangent > value[None, :] + TOLERANCE * (1 + tangent.abs())
    if bool(bad.any()):
        i, j = bad.nonzero()[0].tolist()
        raise ValueError(
            f"divergence {divergence.name!r}: derivative is not f': the tangent at t = {t[i]:.4g} "
            f"with slope {slope[i]:.6g} lies above f at t = {t[j]:.4g}"
        )


def _conjugate(divergence: FDivergence, t: Tensor, value: Tensor, slope: Tensor) -> None:
    """f*(f'(t)) = t f'(t) - f(t) (Fenchel-Young), and f*(u) >= t u - f(t) all over the link."""
    got, truth = divergence.conjugate(slope), t * slope - value
    order = (t.log().abs()).argsort()  # the clearest counterexample is the one nearest t = 1
    for i in order.tolist():
        if not bool((got[i] - truth[i]).abs() <= TOLERANCE * (1 + (t * slope)[i].abs())):
            raise ValueError(
                f"divergence {divergence.name!r}: conjugate is not f*: at u = f'({t[i]:.4g}) = "
                f"{slope[i]:.4g} it is {got[i]:.6g}, and t u - f(t) is {truth[i]:.6g}"
            )
    u = divergence.link(REWARDS)
    got = divergence.conjugate(u)
    lower = (t[:, None] * u[None, :] - value[:, None]).max(0).values
    bad = ~(got >= lower - TOLERANCE * (1 + lower.abs()))
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"divergence {divergence.name!r}: conjugate is not f*, or the link leaves the domain: "
            f"at u = g({REWARDS[i]:.3g}) = {u[i]:.4g} it is {got[i]:.6g}, and some t u - f(t) is "
            f"{lower[i]:.6g}"
        )


def _link(divergence: FDivergence) -> None:
    r, u = REWARDS, divergence.link(REWARDS)
    _finite(divergence, "link", r, u)
    low, high = divergence.domain
    bad = (u < low - TOLERANCE) | (u > high + TOLERANCE)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"divergence {divergence.name!r}: link leaves the domain [{low:g}, {high:g}] of the "
            f"conjugate: g({r[i]:.3g}) = {u[i]:.6g}"
        )
    falls = u.diff() < -TOLERANCE
    if bool(falls.any()) or bool(u[-1] - u[0] <= TOLERANCE):
        raise ValueError(
            f"divergence {divergence.name!r}: link must rise with r and not be constant; it goes "
            f"from {u[0]:.6g} at r = {r[0]:g} to {u[-1]:.6g} at r = {r[-1]:g}"
        )
    composed = divergence.conjugate(u)
    _require(divergence, "unaligned must be conjugate(link(r))", r, divergence.dual(r), composed)


def _finite(divergence: FDivergence, name: str, at: Tensor, value: Tensor) -> None:
    if value.shape != at.shape or not bool(value.isfinite().all()):
        where = "" if value.shape != at.shape else f" at {at[~value.isfinite()][0]:.4g}"
        raise ValueError(
            f"divergence {divergence.name!r}: {name} must be finite and elementwise; it is not"
            f"{where}"
        )


def _require(divergence: FDivergence, rule: str, at: Tensor, got: Tensor, truth: Tensor) -> None:
    bad = ~((got - truth).abs() <= TOLERANCE * (1 + truth.abs()))
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"divergence {divergence.name!r}: {rule}; at {at[i]:.4g} it is {got[i]:.6g} and not "
            f"{truth[i]:.6g}"
        )
