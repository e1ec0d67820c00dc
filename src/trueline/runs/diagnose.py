"""What `trueline diagnose` does: one question, or a run as a whole, where the verdict is kept.

The file is long because a run has many parts that may be missing, each told in its own words.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import trueline.evaluation.answers  # noqa: F401  (registers whether a model still answers)
from trueline.config import DataArguments, ModelArguments, RunConfig, load_run_config
from trueline.diagnostics.question import Asked, Loader, Question
from trueline.diagnostics.questions import QUESTIONS
from trueline.diagnostics.separation.data import prompts_of, read_prompts
from trueline.diagnostics.separation.fit import SMALLEST_CLASS
from trueline.diagnostics.verdict import Sentence, verdict, verdict_finding
from trueline.errors import UserError
from trueline.objectives import OBJECTIVES
from trueline.records import Example
from trueline.results import Finding, frame, to_html
from trueline.runs.align import load_datasets
from trueline.runs.record import CONFIG, METRICS, Key, Run
from trueline.terminal import console


@dataclass(frozen=True)
class Trained:
    """What a run tells of its training.

    Args:
        model: where its model is.
        start: the model it was trained from, or None where that is not known.
        data: its data.
        objective: the ``loss_type``, and ``options`` what it was given.
        dtype: of the weights it was trained in.
        revision: of the model it was trained from, on the hub.
    """

    model: str
    start: str | None
    data: DataArguments
    objective: str | list[str]
    options: dict[str, Any]
    max_length: int | None
    seed: int
    dtype: str
    revision: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found, the verdict's sentences where a run was judged, and what else was told."""

    findings: Sequence[Finding]
    sentences: Sequence[Sentence] = ()
    told: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """All metrics as a pandas DataFrame."""
        return frame(self.findings)

    def _repr_html_(self) -> str:
        return to_html(self.findings, "Diagnosis")


def every() -> Mapping[str, Question]:
    """All registered questions."""
    return QUESTIONS


def diagnose(of: Any, question: str | None = None, /, **given: Any) -> Diagnosis:
    """See why an alignment works or fails.

    Args:
        of: a run, or a run directory, of which everything that is missing is measured and the
            verdict kept; with a question, a model's folder or hub id.
        question: one question's name: separation, entanglement, ranking, or your own.
        given: the options of `trueline diagnose all`, or of that question.

    Example:
        >>> diagnose(run)  # doctest: +SKIP
        >>> diagnose("runs/dpo", "separation", data="prompts.jsonl")  # doctest: +SKIP
    """
    if question is None:
        return diagnose_run(of, **{"quiet": True, **given})
    return ask(question, model=os.fspath(of), **{"quiet": True, **given})


