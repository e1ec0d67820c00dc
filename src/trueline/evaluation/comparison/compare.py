"""Runs against a baseline, on the same prompts: effects with intervals first, then the tests.

Rows pair by benchmark, prompt id, attack, judge and measure. What stands in one run only is
counted and reported, and enters no difference.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

from trueline.errors import UserError
from trueline.evaluation.comparison.pairing import pair
from trueline.evaluation.comparison.quality import (
    judges_compared,
    quality_of,
    settings_notes,
    void,
)
from trueline.evaluation.comparison.runs import JudgedRun
from trueline.evaluation.comparison.values import Comparison, Contrast, Level, Scope, Settings
from trueline.evaluation.harness.log import MEASURES, Judgement
from trueline.registry import nearest
from trueline.results import Metric
from trueline.stats import (
    Clusters,
    borrowed,
    clustered_mean,
    clustered_rate,
    corrected_difference,
    difference_of_corrected,
    holm,
    mcnemar,
    non_inferiority,
    paired_difference,
    rogan_gladen,
    score_test,
)


def compare_runs(runs: Sequence[JudgedRun], settings: Settings | None = None) -> Comparison:
    """Compare each run with the baseline on the same prompts.

    Every difference is resampled by near-duplicate group (or prompt, over its attacks), and
    tested by swapping the models' places for whole groups, which is exact and is McNemar's test
    where each group is one item.

    Raises:
        UserError: an unknown baseline, judge, benchmark or attack, or runs without a row in
            common.
    """
    settings = settings or Settings()
    baseline = _baseline(runs, settings.baseline)
    kept = {run.name: _kept(run.judgements, settings) for run in runs}
    nothing = void(kept)
    notes = [f"{run}: {found.summary}" for run, found in nothing.items()]
    notes += [note for run in runs for note in run.notes]
    scopes, chosen = _scopes(kept, baseline.name, settings)
    notes += chosen
    levels = [_level(run, scope, kept[run.name], settings) for run in runs for scope in scopes]
    notes += _borrowed_notes(runs, settings)
    others = [run for run in runs if run is not baseline]
    notes += [note for run in others for note in settings_notes(baseline, run)]
    contrasts = [
        _contrast(run.name, scope, kept[baseline.name], kept[run.name], settings)
        for run in others
        for scope in scopes
    ]
    contrasts = [_corrected(c, baseline, runs, settings) for c in contrasts]
    if others and not any(c.pairing.paired for c in contrasts):
        raise UserError(
            "the runs have no judged answer in common: prompt ids, attacks and judges must be "
            "those of one evaluation"
        )
    contrasts = _adjusted(contrasts)
    notes += [note for c in contrasts if c.primary for note in c.pairing.notes(c.run, str(c.scope))]
    return Comparison(
        baseline.name,
        tuple(run.name for run in runs),
        tuple(settings.primary),
        tuple(levels),
        tuple(contrasts),
        {run.name: quality_of(kept[run.name], settings.level) for run in runs},
        tuple(judges_compared(kept, settings)),
        tuple(dict.fromkeys(notes)),
        settings.level,
        nothing,
    )


def _baseline(runs: Sequence[JudgedRun], name: str | None) -> JudgedRun:
    if not runs:
        raise UserError("give at least one run")
    names = [run.name for run in runs]
    if name is None:
        return runs[0]
    if name not in names:
        raise UserError(f"no run {name!r}{nearest(name, names)} (given: {', '.join(names)})")
    return runs[names.index(name)]


def _kept(rows: Iterable[Judgement], settings: Settings) -> list[Judgement]:
    rows = list(rows)
    for what, wanted in (("benchmark", settings.benchmarks), ("attack", settings.attacks)):
        known = list(dict.fromkeys(getattr(row, what) for row in rows))
        for name in wanted:
            if name not in known:
                raise UserError(
                    f"no {what} {name!r}{nearest(name, known)} (judged: {', '.join(known)})"
                )
        if wanted:
            rows = [row for row in rows if getattr(row, what) in wanted]
    return rows


def _scopes(
    kept: Mapping[str, Sequence[Judgement]], baseline: str, settings: Settings
) -> tuple[list[Scope], list[str]]:
    """A scope for each measure, then for each benchmark and attack in it; and what was chosen."""
    rows = [*kept[baseline], *(row for name in kept if name != baseline for row in kept[name])]
    scopes, notes = [], []
    for measure in MEASURES:
        judges = list(dict.fromkeys(row.judge for row in rows if row.measure == measure))
        if not judges:
            continue
        if settings.judge is not None and settings.judge not in judges:
            notes.append(f"{settings.judge} did not judge {measure.replace('_', '-')}: left out.")
            continue
        judge = settings.judge or judges[0]
        if len(judges) > 1 and settings.judge is None:
            notes.append(
                f"{len(judges)} judges of {Scope(measure, judge)!s}; this goes by {judge}. "
                "Choose with --judge."
            )
        whole = Scope(measure, judge)
        parts = dict.fromkeys(
            replace(whole, benchmark=row.benchmark, attack=row.attack)
            for row in rows
            if whole.holds(row)
        )
        scopes += [whole, *(parts if len(parts) > 1 else ())]
    if not scopes:
        known = sorted({row.judge for row in rows})
        raise UserError(
            f"judge {settings.judge!r} judged nothing here (judges: {', '.join(known)})"
        )
    return scopes, notes


def _level(run: JudgedRun, scope: Scope, rows: Sequence[Judgement], settings: Settings) -> Level:
    own = [row for row in rows if scope.holds(row)]
    metric = _rate_or_mean(str(scope), own, settings)
    counts, own_model = settings.calibration_of(scope, run.fingerprint)
    if counts is None or metric.unit != "rate":
        return Level(run.name, scope, metric)
    correct = rogan_gladen if own_model else borrowed
    return Level(run.name, scope, metric, correct(metric, counts, seed=settings.seed))


def _borrowed_notes(runs: Sequence[JudgedRun], settings: Settings) -> list[str]:
    if not settings.calibrations:
        return []
    models = {c.model for c in settings.calibrations}
    return [
        f"{run.name}: the judge was not calibrated on this model"
        + (" (the calibration does not say on which)" if models == {None} else "")
        + "; its rates are not corrected, and their intervals allow for a judge that errs here as "
        "judges do from model to model. Label some of its answers: trueline calibrate-judge --of."
        for run in runs
        if run.fingerprint is None or run.fingerprint not in models
    ]


def _corrected(
    contrast: Contrast, baseline: JudgedRun, runs: Sequence[JudgedRun], settings: Settings
) -> Contrast:
    """The contrast with a corrected difference, where the judge was calibrated on both models."""
    run = next(run for run in runs if run.name == contrast.run)
    found, seed = contrast.difference, settings.seed
    first, known = settings.calibration_of(contrast.scope, baseline.fingerprint)
    second, known_too = settings.calibration_of(contrast.scope, run.fingerprint)
    if found.unit != "rate" or first is None or second is None or not (known and known_too):
        return contrast
    if first is second:
        return replace(contrast, corrected=corrected_difference(found, first, seed=seed))
    before, after = (contrast.before, first), (contrast.after, second)
    corrected = difference_of_corrected(found.name, before, after, seed=seed)
    return replace(contrast, corrected=corrected)


def graded(rows: Sequence[Judgement]) -> bool:
    """Whether these rows are scores and not successes."""
    return all(row.success is None for row in rows) and any(row.score is not None for row in rows)


def _rate_or_mean(name: str, rows: Sequence[Judgement], settings: Settings) -> Metric:
    if not graded(rows):
        return clustered_rate(
            name,
            [row.success for row in rows],
            [row.cluster for row in rows],
            level=settings.level,
        )
    scores = [(row.score, row.cluster) for row in rows if row.score is not None]
    return _mean(name, scores, settings)


def _mean(name: str, scores: Sequence[tuple[float, Hashable]], settings: Settings) -> Metric:
    values, groups = [score for score, _ in scores], [group for _, group in scores]
    return clustered_mean(name, values, groups, level=settings.level)


def _contrast(
    run: str,
    scope: Scope,
    before: Sequence[Judgement],
    after: Sequence[Judgement],
    settings: Settings,
) -> Contrast:
    pairing = pair(filter(scope.holds, before), filter(scope.holds, after))
    first = [one for one, _ in pairing.complete]
    second = [other for _, other in pairing.complete]
    result = Contrast(
        run,
        scope,
        _rate_or_mean(f"{scope}, before", first, settings),
        _rate_or_mean(f"{scope}, after", second, settings),
        Metric(f"{scope}, change", None, n=0, level=settings.level, unit="rate"),
        pairing,
        primary=scope.whole and scope.measure in settings.primary,
    )
    if not first:
        return result
    compare = _graded if graded([*first, *second]) else _counted
    return compare(result, first, second, settings)


def _counted(
    result: Contrast, first: Sequence[Judgement], second: Sequence[Judgement], settings: Settings
) -> Contrast:
    """The difference of two rates, what was fixed and broken, and whether it is no worse."""
    scope, groups = result.scope, [row.cluster for row in first]
    old, new = [row.success for row in first], [row.success for row in second]
    difference = paired_difference(
        old,
        new,
        name=result.difference.name,
        level=settings.level,
        groups=groups,
    )
    good = scope.measure == "utility"  # its event is good: what is lost is broken
    changed = mcnemar(new, old, groups=groups) if good else mcnemar(old, new, groups=groups)
    margin = settings.margins.get(scope.measure) if result.primary else None
    kept = None
    if margin is not None:
        kept = non_inferiority(
            old, new, margin=margin, higher_is_worse=not good, level=settings.level, groups=groups
        )
    return replace(
        result,
        difference=difference,
        fixed=changed.fixed,
        broken=changed.broken,
        p_value=changed.p_value,
        non_inferiority=kept,
    )


def _graded(
    result: Contrast, first: Sequence[Judgement], second: Sequence[Judgement], settings: Settings
) -> Contrast:
    """The difference of mean scores; random signs for whole groups give its p-value."""
    changes = [
        (b.score - a.score, a.cluster)
        for a, b in zip(first, second, strict=True)
        if a.score is not None and b.score is not None
    ]
    clusters = Clusters.of([c for c, _ in changes], [g for _, g in changes])
    difference = _mean(result.difference.name, changes, settings)
    p_value = score_test(clusters.totals.tolist(), seed=settings.seed)
    return replace(result, difference=difference, p_value=p_value)


def _adjusted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Holm over the declared family: the primary measures of every run that is compared."""
    family = {i: c.p_value for i, c in enumerate(contrasts) if c.primary and c.p_value is not None}
    adjusted = holm({i: p for i, p in family.items() if p is not None})
    return [replace(c, p_holm=adjusted.get(i)) for i, c in enumerate(contrasts)]
