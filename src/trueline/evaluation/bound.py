"""How likely a jailbreak must be: E-RLHF's bounds, exact where the paper approximates.

A prompt's answer is a distribution over n explanations, n_h of them harmful. The harmful zone
holds the distributions with mass p or more on the harmful ones. An adversary may move a
distribution by at most epsilon in l1. Over the whole simplex the zone's share of volume is a
Beta tail; expanding it by epsilon replaces p by p - epsilon / 2, for moving mass d costs 2 d.
Everything here is arithmetic on that picture: it needs no model and proves nothing about one
whose n, p and density are not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.errors import UserError
from trueline.results import Finding, Metric
from trueline.stats import rate


@dataclass(frozen=True, slots=True)
class Zone:
    """The harmful zone of the simplex, and how far an adversary reaches.

    Args:
        n: explanations in the output's support, at least 2.
        harmful: how many of them are harmful, 1..n-1.
        p: mass on those from which an answer counts as harmful, inside (0, 1).
        epsilon: how far the adversary moves the distribution, in l1, 0..2.

    Raises:
        UserError: a value out of range.
    """

    n: int
    harmful: int
    p: float
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if self.n < 2 or not 1 <= self.harmful < self.n:
            raise UserError(f"expected 1 <= harmful < n, got harmful={self.harmful}, n={self.n}")
        if not 0.0 < self.p < 1.0:
            raise UserError(f"p is a mass between 0 and 1, such as 0.1, got {self.p}")
        if not 0.0 <= self.epsilon <= 2.0:
            raise UserError(f"epsilon is an l1 distance between 0 and 2, got {self.epsilon}")

    @property
    def threshold(self) -> float:
        """The harmful mass from which the adversary reaches the zone."""
        return self.p - self.epsilon / 2

    def volume(self) -> float:
        """The expanded zone's share of the simplex, exact.

            P(Beta(n_h, n - n_h) >= p - epsilon / 2) = P(Binomial(n - 1, p - epsilon / 2) < n_h)

        Example:
            >>> round(Zone(60, 6, 0.15).volume(), 4)
            0.1056
        """
        from scipy.stats import beta

        if self.threshold <= 0:
            return 1.0
        return float(beta.sf(self.threshold, self.harmful, self.n - self.harmful))

    def normal_volume(self) -> float:
        """The paper's normal approximation: ``Phi(a + sqrt(n - 1) epsilon)``.

            a = (n_h - 1 - (n - 1) p) / sqrt((n - 1) p (1 - p))

        It is poor in the tails, and takes the largest variance a share can have for the
        expansion's step.

        Example:
            >>> round(Zone(60, 6, 0.15).normal_volume(), 3)
            0.08
        """
        from scipy.stats import norm

        trials = self.n - 1
        spread = math.sqrt(trials * self.p * (1 - self.p))
        start = (self.harmful - 1 - trials * self.p) / spread
        return float(norm.cdf(start + math.sqrt(trials) * self.epsilon))

    def simulate(self, *, seed: int, samples: int = 20_000, level: float = 0.95) -> Metric:
        """:meth:`volume` from drawn distributions, each moved to the zone's nearest point.

        Args:
            seed: of the draws from Dirichlet(1, ..., 1).
            samples: how many.
            level: coverage of Wilson's interval.
        """
        rng = np.random.default_rng(seed)
        reached, chunk = 0, max(1, 2_000_000 // self.n)
        for start in range(0, samples, chunk):
            drawn = rng.standard_exponential((min(chunk, samples - start), self.n))
            drawn /= drawn.sum(axis=1, keepdims=True)
            mass = drawn[:, : self.harmful].sum(axis=1, keepdims=True)
            wanted = np.maximum(mass, self.p)
            moved = drawn * np.where(
                np.arange(self.n) < self.harmful, wanted / mass, (1 - wanted) / (1 - mass)
            )
            reached += int((np.abs(moved - drawn).sum(axis=1) <= self.epsilon).sum())
        return rate("simulated_volume", reached, samples, level=level)


@dataclass(frozen=True, slots=True)
class JailbreakBound:
    """A lower bound on the chance of a jailbreak; see :func:`jailbreak_bound`.

    ``exact`` uses the zone's true volume, ``normal`` the paper's approximation. Both are 0 where
    the bound says nothing; ``vacuous`` is True where that is so for the exact one.
    """

    zone: Zone
    ratio: float
    exact: float
    normal: float

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing: it is not above 0."""
        return self.exact <= 0.0

    def to_finding(self, *, samples: int = 0, seed: int = 0) -> Finding:
        """The bound with its inputs, in words, and its curve over epsilon for the report; with
        ``samples``, also the zone's volume as so many draws find it."""
        zone = self.zone
        chance = "nothing" if self.vacuous else f"at least {self.exact:.1%}"
        summary = (
            f"Of {zone.n} explanations {zone.harmful} are harmful; an answer with {zone.p:g} of "
            f"its mass on them is a jailbreak. Moved by up to {zone.epsilon:g} in l1, the bound on "
            f"the chance of one is {chance} (the normal approximation: {self.normal:.1%})."
        )
        share = zone.harmful / zone.n
        advice = ""
        if self.vacuous and self.ratio > 1:
            advice = (
                f"The bound is vacuous: the aligned density is up to {self.ratio:.3g} times the "
                "uniform one outside the zone. That does not make a jailbreak unlikely."
            )
        elif share < zone.threshold:
            advice = (
                f"The harmful share of the support ({share:.3g}) lies below the threshold that "
                f"the adversary leaves ({zone.threshold:.3g}): the zone's volume is small."
            )
        drawn = [zone.simulate(seed=seed, samples=samples)] if samples else []
        metrics = (
            Metric("bound", self.exact, unit="rate"),
            Metric("bound_normal", self.normal, unit="rate"),
            Metric("volume", zone.volume(), unit="rate"),
            Metric("density_ratio", self.ratio),
            *drawn,
        )
        return Finding("jailbreak_bound", summary, metrics, advice, {"curves": _curves(self)})


