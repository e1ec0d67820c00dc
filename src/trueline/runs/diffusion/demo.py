"""What `trueline demo --diffusion` does: the small world of pictures, from a base to a report."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.runs.demo import Story
from trueline.runs.diffusion.evaluate import quiet_libraries

if TYPE_CHECKING:
    from trueline.diffusion.world_runs import Size


class PictureStory(Story):
    """A demo told of models that paint: one finding each."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        models = {m.name: m.finding.to_dict() for m in self.measurements}
        return {**super().to_dict(), "models": models}


def demo(
    output: str | Path = "runs/demo-diffusion",
    *,
    seed: int = 0,
    size: Size = "demo",
    quiet: bool = True,
) -> PictureStory:
    """Train a small model of pictures, align it with fine-tuning, Diffusion-DPO and DSPO on the
    same pairs and with DSPO on two controls, and compare what they paint.

    Args:
        output: folder of the runs and the report.
        seed: of the world, the data and the weights.
        size: demo, or test: seconds, and a model that knows little.
        quiet: keep progress back.
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
    from trueline.runs.diffusion.story import world_report, world_summary
    from trueline.terminal import progress

    root = Path(output)
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
    base = measure_in_world(model, "base", "base", seed=seed, size=size, folder=root / "base")
    measurements = [base]
    for recipe in RECIPES:
        with progress(recipe.title, SCALES[size]["align"], quiet=quiet) as advance:
            model = align_in_world(
                recipe, folder, root, seed=seed, size=size, on_step=lambda _: advance(1)
            )
        measurements.append(
            measure_in_world(model, recipe.name, recipe.title, base=base, seed=seed, size=size,
                             folder=root / recipe.name)
        )  # fmt: skip
    seconds = time.monotonic() - begin
    page = render_report(
        world_report(measurements, seed=seed, seconds=seconds), root / "report.html"
    )
    return PictureStory(page, seconds, measurements, world_summary(measurements))
