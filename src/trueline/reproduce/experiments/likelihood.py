"""A line on which a diffusion model's likelihood is known: what Diffusion-DPO estimates of it, and
what DSPO matches.

Densities are mixtures of two Gaussians, so that the noised density at every level, its score and
the best prediction of the noise have closed forms. Levels of noise are those of Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trueline.reproduce.runs import Run, Values, experiment

Array = npt.NDArray[np.float64]

STEPS, FIRST, LAST = 1000, 0.00085, 0.012
"""Stable Diffusion's schedule: betas whose square roots rise evenly."""
NODES, PAIRS = 40, 256
EVERY = 10
"""One of so many steps is integrated over."""


@dataclass(frozen=True)
class Mixture:
    """Weights, means and deviations, (k,) each, of Gaussians on a line."""

    weights: Array
    means: Array
    deviations: Array

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Mixture:
        """Two bumps somewhere."""
        return cls(rng.dirichlet([4.0, 4.0]), rng.normal(0, 1, 2), rng.uniform(0.4, 0.9, 2))

    def _terms(self, x: Array) -> tuple[Array, Array]:
        """(..., k) ln of each weighted Gaussian at x, and its slope there."""
        z = (x[..., None] - self.means) / self.deviations
        logs = np.log(self.weights / self.deviations) - (z**2 + np.log(2 * np.pi)) / 2
        return logs, -z / self.deviations

    def log_density(self, x: Array) -> Array:
        """ln p(x), the shape of x."""
        return np.logaddexp.reduce(self._terms(x)[0], -1)

    def score(self, x: Array) -> Array:
        """d ln p / dx, the shape of x."""
        logs, slopes = self._terms(x)
        shares = np.exp(logs - np.logaddexp.reduce(logs, -1, keepdims=True))
        return (shares * slopes).sum(-1)

    def noised(self, keep: float, noise: float) -> Mixture:
        """The density of keep x + noise e, e standard normal."""
        spread = np.sqrt((keep * self.deviations) ** 2 + noise**2)
        return Mixture(self.weights, keep * self.means, spread)

    def tilted(self, slope: float) -> Mixture:
        """The density that is proportional to p(x) e^(slope x): what reinforcement learning ends
        at under a reward of slope x."""
        logs = np.log(self.weights) + slope * self.means + (slope * self.deviations) ** 2 / 2
        weights = np.exp(logs - np.logaddexp.reduce(logs))
        return Mixture(weights, self.means + slope * self.deviations**2, self.deviations)

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """(count,) samples."""
        which = rng.choice(len(self.weights), count, p=self.weights)
        return rng.normal(self.means[which], self.deviations[which])


@cache
def schedule() -> tuple[Array, Array]:
    """(steps,) what is kept of a picture, and how much noise is added, at each level."""
    betas = np.linspace(FIRST**0.5, LAST**0.5, STEPS) ** 2
    left = np.cumprod(1 - betas)[::EVERY]
    return np.sqrt(left), np.sqrt(1 - left)


@cache
def normals() -> tuple[Array, Array]:
    """(n,) Gauss-Hermite nodes of a standard normal, and their weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return nodes, weights / weights.sum()


def drop(policy: Mixture, reference: Mixture, x: Array, keep: float, noise: float) -> Array:
    """(m, n) how much less the policy's best prediction errs than the reference's at one level of
    noise: |e - r|^2 - |e - p|^2 for m places and n draws of the noise e."""
    nodes, _ = normals()
    seen = keep * x[:, None] + noise * nodes

    def error(one: Mixture) -> Array:
        return (nodes + noise * one.noised(keep, noise).score(seen)) ** 2

    return error(reference) - error(policy)


def log_ratio(policy: Mixture, reference: Mixture, x: Array) -> Array:
    """(m,) ln p(x) / r(x) as the integral of half the drop over the log of signal to noise, which
    is exact: d ln p(x) = -E|e - p(x_t)|^2 / 2 for each unit of it."""
    places, widths = np.polynomial.legendre.leggauss(400)
    logs, widths = 14 * places, 14 * widths
    _, weights = normals()
    parts = (
        width * drop(policy, reference, x, *_levels(log)) @ weights
        for log, width in zip(logs, widths, strict=True)
    )
    return np.asarray(sum(parts) / 2)


def _levels(log_snr: float) -> tuple[float, float]:
    signal = 1 / (1 + np.exp(-log_snr))
    return float(np.sqrt(signal)), float(np.sqrt(1 - signal))


def losses(margins: Array) -> Array:
    """-ln s(margin), the margin's shape."""
    return np.logaddexp(0.0, -margins)


@experiment("likelihood")
def likelihood(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Diffusion-DPO's estimates beside the true log-ratio of a policy and its reference, pair by
    pair; and the score that DSPO matches beside that of reinforcement learning's optimum, at every
    level of noise."""
    rng = np.random.default_rng(run.seed)
    data = Mixture.drawn(rng)
    policy = data.tilted(1.0)
    better, worse = data.draw(rng, PAIRS), data.draw(rng, PAIRS)
    x = np.concatenate([better, worse])
    true = policy.log_density(x) - data.log_density(x)
    margin = true[:PAIRS] - true[PAIRS:]
    each = np.stack([_apart(drop(policy, data, x, k, n)) for k, n in zip(*schedule(), strict=True)])
    _, weights = normals()
    mean = (each @ weights).mean(0)
    scale = float(mean @ margin / (mean @ mean))  # the best that any beta could do
    loss, dpo = (losses(scale * each) @ weights).mean(0), losses(margin)
    return {
        "bound with the likelihood's weights minus true log-ratio": _furthest(
            log_ratio(policy, data, x) - true
        ),
        "estimated log-ratio's error": float(_spread(scale * mean - margin) / _spread(margin)),
        "estimated loss's error": float(_spread(loss - dpo) / _spread(dpo)),
        "estimated loss minus DPO's": float((loss - dpo).mean()),
        "DSPO's score minus that of RL's optimum": max(
            (_matched(data, policy, k, n) for k, n in zip(*schedule(), strict=True)), key=abs
        ),
    }


def _apart(drops: Array) -> Array:
    """(m, n) the better side's drop minus the worse one's, with the same noise for both."""
    return drops[:PAIRS] - drops[PAIRS:]


def _spread(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def _furthest(difference: Array) -> float:
    return float(difference[np.abs(difference).argmax()])


def _matched(data: Mixture, policy: Mixture, keep: float, noise: float) -> float:
    """The data's score at a level of noise plus the slope of ln E[e^x0 | x_t], minus the score of
    the noised optimum: furthest on a grid, the slope by the posterior's own closed form."""
    x = np.linspace(-4, 4, 81)
    var = (keep * data.deviations) ** 2 + noise**2
    gain = keep * data.deviations**2 / var
    center = data.means + gain * (x[:, None] - keep * data.means)
    left = data.deviations**2 * noise**2 / var
    logs, slopes = data.noised(keep, noise)._terms(x)
    tilt = logs + center + left / 2
    shares = np.exp(tilt - np.logaddexp.reduce(tilt, -1, keepdims=True))
    slope = (shares * (slopes + gain)).sum(-1) - data.noised(keep, noise).score(x)
    return _furthest(
        data.noised(keep, noise).score(x) + slope - policy.noised(keep, noise).score(x)
    )
