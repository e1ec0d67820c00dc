"""From run directories to a report: what is there is shown, what is missing is said."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from trueline.errors import UserError
from trueline.report.blocks import (
    Block,
    CurvePanel,
    Curves,
    Facts,
    Line,
    Report,
    Samples,
    Scatter,
    ScatterPanel,
    Section,
    Table,
    Text,
)
from trueline.report.load import Run, load_run
from trueline.report.numbers import number, words
from trueline.results import Finding

Tone: TypeAlias = Literal["good", "bad", "main", "other"]

PANELS: tuple[tuple[str, str, tuple[tuple[str, str, Tone], ...]], ...] = (
    ("Loss", "nats", (("loss", "", "main"),)),
    (
        "Log-probability of the answers",
        "nats",
        (("logps/chosen", "chosen", "good"), ("logps/rejected", "rejected", "bad")),
    ),
    (
        "Implicit reward",
        "nats",
        (("rewards/chosen", "chosen", "good"), ("rewards/rejected", "rejected", "bad")),
    ),
    ("Reward margin", "nats", (("rewards/margins", "", "main"),)),
    ("Reward accuracy", "share of pairs", (("rewards/accuracies", "", "main"),)),
    ("KL from the reference", "nats", (("kl", "", "main"),)),
    ("Gradient norm", "", (("grad_norm", "", "main"),)),
)
"""Title, unit and the (metric, name, tone) lines of each training panel; eval_ ones come dashed."""


def report_from_run(run_dir: str | os.PathLike[str]) -> Report:
    """The report of one run directory, as far as it goes."""
    return report_from_runs([run_dir])


def report_from_runs(run_dirs: Sequence[str | os.PathLike[str]]) -> Report:
    """One report of several runs: findings side by side, curves and configuration run by run.

    Raises:
        UserError: no run was given, or one is no directory.
    """
    if not run_dirs:
        raise UserError("give at least one run directory")
    runs = [load_run(path) for path in run_dirs]
    _tell_apart(runs, run_dirs)
    sections = [
        *_finding_sections(runs),
        *(_training(run, alone=len(runs) == 1) for run in runs if run.rows),
        *(_samples(run, alone=len(runs) == 1) for run in runs if run.samples),
        _again(runs),
    ]
    missing = [f"{run.name}: {what}." for run in runs for what in run.missing]
    if missing:
        sections.append(Section("What is missing", "\n\n".join(missing)))
    names = ", ".join(run.name for run in runs)
    title = f"Run {names}" if len(runs) == 1 else f"{len(runs)} runs compared"
    subtitle = str(runs[0].manifest.get("created", "")) if len(runs) == 1 else names
    return Report(title, _summary(runs), sections, subtitle=subtitle)


def _tell_apart(runs: Sequence[Run], paths: Sequence[str | os.PathLike[str]]) -> None:
    """Runs of one folder name are called by their paths."""
    names = [run.name for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if names.count(run.name) > 1:
            run.name = str(path)


def _summary(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        said = [finding.summary for finding in run.findings if finding.summary]
        losses = _series(run.rows, "loss")[1]
        if losses:
            said.append(f"The training loss went from {number(losses[0])} to {number(losses[-1])}.")
        text = " ".join(said) or "There are no findings and no training log yet."
        parts.append(text if len(runs) == 1 else f"{run.name}: {text}")
    return "\n\n".join(parts)


def _finding_sections(runs: Sequence[Run]) -> Iterator[Section]:
    """Findings with a scatter in one section side by side; each other kind in its own."""
    drawn = [(run, f) for run in runs for f in run.findings if "scatter" in f.figures]
    if drawn:
        labels = [_label(run, f, runs, drawn) for run, f in drawn]
        panels = [
            panel
            for label, (run, f) in zip(labels, drawn, strict=True)
            if (panel := _panel(run, label, f)) is not None
        ]
        blocks: list[Block] = [Scatter(panels)] if panels else []
        yield Section("Separation", "", [*blocks, *_numbers(labels, [f for _, f in drawn])])
    others = [(run, f) for run in runs for f in run.findings if "scatter" not in f.figures]
    for name in dict.fromkeys(f.name for _, f in others):
        same = [(run, f) for run, f in others if f.name == name]
        yield Section(
            name.replace("_", " ").capitalize(),
            same[0][1].summary if len(same) == 1 else "",
            _numbers([run.name for run, _ in same], [f for _, f in same]),
        )


def _label(run: Run, finding: Finding, runs: Sequence[Run], drawn: Sequence[Any]) -> str:
    several = sum(other is run for other, _ in drawn) > 1
    if len(runs) == 1:
        return finding.name
    return f"{run.name}, {finding.name}" if several else run.name


def _panel(run: Run, label: str, finding: Finding) -> ScatterPanel | None:
    shown = [(n, m) for n, m in _captioned(finding) if m is not None]
    caption = ", ".join(f"{name} {words(metric)}" for name, metric in shown)
    try:
        data = finding.figures["scatter"]
        return ScatterPanel(
            label, data["x"], data["y"], data["harmful"], data.get("text", ()), caption
        )
    except (KeyError, TypeError, UserError) as error:
        run.missing.append(f"the scatter of {finding.name} cannot be drawn ({error})")
        return None


def _captioned(finding: Finding) -> Iterator[tuple[str, Any]]:
    by_name = {metric.name: metric for metric in finding.metrics}
    yield "Bhattacharyya distance", by_name.get("bhattacharyya_distance")
    yield "silhouette", by_name.get("silhouette")


def _numbers(labels: Sequence[str], findings: Sequence[Finding]) -> list[Block]:
    """Metrics as rows, findings as columns, then what each advises."""
    names = list(dict.fromkeys(metric.name for f in findings for metric in f.metrics))
    by_name = [{metric.name: metric for metric in f.metrics} for f in findings]
    rows = [[name.replace("_", " "), *(found.get(name) for found in by_name)] for name in names]
    table = [Table(("", *labels), rows)] if rows else []
    advice = [Text(text, note=True) for text in dict.fromkeys(f.advice for f in findings) if text]
    return [*table, *advice]


def _training(run: Run, *, alone: bool) -> Section:
    panels = []
    for title, unit, lines in PANELS:
        found = [line for spec in lines for line in _curves(run.rows, *spec)]
        if found:
            panels.append(CurvePanel(title, unit, found))
    title = "Training" if alone else f"Training, {run.name}"
    if not panels:
        return Section(title, "The training log has no metric that can be drawn.")
    both = any(line.name == "rejected" for panel in panels for line in panel.lines)
    caption = (
        "Chosen and rejected answers apart: a margin grows when the rejected falls, and also when "
        "both fall."
    )
    return Section(title, "", [Curves(panels, caption=caption if both else "")])


def _curves(rows: Sequence[Mapping[str, Any]], key: str, name: str, tone: Tone) -> Iterator[Line]:
    for prefix, kind, dashed in (("", "training", False), ("eval_", "evaluation", True)):
        steps, values = _series(rows, prefix + key)
        if values:
            label = f"{name}, {kind}" if name and dashed else name or kind
            yield Line(label, steps, values, tone, dashed)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric, where it was logged and is a finite number."""
    steps, values = [], []
    for row in rows:
        step: Any = row.get("step")
        value: Any = row.get(key)
        numeric = isinstance(value, int | float) and isinstance(step, int | float)
        if numeric and math.isfinite(value):
            steps.append(float(step))
            values.append(float(value))
    return steps, values


def _samples(run: Run, *, alone: bool) -> Section:
    title = "Samples" if alone else f"Samples, {run.name}"
    return Section(title, "", [Samples(run.samples)])


def _again(runs: Sequence[Run]) -> Section:
    blocks: list[Block] = []
    for run in runs:
        suffix = "" if len(runs) == 1 else f", {run.name}"
        facts = dict(run.manifest)
        command = facts.pop("command", "")
        line = " ".join(map(str, command)) if isinstance(command, list) else str(command or "")
        if line:
            blocks.append(Facts(f"Command{suffix}", {}, line, open=True))
        if run.config:
            blocks.append(Facts(f"Configuration{suffix}", run.config))
        if facts:
            blocks.append(Facts(f"Versions and machine{suffix}", facts))
    text = "" if blocks else "No configuration and no manifest were recorded."
    return Section("Run it again", text, blocks)
