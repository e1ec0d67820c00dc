"""What `trueline compare` does: what changed, on the same prompts, and how sure that is."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.comparison import (
    Comparison,
    JudgeCalibration,
    Settings,
    compare_runs,
    findings_of,
    judges_sentence,
    load_judged_runs,
    points_from_runs,
    read_points,
    samples_of,
    sentence,
)
from trueline.evaluation.comparison.values import MARGINS
from trueline.evaluation.comparison.words import difference_words, p_words
from trueline.results import Finding, frame, to_html
from trueline.runs.record import COMPARISON, Run
from trueline.stats import Calibration, needed_n, paired_power, unpaired_power
from trueline.stats.resampling import check_level

__all__ = [
    "Compared",
    "compare",
    "difference_words",
    "judges_sentence",
    "p_words",
    "power",
    "resilience",
    "sentence",
    "settings",
]


@dataclass(frozen=True)
class Compared:
    """Runs compared: the findings, the comparison behind them, and what should be known of it."""

    findings: Sequence[Finding]
    comparison: Comparison | None = None
    notes: Sequence[str] = ()

    def to_frame(self) -> Any:
        """All metrics as a pandas DataFrame."""
        return frame(self.findings)

    def save(self, output: str | os.PathLike[str] = "runs/comparison") -> Run:
        """Keep it in a folder that :func:`trueline.report` reads like a run."""
        run = Run.create(output)
        run.save(self.findings)
        run.write_manifest(command=shlex.join(["trueline", *sys.argv[1:]]))
        if self.comparison is not None:
            run.write(COMPARISON, self.comparison.to_dict())
            run.write_samples(samples_of(self.comparison))
        return run

    def _repr_html_(self) -> str:
        return to_html(self.findings, "Comparison")


def settings(
    *,
    primary: str | Sequence[str] = ("asr", "over_refusal", "utility"),
    margins: Mapping[str, float] | None = None,
    calibration: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    **given: Any,
) -> Settings:
    """The comparison's settings from the words of the command line.

    Args:
        primary: declared measures, or their names with commas between.
        margins: how much worse would not matter, by measure.
        calibration: what `trueline calibrate-judge` wrote; several, one for each model.
        given: as of :class:`~trueline.evaluation.comparison.Settings`.
    """
    check_level(given.get("level", 0.95))
    names = primary.split(",") if isinstance(primary, str) else primary
    files = [calibration] if isinstance(calibration, str | os.PathLike) else calibration
    return Settings(
        primary=[name.strip() for name in names if name.strip()],
        margins={**MARGINS, **{k.replace("-", "_"): v for k, v in (margins or {}).items()}},
        calibrations=[_calibration(Path(file)) for file in files],
        **given,
    )


def _calibration(path: Path) -> JudgeCalibration:
    """The counts that calibrate-judge wrote, and of which measure and judge they are."""
    if not path.is_file():
        raise UserError(f"{path} is no file; give what `trueline calibrate-judge` wrote")
    try:
        value = json.loads(path.read_text("utf-8"))
        counts = Calibration.from_dict(value)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    named = (value.get("measure", "asr"), value.get("judge"), value.get("model"))
    return JudgeCalibration(counts, *named)


def compare(*runs: Any, **given: Any) -> Compared:
    """Compare runs with the first of them, on the same prompts.

    Args:
        runs: evaluation folders, run directories, or runs; two or more.
        given: baseline, judge, benchmarks, attacks, primary, margins, calibration, level, seed.

    Raises:
        UserError: fewer than two runs, or one that holds no judged answers.
    """
    if len(runs) < 2:
        raise UserError(
            f"comparing needs two runs or more, got {len(runs)}; `trueline compare BASELINE RUN`"
        )
    how = settings(**given)  # before any run is read: bad input must not come late
    result = compare_runs(load_judged_runs([os.fspath(run) for run in runs]), how)
    return Compared(findings_of(result), result)


def resilience(
    *runs: Any,
    points: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    **given: Any,
) -> Compared:
    """Attack success against separation, over runs or over a table of points.

    Args:
        runs: run directories, where no table is given.
        points: a table of model, method, separation, asr.
        preset: ``"paper"`` for the published regression.
        given: as of :func:`compare`.
    """
    from trueline.evaluation.resilience import resilience as measure

    how, notes = settings(**given), []
    if points is not None:
        models = read_points(Path(points))
    else:
        judged = load_judged_runs([os.fspath(run) for run in runs])
        compared = compare_runs(judged, how)
        asr = {
            level.run: level.metric.value
            for level in compared.levels
            if level.scope.measure == "asr" and level.scope.whole
        }
        collected = points_from_runs(judged, asr)
        models, notes = collected.points, collected.notes
    found = measure(models, preset=preset, seed=how.seed, level=how.level)  # type: ignore[arg-type]
    return Compared([found], notes=notes)


def power(
    before: float,
    after: float,
    n: int | None = None,
    *,
    correlation: float = 0.0,
    level: float = 0.95,
) -> dict[str, Any]:
    """How likely a change of a rate would show, said before any run.

    Args:
        before, after: the rates.
        n: prompts; only the numbers needed are said without it.
        correlation: of the two models' outcomes over prompts.
        level: coverage of the intervals.

    Returns:
        For the same prompts and for others: the prompts needed for a power of 0.8, 0.9 and 0.95,
        and the power that ``n`` has.
    """
    check_level(level)
    alpha = 1 - level

    def paired(size: int) -> float:
        return paired_power(before, after, size, correlation=correlation, alpha=alpha)

    def unpaired(size: int) -> float:
        return unpaired_power(before, after, size, alpha=alpha)

    designs = {
        name: {
            "needed_n": {str(target): needed_n(of, target) for target in (0.8, 0.9, 0.95)},
            "power": None if n is None else of(n),
        }
        for name, of in {"same prompts (McNemar)": paired, "other prompts": unpaired}.items()
    }
    facts: dict[str, Any] = {"before": before, "after": after, "alpha": round(alpha, 12)}
    return {**facts, "correlation": correlation, "n": n, "designs": designs}
