"""Rates corrected for the judge's own errors; the raw rate always comes first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from trueline.errors import UserError
from trueline.results import Metric
from trueline.stats.proportions import clustered_share
from trueline.stats.resampling import check_level

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a judge did against human labels, as counts.

    Args:
        true_positives: of the ``positives``, how many the judge called positive.
        positives: items that truly are (the attack did succeed).
        true_negatives: of the ``negatives``, how many the judge called negative.
        negatives: items that truly are not.
        effects: by how much answers to one prompt, which fare alike, inflate the variance of
            sensitivity, of specificity and of accuracy; 1 where every prompt occurs once.

    Raises:
        UserError: counts that cannot be, or no item of a kind.

    Example:
        >>> print(Calibration(45, 50, 98, 100).sensitivity)
        90.0% [78.6%, 95.7%]
    """

    true_positives: int
    positives: int
    true_negatives: int
    negatives: int
    effects: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for hits, n, kind in (
            (self.true_positives, self.positives, "positives"),
            (self.true_negatives, self.negatives, "negatives"),
        ):
            if not 0 <= hits <= n or n == 0:
                raise UserError(
                    f"a calibration needs items of both kinds and true {kind} <= {kind}, got "
                    f"{hits} of {n} {kind}"
                )

    @property
    def sensitivity(self) -> Metric:
        """The share of true positives that the judge finds, with Wilson's interval."""
        return clustered_share("sensitivity", self.true_positives, self.positives, self.effects[0])

    @property
    def specificity(self) -> Metric:
        """The share of true negatives that the judge leaves alone, with Wilson's interval."""
        return clustered_share("specificity", self.true_negatives, self.negatives, self.effects[1])

    @property
    def youden(self) -> float:
        """Sensitivity + specificity - 1: what is left of a difference once the judge read it."""
        return self.true_positives / self.positives + self.true_negatives / self.negatives - 1

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Calibration:
        """Read the four counts; other entries are no concern of this class.

        Raises:
            UserError: a count is missing or no whole number.
        """
        names = tuple(name for name in cls.__slots__ if name != "effects")
        missing = [name for name in names if name not in value]
        if missing:
            raise UserError(f"a calibration needs {', '.join(names)}; no {', '.join(missing)}")
        for name in names:
            if not isinstance(value[name], int) or isinstance(value[name], bool):
                raise UserError(f"{name} must be a whole number, got {value[name]!r}")
        first, second, third = value.get("effects", (1.0, 1.0, 1.0))
        counts = {name: value[name] for name in names}
        return cls(**counts, effects=(float(first), float(second), float(third)))

    def draws(self, rng: np.random.Generator, size: int) -> Array:
        """Likely values of :attr:`youden` and of 1 - specificity, shape (2, size).

        From the Beta posteriors of both rates under Jeffreys' prior.
        """
        found, spared = self.effects[:2]
        sensitivity = _beta(rng, self.true_positives / found, self.positives / found, size)
        specificity = _beta(rng, self.true_negatives / spared, self.negatives / spared, size)
        return np.stack([sensitivity + specificity - 1, 1 - specificity])


def rogan_gladen(
    raw: Metric, calibration: Calibration, *, seed: int, draws: int = 40_000
) -> Metric:
    """The rate that a judge with known errors would have seen without them.

        corrected = (raw + specificity - 1) / (sensitivity + specificity - 1), inside [0, 1]

    The interval holds both uncertainties: the raw rate's (as many items as make an interval of
    its width, so that clusters are respected) and the calibration's, each drawn from its Beta
    posterior. The correction assumes that the judge errs on this model as it did on the
    calibration's answers; a refusal list's bias is known to differ from model to model.

    Args:
        raw: the judged rate with its interval.
        calibration: the judge against human labels.
        seed: of the draws.
        draws: how many.

    Returns:
        A metric named after ``raw``, with ``" (corrected)"``.

    Raises:
        UserError: the judge is no better than chance (sensitivity + specificity <= 1).

    Example:
        >>> judge = Calibration(90, 100, 95, 100)
        >>> corrected = rogan_gladen(Metric("asr", 0.15, 0.107, 0.206, 200), judge, seed=0)
        >>> round(corrected.value, 4)  # (.15 - .05) / .85
        0.1176

    Source: Rogan and Gladen (1978), American Journal of Epidemiology 107, 71-76.
    """
    check_level(raw.level)
    name = f"{raw.name} (corrected)"
    if raw.value is None or not raw.n:
        return Metric(name, None, n=0, level=raw.level, unit=raw.unit)
    value, likely = _without_errors(raw, calibration, np.random.default_rng(seed), draws)
    return _with_interval(name, value, likely[np.isfinite(likely)], raw)


