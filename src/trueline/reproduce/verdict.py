"""Effects and verdicts: one rule for every claim, stated once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from trueline.results import Metric

Verdict: TypeAlias = Literal["supported", "not supported", "undecided", "not measured"]
Expected: TypeAlias = Literal["above", "below", "equal"]

RULE = (
    "The seed is the unit: each effect is a mean over seeds of differences (or slopes) taken "
    "within a seed, with Student's 95% interval and the p of its t test. A part's own word is "
    "read from its interval, uncorrected: supported if the whole interval lies on the claimed "
    "side (for a claimed equality: inside the stated margin), not supported if it lies on the "
    "other side (outside the margin), and undecided otherwise; undecided, too, with fewer than "
    "two seeds, where fewer than half of the seeds are scored, or where every seed gives the very "
    "same difference (unless equality is claimed). A claim is supported if all of its parts are, "
    "with the largest of their p, and "
    "not supported if any part is refuted, with the smallest of their p times the number of "
    "parts. The claims of a paper are one family: a verdict needs p < 0.05 after Holm's "
    "correction over all of them, whichever were run, and is else undecided at this number of "
    "seeds. Results of arithmetic are exact, compared as they are, and no part of a family."
)
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Effect:
    """One measured part of a claim.

    Args:
        metric: the effect with its interval over seeds. An exact value has itself for both ends.
        expected: where the claim says it lies.
        against: what it lies above or below, or equals.
        margin: how far from ``against`` still counts as equal.
        exact: not estimated from seeds: an interval without width is right.
    """

    metric: Metric
    expected: Expected
    against: float = 0.0
    margin: float = 0.0
    exact: bool = False

    @property
    def verdict(self) -> Verdict:
        """This part's verdict, by :data:`RULE`.

        Example:
            >>> Effect(Metric("a minus b", 0.2, 0.1, 0.3), "above").verdict
            'supported'
            >>> Effect(Metric("a minus b", 0.2, -0.1, 0.5), "above").verdict
            'undecided'
            >>> Effect(Metric("a minus b", 0.2, 0.1, 0.3), "equal", margin=0.05).verdict
            'not supported'
        """
        metric = self.metric
        if metric.value is None:
            return "not measured"
        if metric.low is None or metric.high is None:
            return "undecided"
        if metric.low == metric.high and not self.exact and self.expected != "equal":
            return "undecided"
        low, high = metric.low - self.against, metric.high - self.against
        if self.expected == "equal":
            inside = -self.margin <= low and high <= self.margin
            outside = low > self.margin or high < -self.margin
        else:
            if self.expected == "below":
                low, high = -high, -low
            inside, outside = low > 0, high < 0
        return "supported" if inside else "not supported" if outside else "undecided"

    @property
    def chances(self) -> tuple[float, float]:
        """Two-sided p-values of Student's t test: for the claimed side, and for the other.

        Below :data:`ALPHA` exactly where :attr:`verdict` says supported, or not supported. For a
        claimed equality the first is of two one-sided tests (both margins), the second of either.

        Example:
            >>> held, failed = Effect(Metric("a - b", 2.0, -0.4841, 4.484, n=3), "above").chances
            >>> round(held, 4), failed
            (0.0742, 1.0)
        """
        metric, verdict = self.metric, self.verdict
        low, high, n = metric.low, metric.high, metric.n or 0
        if metric.value is None or low is None or high is None or low == high or n < 2:
            return float(verdict != "supported"), float(verdict != "not supported")
        from scipy.stats import t

        error = (high - low) / 2 / float(t.ppf(0.5 + metric.level / 2, n - 1))
        value = metric.value - self.against
        margin = self.margin if self.expected == "equal" else 0.0
        ends = [(value + side * margin) / error for side in (1, -1)]
        over, under = (sorted(map(float, tail(ends, n - 1))) for tail in (t.sf, t.cdf))
        if self.expected == "equal":  # above the lower margin and below the upper; beyond either
            sides = max(over[0], under[0]), min(over[1], under[1])
        else:
            sides = (over[0], under[0]) if self.expected == "above" else (under[0], over[0])
        return min(2 * sides[0], 1.0), min(2 * sides[1], 1.0)

    @property
    def claimed(self) -> str:
        """Where the claim says it lies, in a few words.

        Example:
            >>> Effect(Metric("a minus b", 0.2), "equal", margin=0.05).claimed
            'within 0.05 of 0'
        """
        if self.expected == "equal":
            return f"within {self.margin:g} of {self.against:g}"
        return f"{self.expected} {self.against:g}"

    @property
    def shown(self) -> str:
        """The effect with its interval, differences of rates in percentage points.

        Example:
            >>> Effect(Metric("a minus b", 0.2, 0.1, 0.3, unit="rate"), "above").shown
            '+20.0 points [+10.0, +30.0]'
            >>> Effect(Metric("a", 1e-16, 1e-16, 1e-16), "equal", exact=True).shown
            '1e-16, exact'
        """
        metric = self.metric
        if metric.value is None:
            return "unscored"
        if self.exact:
            return f"{metric.value:.3g}, exact"
        scale, form, unit = (100, "+.1f", " points") if metric.unit == "rate" else (1, "+.3g", "")
        value = f"{scale * metric.value:{form}}{unit}"
        if metric.low is not None and metric.high is not None:
            value += f" [{scale * metric.low:{form}}, {scale * metric.high:{form}}]"
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {**asdict(self), "claimed": self.claimed, "verdict": self.verdict}


def decided(effects: Sequence[Effect]) -> tuple[Verdict, float | None]:
    """Which way a claim leans, and with which p before the correction over its paper's claims.

    For: the largest p of its parts (all must hold). Against: the smallest, times the number of
    parts (any may fail). None where nothing is left to chance: nothing measured, or arithmetic.

    Example:
        >>> part = Effect(Metric("a minus b", 0.2, 0.1, 0.3, n=5), "above")
        >>> decided([part, Effect(Metric("c", 0.2, -0.1, 0.5, n=5), "above")])
        ('supported', 0.137...)
        >>> decided([Effect(Metric("d", 2.0, 2.0, 2.0), "above", exact=True)])
        ('supported', None)
    """
    if all(effect.metric.value is None for effect in effects):
        return "not measured", None
    if all(effect.exact for effect in effects):
        wrong = any(effect.verdict == "not supported" for effect in effects)
        return ("not supported" if wrong else "supported"), None
    held, failed = zip(*(effect.chances for effect in effects), strict=True)
    against = min(len(effects) * min(failed), 1.0)
    return ("supported", max(held)) if max(held) <= against else ("not supported", against)


def overall(effects: Sequence[Effect], corrected: float | None = None) -> Verdict:
    """A claim's verdict from its parts, by :data:`RULE`.

    Args:
        effects: its parts.
        corrected: its p after Holm's correction; its own where it stands alone.

    Example:
        >>> part = Effect(Metric("a minus b", 0.2, 0.1, 0.3, n=5), "above")
        >>> overall([part]), overall([part], 0.2)
        ('supported', 'undecided')
    """
    verdict, own = decided(effects)
    p = own if corrected is None else corrected
    return verdict if p is None or p < ALPHA else "undecided"
