"""A run directory diagnosed as a whole: what is missing is measured, and the verdict is kept.

The file is long because a run has many parts that may be missing, each told in its own words.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trueline.runs.align import load_datasets
from trueline.terminal import console
from trueline.diagnostics.measuring import Loader, measure_entanglement, measure_ranking
from trueline.diagnostics.separation.measuring import measure_separation
from trueline.config import DataArguments, ModelArguments, RunConfig, load_run_config
from trueline.diagnostics.separation.data import LabeledPrompts, prompts_of, read_prompts
from trueline.diagnostics.separation.fit import SMALLEST_CLASS
from trueline.diagnostics.verdict import Sentence, verdict, verdict_finding
from trueline.errors import UserError
from trueline.objectives import OBJECTIVES
from trueline.records import Example
from trueline.results import Finding, load_findings, save_findings


@dataclass
class RunFacts:
    """What a run directory tells of its training.

    Args:
        folder: the run.
        model: where its model is.
        start: the model it was trained from, or None where that is not known.
        data: its data.
        objective: the ``loss_type``, and ``options`` what it was given.
        dtype: of the weights it was trained in.
        revision: of the model it was trained from, on the hub.
        log: the rows of ``metrics.jsonl``.
    """

    folder: Path
    model: str
    start: str | None
    data: DataArguments
    objective: str | list[str]
    options: dict[str, Any]
    max_length: int | None
    seed: int
    dtype: str
    revision: str
    log: Sequence[Mapping[str, Any]] = ()
    findings: list[Finding] = field(default_factory=list)


def diagnose_run(
    run: Path,
    loader: Loader,
    *,
    model: str | None = None,
    reference: str | None = None,
    data: str | None = None,
    prompts: str | None = None,
    again: bool = False,
    limit: int | None = None,
    max_pairs: int = 64,
    seed: int = 0,
) -> tuple[list[Sentence], list[Finding]]:
    """Measure what the run has no finding of, judge, and keep both in the run.

    Returns:
        The verdict's sentences, and all findings of the run.

    Raises:
        UserError: no run, no model in it, or no data to measure on.
    """
    facts = read_run(run, model=model, reference=reference, data=data)
    loader = dataclasses.replace(
        loader,
        dtype=loader.dtype or facts.dtype,
        revisions={} if facts.start is None else {facts.start: facts.revision},
    )
    have = {} if again else {finding.name: finding for finding in facts.findings}
    labeled = None if prompts is None else read_prompts(prompts, as_chat=facts.data.as_chat)
    held_out = _was_held_out(have)
    if not {"ranking", "entanglement"} <= have.keys() or labeled is None:
        examples, held_out = _examples(facts, given=data is not None, limit=limit)
        labeled = labeled or prompts_of(examples)
        for finding in _on_pairs(facts, loader, examples, have, max_pairs=max_pairs, seed=seed):
            note = {**finding.figures, "held_out": held_out}
            have[finding.name] = dataclasses.replace(finding, figures=note)
    if "separation change" not in have or prompts is not None:
        for finding in _on_prompts(facts, loader, labeled, seed=seed):
            have[finding.name] = finding
    sentences = verdict(list(have.values()), facts.log, held_out=held_out)
    found = [verdict_finding(sentences), *(f for n, f in have.items() if n != "verdict")]
    keep(run, found)
    return sentences, load_findings(run)


def _was_held_out(have: Mapping[str, Finding]) -> bool:
    marks = [f.figures.get("held_out", True) for f in have.values()]
    return all(marks)


def read_run(
    run: Path, *, model: str | None = None, reference: str | None = None, data: str | None = None
) -> RunFacts:
    """Configuration, log and findings of a run directory.

    Raises:
        UserError: no such directory, no configuration, or no model in it.
    """
    import yaml

    if not run.is_dir():
        raise UserError(f"{run} is no run directory; give the folder that trueline align wrote")
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else None
    if not isinstance(config, dict):
        raise UserError(
            f"{run} has no config.yaml, which trueline align writes; diagnose its model with "
            "`trueline diagnose ranking --model ...` and the other verbs"
        )
    settings = _settings(config)
    arguments = settings.data
    if data is not None:
        arguments = DataArguments(
            dataset_name=data, as_chat=arguments.as_chat, skip_bad=arguments.skip_bad
        )
    start = settings.model
    return RunFacts(
        folder=run,
        model=model or _model_of(run),
        start=reference or start.reference_model_name_or_path or start.model_name_or_path,
        data=arguments,
        objective=settings.training.loss_type,
        options=settings.training.options(),
        max_length=settings.training.max_length,
        seed=settings.training.seed,
        dtype=start.dtype,
        revision=start.model_revision,
        log=_log(run / "metrics.jsonl"),
        findings=load_findings(run),
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


def _model_of(run: Path) -> str:
    """The run itself, where it holds a model or an adapter."""
    if (run / "adapter_config.json").is_file():
        return str(run)
    file = run / "config.json"
    try:
        if "model_type" in json.loads(file.read_text("utf-8")):
            return str(run)
    except (OSError, ValueError):
        pass
    raise UserError(f"{run} holds no model; say with --model where it is")


def _log(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError:
            console.print(f"{path.name}:{number} cannot be read and is left out", style="yellow")
            continue
        rows.append(value)
    return rows


def _examples(facts: RunFacts, *, given: bool, limit: int | None) -> tuple[list[Example], bool]:
    """The examples to measure on, and whether training has not seen them."""
    try:
        train, test = load_datasets(facts.data, facts.seed)
    except UserError as error:
        raise UserError(
            f"{error} (the run names its data from the folder it was started in: start there "
            "again, or give --data)"
        ) from None
    rows = train if test is None else test
    return rows[:limit], given or test is not None


def _on_pairs(
    facts: RunFacts,
    loader: Loader,
    examples: list[Example],
    have: Mapping[str, Finding],
    *,
    max_pairs: int,
    seed: int,
) -> list[Finding]:
    """Ranking and entanglement, where they are missing and there are pairs."""
    found: list[Finding] = []
    if not any(example.pairs for example in examples):
        console.print("no preference pairs: ranking and entanglement are left out", style="yellow")
        return found
    if "ranking" not in have:
        finding, _ = measure_ranking(
            loader, facts.model, facts.start, examples,
            max_length=facts.max_length, objective=facts.objective, options=facts.options,
            seed=seed,
        )  # fmt: skip
        found.append(finding)
    if "entanglement" not in have:
        found.append(
            measure_entanglement(
                loader, facts.model, facts.start, examples,
                objective=facts.objective, options=facts.options, max_pairs=max_pairs,
                max_length=facts.max_length, seed=seed,
            )
        )  # fmt: skip
    return found


def _on_prompts(
    facts: RunFacts, loader: Loader, labeled: LabeledPrompts | None, *, seed: int
) -> list[Finding]:
    """Separation, where there are enough labeled prompts of both classes."""
    harmful = sum(labeled.harmful) if labeled else 0
    safe = len(labeled.harmful) - harmful if labeled else 0
    if labeled is None or min(harmful, safe) < 2 * SMALLEST_CLASS:
        if harmful + safe:
            console.print(
                f"{harmful} harmful and {safe} safe prompts are too few to measure separation",
                style="yellow",
            )
        return []
    return measure_separation(loader, facts.model, facts.start, labeled, seed=seed)


def keep(run: Path, findings: Sequence[Finding]) -> None:
    """Put findings into a run: those of the same name are replaced, the others stay.

    Raises:
        UserError: there is no such directory.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no run directory; give the folder that training wrote")
    new = {finding.name: finding for finding in findings}
    old = [finding for finding in load_findings(run) if finding.name not in new]
    first = [finding for finding in new.values() if finding.name == "verdict"]
    rest = [finding for finding in new.values() if finding.name != "verdict"]
    save_findings(run, [*first, *old, *rest])


def show(finding: Finding) -> None:
    """A finding as a table on stderr, then what it says."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=finding.name, title_justify="left")
    table.add_column("measure")
    table.add_column("value [95% interval]", justify="right")
    table.add_column("n", justify="right")
    for metric in finding.metrics:
        count = "" if metric.n is None else f"{metric.n:,}"
        table.add_row(Text(metric.name), Text(str(metric)), count)
    console.print(table)
    console.print(Text(finding.summary))
    if finding.advice:
        console.print(Text(finding.advice, "yellow"))
