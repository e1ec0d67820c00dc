"""`trueline diagnose`: why an alignment works or fails, measured on held-out data.

Every registered question is a command; its options are its function's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueline.cli.common import READING, Json, Limit, console, out, print_json
from trueline.cli.signature import Late

if TYPE_CHECKING:
    from trueline.diagnostics.question import Question
    from trueline.results import Finding

Model = Annotated[str, typer.Option("--model", help="The model: a folder or a hub id.")]
Data = Annotated[str, typer.Option("--data", help="A file, a directory, or a hub id (org/name).")]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="The model that training started from, to compare with."),
]
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

ASKED_OF = {"model": (Model, ...), "data": (Data, ...), "reference": (Reference, None)}
HOW = {
    **READING,
    "as_chat": (AsChat, False),
    "dtype": (Dtype, None),
    "device": (Device, None),
    "trust_remote_code": (Trust, False),
    "seed": (Seed, 0),
    "save": (Save, None),
    "json": (Json, False),
}


def questions() -> dict[str, Any]:
    """A command for each question."""
    from trueline.cli.signature import command
    from trueline.runs.diagnose import every

    return {name: command(_runner(q), q.ask, ASKED_OF, HOW) for name, q in every().items()}


def _runner(question: Question) -> Any:
    def run(*, json: bool, save: Path | None, **given: Any) -> None:
        from trueline.runs.diagnose import ask

        found = ask(question.name, quiet=json, save=save, **given)
        if json:
            facts = {key: given[key] for key in ("model", "data", "reference")}
            listed = [finding.to_dict() for finding in found.findings]
            print_json({**facts, **found.told, "findings": listed})
            return
        for finding in found.findings:
            show(finding)

    return run


app = typer.Typer(
    cls=Late(questions), no_args_is_help=True, help="See why an alignment works or fails."
)


@app.callback()
def root() -> None:
    """See why an alignment works or fails."""


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
    from trueline.runs.diagnose import diagnose_run
    from trueline.runs.record import FINDINGS

    found = diagnose_run(
        run, model=model, reference=reference, data=data, prompts=prompts, again=again,
        limit=limit, max_pairs=max_pairs, dtype=dtype, device=device,
        trust_remote_code=trust_remote_code, quiet=json, seed=seed,
    )  # fmt: skip
    if json:
        print_json(
            {
                "run": str(run),
                "verdict": [sentence.to_dict() for sentence in found.sentences],
                "findings": [finding.to_dict() for finding in found.findings],
            }
        )
        return
    for sentence in found.sentences:
        out.print(f"[bold]{sentence.question}[/] {sentence.answer}", highlight=False)
        out.print(f"  {sentence.text}", highlight=False, markup=False)
        if sentence.advice:
            out.print(f"  {sentence.advice}", style="dim", highlight=False, markup=False)
    console.print(f"kept in {run / FINDINGS}", style="dim", highlight=False, markup=False)


def show(finding: Finding) -> None:
    """A finding as a table, then what it says."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=finding.name, title_justify="left")
    table.add_column("measure")
    table.add_column("value [95% interval]", justify="right")
    table.add_column("n", justify="right")
    for metric in finding.metrics:
        count = "" if metric.n is None else f"{metric.n:,}"
        table.add_row(Text(metric.name), Text(str(metric)), count)
    out.print(table)
    out.print(Text(finding.summary))
    if finding.advice:
        out.print(Text(finding.advice, "yellow"))
