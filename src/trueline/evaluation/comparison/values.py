"""What a comparison is made of, as plain named values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.comparison.pairing import Pairing
from trueline.evaluation.harness.log import MEASURES, Judgement
from trueline.registry import nearest
from trueline.results import Finding, Metric
from trueline.stats import Agreement, Calibration, NonInferiority

MARGINS: Mapping[str, float] = {"over_refusal": 0.05, "utility": 0.05}
"""How much worse over-refusal and utility may become before it matters, unless said otherwise."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What is counted: a measure by a judge; over everything, or one benchmark and attack."""

    measure: str
    judge: str
    benchmark: str | None = None
    attack: str | None = None

    def __str__(self) -> str:
        words = self.measure.replace("asr", "attack success").replace("_", "-")
        return words if self.whole else f"{words}: {self.part}"

    @property
    def whole(self) -> bool:
        """Whether it spans all benchmarks and attacks."""
        return self.attack is None

    @property
    def part(self) -> str:
        """Which benchmark and attack, ``"harmbench, direct"``."""
        return f"{self.benchmark}, {self.attack}"

    def holds(self, row: Judgement) -> bool:
        """Whether a row belongs to it."""
        return (
            row.measure == self.measure
            and row.judge == self.judge
            and self.benchmark in (None, row.benchmark)
            and self.attack in (None, row.attack)
        )


@dataclass(frozen=True, slots=True)
class Level:
    """A run's own rate in a scope (a mean, where judgements are scores)."""

    run: str
    scope: Scope
    metric: Metric
    corrected: Metric | None = None


@dataclass(frozen=True, slots=True)
class Contrast:
    """A run against the baseline in one scope, on the items that both were judged on.

    ``fixed`` counts items that became better and ``broken`` those that became worse, whichever
    way the measure points; both are None for scores. ``p_holm`` is there for primary ones only.
    """

    run: str
    scope: Scope
    before: Metric
    after: Metric
    difference: Metric
    pairing: Pairing
    fixed: int | None = None
    broken: int | None = None
    p_value: float | None = None
    primary: bool = False
    p_holm: float | None = None
    non_inferiority: NonInferiority | None = None
    corrected: Metric | None = None


@dataclass(frozen=True, slots=True)
class JudgesCompared:
    """Two judges on the answers that both judged, over all runs."""

    measure: str
    first: str
    second: str
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything `trueline compare` says; :meth:`to_dict` is its JSON. ``void`` holds, for runs
    whose rates say nothing, why."""

    baseline: str
    runs: tuple[str, ...]
    primary: tuple[str, ...]
    levels: tuple[Level, ...]
    contrasts: tuple[Contrast, ...]
    quality: Mapping[str, tuple[Metric, ...]]
    judges: tuple[JudgesCompared, ...]
    notes: tuple[str, ...]
    confidence: float = 0.95
    void: Mapping[str, Finding] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data: counts of pairs, not the pairs themselves."""
        contrasts = []
        for contrast in self.contrasts:
            values = {f.name: getattr(contrast, f.name) for f in fields(contrast)}
            plain = {name: _plain(value) for name, value in values.items() if name != "pairing"}
            margin = contrast.non_inferiority
            if margin is not None:
                plain["non_inferiority"] |= {"shown": margin.shown, "refuted": margin.refuted}
            contrasts.append({**plain, "pairing": contrast.pairing.to_dict()})
        return {
            "baseline": self.baseline,
            "runs": list(self.runs),
            "level": self.confidence,
            "primary": list(self.primary),
            "contrasts": contrasts,
            "rates": [asdict(level) for level in self.levels],
            "quality": {run: [asdict(m) for m in found] for run, found in self.quality.items()},
            "judges": [asdict(found) for found in self.judges],
            "notes": list(self.notes),
        }


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


@dataclass(frozen=True, slots=True)
class JudgeCalibration:
    """What is known of a judge.

    Args:
        counts: right and wrong, against human labels.
        measure: the event that was judged.
        judge: its label; None where that is not known.
        model: the fingerprint of the model whose answers were labeled; None where that is not
            known.
    """

    counts: Calibration
    measure: str = "asr"
    judge: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How to compare.

    Args:
        baseline: the run that the others are compared with; None for the first.
        judge: whose verdicts count; None for each measure's first judge in the baseline.
        benchmarks, attacks: what to keep; empty for all.
        primary: the declared measures; their p-values are adjusted together (Holm).
        margins: by how much a measure may get worse before it matters (non-inferiority).
        calibrations: judges against human labels, for corrected rates beside the raw ones; a model
            is corrected by its own alone, since a judge errs by the model.
        level: coverage of the intervals.
        seed: of the resamples.
    """

    baseline: str | None = None
    judge: str | None = None
    benchmarks: Sequence[str] = ()
    attacks: Sequence[str] = ()
    primary: Sequence[str] = MEASURES
    margins: Mapping[str, float] = field(default_factory=lambda: dict(MARGINS))
    calibrations: Sequence[JudgeCalibration] = ()
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*self.primary, *self.margins, *(c.measure for c in self.calibrations)):
            if name not in MEASURES:
                raise UserError(
                    f"unknown measure {name!r}{nearest(name, MEASURES)} "
                    f"(known: {', '.join(MEASURES)})"
                )
        seen = [(c.measure, c.judge, c.model) for c in self.calibrations]
        for measure, judge, model in seen:
            if seen.count((measure, judge, model)) > 1:
                of = "one model" if model is not None else "a model that neither names"
                raise UserError(
                    f"two calibrations are of {judge or 'a judge'} and {measure} on {of}; give one"
                )

    def calibration_of(self, scope: Scope, model: str | None) -> tuple[Calibration | None, bool]:
        """The judge's counts for this measure, and whether they are of this very model: its own
        where there are some, else the first of another.

        Raises:
            UserError: those given are all of another judge than the one whose verdicts count.
        """
        of = [c for c in self.calibrations if c.measure == scope.measure]
        fit = [c for c in of if c.judge in (None, scope.judge)]
        if of and not fit:
            raise UserError(
                f"the calibration is of judge {of[0].judge!r}, and the verdicts are those of "
                f"{scope.judge!r}; choose with --judge, or calibrate that one"
            )
        own = [c for c in fit if c.model is not None and c.model == model]
        chosen = next(iter([*own, *fit]), None)
        return (None if chosen is None else chosen.counts), bool(own)
