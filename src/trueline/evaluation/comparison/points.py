"""Points for the resilience analysis: from runs with a separation finding, or from a table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.comparison.runs import JudgedRun
from trueline.evaluation.resilience import Point
from trueline.results import Finding
from trueline.runs.record import Key

COLUMNS = ("model", "method", "separation", "asr")


@dataclass(frozen=True, slots=True)
class PointsFromRuns:
    """Points for :func:`~trueline.evaluation.resilience.resilience`, and what to know of them."""

    points: list[Point]
    notes: list[str]


def points_from_runs(runs: Sequence[JudgedRun], asr: Mapping[str, float | None]) -> PointsFromRuns:
    """Each run's separation beside its attack success.

    Args:
        runs: with a ``separation`` finding each.
        asr: attack success by run name.

    Raises:
        UserError: a run without separation or attack success, or runs of several base models of
            which one does not say its own.
    """
    known = {run.base_model for run in runs if run.base_model is not None}
    notes, points = [], []
    for run in runs:
        base = run.base_model
        if base is None and len(known) > 1:
            raise UserError(
                f"{run.name} does not say which model it was aligned from, and the other runs "
                "start from several; give a table with --points"
            )
        if base is None:
            base = next(iter(known), "base model")
            notes.append(f"{run.name} does not say its base model; it was taken for {base}.")
        finding = next((f for f in run.findings if f.name == Key.SEPARATION), None)
        if finding is None:
            raise UserError(
                f"{run.name} has no finding 'separation'; run `trueline diagnose separation` on it"
            )
        distance, rate = finding["bhattacharyya_distance"].value, asr.get(run.name)
        if distance is None or rate is None:
            raise UserError(f"{run.name}: separation or attack success is unscored")
        notes += _overlap(run, finding)
        points.append(Point(base, run.name, distance, rate))
    return PointsFromRuns(points, notes)


def _overlap(run: JudgedRun, finding: Finding) -> list[str]:
    """A note where separation was measured on prompts that were attacked, too, or cannot tell."""
    measured = [text for text in finding.figures.get("scatter", {}).get("text", ()) if text]
    if not measured:
        return [
            f"{run.name}: separation does not list its prompts, so whether they are disjoint from "
            "the attacked ones cannot be checked."
        ]
    attacked = {" ".join(row.prompt.split()) for row in run.judgements if row.measure == "asr"}
    shared = sum(any(_same(text, prompt) for prompt in attacked) for text in measured)
    if not shared:
        return []
    return [
        f"{run.name}: {shared} of the {len(measured)} prompts that separation was measured on "
        "were attacked, too; measure it on others."
    ]


def _same(shown: str, prompt: str) -> bool:
    """Whether a scatter's text, which may be cut short, is that prompt."""
    return prompt.startswith(shown[:-1]) if shown.endswith("…") else prompt == shown


def read_points(path: str | os.PathLike[str]) -> list[Point]:
    """Points from a CSV or JSONL table with columns model, method, separation, asr.

    Raises:
        UserError: ``file:line``, and what is missing or no number.
    """
    import csv

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is no file; give a CSV or JSONL table of points")
    text = path.read_text("utf-8-sig")
    if path.suffix == ".csv":
        rows: list[Any] = list(csv.DictReader(text.splitlines()))
        first = 2
    else:
        rows, first = [_parsed(path, n, x) for n, x in enumerate(text.splitlines(), 1)], 1
    points = []
    for number, row in enumerate(rows, first):
        where = f"{path.name}:{number}"
        missing = [name for name in ("model", "method", "separation", "asr") if not _has(row, name)]
        if missing:
            raise UserError(
                f"{where}: no {', '.join(missing)}; needs model, method, separation, asr"
            )
        try:
            numbers = float(row["separation"]), float(row["asr"])
        except (TypeError, ValueError):
            raise UserError(
                f"{where}: separation and asr must be numbers, got {row['separation']!r} and "
                f"{row['asr']!r}"
            ) from None
        points.append(Point(str(row["model"]), str(row["method"]), *numbers))
    return points


def _has(row: Any, name: str) -> bool:
    return isinstance(row, Mapping) and row.get(name) not in (None, "")


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise UserError(f"{path.name}:{number}: not JSON") from None
