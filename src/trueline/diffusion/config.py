"""The configuration of `trueline diffusion align`: one dataclass, one flat YAML file."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trueline.config import ConfigError, coerce, read_yaml, scalar
from trueline.config.ranges import AMOUNT, COUNT, POSITIVE, SEED, SHARE, check_ranges
from trueline.diffusion.bind import BoundDiffusion, bind_diffusion, find
from trueline.diffusion.data.batches import Drawing
from trueline.diffusion.data.keeping import Keeping, cache_folder
from trueline.diffusion.models.schedule import TimestepSampling
from trueline.diffusion.training.step import ErrorSpace
from trueline.options import Range
from trueline.registry import nearest

OWN_RANGES: Mapping[str, Range] = {
    **dict.fromkeys("max_steps encode_batch_size logging_steps lr_num_cycles num_inference_steps "
                    "resolution".split(), COUNT),
    **dict.fromkeys(("cache_limit_gb", "snr_gamma"), POSITIVE),
    **dict.fromkeys(("caption_dropout", "sdpo_mu"), SHARE),
    "ema_decay": Range(0, 1, open="both"), "save_steps": AMOUNT, "sample_seed": SEED,
}  # fmt: skip
"""Ranges that are not those of :data:`trueline.config.ranges.RANGES`."""

Precision = Literal["no", "bf16", "fp16"]


@dataclass
class DiffusionConfig:
    """How to align a text-to-image model. Options of the objective may stand beside these keys.

    Args:
        model_name_or_path: a diffusers pipeline: a folder or a hub id.
        model_revision: branch, tag or commit of a hub model.
        model_variant: which of its files, such as fp16.
        vae_model_name_or_path: another image encoder in the place of its own, as SDXL's in half
            precision needs.
        dtype: float32, bfloat16 or float16: of the frozen parts, and of the denoiser under an
            adapter. What is trained is float32.
        use_peft: train a LoRA adapter; the reference is the model with the adapter off.
        lora_r, lora_alpha, lora_dropout, lora_target_modules: as in peft; the targets default to
            the attention's projections.
        dataset_name: a JSONL file, a folder, a Parquet file or a hub id; see
            :func:`trueline.diffusion.data.load.load_image_examples`.
        dataset_config, dataset_train_split: of a hub data set.
        max_samples: only the first so many rows; of a hub data set no more are downloaded.
        skip_bad: drop rows that cannot be read, take the next example in the place of one whose
            images cannot, and count both, rather than stop.
        resolution: pixels of a side; the model's own where None.
        random_flip: mirror half of the examples, both images of a pair alike.
        random_crop: cut the square out of a random place, the same for both images of a pair and
            in every epoch; otherwise out of the middle.
        caption_dropout: share of examples shown without caption, for guidance; both images alike.
        cache_latents: keep what images and captions are encoded to when they are first drawn.
        cache_dir: where to keep it; ``"none"`` keeps it in memory.
        cache_dtype: float16 or float32: what encodings are rounded to, kept or not.
        cache_limit_gb: keep no more than that; the rest is encoded each time it is drawn.
        encode_first: encode everything before the first step, which also finds every image that
            cannot be read.
        encode_batch_size: images, or captions, encoded at once. With more than 1 the last bits of
            an encoding depend on what stands beside it.
        dataloader_num_workers: threads that read and resize images ahead of the steps; with any,
            one more encodes the next step's while this one trains.
        loss_type: a diffusion objective, or a paired objective with a reference of the others.
        beta: its beta, where it has one.
        objective_options: any other of its options by name.
        sdpo_mu: put the SDPO safeguard before it; in [0, 1).
        error_space: ``native`` or ``epsilon``: errors of what the model predicts, or of the noise
            that its predictions stand for.
        timestep_sampling: ``uniform``, or for flow matching ``logit_normal``.
        output_dir: the run directory.
        max_steps: optimizer steps; 1000 where num_train_epochs is not given either.
        num_train_epochs: instead of them, how often all examples are seen.
        per_device_train_batch_size: examples (pairs, or labeled images) in one forward pass.
        gradient_accumulation_steps: forward passes in a step; the update depends on the effective
            batch alone: the batch size times these times processes.
        learning_rate, weight_decay, adam_beta1, adam_beta2, adam_epsilon: of the optimizer.
        optimizer: ``adamw``, ``adamw_8bit`` (needs the extra bitsandbytes) or ``adafactor``.
        lr_scheduler_type, warmup_steps: any schedule of diffusers (constant, linear, cosine ...).
        lr_num_cycles, lr_power: of cosine_with_restarts, and of polynomial.
        max_grad_norm: clip the gradient's norm; 0 does not.
        mixed_precision: ``no``, ``bf16`` or ``fp16``; errors and losses are float32 always.
        gradient_checkpointing: compute activations again in the backward pass.
        allow_tf32: let matrix products of float32 round to TF32, on GPUs that have it.
        channels_last: keep the denoiser's weights and inputs in that memory format.
        torch_compile: compile the denoiser.
        snr_gamma: min-SNR weights of timesteps (arXiv 2303.09556; 5 is usual), for objectives that
            are mean squared errors.
        ema_decay: keep a moving average of the trained weights, and save that; None does not.
        seed: of everything drawn.
        logging_steps, save_steps, save_total_limit: 0 saves no checkpoint; the limit keeps the last
            so many.
        sample_prompts: captions of a grid of pictures made during training.
        sample_steps: steps between grids; 0 makes none.
        sample_seed, num_inference_steps, guidance_scale: how those pictures are made.
        report_to: trackers by name (tensorboard, wandb, trackio ...) that get metrics and grids.
        save_kohya: beside a LoRA adapter of SD or SDXL leave it in kohya's format, too.
        push_to_hub, hub_model_id, hub_private_repo: upload what was trained, in the end.
        overwrite: set aside a run that lies in output_dir, by another name.
        disable_tqdm: no progress bar.
    """

    model_name_or_path: str | None = None
    model_revision: str | None = None
    model_variant: str | None = None
    vae_model_name_or_path: str | None = None
    dtype: str = "float32"
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_target_modules: list[str] | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    max_samples: int | None = None
    skip_bad: bool = False
    resolution: int | None = None
    random_flip: bool = False
    random_crop: bool = False
    caption_dropout: float = 0.0
    cache_latents: bool = True
    cache_dir: str | None = None
    cache_dtype: Literal["float16", "float32"] = "float16"
    cache_limit_gb: float | None = None
    encode_first: bool = False
    encode_batch_size: int = 1
    dataloader_num_workers: int = 2
    loss_type: str = "dspo"
    beta: float | None = None
    objective_options: dict[str, Any] = field(default_factory=dict)
    sdpo_mu: float | None = None
    error_space: ErrorSpace = "native"
    timestep_sampling: TimestepSampling = "uniform"
    output_dir: str = "runs/diffusion"
    max_steps: int = 1000
    num_train_epochs: float | None = None
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    lr_scheduler_type: str = "constant_with_warmup"
    warmup_steps: int = 0
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    max_grad_norm: float = 1.0
    mixed_precision: Precision = "no"
    gradient_checkpointing: bool = False
    allow_tf32: bool = False
    channels_last: bool = False
    torch_compile: bool = False
    snr_gamma: float | None = None
    ema_decay: float | None = None
    seed: int = 0
    logging_steps: int = 10
    save_steps: int = 500
    save_total_limit: int | None = None
    sample_prompts: list[str] = field(default_factory=list)
    sample_steps: int = 0
    sample_seed: int = 0
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    report_to: list[str] | str = field(default_factory=list)
    save_kohya: bool = False
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    overwrite: bool = False
    disable_tqdm: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.report_to, str):
            names = [name.strip() for name in self.report_to.split(",")]
            self.report_to = [name for name in names if name not in ("", "none")]
        hints = typing.get_type_hints(type(self))
        for name, hint in hints.items():
            if typing.get_origin(hint) is Literal and getattr(self, name) not in hint.__args__:
                known = ", ".join(map(str, hint.__args__))
                raise ConfigError(f"{name} must be one of {known}; got {getattr(self, name)!r}")
        check_ranges(self, OWN_RANGES)
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}")
        self._without_effect()

    def _without_effect(self) -> None:
        """Options that would change nothing as the others stand."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        groups = {
            "use_peft: true": ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules",
                               "save_kohya"),
            "cache_latents: true": ("cache_dir", "cache_limit_gb", "encode_first"),
            "push_to_hub: true": ("hub_model_id", "hub_private_repo"),
            "lr_scheduler_type: cosine_with_restarts": ("lr_num_cycles",),
            "lr_scheduler_type: polynomial": ("lr_power",),
            "sample_steps": ("sample_seed", "num_inference_steps", "guidance_scale"),
            "a schedule that warms up": ("warmup_steps",),
        }  # fmt: skip
        active = {"use_peft: true": self.use_peft, "cache_latents: true": self.cache_latents,
                  "push_to_hub: true": self.push_to_hub,
                  f"lr_scheduler_type: {self.lr_scheduler_type}": True,
                  "sample_steps": self.sample_steps,
                  "a schedule that warms up": self.lr_scheduler_type != "constant"}  # fmt: skip
        for condition, names in groups.items():
            for name in names:
                if not active.get(condition) and getattr(self, name) != defaults[name]:
                    raise ConfigError(f"{name} has no effect without {condition}")
        if self.dtype != "float32" and not self.use_peft and self.mixed_precision == "no":
            raise ConfigError(
                f"dtype {self.dtype} is of the frozen parts, and what is trained is float32; set "
                "mixed_precision: bf16 (or fp16) beside it, or use_peft: true"
            )
        if self.num_train_epochs is not None and self.max_steps != defaults["max_steps"]:
            raise ConfigError("num_train_epochs and max_steps both say how long; leave one out")
        if bool(self.sample_steps) != bool(self.sample_prompts):
            raise ConfigError("sample_steps and sample_prompts have no effect without each other")

    @property
    def keeping(self) -> Keeping:
        """How encodings are kept."""
        return Keeping(
            cache_folder(self.cache_dir),
            cached=self.cache_latents,
            half=self.cache_dtype == "float16",
            limit=None if self.cache_limit_gb is None else int(self.cache_limit_gb * 1e9),
            batch_size=self.encode_batch_size,
            workers=self.dataloader_num_workers,
            skip_bad=self.skip_bad,
        )

    @property
    def drawing(self) -> Drawing:
        """What is drawn for each example."""
        return Drawing(self.seed, self.random_flip, self.caption_dropout, self.timestep_sampling)

    def bind(self) -> BoundDiffusion:
        """The objective with its options.

        Raises:
            UserError: an unknown objective or option.
        """
        given = dict(self.objective_options)
        if self.beta is not None:
            given["beta"] = self.beta
        return bind_diffusion(self.loss_type, given, sdpo_mu=self.sdpo_mu)


def load_diffusion_config(path: str | Path | None, overrides: Mapping[str, Any]) -> DiffusionConfig:
    """Read a flat YAML file and lay command-line overrides over it.

    Args:
        path: the file, or None.
        overrides: keys and values of the command line; strings are read as YAML scalars.

    Raises:
        ConfigError: an unknown key, with the nearest name; a value of the wrong type.
    """
    values = {**(read_yaml(path) if path is not None else {}), **overrides}
    hints = typing.get_type_hints(DiffusionConfig)
    own = find(str(values.get("loss_type", DiffusionConfig.loss_type))).options
    chosen: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in values.items():
        if key in hints:
            literal = typing.get_origin(hints[key]) is Literal
            plain = "no" if key == "mixed_precision" and value is False else value  # YAML's no
            chosen[key] = plain if literal else coerce(key, plain, hints[key])
        elif key in own:
            extra[key] = scalar(value)
        else:
            known = nearest(key, [*hints, *own])
            raise ConfigError(f"unknown configuration key {key!r}{known}")
    if extra:
        chosen["objective_options"] = {**chosen.get("objective_options", {}), **extra}
    return DiffusionConfig(**chosen)
