"""What a diffusion run is: the facts that decide its weights, compared when it is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from trueline.diffusion.config import DiffusionConfig
from trueline.diffusion.data.images import CorruptImageError
from trueline.diffusion.data.keeping import fingerprint_of
from trueline.diffusion.data.load import ImageExample
from trueline.diffusion.models.families import TextToImage
from trueline.identity import Identity, May, freely, upwards

SAMPLED = 16
"""Examples, evenly spaced, whose images' bytes count; of all others the caption, labels, names."""

NO_PART = set(
    "model_name_or_path model_revision model_variant vae_model_name_or_path num_train_epochs "
    "dataset_name dataset_config dataset_train_split "
    "max_samples cache_latents cache_dir cache_limit_gb encode_first dataloader_num_workers "
    "per_device_train_batch_size gradient_accumulation_steps gradient_checkpointing output_dir "
    "loss_type beta objective_options use_peft lora_r lora_alpha lora_dropout lora_target_modules "
    "resolution disable_tqdm overwrite".split()
)
"""Keys that are no part of a run's identity: how a batch is split and where things lie, and what
is a fact under another name, as it was resolved."""

FREE: dict[str, May] = {
    "max_steps": upwards,
    **dict.fromkeys(
        "logging_steps save_steps save_total_limit sample_prompts sample_steps sample_seed "
        "num_inference_steps guidance_scale report_to push_to_hub hub_model_id hub_private_repo "
        "save_kohya processes device".split(),
        freely,
    ),
}
"""Facts that may change on resuming: how long the run goes on, what it tells, where it runs."""


def identity(
    config: DiffusionConfig,
    model: TextToImage,
    examples: Sequence[ImageExample],
    *,
    objective: dict[str, Any],
    base: str,
    batch: int,
    processes: int,
    device: str,
) -> Identity:
    """What decides the weights that a run ends with.

    Args:
        config: its settings; every key is a fact unless ``NO_PART`` names it.
        model: what is trained.
        examples: the data.
        objective: its name and options.
        base: fingerprint of the denoiser before an adapter or a step changed it.
        batch: examples in the effective batch.
        processes, device: where it runs.
    """
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    image = model.image_encoder
    frozen = {**model.encoders, **({} if image is None else {"image": image})}
    adapter = {
        "rank": config.lora_r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "targets": sorted(config.lora_target_modules or model.lora_targets),
    }
    return Identity.of(
        {
            "objective": objective,
            "data": content(examples),
            "effective batch": batch,
            "model": base,
            "encoders": fingerprint_of(frozen),
            "adapter": adapter if config.use_peft else "none",
            "resolution": config.resolution or model.resolution,
            "processes": processes,
            "device": device,
            **{name: value for name, value in own.items() if name not in NO_PART},
        },
        FREE,
    )


def content(examples: Sequence[ImageExample]) -> str:
    """32 hexadecimal digits of the data: order, captions, labels, and some of the images."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        digest.update(repr((example.caption, example.desirable)).encode())
    step = max(1, len(examples) // SAMPLED)
    for example in examples[::step][:SAMPLED]:
        for image in example.images:
            try:
                digest.update(hashlib.blake2b(image.read()).digest())
            except CorruptImageError:
                digest.update(b"unreadable")
    return digest.hexdigest()
