"""`trueline diagnose`: why an alignment works or fails, measured on held-out data.

The file is long because it declares the options of four verbs; the work is done elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueline.cli.common import Json, console, print_json
from trueline.errors import UserError

if TYPE_CHECKING:
    from trueline.results import Finding

app = typer.Typer(no_args_is_help=True, help="See why an alignment works or fails.")

Model = Annotated[str, typer.Option("--model", help="The model: a folder or a hub id.")]
Data = Annotated[str, typer.Option("--data", help="A file, a directory, or a hub id (org/name).")]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="The model that training started from, to compare with."),
]
Split = Annotated[str, typer.Option(help="Split of a hub data set or of a directory.")]
Name = Annotated[str | None, typer.Option(help="Configuration of a hub data set.")]
Form = Annotated[str | None, typer.Option(help="The data's form, where its columns do not tell.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out and count them.")]
Limit = Annotated[int | None, typer.Option(help="Stop after this many examples.")]
AsChat = Annotated[
    bool, typer.Option("--as-chat", help="Make turns of plain text, for the chat template.")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; else as saved (all: as the run was trained)."),
]
Device = Annotated[str | None, typer.Option(help="cuda, cpu, ...; a GPU if there is one.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code from the hub or the folder.")
]
Seed = Annotated[int, typer.Option(help="Of splits, draws and intervals.")]
Save = Annotated[
    Path | None, typer.Option("--save", help="Also keep the finding in this run directory.")
]
MaxLength = Annotated[int, typer.Option(help="Tokens of prompt and completion, as in training.")]
Objective = Annotated[str, typer.Option(help="What the model is (or would be) trained with.")]
Beta = Annotated[float | None, typer.Option(help="The objective's beta (IPO's tau).")]
Gamma = Annotated[float | None, typer.Option(help="The gamma of gamma_dpo.")]


@app.callback()
def root() -> None:
    """See why an alignment works or fails."""


@app.command()
def separation(
    model: Model,
    data: Data,
    reference: Reference = None,
    layer: Annotated[
        str, typer.Option(help="-1 the last, 0 the embeddings, or 'all' for a profile.")
    ] = "-1",
    position: Annotated[
        str, typer.Option(help="last_prompt_token, generation_prompt or mean.")
    ] = "last_prompt_token",
    preset: Annotated[
        str | None, typer.Option(help="'paper': plane fitted and measured on the same prompts.")
    ] = None,
    shrinkage: Annotated[
        float | None, typer.Option(help="Of the covariances in the plane; 0.01 unless given.")
    ] = None,
    n_bootstrap: Annotated[int, typer.Option(help="Resamples for an interval; 0 for none.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Prompts in a forward pass.")] = 32,
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    as_chat: AsChat = False,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    seed: Seed = 0,
    save: Save = None,
    json: Json = False,
) -> None:
    """How far apart the model holds harmful and safe prompts.

    The data needs the columns prompt and safety ('harmful' or 0, 'safe' or 1).
    """
    from trueline.diagnostics.measuring import Loader
    from trueline.diagnostics.separation.data import read_prompts
    from trueline.diagnostics.separation.measuring import measure_separation

    found = read_prompts(
        data, split=split, name=name, form=form, skip_bad=skip_bad, limit=limit, as_chat=as_chat
    )
    findings = measure_separation(
        Loader(dtype, device, trust_remote_code, quiet=json),
        model,
        reference,
        found,
        layer=layer,
        position=position,
        batch_size=batch_size,
        preset=preset,
        shrinkage=shrinkage,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    _give(findings, json, save, model=model, data=data, reference=reference)


@app.command()
def entanglement(
    model: Model,
    data: Data,
    reference: Reference = None,
    objective: Objective = "dpo",
    beta: Beta = None,
    gamma: Gamma = None,
    max_pairs: Annotated[int, typer.Option(help="Measure so many pairs, drawn at random.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Pairs in a step and in a forward pass.")] = 8,
    heat_maps: Annotated[int, typer.Option(help="Pairs to compare token with token.")] = 2,
    max_length: MaxLength = 1024,
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    as_chat: AsChat = False,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    seed: Seed = 0,
    save: Save = None,
    json: Json = False,
) -> None:
    """Whether a step on preference pairs drags chosen and rejected along together."""
    from trueline.diagnostics.measuring import Loader, measure_entanglement, read_pairs

    examples = read_pairs(data, split, name, form, skip_bad, limit, as_chat=as_chat)
    loader = Loader(dtype, device, trust_remote_code, quiet=json)
    finding = measure_entanglement(
        loader,
        model,
        reference,
        examples,
        objective=objective,
        options=_options(beta, gamma),
        max_pairs=max_pairs,
        batch_size=batch_size,
        heat_maps=heat_maps,
        max_length=max_length,
        seed=seed,
    )
    _give([finding], json, save, model=model, data=data, reference=reference)


@app.command()
def ranking(
    model: Model,
    data: Data,
    reference: Reference = None,
    objective: Objective = "dpo",
    beta: Beta = None,
    gamma: Gamma = None,
    raters: Annotated[
        str, typer.Option(help="Share who prefer the chosen answer, or 'scores': votes as scores.")
    ] = "1",
    loss: Annotated[
        float | None, typer.Option(help="A loss to compare thresholds with; else the one reached.")
    ] = None,
    write_difficulty: Annotated[
        Path | None, typer.Option(help="Copy the data to this .jsonl with a column 'difficulty'.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace that file where it exists.")
    ] = False,
    max_length: MaxLength = 1024,
    max_tokens: Annotated[int, typer.Option(help="Tokens in a forward pass.")] = 8192,
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    as_chat: AsChat = False,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    seed: Seed = 0,
    save: Save = None,
    json: Json = False,
) -> None:
    """How well the model ranks chosen above rejected, how well it could, and how hard it is.

    Difficulty is measured under the reference, or under the model where none is given.
    """
    from trueline.diagnostics.measuring import Loader, measure_ranking, read_pairs
    from trueline.diagnostics.ranking.data import check_output
    from trueline.diagnostics.ranking.data import write_difficulty as write

    if write_difficulty is not None:
        check_output(write_difficulty, overwrite=overwrite)
    elif overwrite:
        raise UserError("--overwrite has no effect without --write-difficulty")
    examples = read_pairs(data, split, name, form, skip_bad, limit, as_chat=as_chat)
    finding, difficulties = measure_ranking(
        Loader(dtype, device, trust_remote_code, quiet=json),
        model,
        reference,
        examples,
        max_length=max_length,
        max_tokens=max_tokens,
        objective=objective,
        options=_options(beta, gamma),
        alpha=_alpha(raters),
        loss=loss,
        seed=seed,
    )
    facts: dict[str, Any] = {"model": model, "data": data, "reference": reference}
    if write_difficulty is not None:
        written = write(
            data, difficulties, write_difficulty,
            form=form, split=split, name=name, skip_bad=skip_bad, overwrite=overwrite,
        )  # fmt: skip
        facts["written"] = {"file": str(write_difficulty), "rows": written.rows,
                            "scored": written.scored, "unreadable": written.unreadable}  # fmt: skip
        console.print(
            f"{written.scored} of {written.rows} rows with a difficulty: {write_difficulty}",
            highlight=False,
        )
    _give([finding], json, save, **facts)


@app.command("all")
def everything(
    run: Annotated[Path, typer.Option("--run", help="A run directory, as align writes it.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The model, where it is not in the run.")
    ] = None,
    reference: Reference = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Held-out pairs, instead of the run's own.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="Prompts with a column safety, for separation.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew what the run has findings of.")
    ] = False,
    limit: Limit = None,
    max_pairs: Annotated[int, typer.Option(help="Pairs to measure entanglement on.")] = 64,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Read a run, measure what is missing, and answer in words what worked and why.

    Findings and verdict are kept in the run, where `trueline report` shows them.
    """
    from trueline.diagnostics.measuring import Loader
    from trueline.runs.diagnose import diagnose_run

    loader = Loader(dtype, device, trust_remote_code, quiet=json)
    sentences, findings = diagnose_run(
        run, loader, model=model, reference=reference, data=data, prompts=prompts, again=again,
        limit=limit, max_pairs=max_pairs, seed=seed,
    )  # fmt: skip
    if json:
        print_json(
            {
                "run": str(run),
                "verdict": [sentence.to_dict() for sentence in sentences],
                "findings": [finding.to_dict() for finding in findings],
            }
        )
        return
    for sentence in sentences:
        console.print(f"[bold]{sentence.question}[/] {sentence.answer}", highlight=False)
        console.print(f"  {sentence.text}", highlight=False, markup=False)
        if sentence.advice:
            console.print(f"  {sentence.advice}", style="dim", highlight=False, markup=False)
    console.print(f"kept in {run / 'findings.json'}", style="dim", highlight=False, markup=False)


def _options(beta: float | None, gamma: float | None) -> dict[str, float]:
    given = {"beta": beta, "gamma": gamma}
    return {key: value for key, value in given.items() if value is not None}


def _alpha(raters: str) -> float | str:
    if raters == "scores":
        return raters
    try:
        return 1.0 if raters == "unanimous" else float(raters)
    except ValueError:
        raise UserError(f"--raters must be a share in [0, 1] or 'scores', got {raters!r}") from None


def _give(findings: list[Finding], json: bool, save: Path | None, **facts: Any) -> None:
    """Print the findings, as tables on stderr or as one JSON document, and keep them if asked."""
    from trueline.runs.diagnose import keep, show

    if save is not None:
        keep(save, findings)
    if json:
        print_json({**facts, "findings": [finding.to_dict() for finding in findings]})
        return
    for finding in findings:
        show(finding)
