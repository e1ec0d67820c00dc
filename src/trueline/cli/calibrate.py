"""`trueline calibrate-judge`: how good is a judge, and a judge of one's own from labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueline.cli.common import Json, console, out, print_json

if TYPE_CHECKING:
    from trueline.evaluation.calibrate import JudgeQuality
    from trueline.evaluation.fit import Fitted
    from trueline.runs.judges import Made

Many = list[str] | None


def calibrate_judge(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Labeled answers (CSV, JSONL, hub id), a file a model, or an evaluation's folder."
        ),
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
    columns: Annotated[
        str | None,
        typer.Option(help="Labels as published: xstest, harmbench, strongreject or wildguard."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Column of the prompts; prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="Column of the answers; response.")] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Column of the kind of answer, or of whether the event happened; label."),
    ] = None,
    model_column: Annotated[
        str | None, typer.Option(help="Column of whose answer it is; else a file is a model's.")
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            help="The model that gave the answers, or its evaluation: the counts then hold for it."
        ),
    ] = None,
    fit: Annotated[
        Path | None, typer.Option(help="Fit a judge to the labels, test it, and write it here.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="For --fit: a sentence encoder; words are read without one.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the counts go, for `trueline compare`.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure judges against human labels, or against an exact judge: sensitivity, specificity.

    With --fit, make a judge from the labels: it is tested on each model, and on prompts, that it
    was not fitted to, beside the phrase judge, and used as `--judge learned=FILE`.
    """
    from trueline.runs import judges as verb

    def told(note: str) -> None:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)

    how = {"prompt": prompt, "response": response, "label": label}
    found = verb.calibrate_judge(
        *source, judge=judge or (), truth=truth, measure=measure, columns=columns, **how,
        model_column=model_column, of=of, fit=fit, encoder=encoder, output=output, told=told,
    )  # fmt: skip
    if isinstance(found, verb.Made):
        _show_fitted(found, json)
    else:
        _show(found.qualities, json)


def _show(qualities: Sequence[JudgeQuality], json: bool) -> None:
    if json:
        print_json([{**q.to_dict(), "finding": q.finding.to_dict()} for q in qualities])
        return
    for quality in qualities:
        out.print(quality.finding.summary, markup=False, highlight=False)
        for metric in quality.finding.metrics:
            out.print(f"  {metric.name}: {metric} (n={metric.n})", markup=False)
        if quality.finding.advice:
            out.print(quality.finding.advice, style="yellow", markup=False)


def _show_fitted(made: Made, json: bool) -> None:
    fitted, output = made.fitted, made.output
    if json:
        print_json({"output": str(output), **fitted.judge.notes})
        return
    out.print(_table(fitted))
    for note in fitted.words:
        out.print(f"• {note}", markup=False, highlight=False)
    console.print(f"written to {output}; use it as --judge learned={output}", markup=False)


def _table(fitted: Fitted) -> Any:
    """What was left out down, both judges' accuracy, sensitivity and specificity across."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="judged without having seen it [95% interval]", title_justify="left")
    for name in ("left out", "n", "judge", "accuracy", "sensitivity", "specificity"):
        table.add_column(name)
    for test, groups in fitted.tests.items():
        for group, qualities in groups.items():
            for quality in qualities:
                found = quality.finding
                cells = (found[m] for m in ("accuracy", "sensitivity", "specificity"))
                what = group if test == "model left out" else test
                first = quality is qualities[0]
                table.add_row(
                    Text(what if first else ""), str(quality.n) if first else "",
                    Text(quality.judge), *(Text(str(cell)) for cell in cells),
                )  # fmt: skip
    return table