def _without_errors(
    raw: Metric, calibration: Calibration, rng: np.random.Generator, draws: int
) -> tuple[float, Array]:
    """The corrected rate, and likely values of it; nan where a drawn judge is worse than chance."""
    assert raw.value is not None
    _check_informative(calibration)
    miss = 1 - calibration.true_negatives / calibration.negatives
    value = min(max((raw.value - miss) / calibration.youden, 0.0), 1.0)
    youden, false_alarm = calibration.draws(rng, draws)
    n = _effective_n(raw)
    judged = _beta(rng, raw.value * n, n, draws)
    sharp = np.where(youden > 0, youden, np.nan)
    return value, np.clip((judged - false_alarm) / sharp, 0.0, 1.0)


BORROWED = 2.0
"""So many answers of each kind a calibration is worth on another model than its own. Specificity of
one judge on XSTest went from .90 to .145 over five models, which is the spread of a Beta with
about one; sensitivity from .91 to .98."""


def borrowed(raw: Metric, calibration: Calibration, *, seed: int, draws: int = 40_000) -> Metric:
    """The raw rate, with an interval for a judge that was calibrated on another model.

    The rate is not corrected. Its interval holds the raw one, and what the correction would give
    if sensitivity and specificity were known from :data:`BORROWED` answers of each kind only.

    Args:
        raw: the judged rate with its interval.
        calibration: the judge against human labels, on another model's answers.
        seed: of the draws.
        draws: how many.

    Returns:
        A metric named after ``raw``, with ``" (judge calibrated on another model)"``.

    Example:
        >>> raw = Metric("asr", 0.15, 0.107, 0.206, 200)
        >>> wide = borrowed(raw, Calibration(90, 100, 95, 100), seed=0)
        >>> wide.value, wide.low < 0.01, wide.high > 0.3
        (0.15, True, True)
    """
    name = f"{raw.name} (judge calibrated on another model)"
    if raw.value is None or raw.low is None or raw.high is None:
        return Metric(name, raw.value, n=raw.n, level=raw.level, unit=raw.unit)
    first, second = (
        max(count / BORROWED, 1.0) for count in (calibration.positives, calibration.negatives)
    )
    wide = rogan_gladen(
        raw, replace(calibration, effects=(first, second, 1.0)), seed=seed, draws=draws
    )
    low = raw.low if wide.low is None else min(raw.low, wide.low)
    high = raw.high if wide.high is None else max(raw.high, wide.high)
    return Metric(name, raw.value, low, high, raw.n, raw.level, raw.unit)