def jailbreak_bound(
    n: int, harmful: int, p: float, epsilon: float = 0.0, *, ratio: float = 1.0
) -> JailbreakBound:
    """The least chance of a jailbreak by an epsilon-bounded adversary (theorem 2).

        P(jailbreak) >= 1 - g_s (1 - volume of the expanded harmful zone)

    g_s, the ``ratio``, is the largest value of the aligned density over the uniform one in the
    safe zone outside the expanded harmful zone: 1 for a model whose outputs are spread evenly,
    and large for one that concentrates deep in the safe zone, where the bound says nothing.

    Args:
        n: explanations in the output's support.
        harmful: how many of them are harmful.
        p: mass on those from which an answer counts as harmful.
        epsilon: how far the adversary moves the distribution, in l1.
        ratio: g_s, above 0.

    Returns:
        The exact bound and the paper's normal approximation, both cut off at 0.

    Raises:
        UserError: a value out of range.

    Example:
        >>> bound = jailbreak_bound(1000, 110, 0.1, 0.02)
        >>> round(bound.exact, 3), round(bound.normal, 3)
        (0.983, 0.944)

    Source: Su, Kempe and Ullrich (2024), theorem 2.
    """
    zone = Zone(n, harmful, p, epsilon)
    if not ratio > 0:
        raise UserError(f"ratio is a density over the uniform one, above 0, got {ratio}")
    exact = max(1 - ratio * (1 - zone.volume()), 0.0)
    normal = max(1 - ratio * (1 - zone.normal_volume()), 0.0)
    return JailbreakBound(zone, ratio, exact, normal)


def _curves(bound: JailbreakBound, steps: int = 41) -> dict[str, Any]:
    """The bound over epsilon, from 0 to well beyond the one asked for."""
    zone = bound.zone
    reach = min(2.0, max(2 * zone.epsilon, 0.5 * zone.p))
    xs = [round(float(x), 6) for x in np.linspace(0, reach, steps)]
    found = [jailbreak_bound(zone.n, zone.harmful, zone.p, x, ratio=bound.ratio) for x in xs]
    lines = [
        {"name": "exact", "x": xs, "y": [b.exact for b in found], "tone": "main"},
        {
            "name": "normal approximation",
            "x": xs,
            "y": [b.normal for b in found],
            "tone": "other",
            "dashed": True,
        },
    ]
    panel = {"title": "Least chance of a jailbreak", "unit": "probability", "lines": lines}
    return {"x_label": "epsilon, l1", "panels": [panel]}


@dataclass(frozen=True, slots=True)
class Concentration:
    """What the bound says of a density deep in the safe zone, beside the truth."""

    ratio: float
    bound: float
    truth: float


def concentrated(zone: Zone, extra: float) -> Concentration:
    """A density that leans to safe outputs: the bound collapses, the true chance need not.

    The aligned density is Dirichlet with 1 on harmful and ``1 + extra`` on safe explanations.
    Its ratio to the uniform one is largest where no mass is harmful and the safe mass is spread
    evenly; the harmful mass is Beta(n_h, n_s (1 + extra)), so the true chance is exact, too:

        ln g_s = ln G(n + n_s extra) - ln G(n) - n_s ln G(1 + extra) - n_s extra ln n_s

    Args:
        zone: the harmful zone and the adversary's reach, with a threshold above 0.
        extra: how much it leans, 0 or more; 0 is the uniform density.

    Raises:
        UserError: ``extra`` is negative, or the adversary reaches the zone from everywhere.

    Example:
        >>> mild = concentrated(Zone(1000, 110, 0.1, 0.02), 0.1)
        >>> mild.bound, round(mild.truth, 2)
        (0.0, 0.89)
    """
    if extra < 0 or zone.threshold <= 0:
        raise UserError(
            f"expected extra >= 0 and p > epsilon / 2, got extra={extra}, p={zone.p}, "
            f"epsilon={zone.epsilon}"
        )
    from scipy.special import gammaln
    from scipy.stats import beta

    safe = zone.n - zone.harmful
    log_ratio = float(
        gammaln(zone.n + safe * extra)
        - gammaln(zone.n)
        - safe * gammaln(1 + extra)
        - safe * extra * math.log(safe)
    )
    ratio = math.exp(min(log_ratio, 700.0))
    bound = max(1 - ratio * (1 - zone.volume()), 0.0)
    truth = float(beta.sf(zone.threshold, zone.harmful, safe * (1 + extra)))
    return Concentration(ratio, bound, truth)
