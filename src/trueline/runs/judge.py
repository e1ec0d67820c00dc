"""What `trueline judge` does: another judge on answers that are kept, without their model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.errors import UserError
from trueline.runs.record import Key
from trueline.runs.run import Run
from trueline.terminal import watching

if TYPE_CHECKING:
    from trueline.results import Finding

NO_PROMPT = "no prompt from the attack"


def judge(run: Any, *, judge: str | Sequence[str], quiet: bool = True) -> Run:
    """Judge the answers of an evaluation with further judges; nothing is generated.

    Args:
        run: an evaluation's folder, or a run with evaluations below it.
        judge: what `--judge` takes: ``"learned=judge.json"``, several in a list.
        quiet: keep progress back.

    Returns:
        The run, with the judges' rows in its log and their findings beside those it had.

    Raises:
        UserError: no evaluation, or what a judge raises.

    Example:
        >>> judge("runs/mine/safety", judge="learned=judge.json")  # doctest: +SKIP
    """
    names = [judge] if isinstance(judge, str) else list(judge)
    judge_run(os.fspath(run), names, quiet=quiet)
    return Run(os.fspath(run))


def judge_run(
    path: str | os.PathLike[str], names: Sequence[str], *, quiet: bool = False
) -> list[tuple[Path, list[Finding], Sequence[str]]]:
    """Judge every evaluation of a run: its folder, its findings of these judges, and notes."""
    import trueline.reproduce.truth  # noqa: F401  (registers the sandbox's exact judge)
    from trueline.evaluation.harness.again import judge_again
    from trueline.evaluation.judges import JUDGES
    from trueline.runs.evaluate import by_label

    folders = Run.open(path, "the folder that an evaluation wrote").judged
    if not folders:
        raise UserError(f"{path} holds no evaluation; `trueline evaluate` makes one")
    if not names:
        raise UserError("give at least one --judge; `trueline evaluate --list` shows them")
    judges = by_label("judge", JUDGES, names)
    found = []
    for folder in folders:
        with watching(quiet) as watch:
            evaluation = judge_again(folder, judges, watch)
        new = _keep(folder, evaluation, list(judges))
        found.append((folder, new, evaluation.notes))
    return found


def _keep(folder: Path, evaluation: Any, labels: Sequence[str]) -> list[Finding]:
    """Put the new judges' findings, and agreements, beside those that are there; returns what is
    new. That the model no longer answers stays first."""
    from trueline.evaluation.harness.broken import NO_LONGER
    from trueline.evaluation.harness.summarize import findings, write_samples

    run = Run(folder)
    before = {finding.name: finding for finding in run.own}
    mine = {Key.judged(label) for label in labels}
    made = findings(evaluation, seed=int(run.config.get("seed") or 0))
    told = [m for f in before.values() for m in f.metrics if m.name.startswith(NO_PROMPT)]
    missing = list(dict.fromkeys(told))
    new = [
        replace(f, metrics=[*f.metrics, *missing]) if f.name in mine else f
        for f in made
        if f.name in mine or Key.judge_of(f) is None
    ]
    kept = {**{n: f for n, f in before.items() if n != NO_LONGER}, **{f.name: f for f in new}}
    run.save(sorted(kept.values(), key=lambda finding: finding.name != NO_LONGER))
    model = str(run.config.get("model") or folder.resolve().name)
    write_samples(folder, evaluation.rows, model.rstrip("/").rsplit("/", 1)[-1])
    return new