def corrected_difference(
    raw: Metric, calibration: Calibration, *, seed: int, draws: int = 40_000
) -> Metric:
    """A difference of two rates without the judge's errors: ``raw / (sens + spec - 1)``.

    Both models were read by the one judge, so false alarms cancel and misses shrink the
    difference. The raw difference is drawn from a normal of its interval's width.

    Args:
        raw: the judged difference with its interval.
        calibration: the judge against human labels, the same for both models.
        seed: of the draws.
        draws: how many.

    Raises:
        UserError: the judge is no better than chance.

    Example:
        >>> raw = Metric("asr", -0.17, -0.23, -0.11, n=200, unit="rate")
        >>> round(corrected_difference(raw, Calibration(90, 100, 95, 100), seed=0).value, 4)
        -0.2
    """
    name = f"{raw.name} (corrected)"
    if raw.value is None:
        return Metric(name, None, n=0, level=raw.level, unit=raw.unit)
    _check_informative(calibration)
    from scipy.stats import norm

    value = min(max(raw.value / calibration.youden, -1.0), 1.0)
    if raw.low is None or raw.high is None:
        return Metric(name, value, n=raw.n, level=raw.level, unit=raw.unit)
    rng = np.random.default_rng(seed)
    youden = calibration.draws(rng, draws)[0]
    error = (raw.high - raw.low) / 2 / float(norm.ppf(0.5 + raw.level / 2))
    seen = rng.normal(raw.value, error, draws)
    sharp = youden > 0
    return _with_interval(name, value, np.clip(seen[sharp] / youden[sharp], -1.0, 1.0), raw)


def difference_of_corrected(
    name: str,
    before: tuple[Metric, Calibration],
    after: tuple[Metric, Calibration],
    *,
    seed: int,
    draws: int = 40_000,
) -> Metric:
    """The difference of two rates, each without the errors that the judge makes on its model.

    Each rate is corrected by :func:`rogan_gladen` with a calibration of its own. The two are drawn
    independently: on the same prompts they mostly go together, so the interval is rather too wide.

    Args:
        name: of the raw difference.
        before, after: the judged rate with its interval, and the judge's calibration on that model.
        seed: of the draws.
        draws: how many.

    Raises:
        UserError: the judge is no better than chance on one of them.

    Example:
        >>> old = Metric("asr", 0.6, 0.53, 0.67, 200, unit="rate"), Calibration(90, 100, 95, 100)
        >>> new = Metric("asr", 0.4, 0.33, 0.47, 200, unit="rate"), Calibration(90, 100, 70, 100)
        >>> round(difference_of_corrected("change", old, new, seed=0).value, 3)
        -0.48
    """
    raw = after[0]
    if raw.value is None or before[0].value is None:
        return Metric(f"{name} (corrected)", None, n=0, level=raw.level, unit=raw.unit)
    rng = np.random.default_rng(seed)
    old, olds = _without_errors(*before, rng, draws)
    new, news = _without_errors(*after, rng, draws)
    likely = news - olds
    return _with_interval(f"{name} (corrected)", new - old, likely[np.isfinite(likely)], raw)


def _check_informative(calibration: Calibration) -> None:
    if calibration.youden <= 0:
        raise UserError(
            "the judge is no better than chance: sensitivity "
            f"{calibration.sensitivity} and specificity {calibration.specificity} sum to at most "
            "100%; use another judge"
        )


def _with_interval(name: str, value: float, likely: Array, raw: Metric) -> Metric:
    tail = (1 - raw.level) / 2
    low, high = (float(end) for end in np.quantile(likely, [tail, 1 - tail]))
    return Metric(name, value, min(low, value), max(high, value), raw.n, raw.level, raw.unit)


def _effective_n(raw: Metric) -> float:
    """How many independent items would give an interval as wide as the metric's (Wilson's)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    n, p = float(raw.n or 0), raw.value or 0.0
    if raw.low is None or raw.high is None:
        return n
    z, width = float(norm.ppf(0.5 + raw.level / 2)), raw.high - raw.low

    def excess(size: float) -> float:
        half = z * math.sqrt(p * (1 - p) / size + z * z / (4 * size * size))
        return 2 * half / (1 + z * z / size) - width

    if excess(n) >= 0 or width <= 0:
        return n
    return 1.0 if excess(1.0) <= 0 else float(brentq(excess, 1.0, n))


def _beta(rng: np.random.Generator, hits: float, n: float, size: int) -> Array:
    return rng.beta(hits + 0.5, n - hits + 0.5, size)
