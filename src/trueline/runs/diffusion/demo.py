"""What `trueline demo --diffusion` does: the small world of pictures, from a base to a report."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.runs.demo import Story
from trueline.runs.diffusion.evaluate import quiet_libraries
from trueline.terminal import polled, progress

if TYPE_CHECKING:
    from trueline.diffusion.world_runs import Size, WorldMeasurement, WorldRecipe
    from trueline.reproduce.workers import Workers


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
    jobs: int = 0,
    quiet: bool = True,
) -> PictureStory:
    """Train a small model of pictures, align it with fine-tuning, Diffusion-DPO and DSPO on the
    same pairs and with DSPO on two controls, and compare what they paint.

    Args:
        output: folder of the runs and the report.
        seed: of the world, the data and the weights.
        size: demo, or test: seconds, and a model that knows little.
        jobs: processes that align and measure, of one thread each; 0: none but this. In a script,
            more need the guard ``if __name__ == "__main__":``. The results are the same.
        quiet: keep progress back.

    Raises:
        UserError: a process died.
    """
    from trueline.diffusion.world_runs import RECIPES
    from trueline.report import render_report
    from trueline.reproduce.workers import Workers
    from trueline.runs.diffusion.story import world_report, world_summary
    from trueline.runs.record import Run

    root, begin = Path(output), time.monotonic()
    with Workers(min(jobs, len(RECIPES))) as workers:
        for _ in range(workers.jobs):  # they import what they need while the base model is trained
            workers.submit(_settle)
        measurements = _measured(_base(seed, size, quiet), root, seed, size, workers, quiet)
    for m in measurements:
        Run.create(root / m.name).save(m.findings)
    seconds = time.monotonic() - begin
    page = render_report(
        world_report(measurements, seed=seed, seconds=seconds), root / "report.html"
    )
    return PictureStory(page, seconds, measurements, world_summary(measurements))


def _settle() -> None:
    """What a process does before it trains or measures."""
    import torch

    import trueline.diffusion.world_runs  # noqa: F401

    quiet_libraries()
    torch.set_num_threads(1)  # the models are tiny: a second thread waits more than it works
    # the page shows what the warning would ask the reader to look at
    logging.getLogger("trueline.diffusion.training.trainer").setLevel(logging.ERROR)


def _base(seed: int, size: Size, quiet: bool) -> Path:
    """The base model's folder; trained once and kept."""
    _settle()
    from trueline.diffusion.world_runs import SCALES, load_base

    with progress("base model", SCALES[size]["pretrain"], quiet=quiet) as advance:
        done = 0

        def step(now: int, steps: int, loss: float) -> None:
            nonlocal done
            advance(now - done)
            done = now

        return load_base(seed=seed, size=size, progress=step)


def _measured(
    base: Path, root: Path, seed: int, size: Size, workers: Workers, quiet: bool
) -> list[WorldMeasurement]:
    """Every model aligned and measured; of those that take longest the first begin first.

    Raises:
        UserError: a process died.
    """
    from trueline.diffusion.world_runs import RECIPES, SCALES

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as told:
        steps = len(RECIPES) * SCALES[size]["align"]
        with polled(f"{len(RECIPES)} runs, steps", lambda: _steps(Path(told)), steps, quiet=quiet):
            order = [*reversed(RECIPES), None]
            futures = [
                workers.submit(_make, recipe, base, root, Path(told), seed, size)
                for recipe in order
            ]
            first, *others = reversed(workers.results(futures))
    return [first, *(m.against(first) for m in others)]


def _make(
    recipe: WorldRecipe | None, base: Path, root: Path, told: Path, seed: int, size: Size
) -> WorldMeasurement:
    """One model measured: the base, or what a recipe makes of it; ``told`` is told its steps."""
    from trueline.diffusion.world_runs import align_in_world, measure_in_world, open_base

    _settle()
    if recipe is None:
        model, name, title = open_base(base, seed=seed), "base", "base"
    else:
        name, title = recipe.name, recipe.title

        def on_step(step: int) -> None:
            (told / recipe.name).write_text(str(step))

        model = align_in_world(recipe, base, root, seed=seed, size=size, on_step=on_step)
    return measure_in_world(model, name, title, seed=seed, size=size)


def _steps(told: Path) -> int:
    """How many steps all runs have done."""
    return sum(int(file.read_text() or 0) for file in told.iterdir())
