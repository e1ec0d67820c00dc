"""`trueline diffusion`: align text-to-image models, compare them, and see the objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueline.cli.common import CONTEXT, Config, Json, Resume, console, out, print_json

SCORER_HELP = (
    "pickscore, clip=ID, hpsv2=ID, imagereward=FILE, aesthetics=FILE, or "
    "my_package.module:function; may be repeated."
)

app = typer.Typer(no_args_is_help=True, help="Align text-to-image diffusion models, and compare.")


@app.callback()
def root() -> None:
    """Align text-to-image diffusion models, and compare."""


@app.command(context_settings=CONTEXT)
def align(
    context: typer.Context,
    config: Config = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Align a text-to-image model with DSPO, Diffusion-DPO, or any of their peers.

    Every key of the configuration is also an option: --loss_type dspo, --beta 0.05,
    --use_peft true. The command line beats the file.
    """
    from trueline.config import parse_overrides
    from trueline.runs.diffusion.align import read_options, run_alignment

    settings = read_options(config, parse_overrides(context.args))
    if json:
        settings.disable_tqdm = True
    try:
        result = run_alignment(settings, resume=resume)
    except KeyboardInterrupt as stopped:
        if (kept := getattr(stopped, "checkpoint", None)) is None:
            raise
        console.print(f"{stopped}; --resume goes on from {kept}", highlight=False)
        raise typer.Exit(128 + getattr(stopped, "number", 2)) from None
    if json:
        print_json(result)


@app.command()
def evaluate(
    base: Annotated[str, typer.Option(help="The model before: a diffusers folder or a hub id.")],
    aligned: Annotated[
        list[str], typer.Option(help="A run directory, a folder or a hub id; may be repeated.")
    ],
    prompts: Annotated[Path, typer.Option(help="A text file, one a line, or a JSONL.")],
    scorer: Annotated[
        list[str],
        typer.Option(help=SCORER_HELP),
    ],
    output: Annotated[Path, typer.Option(help="Folder of pictures, findings and report.")] = Path(
        "runs/diffusion-evaluation"
    ),
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.5,
    seed: Annotated[int, typer.Option(help="Of the first prompt's noise; common to all.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.")] = 4,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Json = False,
) -> None:
    """Paint the same prompts from the same noise with each model, and say which is better.

    Win rates with intervals, the exact sign test, and the pictures side by side in
    OUTPUT/report.html.
    """
    from trueline.runs.diffusion.evaluate import evaluate as verb

    painted = verb(
        base, aligned, prompts=prompts, scorer=scorer, output=output, steps=steps,
        guidance=guidance, seed=seed, batch_size=batch_size, limit=limit, dtype=dtype, quiet=json,
    )  # fmt: skip
    console.print(f"pictures, scores and report: {output}", markup=False, highlight=False)
    if json:
        findings = [finding.to_dict() for finding in painted.findings]
        print_json({"report": str(painted.page), "findings": findings})
        return
    for finding in painted.findings:
        out.print(finding.summary, markup=False, highlight=False)


@app.command()
def objectives(json: Json = False) -> None:
    """List the objectives on images, with equation, options and source."""
    from rich.table import Table

    from trueline.runs.catalog import diffusion_objectives

    found = diffusion_objectives()
    if json:
        print_json(found)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("objective", "equation", "options"):
        table.add_column(column, no_wrap=column == "objective")
    for row in found["diffusion"]:
        options = ", ".join(f"{key}={value}" for key, value in row["options"].items())
        table.add_row(row["name"], row["equation"], options)
    out.print(table, markup=False)
    carried = ", ".join(found["carried_over"])
    out.print(f"and with -L/2 for a log-prob: {carried}", highlight=False)
