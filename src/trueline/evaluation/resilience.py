"""Resilience: does attack success fall where a model holds harm and safety further apart?

The unit is the aligned model, and models that share a base are compared among themselves: bases
differ in attack success for many reasons that have nothing to do with separation. What comes out
is an association. It says nothing about what would happen if separation were pushed by force.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from trueline.errors import UserError
from trueline.results import Finding, Metric
from trueline.stats.resampling import check_level

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

EXACT = 10_000_000
"""Up to so many arrangements are all counted; beyond, they are drawn."""

FLOOR = 0.05
"""Attack success this near to 0 or to 1 can hardly move any further."""


@dataclass(frozen=True, slots=True)
class Point:
    """One aligned model.

    Args:
        model: the base it was aligned from; points of one base are compared with each other.
        method: what sets it apart among those.
        separation: Bhattacharyya distance of harmful and safe prompts, above 0.
        asr: attack success rate, 0 to 1.

    Raises:
        UserError: a value out of range.
    """

    model: str
    method: str
    separation: float
    asr: float

    def __post_init__(self) -> None:
        who = f"{self.model} / {self.method}"
        if not (math.isfinite(self.separation) and self.separation > 0):
            raise UserError(f"{who}: separation must be above 0, got {self.separation}")
        if not 0.0 <= self.asr <= 1.0:
            raise UserError(
                f"{who}: asr must be a rate between 0 and 1, got {self.asr}; write 40% as 0.4"
            )


def critical_r(n: int, alpha: float = 0.05) -> float:
    """The correlation that ``n`` independent points must reach to be significant.

        r = t / sqrt(n - 2 + t^2),  t the two-sided quantile of Student's t at n - 2

    Example:
        >>> [round(critical_r(n), 2) for n in (5, 8, 10, 20)]
        [0.88, 0.71, 0.63, 0.44]
    """
    if n < 3:
        raise UserError(f"a correlation needs at least 3 points, got {n}")
    from scipy.stats import t

    quantile = float(t.ppf(1 - alpha / 2, n - 2))
    return quantile / math.sqrt(n - 2 + quantile**2)


def resilience(
    points: Sequence[Point],
    *,
    preset: Literal["paper"] | None = None,
    seed: int = 0,
    n_resamples: int = 20_000,
    level: float = 0.95,
) -> Finding:
    """The association of attack success with separation over many aligned models.

    By default: the change in attack success that goes with a doubling of separation within a base
    model (fixed effects, Student's interval), tested by permuting attack success within base
    models; and Spearman's rank correlation over all points with a bootstrap over base models.

    ``preset="paper"`` is the published regression instead: attack success z-scored within a base
    model, ordinary least squares on ln separation over all points. It takes the points for
    independent and does not center separation within a model.

    Args:
        points: aligned models, of one base or several.
        preset: ``"paper"`` or None.
        seed: of permutations and resamples.
        n_resamples: permutations where there are too many to count all; a tenth of it for the
            bootstrap.
        level: coverage of the intervals.

    Returns:
        A finding named ``"resilience"``; its figure draws a line for each base model.

    Raises:
        UserError: fewer than three points, a point given twice, or no variation.

    Example:
        >>> points = [Point("a", str(i), 2.0**i, 0.9 - 0.2 * i) for i in range(4)]
        >>> found = resilience(points)["asr_per_doubling"]
        >>> round(found.value, 6)
        -0.2

    Source: "LLM Safety Alignment is Divergence Estimation in Disguise", section 5.
    """
    check_level(level)
    if preset not in (None, "paper"):
        raise UserError(f"preset must be 'paper' or None, got {preset!r}")
    blocks = _blocks(points)
    alpha = 1 - level
    shared = [
        Metric("points", float(len(points))),
        Metric("base_models", float(len(blocks))),
        Metric("critical_r", critical_r(len(points), alpha), n=len(points)),
        _floor(points),
    ]
    if preset == "paper":
        metrics, summary = _paper(points, blocks, level)
    else:
        metrics, summary = _within(blocks, seed, n_resamples, level)
        rank = _spearman(points, seed, n_resamples // 10, level)
        metrics.append(rank)
        summary += f" Over all points Spearman's correlation is {_words(rank)}."
    advice = " ".join(_advice(points, blocks, shared))
    return Finding("resilience", summary, (*metrics, *shared), advice, {"curves": _figure(blocks)})


@dataclass(frozen=True, slots=True)
class _Block:
    """The points of one base model: log2 separation and attack success."""

    model: str
    x: Array
    y: Array

    @property
    def z(self) -> Array:
        """Attack success in standard deviations of its model; zeros where it does not vary."""
        spread = self.y.std()
        return (self.y - self.y.mean()) / spread if spread > 0 else np.zeros_like(self.y)


def _blocks(points: Sequence[Point]) -> list[_Block]:
    if len(points) < 3:
        raise UserError(f"resilience needs at least 3 aligned models, got {len(points)}")
    seen: set[tuple[str, str]] = set()
    for p in points:
        if (p.model, p.method) in seen:
            raise UserError(f"{p.model} / {p.method} is given twice; name each method once")
        seen.add((p.model, p.method))
    blocks = []
    for model in dict.fromkeys(p.model for p in points):
        own = sorted((p for p in points if p.model == model), key=lambda p: p.separation)
        x = np.log2([p.separation for p in own])
        blocks.append(_Block(model, x, np.array([p.asr for p in own])))
    return blocks


def _within(
    blocks: Sequence[_Block], seed: int, n_resamples: int, level: float
) -> tuple[list[Metric], str]:
    """Fixed effects for the size, a permutation within models for the test."""
    x = np.concatenate([b.x - b.x.mean() for b in blocks])
    y = np.concatenate([b.y - b.y.mean() for b in blocks])
    freedom = len(x) - len(blocks) - 1
    if freedom < 1 or not x.any() or not y.any():
        raise UserError(
            "no base model has enough different points to compare within; give two or more "
            "aligned models of a base, three in all"
        )
    from scipy.stats import t

    slope = float(x @ y / (x @ x))
    error = math.sqrt(float(((y - slope * x) ** 2).sum()) / freedom / float(x @ x))
    half = float(t.ppf(0.5 + level / 2, freedom)) * error
    chance = 2 * float(t.sf(abs(slope) / error, freedom)) if error > 0 else 0.0
    effect = Metric("asr_per_doubling", slope, slope - half, slope + half, len(x), level, "rate")
    permuted = permutation_p(
        [b.x for b in blocks], [b.z for b in blocks], seed=seed, n_resamples=n_resamples
    )
    correlation = float(x @ y / math.sqrt(float(x @ x) * float(y @ y)))
    metrics = [
        effect,
        Metric("within_model_r", correlation, n=len(x)),
        Metric("permutation_p", permuted, n=len(x)),
        Metric("fixed_effects_p", chance, n=len(x)),
    ]
    direction = "lower" if slope < 0 else "higher"
    summary = (
        f"Within a base model, twice the separation goes with an attack success "
        f"{100 * abs(slope):.1f} points {direction} (change {100 * (slope - half):+.1f} to "
        f"{100 * (slope + half):+.1f} points); p = {permuted:.3f} by permutation within models."
    )
    if (permuted < 1 - level) != (chance < 1 - level):
        summary += (
            f" Fixed effects alone give p = {chance:.3f}: they weigh base models by how far "
            "attack success ranges in them, the permutation weighs them alike. Take the finding "
            "for open."
        )
    return metrics, summary


def permutation_p(
    x: Sequence[Array], y: Sequence[Array], *, seed: int, n_resamples: int = 20_000
) -> float:
    """Two-sided p-value of ``sum_i x_i y_i`` when y is shuffled within blocks only.

    Up to ten million arrangements are all counted, and the p-value is exact; beyond, so many are
    drawn as asked for, and the observed one counts among them.

    Args:
        x, y: one array a block, the two of equal length.
        seed: of the draws.
        n_resamples: how many draws.

    Example:
        >>> three = np.arange(3.0)  # of 6 orders, the sorted one and its reverse reach it
        >>> round(permutation_p([three], [three], seed=0), 4)
        0.3333
    """
    x, y = [a - a.mean() for a in x], [b - b.mean() for b in y]
    observed = sum(float(a @ b) for a, b in zip(x, y, strict=True))
    slack = 1e-9 * (1 + abs(observed))
    if math.prod(math.factorial(len(a)) for a in x) <= EXACT:
        sums = np.zeros(1)
        for a, b in zip(x, y, strict=True):
            own = np.array(list(itertools.permutations(b))) @ a
            sums = np.add.outer(sums, own).ravel()
        return float((np.abs(sums) >= abs(observed) - slack).mean())
    rng = np.random.default_rng(seed)
    drawn = np.zeros(n_resamples)
    for a, b in zip(x, y, strict=True):
        drawn += rng.permuted(np.tile(b, (n_resamples, 1)), axis=1) @ a
    reached = int((np.abs(drawn) >= abs(observed) - slack).sum())
    return (reached + 1) / (n_resamples + 1)


def _paper(
    points: Sequence[Point], blocks: Sequence[_Block], level: float
) -> tuple[list[Metric], str]:
    from scipy.stats import linregress, t

    x = np.concatenate([b.x for b in blocks]) * math.log(2)
    y = np.concatenate([b.z for b in blocks])
    if not np.ptp(x) or not y.any():
        raise UserError("separation or attack success is the same for all points")
    fit = linregress(x, y)
    half = float(t.ppf(0.5 + level / 2, len(x) - 2) * fit.stderr)
    slope = Metric(
        "slope", float(fit.slope), float(fit.slope) - half, float(fit.slope) + half, len(x), level
    )
    metrics = [
        slope,
        Metric("r_squared", float(fit.rvalue**2), n=len(x)),
        Metric("p_value", float(fit.pvalue), n=len(x)),
    ]
    summary = (
        "The paper's regression: attack success changes by "
        f"{_words(slope)} standard deviations of its base model with each unit of ln separation "
        f"(R² {fit.rvalue**2:.3f}, p = {fit.pvalue:.3f}, taking the points for independent)."
    )
    return metrics, summary


def _spearman(points: Sequence[Point], seed: int, n_resamples: int, level: float) -> Metric:
    """Rank correlation over all points; whole base models are resampled.

    With a single base model its points are resampled.
    """
    from scipy.stats import spearmanr

    models = dict.fromkeys(p.model for p in points)
    groups = [[p for p in points if p.model == model] for model in models]
    if len(groups) == 1:
        groups = [[p] for p in points]

    def rank(sample: Sequence[Point]) -> float:
        x, y = [p.separation for p in sample], [p.asr for p in sample]
        if len(set(x)) < 2 or len(set(y)) < 2:
            return math.nan
        return float(spearmanr(x, y).statistic)

    value = rank(points)
    if math.isnan(value):
        return Metric("spearman", None, n=len(points), level=level)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(groups), size=(n_resamples, len(groups)))
    found = np.array([rank([p for g in draw for p in groups[g]]) for draw in draws])
    known = found[np.isfinite(found)]
    tail = (1 - level) / 2
    low, high = (float(end) for end in np.quantile(known, [tail, 1 - tail]))
    return Metric("spearman", value, low, high, len(points), level)


def _floor(points: Sequence[Point]) -> Metric:
    stuck = sum(p.asr <= FLOOR or p.asr >= 1 - FLOOR for p in points)
    return Metric("at_floor_or_ceiling", stuck / len(points), n=len(points), unit="rate")


def _advice(
    points: Sequence[Point], blocks: Sequence[_Block], metrics: Sequence[Metric]
) -> list[str]:
    said = [
        "This is an association: what else differs between the aligned models may be behind it.",
        f"{len(points)} independent points would need a correlation of "
        f"{metrics[2].value:.2f} or more to be significant.",
    ]
    stuck = metrics[3].value or 0.0
    if stuck >= 0.2:
        said.append(
            f"{100 * stuck:.0f}% of the points have an attack success within {100 * FLOOR:.0f} "
            "points of 0 or 100%: there it can hardly move, and the association is blunted. Use a "
            "stronger attack or a weaker one."
        )
    if len(blocks) == 1:
        said.append("All points share one base model: another base may behave otherwise.")
    elif len(blocks) < 8:
        said.append(
            f"There are only {len(blocks)} base models: resampling so few makes too narrow an "
            "interval of Spearman's correlation."
        )
    alone = [b.model for b in blocks if len(b.x) == 1]
    if alone:
        said.append(f"A single point of {', '.join(alone)} says nothing within its base model.")
    return said


def _figure(blocks: Sequence[_Block]) -> dict[str, Any]:
    """A panel of curves, one a base model, in order of separation."""
    lines = [
        {"name": b.model, "x": (2.0**b.x).round(6).tolist(), "y": b.y.tolist(), "tone": "other"}
        for b in blocks
    ]
    panel = {"title": "Attack success against separation", "unit": "attack success", "lines": lines}
    return {"x_label": "separation (Bhattacharyya distance)", "panels": [panel]}


def _words(metric: Metric) -> str:
    if metric.value is None:
        return "undefined"
    if metric.low is None or metric.high is None:
        return f"{metric.value:.2f}"
    return f"{metric.value:.2f} [{metric.low:.2f}, {metric.high:.2f}]"
