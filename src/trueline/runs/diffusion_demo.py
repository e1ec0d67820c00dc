"""What `trueline demo --diffusion` does: the small world of pictures, from a base to a report."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.runs.diffusion_evaluate import quiet_libraries
from trueline.terminal import console, out

if TYPE_CHECKING:
    from trueline.diffusion.world_runs import Size, WorldMeasurement


def run_diffusion_demo(
    output: Path = Path("runs/demo-diffusion"),
    *,
    seed: int = 0,
    size: Size = "demo",
    quiet: bool = False,
) -> dict[str, Any]:
    """Everything `trueline demo --diffusion` does; returns what it prints as JSON.

    Trains a small model of pictures, aligns it with fine-tuning, Diffusion-DPO and DSPO on the same
    pairs and with DSPO on two controls, and compares what they paint.
    """
    import torch

    from trueline.diffusion.world_runs import (
        RECIPES,
        SCALES,
        align_in_world,
        load_base,
        measure_in_world,
        open_base,
    )
    from trueline.report import render_report
    from trueline.runs.diffusion_story import world_report, world_summary
    from trueline.terminal import progress

    quiet_libraries()
    torch.set_num_threads(1)  # the models are tiny: a second thread waits more than it works
    # the page shows what the warning would ask the reader to look at
    logging.getLogger("trueline.diffusion.training.trainer").setLevel(logging.ERROR)
    begin = time.monotonic()
    with progress("base model", SCALES[size]["pretrain"], quiet=quiet) as advance:
        done = 0

        def step(now: int, steps: int, loss: float) -> None:
            nonlocal done
            advance(now - done)
            done = now

        folder = load_base(seed=seed, size=size, progress=step)
    model = open_base(folder, seed=seed)
    base = measure_in_world(model, "base", "base", seed=seed, size=size, folder=output / "base")
    measurements = [base]
    for recipe in RECIPES:
        with progress(recipe.title, SCALES[size]["align"], quiet=quiet) as advance:
            model = align_in_world(
                recipe, folder, output, seed=seed, size=size, on_step=lambda _: advance(1)
            )
        measurements.append(
            measure_in_world(model, recipe.name, recipe.title, base=base, seed=seed, size=size,
                             folder=output / recipe.name)
        )  # fmt: skip
    seconds = time.monotonic() - begin
    page = render_report(
        world_report(measurements, seed=seed, seconds=seconds), output / "report.html"
    )
    if not quiet:
        _show_world(measurements)
        out.print(world_summary(measurements), highlight=False)
        console.print(f"{seconds:.0f} s in all. The whole story: [bold]{page}[/bold]")
    return {
        "report": str(page),
        "seconds": round(seconds, 1),
        "models": {m.name: m.finding.to_dict() for m in measurements},
    }


def _show_world(measurements: list[WorldMeasurement]) -> None:
    from rich.table import Table

    names = [metric.name for metric in measurements[0].finding.metrics]
    table = Table(title="what the models paint", title_justify="left")
    for column in ("model", *names):
        table.add_column(column)
    for m in measurements:
        table.add_row(m.title, *(str(m.finding[name]) for name in names))
    out.print(table)