def ask(
    question: str,
    /,
    *,
    model: str,
    data: str,
    reference: str | None = None,
    split: str = "train",
    name: str | None = None,
    form: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    as_chat: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    save: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Diagnosis:
    """Ask one question of a model.

    Args:
        question: its name.
        model, data, reference: what is asked, on what, compared with what.
        split, name, form, skip_bad, limit, as_chat: how the data are read.
        dtype, device, trust_remote_code, quiet: how models are loaded.
        seed: of splits, draws and intervals.
        save: also keep the findings in this run.
        options: the question's own.

    Raises:
        UserError: a seed for a question that draws nothing.
    """
    loader = Loader(dtype, device, trust_remote_code, quiet=quiet)
    how = {"split": split, "name": name, "form": form, "skip_bad": skip_bad, "limit": limit}
    asked = Asked(model, data, reference, loader, seed, {**how, "as_chat": as_chat})
    if question == "ranking" and seed:
        raise UserError("seed: ranking draws nothing, so a seed has no effect; leave it out")
    found = QUESTIONS[question](asked, **options)
    if save is not None:
        Run.open(save).keep(found)
    return Diagnosis(found, told=asked.told)


def diagnose_run(
    run: str | Path | Run,
    *,
    model: str | None = None,
    reference: str | None = None,
    data: str | None = None,
    prompts: str | None = None,
    again: bool = False,
    limit: int | None = None,
    max_pairs: int = 64,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
    seed: int = 0,
) -> Diagnosis:
    """Ask every question that the run has no finding of and can be asked; judge, and keep all.

    Raises:
        UserError: no run, no model in it, or no data to measure on.
    """
    record = Run(Run.open(run, "the folder that trueline align wrote").path)
    facts = read_run(record, model=model, reference=reference, data=data)
    revisions = {} if facts.start is None else {facts.start: facts.revision}
    loader = Loader(dtype or facts.dtype, device, trust_remote_code, quiet, revisions)
    asked = Asked(facts.model, "", facts.start, loader, seed, objective_options=facts.options)
    have = {} if again else {finding.name: finding for finding in record.own}
    if prompts is not None:
        asked.prompts = read_prompts(prompts, as_chat=facts.data.as_chat)
    held_out = all(finding.figures.get("held_out", True) for finding in have.values())
    todo = [q for q in QUESTIONS.values() if q.gives[-1] not in have]
    if prompts is not None and (separated := QUESTIONS[Key.SEPARATION]) not in todo:
        todo.append(separated)
    if any(q.needs != "prompts" or prompts is None for q in todo):
        examples, held_out = _examples(facts, given=data is not None, limit=limit)
        asked.examples = examples
        asked.prompts = asked.prompts if prompts is not None else prompts_of(examples)
    settings = {
        "objective": facts.objective, "max_length": facts.max_length, "max_pairs": max_pairs
    }  # fmt: skip
    for question in _askable(todo, asked):
        options = {k: v for k, v in settings.items() if k in options_named(question.ask)}
        for finding in question(asked, **options):
            note = {"held_out": held_out} if question.needs != "prompts" else {}
            have[finding.name] = dataclasses.replace(finding, figures={**finding.figures, **note})
    sentences = verdict(list(have.values()), record.rows, held_out=held_out)
    record.keep([verdict_finding(sentences), *(f for n, f in have.items() if n != Key.VERDICT)])
    for problem in record.missing:
        if problem.startswith(METRICS) and "left out" in problem:
            console.print(problem, style="yellow", highlight=False)
    return Diagnosis(record.own, sentences)


def options_named(function: Callable[..., Any]) -> set[str]:
    """The names of a function's options."""
    return {p.name for p in inspect.signature(function).parameters.values()}


def _askable(todo: Sequence[Question], asked: Asked) -> Iterator[Question]:
    """The questions that the run has the data for; of the others it is said."""
    paired = any(q.needs != "prompts" for q in todo) and any(e.pairs for e in asked.examples)
    unpaired = [q.name for q in todo if q.needs == "pairs" and not paired]
    if unpaired:
        verb = "are" if len(unpaired) > 1 else "is"
        console.print(
            f"no preference pairs: {' and '.join(unpaired)} {verb} left out", style="yellow"
        )
    for question in todo:
        if question.name in unpaired:
            continue
        if question.needs == "prompts":
            harmful = sum(asked.prompts.harmful)
            safe = len(asked.prompts.harmful) - harmful
            if min(harmful, safe) < 2 * SMALLEST_CLASS:
                if harmful + safe:
                    console.print(
                        f"{harmful} harmful and {safe} safe prompts are too few to measure "
                        f"{question.name}",
                        style="yellow",
                    )
                continue
        yield question


def read_run(
    run: Run, *, model: str | None = None, reference: str | None = None, data: str | None = None
) -> Trained:
    """What a run's configuration tells.

    Raises:
        UserError: no configuration, or no model in it.
    """
    config = run.config
    if not config:
        raise UserError(
            f"{run.path} has no {CONFIG}, which every training writes; diagnose its model with "
            "`trueline diagnose ranking --model ...` and the other verbs"
        )
    settings = _settings(config)
    arguments = settings.data
    if data is not None:
        arguments = DataArguments(
            dataset_name=data, as_chat=arguments.as_chat, skip_bad=arguments.skip_bad
        )
    start = settings.model
    return Trained(
        model=model or _model_of(run),
        start=reference or start.reference_model_name_or_path or start.model_name_or_path,
        data=arguments,
        objective=settings.training.loss_type,
        options=settings.training.options(),
        max_length=settings.training.max_length,
        seed=settings.training.seed,
        dtype=start.dtype,
        revision=start.model_revision,
    )


def _settings(config: Mapping[str, Any]) -> RunConfig:
    """What matters here of a run's configuration; how it was trained (devices, batches) does not.

    The objective's options stand in it by their names.
    """
    options = {name for spec in OBJECTIVES.values() for name in spec.options}
    known = {f.name for kind in (ModelArguments, DataArguments) for f in dataclasses.fields(kind)}
    known |= {"loss_type", "loss_weights", "objective_options", "max_length", "seed", *options}
    picked = {key: value for key, value in config.items() if key in known and value is not None}
    return load_run_config(None, {**picked, "report_to": "none"}, options)


def _model_of(run: Run) -> str:
    """The run itself, where it holds a model or an adapter."""
    if run.holds_model:
        return str(run.path)
    raise UserError(f"{run.path} holds no model; say with --model where it is")


def _examples(facts: Trained, *, given: bool, limit: int | None) -> tuple[list[Example], bool]:
    """The examples to measure on, and whether training has not seen them."""
    try:
        train, test = load_datasets(facts.data, facts.seed)
    except UserError as error:
        raise UserError(
            f"{error} (the run names its data from the folder it was started in: start there "
            "again, or give --data)"
        ) from None
    rows = train if test is None else test
    return list(islice(rows, limit)), given or test is not None
