"""DiffusionTrainer: a compact loop over effective batches, on accelerate.

for step in steps:
    engine.step(batches.micro_batches(step))     # gradients of the effective batch's loss
    clip, update, average, log, sample, save
"""

from __future__ import annotations

import gc
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trueline.diffusion.adapters import add_adapter
from trueline.diffusion.batches import Batches, fit_layout
from trueline.diffusion.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from trueline.diffusion.config import DiffusionConfig
from trueline.diffusion.data import ImageExample
from trueline.diffusion.encode import Encodings, Framing, cache_folder
from trueline.diffusion.families import TextToImage
from trueline.diffusion.images import grid
from trueline.diffusion.schedule import check_sampling
from trueline.diffusion.step import DiffusionEngine, Reference
from trueline.errors import UserError
from trueline.terminal import progress
from trueline.training.metrics import MetricAccumulator
from trueline.training.step import NonFiniteError

log = logging.getLogger(__name__)

RISING = (
    "step %d: the error on chosen images is %.0f%% above the reference's: the model fits what it "
    "is to prefer worse than it did, whatever the accuracy says. Look at samples; lower the "
    "learning rate or beta, or set sdpo_mu"
)
RISE = 0.1
"""Relative rise of the chosen images' error over the reference's that is worth a warning."""


