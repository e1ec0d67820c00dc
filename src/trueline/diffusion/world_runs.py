"""Aligning in the small world: the runs that are compared, and what the judge reads of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from trueline.diffusion.config import DiffusionConfig
from trueline.diffusion.data.load import ImageExample
from trueline.diffusion.training.trainer import DiffusionTrainer
from trueline.diffusion.world import (
    CAPTIONS,
    Progress,
    Reading,
    SmallWorldModel,
    judge,
    pairs,
    pretrain,
    random_losers,
    swapped,
    untrained,
)
from trueline.files import cache_folder
from trueline.results import Finding
from trueline.stats import mean_metric, paired_difference, rate

Size: TypeAlias = Literal["demo", "test"]

SCALES: Mapping[Size, Mapping[str, int]] = {
    "demo": {"pretrain": 1200, "pairs": 2000, "align": 250, "pictures": 384},
    "test": {"pretrain": 20, "pairs": 60, "align": 2, "pictures": 12},
}
"""Steps and counts; ``test`` takes seconds and knows little."""

BATCH, STEPS = 64, 25


@dataclass(frozen=True)
class WorldRecipe:
    """One run: an objective, on the pairs or on a control made of them.

    Args:
        name: of its folder.
        title: in tables.
        loss_type, options, sdpo_mu, rate: the objective and its learning rate.
        data: what becomes of the pairs.
        control: whether it is there to tell what the others' effect is due to.
    """

    name: str
    title: str
    loss_type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sdpo_mu: float | None = None
    rate: float = 4e-4
    data: Callable[[Sequence[ImageExample]], Sequence[ImageExample]] = list
    control: bool = False


SFT = WorldRecipe("sft", "fine-tuning", "diffusion_sft")
DPO = WorldRecipe(
    "dpo", "Diffusion-DPO, SDPO", "diffusion_dpo", {"beta": 2000.0}, sdpo_mu=0.1, rate=1e-4
)
DSPO = WorldRecipe("dspo", "DSPO", "dspo", {"beta": 1.0})
SWAPPED = WorldRecipe(
    "dspo-swapped", "DSPO, labels swapped", "dspo", {"beta": 1.0}, data=swapped, control=True
)
RANDOM = WorldRecipe(
    "dspo-random", "DSPO, random losers", "dspo", {"beta": 1.0}, data=random_losers, control=True
)
UNGUARDED = WorldRecipe("dpo-unguarded", "Diffusion-DPO", "diffusion_dpo", {"beta": 2000.0},
                        rate=1e-4, control=True)  # fmt: skip
RECIPES = (SFT, DPO, DSPO, SWAPPED, RANDOM)


@dataclass(frozen=True)
class WorldMeasurement:
    """A model's pictures of the same captions from the same noise, and what the judge read."""

    name: str
    title: str
    readings: Sequence[Reading]
    pictures: Sequence[Any]
    finding: Finding

    @property
    def findings(self) -> list[Finding]:
        return [self.finding]

    def against(self, base: WorldMeasurement) -> WorldMeasurement:
        """With the difference to the model before, on the same captions and noise."""
        before, bright = ([reading.bright for reading in m.readings] for m in (base, self))
        change = paired_difference(before, bright, name="bright, change")
        metrics = [*self.finding.metrics, change]
        return replace(self, finding=replace(self.finding, metrics=metrics))


def load_base(*, seed: int = 0, size: Size = "demo", progress: Progress | None = None) -> Path:
    """The folder of the world's base model, trained once and kept."""
    folder = cache_folder("diffusion-world") / f"{size}-{seed}"
    if not (folder / "unet" / "config.json").exists():
        model = untrained(seed=seed)
        pretrain(model, steps=SCALES[size]["pretrain"], seed=seed, progress=progress)
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        model.save(str(part), adapter=False)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return folder


def open_base(folder: Path, *, seed: int = 0) -> SmallWorldModel:
    """The model that :func:`load_base` left."""
    from diffusers import UNet2DConditionModel

    return SmallWorldModel(
        UNet2DConditionModel.from_pretrained(folder / "unet").eval(),
        seed=seed,
    )


def align_in_world(
    recipe: WorldRecipe,
    base: Path,
    output: Path,
    *,
    seed: int = 0,
    size: Size = "demo",
    on_step: Callable[[int], None] | None = None,
) -> SmallWorldModel:
    """Align a copy of the base on the world's pairs; its run directory is ``output/name``.

    All recipes see the same pairs in the same order, at the same noise: AdamW, 20 steps of warmup,
    linear decay, and the moving average (.97) of the weights is what is kept.
    """
    model = open_base(base, seed=seed)
    scale = SCALES[size]
    config = DiffusionConfig(
        loss_type=recipe.loss_type,
        objective_options=dict(recipe.options),
        sdpo_mu=recipe.sdpo_mu,
        output_dir=str(output / recipe.name),
        max_steps=scale["align"],
        per_device_train_batch_size=24,
        learning_rate=recipe.rate,
        lr_scheduler_type="linear",
        warmup_steps=min(20, scale["align"]),
        ema_decay=0.97,
        cache_dir="none",
        seed=seed,
        save_steps=0,
        overwrite=True,
        disable_tqdm=True,
    )
    examples = recipe.data(pairs(scale["pairs"], seed=seed))
    trainer = DiffusionTrainer(model, config, examples, on_step=on_step)
    trainer.train()
    trainer.save_model()
    if trainer.ema is not None:
        trainer.ema.copy_to(trainer.trained)
    model.denoiser.eval()
    return model


def measure_in_world(
    model: SmallWorldModel,
    name: str,
    title: str,
    *,
    base: WorldMeasurement | None = None,
    seed: int = 0,
    size: Size = "demo",
) -> WorldMeasurement:
    """Let the model paint all captions in turn, and read the pictures.

    Args:
        model: to measure.
        name, title: in folders and in tables.
        base: the model before, on the same captions and noise, for the difference.
        seed: of the noise.
        size: of the world.
    """
    count = SCALES[size]["pictures"]
    captions = [CAPTIONS[k % len(CAPTIONS)] for k in range(count)]
    pictures = []
    for start in range(0, count, BATCH):
        some = captions[start : start + BATCH]
        seeds = [10_000 * seed + start + k for k in range(len(some))]
        with torch.no_grad():
            made = model.generate(some, seeds, steps=STEPS, guidance=1.0)
        pictures += [one.image for one in made]
    readings = [judge(image, caption) for image, caption in zip(pictures, captions, strict=True)]
    metrics = [
        rate("bright", [reading.bright for reading in readings]),
        rate("valid", [reading.valid for reading in readings]),
        mean_metric("brightness", [reading.brightness for reading in readings]),
    ]
    summary = f"{title}: {metrics[0]} of pictures are bright, {metrics[1]} are what was asked for."
    measured = WorldMeasurement(
        name, title, readings, pictures, Finding("small world", summary, metrics)
    )
    return measured if base is None else measured.against(base)
