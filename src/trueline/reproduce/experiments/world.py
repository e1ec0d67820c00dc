"""A sandbox for each seed: another world, another base model; every language run stands on one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from trueline.files import cache_folder
from trueline.reproduce.instrument import observe
from trueline.reproduce.language import load_model, load_tokenizer, open_sandbox
from trueline.reproduce.runs import Run, Values, experiment
from trueline.sandbox import build_sandbox


def world_of(run: Run) -> Sequence[Run]:
    """The world that a run of this seed and size stands on."""
    return [Run("world", {"size": run.options["size"]}, run.seed, "a world and its base model")]


@experiment("world", version=2)
def world(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Build it, or copy the one that the demo left; measure the base before any alignment."""
    size = run.options["size"]
    kept = build_sandbox(cache_folder("sandbox") / f"{size}-{run.seed}", seed=run.seed, size=size)
    shutil.copytree(kept.directory, folder / "sandbox")
    sandbox = open_sandbox(folder, run)
    return observe(sandbox, load_model(sandbox.model_dir), load_tokenizer(sandbox))
