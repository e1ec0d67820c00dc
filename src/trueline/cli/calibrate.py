"""`trueline calibrate-judge`: how good is a judge, and a judge of one's own from labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueline.cli.common import Json, console, out, print_json
from trueline.errors import UserError

if TYPE_CHECKING:
    from trueline.evaluation.calibrate import JudgeQuality, Labeled
    from trueline.evaluation.fit import Fitted

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
        _refuse_beside_fit(judge, truth, output, of, measure)
        _fit(_labeled(source, options), fit, encoder, json)
        return
    if encoder is not None:
        raise UserError("--encoder belongs to --fit; a fitted judge brings its own")
    judges = judge or ["phrases"]
    if output is not None and len(judges) > 1:
        raise UserError("--output takes the counts of one judge; give one --judge")
    _show(_qualities(source, judges, truth, measure, options, of), output, json)


def _refuse_beside_fit(
    judge: Many, truth: str | None, output: Path | None, of: str | None, measure: str
) -> None:
    given = {"--judge": judge, "--truth": truth, "--output": output, "--of": of}
    for name, value in given.items():
        if value:
            raise UserError(f"{name} has no place beside --fit; calibrate the fitted judge after")
    if measure != "asr":
        raise UserError("--fit learns refusal, partial refusal and compliance; leave --measure out")


def _labeled(sources: Sequence[str], options: dict[str, Any]) -> list[Labeled]:
    from trueline.evaluation.calibrate import read_labeled

    def told(note: str) -> None:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)

    return [row for source in sources for row in read_labeled(source, **options, told=told)]


def _qualities(
    sources: Sequence[str],
    names: Sequence[str],
    truth: str | None,
    measure: Any,
    options: dict[str, Any],
    of: str | None,
) -> list[JudgeQuality]:
    if any(Path(source).is_dir() for source in sources):
        if len(sources) > 1 or of is not None:
            raise UserError("give one evaluation's folder alone; its model is known")
        return _from_log(sources[0], names, truth, measure)
    if truth is not None:
        raise UserError("--truth belongs to an evaluation's folder; a file has its --label")
    import trueline.reproduce.truth  # noqa: F401
    from trueline.evaluation.calibrate import calibrate, model_of
    from trueline.evaluation.judges import JUDGES
    from trueline.runs.evaluate import by_label

    labeled = _labeled(sources, options)
    model = None if of is None else model_of(of)
    judges = by_label("judge", JUDGES, names)
    return [calibrate(name, judge, labeled, measure, model) for name, judge in judges.items()]


def _from_log(
    source: str, names: Sequence[str], truth: str | None, measure: Any
) -> list[JudgeQuality]:
    from trueline.evaluation.calibrate import calibrate_from_log, model_of
    from trueline.evaluation.harness.log import read_log

    if truth is None:
        raise UserError("name the judge that is the truth: --truth sandbox, or another one's label")
    rows, model = read_log(source).judgements, model_of(source)
    return [calibrate_from_log(rows, name, truth, measure, model) for name in names]


def _show(qualities: Sequence[JudgeQuality], output: Path | None, json: bool) -> None:
    from trueline.files import write_json

    if output is not None:
        write_json(output, qualities[0].to_dict())
    if json:
        print_json([{**q.to_dict(), "finding": q.finding.to_dict()} for q in qualities])
        return
    for quality in qualities:
        out.print(quality.finding.summary, markup=False, highlight=False)
        for metric in quality.finding.metrics:
            out.print(f"  {metric.name}: {metric} (n={metric.n})", markup=False)
        if quality.finding.advice:
            out.print(quality.finding.advice, style="yellow", markup=False)


def _fit(rows: Sequence[Labeled], output: Path, encoder: str | None, json: bool) -> None:
    from trueline.evaluation.fit import fit_judge
    from trueline.files import write_json

    fitted = fit_judge(rows, encoder=encoder)
    write_json(output, fitted.judge.to_dict())
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