class DiffusionTrainer:
    """Aligns a text-to-image model with any diffusion objective.

    Args:
        model: what :func:`trueline.diffusion.load_text_to_image` gives.
        config: how to train.
        examples: what :func:`trueline.diffusion.load_image_examples` gives.
        accelerator: accelerate's; one is made from the configuration where None.
        on_step: called after each step with its number and its metrics' row, where one was logged.

    Raises:
        UserError: data that the objective cannot take, an option without effect, an image that
            cannot be read.

    Example:
        >>> model = load_text_to_image("stable-diffusion-v1-5/stable-diffusion-v1-5")
        ... # doctest: +SKIP
        >>> DiffusionTrainer(model, DiffusionConfig(loss_type="dspo"), examples).train()
        ... # doctest: +SKIP
    """

    def __init__(
        self,
        model: TextToImage,
        config: DiffusionConfig,
        examples: Sequence[ImageExample],
        *,
        accelerator: Any | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.config, self.on_step = model, config, on_step
        self.objective = config.bind()
        self.objective.require_space("epsilon" if config.error_space == "epsilon" else
                                     model.schedule.space)  # fmt: skip
        check_sampling(model.schedule, config.timestep_sampling)
        self.accelerator = accelerator or _accelerator(config)
        used, self.left_out = fit_layout(examples, self.objective.spec.layout)
        self.encodings = self._encodings(used)
        self.reference = self._prepare_denoiser()
        self.trained = [p for p in model.denoiser.parameters() if p.requires_grad]
        self.optimizer = _optimizer(config, self.trained)
        self.schedule = _learning_rates(config, self.optimizer)
        self.ema = self._average()
        self.wrapped, self.optimizer = self.accelerator.prepare(model.denoiser, self.optimizer)
        processes = self.accelerator.num_processes
        accumulated = config.per_device_train_batch_size * config.gradient_accumulation_steps
        self.batches = Batches(
            self.encodings,
            model,
            config.drawing,
            layout=self.objective.spec.layout,
            size=accumulated * processes,
            micro=config.per_device_train_batch_size,
            rank=self.accelerator.process_index,
            ranks=processes,
        )
        self.engine = DiffusionEngine(
            self.objective,
            model,
            self.reference,
            error_space=config.error_space,
            autocast=self.accelerator.autocast,
            seed=hash((config.seed, self.accelerator.process_index)),
        )
        self.accumulator = MetricAccumulator()
        self.done = 0
        self._warned = False

    # --- preparation --------------------------------------------------------------------------

    def _encodings(self, examples: Sequence[ImageExample]) -> Encodings:
        config, device = self.config, self.accelerator.device
        framing = Framing(
            config.resolution or self.model.resolution,
            config.random_flip,
            config.random_crop,
            config.seed,
        )
        self.model.place(device)
        encodings = Encodings(
            self.model,
            examples,
            framing,
            folder=cache_folder(config.cache_dir),
            cached=config.cache_latents,
            batch_size=config.encode_batch_size,
        )
        what = "encoding images and captions" if config.cache_latents else "checking images"
        with progress(what, len(examples), quiet=self._quiet) as advance:
            encodings.prepare(skip_bad=config.skip_bad, advance=advance)
        if config.cache_latents:
            self.model.place(torch.device("cpu"))  # their work is done
        return encodings

    def _prepare_denoiser(self) -> Reference | None:
        """Freeze or adapt the denoiser, and take the reference from it as it now is."""
        config, denoiser = self.config, self.model.denoiser
        denoiser.to(self.accelerator.device)
        reference: Reference | None = None
        if config.use_peft:
            add_adapter(
                denoiser,
                rank=config.lora_r,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                targets=config.lora_target_modules or self.model.lora_targets,
                seed=config.seed,
            )
        else:
            if denoiser.dtype != torch.float32:
                denoiser.to(torch.float32)
            denoiser.requires_grad_(True)
        if self.objective.spec.reference:
            reference = Reference(denoiser, adapter=config.use_peft)
        if config.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        denoiser.train()
        return reference

    def _average(self) -> Any | None:
        if self.config.ema_decay is None:
            return None
        from diffusers.training_utils import EMAModel

        return EMAModel(self.trained, decay=self.config.ema_decay)

    # --- training -----------------------------------------------------------------------------

    def train(self, *, resume: bool = False) -> dict[str, float]:
        """Run the remaining steps; returns the last logged metrics.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite.
            UserError: nothing to resume from.
        """
        if resume:
            self._resume(newest_checkpoint(self.config.output_dir))
        elif self.accelerator.is_main_process:
            (Path(self.config.output_dir) / "metrics.jsonl").unlink(missing_ok=True)
        logged: dict[str, float] = {}
        title = self.objective.spec.name
        with progress(title, self.config.max_steps, quiet=self._quiet) as advance:
            advance(self.done)
            self._sample_if_due(at_start=not resume)
            while self.done < self.config.max_steps:
                logged = self._step() or logged
                advance(1)
                if self.on_step is not None:
                    self.on_step(self.done)
                self._sample_if_due()
                if self.config.save_steps and self.done % self.config.save_steps == 0:
                    self.save_checkpoint()
        return logged

    def _step(self) -> dict[str, float] | None:
        """One effective batch; the row of metrics where one was due."""
        device = self.accelerator.device
        micro = [batch.to(device) for batch in self.batches.micro_batches(self.done)]
        result = self.engine.step(
            micro,
            total=self.batches.total(self.done),
            step=self.done,
            through=self.wrapped,
            backward=self.accelerator.backward,
            no_sync=lambda: self.accelerator.no_sync(self.wrapped),
        )
        norm = self._clip()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.trained)
        self.done += 1
        for sums in result.metrics:
            self.accumulator.add(sums)
        self.accumulator.add_value("loss", result.loss)
        self.accumulator.add_value("grad_norm", norm)
        if self.done % self.config.logging_steps and self.done != self.config.max_steps:
            return None
        return self._log()

    def _clip(self) -> float:
        limit = self.config.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self.trained, limit))
        scaled = self.accelerator.mixed_precision == "fp16"  # whose scaler skips such a step
        if not math.isfinite(norm) and not scaled:
            raise NonFiniteError(
                f"the gradient is not finite in step {self.done + 1}; training stopped before the "
                "update. Lower the learning rate, or train with mixed_precision: no or bf16"
            )
        return norm

    def _log(self) -> dict[str, float]:
        row = self.accumulator.read(self.accelerator.device)
        row["learning_rate"] = float(self.schedule.get_last_lr()[0])
        shift = row.get("diffusion/chosen_shift")
        if shift is not None and not self._warned:
            rise = shift / max(row["diffusion/chosen_error"] - shift, 1e-12)
            if rise > RISE:
                self._warned = True
                log.warning(RISING, self.done, 100 * rise)
        if self.accelerator.is_main_process:
            folder = Path(self.config.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.done, **row}) + "\n")
        return row

    @property
    def _quiet(self) -> bool:
        return self.config.disable_tqdm or not self.accelerator.is_main_process

    # --- pictures and weights -----------------------------------------------------------------

    def _sample_if_due(self, *, at_start: bool = False) -> None:
        every = self.config.sample_steps
        if not every or not self.accelerator.is_main_process:
            return
        if at_start or (self.done and self.done % every == 0):
            folder = Path(self.config.output_dir) / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            self.sample().save(folder / f"step-{self.done:06d}.png")

    def sample(self) -> Any:
        """A grid of pictures of ``sample_prompts``, each from the same noise every time."""
        config = self.config
        prompts = config.sample_prompts
        seeds = [config.sample_seed + i for i in range(len(prompts))]
        with self.averaged(), torch.no_grad(), self.accelerator.autocast():
            made = self.model.generate(
                prompts, seeds, steps=config.num_inference_steps, guidance=config.guidance_scale
            )
        return grid([one.image for one in made], columns=math.ceil(math.sqrt(len(made))))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The denoiser out of training mode, and with the averaged weights where there are any."""
        if self.ema is not None:
            self.ema.store(self.trained)
            self.ema.copy_to(self.trained)
        self.model.denoiser.eval()
        try:
            yield
        finally:
            self.model.denoiser.train()
            if self.ema is not None:
                self.ema.restore(self.trained)

    def save_model(self) -> None:
        """The pipeline, or its adapter, into ``output_dir``, with averaged weights where there are
        any; as diffusers loads them."""
        if not self.accelerator.is_main_process:
            return
        with self.averaged():
            self.model.save(self.config.output_dir, adapter=self.config.use_peft)

    def close(self) -> None:
        """Leave the process group in order: the data-parallel wrapper must go before the group
        does, or a process that outlives the others waits for them for ever."""
        self.wrapped = self.model.denoiser
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def save_checkpoint(self) -> None:
        """All that resuming needs, into ``output_dir/checkpoint-STEP``."""
        if self.accelerator.is_main_process:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "scaler": None if self._scaler is None else self._scaler.state_dict(),
                "fingerprint": self._fingerprint,
            }
            save_checkpoint(
                self.config.output_dir, self.done, self._weights(), state,
                limit=self.config.save_total_limit,
            )  # fmt: skip
        self.accelerator.wait_for_everyone()

    def _resume(self, folder: Path) -> None:
        weights, state = load_checkpoint(folder)
        then, now = state["fingerprint"], self._fingerprint
        if then != now:
            changes = [
                f"{k} was {then.get(k)} and is {now[k]}" for k in now if then.get(k) != now[k]
            ]
            raise UserError(f"{folder} belongs to another run: {', '.join(changes)}")
        own = self._weights()
        if weights.keys() != own.keys():
            raise UserError(f"{folder} holds other weights than this model's; check the model")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])
        self.done = int(state["step"])

    def _weights(self) -> dict[str, nn.Parameter]:
        named = self.model.denoiser.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    @property
    def _scaler(self) -> Any | None:
        return getattr(self.accelerator, "scaler", None)

    @property
    def _fingerprint(self) -> dict[str, Any]:
        """What a run must share with its checkpoint to go on as the same run."""
        c = self.config
        return {
            "loss_type": c.loss_type, "options": dict(self.objective.options), "seed": c.seed,
            "effective batch": self.batches.size, "examples": len(self.encodings.examples),
            "ema": c.ema_decay is not None, "optimizer": c.optimizer, "max_steps": c.max_steps,
        }  # fmt: skip


def _accelerator(config: DiffusionConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    kind = str(accelerator.distributed_type.value)
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise UserError(
            f"diffusion align runs on one process or as data parallel, not with {kind}; use_peft: "
            "true and gradient_checkpointing: true fit large models on one device"
        )
    return accelerator


def _optimizer(config: DiffusionConfig, parameters: Sequence[nn.Parameter]) -> Any:
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )


def _learning_rates(config: DiffusionConfig, optimizer: Any) -> Any:
    from diffusers.optimization import get_scheduler

    try:
        return get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.max_steps,
        )
    except ValueError as error:
        raise UserError(f"lr_scheduler_type: {error}") from None
