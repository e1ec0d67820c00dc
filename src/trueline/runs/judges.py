"""What `trueline judge` and `trueline calibrate-judge` do: another judge on kept answers, how good
a judge is, and one's own made from labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from trueline.errors import UserError
from trueline.evaluation.calibrate import (
    JudgeQuality,
    Labeled,
    calibrate,
    calibrate_from_log,
    model_of,
    read_labeled,
)
from trueline.evaluation.fit import Fitted, fit_judge
from trueline.evaluation.harness.again import judge_again
from trueline.evaluation.harness.log import read_log
from trueline.evaluation.harness.run import Evaluation
from trueline.evaluation.harness.summarize import FIRST, findings, write_samples
from trueline.evaluation.judges import JUDGES
from trueline.files import write_json
from trueline.results import Finding, frame, to_html
from trueline.runs import state
from trueline.runs.evaluate import by_label
from trueline.runs.record import Key
from trueline.runs.run import Run
from trueline.terminal import watching

Told: TypeAlias = Callable[[str], None]
NO_PROMPT = "no prompt from the attack"


@dataclass(frozen=True)
class Calibrated:
    """How good judges are, one quality each."""

    qualities: Sequence[JudgeQuality]

    def to_frame(self) -> Any:
        """All metrics as a pandas DataFrame."""
        return frame([quality.finding for quality in self.qualities])

    def _repr_html_(self) -> str:
        return to_html([quality.finding for quality in self.qualities], "Judges")


@dataclass(frozen=True)
class Made:
    """A judge fitted to labels, how it did on what it was not fitted to, and its file."""

    fitted: Fitted
    output: Path


def calibrate_judge(
    *sources: Any,
    judge: str | Sequence[str] = (),
    truth: str | None = None,
    measure: str = "asr",
    columns: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
    label: str | None = None,
    model_column: str | None = None,
    of: str | None = None,
    fit: str | Path | None = None,
    encoder: str | None = None,
    output: str | Path | None = None,
    told: Told = lambda note: None,
) -> Calibrated | Made:
    """Measure judges against human labels, or against an exact judge; or fit one to labels.

    Args:
        sources: labeled answers (CSV, JSONL, hub id), a file a model, or an evaluation.
        judge: judges by name; the phrase judge unless said. In an evaluation, those of its log.
        truth: in an evaluation, the judge that is taken for the truth.
        measure: asr or over_refusal.
        columns: labels as published: xstest, harmbench, strongreject or wildguard.
        prompt, response, label, model_column: names of the columns, where they have others.
        of: the model that gave the answers, or its evaluation.
        fit: fit a judge to the labels, test it, and write it here.
        encoder: for ``fit``: a sentence encoder; words are read without one.
        output: where the counts go, for :func:`trueline.compare`.
        told: called with notes.

    Raises:
        UserError: options that have no effect together, labels that cannot be read.
    """
    sources = tuple(os.fspath(source) for source in sources)
    judges = [judge] if isinstance(judge, str) else list(judge)
    if measure not in ("asr", "over_refusal"):
        raise UserError(f"measure must be asr or over_refusal, got {measure!r}")
    names = {"prompt": prompt, "response": response, "label": label}
    given = {name: value for name, value in names.items() if value is not None}
    if columns is not None and given:
        raise UserError(
            f"--columns {columns} names its columns itself; leave out --{next(iter(given))}"
        )
    options = {**given, "columns": columns, "model": model_column, "measure": measure}
    if fit is not None:
        _refuse_beside_fit(judges, truth, output, of, measure)
        fitted = fit_judge(_labeled(sources, options, told), encoder=encoder)
        write_json(fit, fitted.judge.to_dict())
        return Made(fitted, Path(fit))
    if encoder is not None:
        raise UserError("--encoder belongs to --fit; a fitted judge brings its own")
    judges = judges or ["phrases"]
    if output is not None and len(judges) > 1:
        raise UserError("--output takes the counts of one judge; give one --judge")
    found = _qualities(sources, judges, truth, measure, options, of, told)
    if output is not None:
        write_json(output, found[0].to_dict())
    return Calibrated(found)


def _refuse_beside_fit(
    judge: Sequence[str], truth: str | None, output: Any, of: str | None, measure: str
) -> None:
    given = {"--judge": judge, "--truth": truth, "--output": output, "--of": of}
    for name, value in given.items():
        if value:
            raise UserError(f"{name} has no place beside --fit; calibrate the fitted judge after")
    if measure != "asr":
        raise UserError("--fit learns refusal, partial refusal and compliance; leave --measure out")


def _labeled(sources: Sequence[str], options: dict[str, Any], told: Told) -> list[Labeled]:
    return [row for source in sources for row in read_labeled(source, **options, told=told)]


def _qualities(
    sources: Sequence[str],
    names: Sequence[str],
    truth: str | None,
    measure: Any,
    options: dict[str, Any],
    of: str | None,
    told: Told,
) -> list[JudgeQuality]:
    if any(Path(source).is_dir() for source in sources):
        if len(sources) > 1 or of is not None:
            raise UserError("give one evaluation's folder alone; its model is known")
        return _from_log(sources[0], names, truth, measure)
    if truth is not None:
        raise UserError("--truth belongs to an evaluation's folder; a file has its --label")
    import trueline.reproduce.truth  # noqa: F401  (registers the sandbox's exact judge)

    labeled = _labeled(sources, options, told)
    model = None if of is None else model_of(of)
    judges = by_label("judge", JUDGES, names)
    return [calibrate(name, judge, labeled, measure, model) for name, judge in judges.items()]


def _from_log(
    source: str, names: Sequence[str], truth: str | None, measure: Any
) -> list[JudgeQuality]:
    if truth is None:
        raise UserError("name the judge that is the truth: --truth sandbox, or another one's label")
    rows, model = read_log(source).judgements, model_of(source)
    return [calibrate_from_log(rows, name, truth, measure, model) for name in names]


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

    folders = Run.open(path, "the folder that an evaluation wrote").judged
    if not folders:
        raise UserError(f"{path} holds no evaluation; `trueline evaluate` makes one")
    if not names:
        raise UserError("give at least one --judge; `trueline evaluate --list` shows them")
    judges = by_label("judge", JUDGES, names)
    found = []
    for folder in folders:
        with state.held(folder), watching(quiet) as watch:
            evaluation = judge_again(folder, judges, watch)
            new = _keep(folder, evaluation, list(judges))
        found.append((folder, new, evaluation.notes))
    return found


def _keep(folder: Path, evaluation: Evaluation, labels: Sequence[str]) -> list[Finding]:
    """Put the new judges' findings, and agreements, beside those that are there; returns what is
    new. What makes all rates void stays first."""
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
    kept = {**{n: f for n, f in before.items() if n not in FIRST}, **{f.name: f for f in new}}
    run.save(sorted(kept.values(), key=lambda finding: finding.name not in FIRST))
    model = str(run.config.get("model") or folder.resolve().name)
    write_samples(folder, evaluation.rows, model.rstrip("/").rsplit("/", 1)[-1])
    return new
