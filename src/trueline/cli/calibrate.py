"""`trueline calibrate-judge`: how good is a judge, against people or against an exact judge?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trueline.cli.common import Json, console, print_json

Many = list[str] | None


def calibrate_judge(
    source: Annotated[
        str, typer.Argument(help="Labeled answers (CSV, JSONL, hub id), or an evaluation's folder.")
    ],
    judge: Annotated[
        Many,
        typer.Option(
            "--judge", "-j", help="name[=MODEL][,option=value]...; in a folder, judges of its log."
        ),
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="In a folder: the judge that is taken for the truth.")
    ] = None,
    measure: Annotated[str, typer.Option(help="asr or over_refusal.")] = "asr",
    prompt: Annotated[str, typer.Option(help="Column of the prompts.")] = "prompt",
    response: Annotated[str, typer.Option(help="Column of the answers.")] = "response",
    label: Annotated[
        str, typer.Option(help="Column of the truth: whether the event happened.")
    ] = "label",
    output: Annotated[
        Path | None, typer.Option(help="Where the counts go, for `trueline compare`.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure judges against human labels, or against an exact judge: sensitivity, specificity."""
    from trueline.errors import UserError
    from trueline.files import write_json

    if measure not in ("asr", "over_refusal"):
        raise UserError(f"measure must be asr or over_refusal, got {measure!r}")
    names = judge or ["phrases"]
    if output is not None and len(names) > 1:
        raise UserError("--output takes the counts of one judge; give one --judge")
    if Path(source).is_dir():
        qualities = _from_log(source, names, truth, measure)
    else:
        if truth is not None:
            raise UserError("--truth belongs to an evaluation's folder; a file has its --label")
        qualities = _from_labels(source, names, measure, prompt, response, label)
    if output is not None:
        write_json(output, qualities[0].to_dict())
    if json:
        print_json([{**q.to_dict(), "finding": q.finding.to_dict()} for q in qualities])
        return
    for quality in qualities:
        console.print(quality.finding.summary, markup=False, highlight=False)
        for metric in quality.finding.metrics:
            console.print(f"  {metric.name}: {metric} (n={metric.n})", markup=False)
        if quality.finding.advice:
            console.print(quality.finding.advice, style="yellow", markup=False)


def _from_log(source: str, names: Sequence[str], truth: str | None, measure: Any) -> list[Any]:
    from trueline.errors import UserError
    from trueline.evaluation.calibrate import calibrate_from_log
    from trueline.evaluation.log import read_log

    if truth is None:
        raise UserError("name the judge that is the truth: --truth sandbox, or another one's label")
    rows = read_log(source).judgements
    return [calibrate_from_log(rows, name, truth, measure) for name in names]


def _from_labels(
    source: str, names: Sequence[str], measure: Any, prompt: str, response: str, label: str
) -> list[Any]:
    import trueline.reproduce.truth  # noqa: F401
    from trueline.evaluation.calibrate import calibrate, read_labeled
    from trueline.evaluation.judges import JUDGES
    from trueline.runs.evaluate import by_label

    labeled = read_labeled(source, prompt=prompt, response=response, label=label)
    judges = by_label("judge", JUDGES, names)
    return [calibrate(name, judge, labeled, measure) for name, judge in judges.items()]
