"""`trueline demo`: the whole story in the sandbox, from a base model that complies to a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trueline.cli.common import Json, console, out, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from trueline.reproduce import Measurement
    from trueline.results import Metric
    from trueline.sandbox import Sandbox, Size


def demo(
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the runs and the report: runs/demo or runs/demo-diffusion unless said."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another world, other data, other weights.")] = 0,
    size: Annotated[
        Literal["demo", "test"],
        typer.Option(help="demo, or test: seconds, and a model that knows little."),
    ] = "demo",
    diffusion: Annotated[
        bool, typer.Option("--diffusion", help="The small world of pictures instead.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a small world, align a model in it, and show what changed.

    The base model answers everything, harmful requests too. KLDO on compliance-refusal data and
    DPO on preference data align it, and DPO on the first data, to tell objective from data. All
    are attacked, asked and probed on things that no alignment data named. Ends in a table and
    OUTPUT/report.html.

    With --diffusion the world is one of small pictures, aligned by fine-tuning, Diffusion-DPO and
    DSPO (needs the extra diffusion).
    """
    if diffusion:
        from trueline.runs.diffusion_demo import run_diffusion_demo

        output = output or Path("runs/demo-diffusion")
        story = run_diffusion_demo(output, seed=seed, size=size, quiet=json)
    else:
        story = run_demo(output or Path("runs/demo"), seed=seed, size=size, quiet=json)
    if json:
        print_json(story)


def run_demo(
    output: Path, *, seed: int = 0, size: Size = "demo", quiet: bool = False
) -> dict[str, Any]:
    """Everything `trueline demo` does; returns what it prints as JSON."""
    import torch
    import transformers

    from trueline.report import render_report
    from trueline.reproduce import align, measure
    from trueline.runs.demo_story import RECIPES, demo_report

    torch.set_num_threads(1)  # the models are tiny: a second thread waits more than it works
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    begin = time.monotonic()
    say = _teller(begin, quiet)
    sandbox = _sandbox(seed, size, say)
    tokenizer = transformers.AutoTokenizer.from_pretrained(sandbox.model_dir)
    base = transformers.AutoModelForCausalLM.from_pretrained(sandbox.model_dir)
    say("measuring the base model")
    measurements = [measure(sandbox, base, tokenizer, "base", folder=output / "base")]
    for recipe in RECIPES:
        say(f"aligning with {recipe.objective} on {recipe.data.replace('_', '-')} data")
        torch.manual_seed(seed)
        trainer = align(sandbox, recipe, output, seed=seed, quiet=quiet)
        trainer.scorer.detach()
        say(f"measuring {recipe.name}")
        run = output / recipe.name
        measurements.append(measure(sandbox, trainer.model, tokenizer, recipe.name, folder=run))
    elapsed = time.monotonic() - begin
    page = render_report(
        demo_report(measurements, output, sandbox, seed=seed, seconds=elapsed),
        output / "report.html",
    )
    if not quiet:
        _show(measurements)
        console.print(f"{elapsed:.0f} s in all. The whole story: [bold]{page}[/bold]")
    return {
        "report": str(page),
        "seconds": round(elapsed, 1),
        "models": {
            m.name: {"findings": [finding.to_dict() for finding in m.findings]}
            for m in measurements
        },
    }


def _teller(begin: float, quiet: bool) -> Callable[[str], None]:
    def say(what: str) -> None:
        if not quiet:
            console.print(f"[dim]{time.monotonic() - begin:5.0f} s[/dim]  {what}", highlight=False)

    return say


def _sandbox(seed: int, size: Size, say: Callable[[str], None]) -> Sandbox:
    """The sandbox, built once and kept in the cache."""
    from trueline.files import cache_folder
    from trueline.sandbox import build_sandbox
    from trueline.terminal import progress

    folder = cache_folder("sandbox") / f"{size}-{seed}"
    say("building the world and training its base model (kept for the next time)")
    done = 0
    with progress("base model", 0) as advance:

        def step(now: int, steps: int, loss: float) -> None:
            nonlocal done
            advance(now - done, steps)
            done = now

        return build_sandbox(folder, seed=seed, size=size, progress=step)


def _show(measurements: list[Measurement]) -> None:
    """The table on the terminal: measures down, models across, each with its interval."""
    from rich.table import Table

    from trueline.runs.demo_story import summary

    table = Table(show_lines=True, title="on things no alignment data named", title_justify="left")
    table.add_column("rate [95% interval]")
    for measurement in measurements:
        table.add_column(measurement.name, justify="right")
    for index, metric in enumerate(measurements[0].safety.metrics):
        cells = [_cell(m.safety.metrics[index]) for m in measurements]
        table.add_row(f"{metric.name} (n={metric.n})", *cells)
    for name, title in (
        ("bhattacharyya_distance", "separation: Bhattacharyya distance"),
        ("silhouette", "separation: silhouette"),
    ):
        table.add_row(title, *(_cell(m.separation[name]) for m in measurements))
    out.print(table)
    for line in summary(measurements).split("\n\n"):
        out.print(line, highlight=False)


def _cell(metric: Metric) -> str:
    """The value over its interval."""
    return str(metric).replace(" [", "\n[")
