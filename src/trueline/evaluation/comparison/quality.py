"""How far a comparison can be trusted: answers, judges, and the settings of both runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trueline.evaluation.comparison.runs import JudgedRun
from trueline.evaluation.comparison.values import JudgesCompared, Settings
from trueline.evaluation.harness.log import Judgement, Key
from trueline.evaluation.harness.summarize import kinds_of, unread
from trueline.results import Finding, Metric
from trueline.stats import agreement, rate


def quality_of(rows: Sequence[Judgement], level: float) -> tuple[Metric, ...]:
    """What may have misled the judge: answers cut or empty, verdicts that make no sense."""
    answers = list({(r.benchmark, r.id, r.attack): r for r in rows}.values())
    return (
        rate("truncated", [r.truncated for r in answers], level=level),
        rate("empty", [r.empty for r in answers], level=level),
        rate("unparsable", [r.unparsable for r in rows], level=level),
        *kinds_of(answers, level),
    )


def void(kept: Mapping[str, Sequence[Judgement]]) -> dict[str, Finding]:
    """For each run whose rates say nothing, why: see :func:`unread`."""
    return {run: found for run in kept for found in unread(kept[run])}


def judges_compared(
    kept: Mapping[str, Sequence[Judgement]], settings: Settings
) -> Iterable[JudgesCompared]:
    """Every two judges of one measure."""
    verdicts: dict[tuple[str, str], dict[tuple[str, Key], bool | None]] = {}
    for run, rows in kept.items():
        for row in rows:
            place = (run, (*row.key[:3], "", row.measure))
            verdicts.setdefault((row.measure, row.judge), {})[place] = row.success
    named = list(verdicts)
    for index, (measure, first) in enumerate(named):
        for other, second in named[index + 1 :]:
            one, two = verdicts[measure, first], verdicts[other, second]
            shared = [place for place in one if place in two] if other == measure else []
            if shared:
                found = agreement(
                    [one[p] for p in shared],
                    [two[p] for p in shared],
                    seed=settings.seed,
                    level=settings.level,
                )
                yield JudgesCompared(measure, first, second, found)


OWN = ("model", "seed")
"""Settings that two runs may differ in without a word."""


def settings_notes(baseline: JudgedRun, run: JudgedRun) -> list[str]:
    """A note for each setting, recorded in both runs, that is not the same in both."""
    return [
        f"{run.name} and {baseline.name} differ in {name}: a difference may come from that."
        for name in _differing(baseline.settings, run.settings)
    ]


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterable[str]:
    """Names of settings, down to the single judge, attack or benchmark of one label."""
    for name in first:
        if name in OWN or name not in second or first[name] == second[name]:
            continue
        one, other = first[name], second[name]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from (f"{name}, {inner}" for inner in _differing(one, other))
        else:
            yield name.replace("_", " ")
