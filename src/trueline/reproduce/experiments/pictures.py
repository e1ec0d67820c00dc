"""The small world of pictures: a painter, and what alignment makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from trueline.diffusion.world_runs import (
    WorldMeasurement,
    WorldRecipe,
    align_in_world,
    load_base,
    measure_in_world,
    open_base,
)
from trueline.reproduce.runs import Run, Values, experiment


def painter_of(run: Run) -> Sequence[Run]:
    """The base model of this seed; a seed's captions mean something to its own base only."""
    return [Run("painter", {"size": run.options["size"]}, run.seed, "a base model of pictures")]


@experiment("painter", version=2)
def painter(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Pretrain it, or take the one that is kept already."""
    size = run.options["size"]
    shutil.copytree(load_base(seed=run.seed, size=size), folder / "base")
    base = open_base(folder / "base", seed=run.seed)
    return _read(measure_in_world(base, "base", "base", seed=run.seed, size=size))


def _read(measured: WorldMeasurement) -> Values:
    """What the judge read; a picture that is not what was asked for is nothing to prefer."""
    values = {name: measured.finding[name].value for name in ("bright", "valid", "brightness")}
    both = fmean(reading.bright and reading.valid for reading in measured.readings)
    return {**values, "valid and bright": both}


@experiment("pictures", version=2, needs=painter_of)
def pictures(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Align by an objective; how many pictures are bright (what pairs prefer), how many valid."""
    given = run.options
    recipe = WorldRecipe(
        "run",
        run.title,
        given["objective"],
        given.get("options", {}),
        sdpo_mu=given.get("sdpo_mu"),
        rate=given["rate"],
    )
    model = align_in_world(recipe, parents[0] / "base", folder, seed=run.seed, size=given["size"])
    shutil.rmtree(folder / "run")
    return _read(measure_in_world(model, "run", run.title, seed=run.seed, size=given["size"]))
