"""From run directories to a report: what is there is shown, what is missing is said."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from trueline.errors import UserError
from trueline.report.blocks import Block, Report, Section
from trueline.report.decision import Bounds, headline
from trueline.report.drawing.numbers import number
from trueline.report.pages.again import again_section, data_section
from trueline.report.pages.answers import sample_section
from trueline.report.pages.compared import compared
from trueline.report.pages.highlights import highlights_of
from trueline.report.pages.load import load_run
from trueline.report.pages.topics import (
    ENTANGLEMENT,
    HELD_OUT,
    RANKING,
    SAFETY,
    SEPARATION,
    VERDICT,
    other_sections,
    topic_section,
)
from trueline.report.pages.training import series, training_curves
from trueline.report.rows import Rows
from trueline.results import Finding
from trueline.runs.record import Run, told_apart

BEFORE = (VERDICT, SAFETY, SEPARATION)
AFTER = (ENTANGLEMENT, HELD_OUT, RANKING)
"""Topics before and after the training's curves."""


def report_from_run(run_dir: str | os.PathLike[str], bounds: Bounds | None = None) -> Report:
    """The report of one run directory, as far as it goes."""
    return report_from_runs([run_dir], bounds)


def report_from_runs(
    run_dirs: Sequence[str | os.PathLike[str]], bounds: Bounds | None = None
) -> Report:
    """One report of several runs: findings side by side, curves and configuration run by run.

    Runs that hold judged answers get a verdict each, against the bounds (None for the defaults),
    and every rate opens the rows it counts. Where there are at least two of them, they are compared
    prompt by prompt with the first, the baseline.

    Raises:
        UserError: no run was given, or one is no directory.
    """
    if not run_dirs:
        raise UserError("give at least one run directory")
    runs = [load_run(path) for path in run_dirs]
    for run, name in zip(runs, told_apart([run.name for run in runs], run_dirs), strict=True):
        run.name = name
    against = compared(runs, bounds)
    link = against.rows.behind
    sections = [
        *topic_section(VERDICT, runs),
        *against.sections,
        *(section for topic in BEFORE[1:] for section in topic_section(topic, runs, link)),
        *_training(runs),
        *(section for topic in AFTER for section in topic_section(topic, runs)),
        *other_sections((*BEFORE, *AFTER), runs),
        *data_section(runs),
        *_answers(against.rows),
        *sample_section([run for run in runs if run.name not in against.rows.judged]),
        again_section(runs),
    ]
    missing = [f"{run.name}: {what}." for run in runs for what in run.missing]
    missing += [f"{problem}." for problem in against.problems]
    if missing:
        sections.append(Section("What is missing", "\n\n".join(missing)))
    names = ", ".join(run.name for run in runs)
    title = f"Run {names}" if len(runs) == 1 else f"{len(runs)} runs compared"
    title = headline(against.decisions) or title
    subtitle = _subtitle(runs[0]) if len(runs) == 1 else names
    if len(runs) > 1 and against.decisions:
        subtitle = f"{len(runs)} models, {len(against.rows):,} judged prompts, as they were asked"
    shown = list(highlights_of(runs, bool(against.decisions)))
    return Report(
        title,
        _summary(runs, against.sentences),
        sections,
        shown,
        subtitle,
        list(_told(runs)),
        against.decisions,
        against.bounds,
        [run.name for run in runs],
    )


def _answers(rows: Rows) -> Iterator[Section]:
    """Every judged answer, to be filtered, counted and read."""
    if len(rows):
        text = (
            f"All {len(rows):,} prompts as they were asked, with every model's answer, its label "
            "and the judge's reason. Each rate on this page opens the rows it counts, here. "
            "Answers to harmful prompts stay blurred until asked for."
        )
        yield Section("Answers", text, [rows])


def _subtitle(run: Run) -> str:
    """What was trained how, on what, and when; or which model was asked."""
    known = [run.config.get(k) for k in ("model_name_or_path", "loss_type", "dataset_name")]
    parts = [", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in known if v]
    if not parts and isinstance(run.config.get("model"), str):
        parts = [str(run.config["model"])]
    created = str(run.manifest.get("created", "")).replace("T", " ")
    return " · ".join([*parts, *([created] if created else [])])


def _summary(runs: Sequence[Run], sentences: Sequence[str]) -> str:
    """The result in words: the comparison if there is one, then each run's own."""
    parts = list(sentences)
    for run in runs:
        said = [finding.summary for finding in _telling(run, is_compared=bool(sentences))]
        losses = series(run.rows, "loss")[1]
        if losses and not sentences:
            said.append(f"The training loss went from {number(losses[0])} to {number(losses[-1])}.")
        if not said and not sentences:
            said = ["There are no findings and no training log yet."]
        if said:
            parts.append(_named(run, " ".join(said), runs))
    return "\n\n".join([*parts, *_told(runs)])


def _told(runs: Sequence[Run]) -> Iterator[str]:
    """Verdicts in words: the section of questions and answers begins the page with them."""
    for run in runs:
        for finding in run.findings:
            if VERDICT.holds(finding) and finding.figures.get("sentences"):
                yield _named(run, finding.summary, runs)


def _named(run: Run, text: str, runs: Sequence[Run]) -> str:
    return text if len(runs) == 1 else f"{run.name}: {text}"


def _telling(run: Run, *, is_compared: bool) -> Iterator[Finding]:
    """The findings that the page begins with: what was judged, on held-out pairs; else all."""
    rest = [f for f in run.findings if f.summary and not VERDICT.holds(f)]
    first = [f for f in rest if HELD_OUT.holds(f) or (SAFETY.holds(f) and not is_compared)]
    yield from first or ([] if is_compared else rest)


def _training(runs: Sequence[Run]) -> Iterator[Section]:
    blocks: list[Block] = []
    for run in runs:
        curves = training_curves(run.rows, "" if len(runs) == 1 else run.name)
        if curves is not None:
            blocks.append(curves)
    if blocks:
        yield Section("Training", "", blocks)
    elif any(run.rows for run in runs):
        yield Section("Training", "The training log has no metric that can be drawn.")
