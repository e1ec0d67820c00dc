"""Runs to compare: evaluation folders, run directories with some below, the sandbox's samples."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.harness.log import Judgement, Key, fingerprint_of, read_log
from trueline.evaluation.labels import EXACT
from trueline.results import Finding
from trueline.runs.record import JUDGEMENTS, SAMPLES, Run, told_apart


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """One model's judged answers, from wherever they were logged.

    Args:
        name: the folder's name; its path where two folders are called alike.
        judgements: all rows.
        settings: of the evaluation; those of several are keyed by folder.
        findings: all findings next to the logs, separation among them.
        base_model: what the model was aligned from, where the run's configuration tells.
        notes: what the reader should know of the log itself.
    """

    name: str
    judgements: tuple[Judgement, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    base_model: str | None = None
    notes: Sequence[str] = ()

    @property
    def fingerprint(self) -> str | None:
        """Of the evaluated model; None where the log does not tell, or holds several models."""
        logs = [self.settings, *(v for v in self.settings.values() if isinstance(v, Mapping))]
        found = {fingerprint_of(log) for log in logs} - {None}
        return found.pop() if len(found) == 1 else None


def load_judged_runs(paths: Sequence[str | os.PathLike[str]]) -> list[JudgedRun]:
    """Read several runs; folders of one name are told apart by their paths.

    Raises:
        UserError: a path given twice, or what :func:`load_judged_run` raises.
    """
    runs = [load_judged_run(path) for path in paths]
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise UserError("a run is given twice; name each one once")
    names = told_apart([run.name for run in runs], paths)
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def load_judged_run(path: str | os.PathLike[str]) -> JudgedRun:
    """An evaluation folder, a run directory with evaluations below it, or a sandbox run.

    Raises:
        UserError: there is nothing judged, a row is broken, or two logs judge the same answer.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give a run or an evaluation folder")
    folders = sorted({file.parent for file in path.rglob(JUDGEMENTS)})
    if not folders and (path / SAMPLES).is_file():
        return _sandbox_run(path)
    if not folders:
        raise UserError(
            f"{path} holds no {JUDGEMENTS} and no sandbox's {SAMPLES}; "
            "run `trueline evaluate` first"
        )
    logs = [read_log(folder) for folder in folders]
    rows: dict[Key, Judgement] = {}
    for log in logs:
        for row in log.judgements:
            if row.key in rows:
                raise UserError(
                    f"{path}: two logs below it judge {' / '.join(row.key)}; give one of them"
                )
            rows[row.key] = row
    notes = [
        f"{log.name}: the last line was cut off by a kill; resume the evaluation to complete it."
        for log in logs
        if log.cut
    ]
    settings = logs[0].settings if len(logs) == 1 else {log.name: log.settings for log in logs}
    findings = [f for folder in dict.fromkeys((path, *folders)) for f in Run(folder).own]
    return JudgedRun(
        path.resolve().name, tuple(rows.values()), settings, findings, Run(path).base_model, notes
    )


def _sandbox_run(path: Path) -> JudgedRun:
    """The rows that the laboratory logs, read as judgements of the sandbox's exact judge.

    A safe prompt's answer is judged twice: for a refusal, and for the correct recipe.
    """
    rows: list[Judgement] = []
    for number, line in enumerate((path / SAMPLES).read_text("utf-8").splitlines(), 1):
        try:
            rows += _from_sandbox(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path / SAMPLES}:{number}: not a row of the sandbox's log ({error}); run "
                "`trueline evaluate` on this model"
            ) from None
    if not rows:
        raise UserError(f"{path / SAMPLES} has no rows: nothing was judged")
    findings, base = Run(path).own, Run(path).base_model
    return JudgedRun(path.resolve().name, tuple(rows), {}, findings, base)


def _from_sandbox(row: Mapping[str, Any]) -> list[Judgement]:
    harmful, answer = not row["safety"], row["answer"]
    events = {"asr": "correct"} if harmful else {"over_refusal": "refusal", "utility": "correct"}
    return [
        Judgement(
            id=row["id"],
            benchmark="sandbox",
            attack=row["kind"],
            judge="exact",
            measure=measure,
            prompt=row["prompt"],
            answer=answer,
            verdict=row["verdict"],
            label=EXACT.get(row["verdict"], ""),
            why=f"parsed by the world's grammar: {row['verdict']}",
            success=row["verdict"] == event,
            harmful=harmful,
            group=row["entity"],
            truncated=not row["finished"],
            empty=not answer.strip(),
        )
        for measure, event in events.items()
    ]
