"""Preference alignment of text-to-image diffusion models: DSPO and its peers."""

import sys

from trueline.diffusion.bind import BoundDiffusion, bind_diffusion
from trueline.diffusion.config import DiffusionConfig, load_diffusion_config
from trueline.diffusion.data.load import ImageExample, ImageSource, load_image_examples
from trueline.diffusion.declare import (
    DIFFUSION_OBJECTIVES,
    DiffusionObjective,
    diffusion_objective,
)
from trueline.diffusion.models.families import (
    FAMILIES,
    Generated,
    TextToImage,
    load_text_to_image,
    text_to_image,
)
from trueline.diffusion.models.predictions import LabeledPredictions, PairedPredictions, Predictions
from trueline.diffusion.models.schedule import Schedule, schedule_of
from trueline.diffusion.objectives import (
    beta_from_summed,
    beta_from_unhalved,
    diffusion_dpo,
    diffusion_kto,
    diffusion_sft,
    dmpo,
    dspo,
    dspo_sdxl_official,
    mapo,
    sdpo,
    sdpo_weight,
)
from trueline.diffusion.training.step import DiffusionEngine, Reference
from trueline.diffusion.training.trainer import DiffusionTrainer
from trueline.verbs import Diffusion

__all__ = [
    "DIFFUSION_OBJECTIVES",
    "FAMILIES",
    "BoundDiffusion",
    "DiffusionConfig",
    "DiffusionEngine",
    "DiffusionObjective",
    "DiffusionTrainer",
    "Generated",
    "ImageExample",
    "ImageSource",
    "LabeledPredictions",
    "PairedPredictions",
    "Predictions",
    "Reference",
    "Schedule",
    "TextToImage",
    "beta_from_summed",
    "beta_from_unhalved",
    "bind_diffusion",
    "diffusion_dpo",
    "diffusion_kto",
    "diffusion_objective",
    "diffusion_sft",
    "dmpo",
    "dspo",
    "dspo_sdxl_official",
    "load_diffusion_config",
    "load_image_examples",
    "load_text_to_image",
    "mapo",
    "schedule_of",
    "sdpo",
    "sdpo_weight",
    "text_to_image",
]

sys.modules[__name__].__class__ = Diffusion
