"""DiffusionTrainer: a compact loop over effective batches, on accelerate.

for step in steps:
    engine.step(batches.micro_batches(step))     # gradients of the effective batch's loss
    clip, update, average, log, sample, save
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trueline.diffusion.config import DiffusionConfig
from trueline.diffusion.data.batches import Batches, fit_layout
from trueline.diffusion.data.encode import Encodings
from trueline.diffusion.data.frames import View
from trueline.diffusion.data.images import grid
from trueline.diffusion.data.keeping import Estimate, fingerprint_of
from trueline.diffusion.data.load import ImageExample
from trueline.diffusion.models.families import TextToImage
from trueline.diffusion.models.schedule import check_sampling
from trueline.diffusion.training.checkpoints import load_checkpoint, save_checkpoint
from trueline.diffusion.training.same_run import identity
from trueline.diffusion.training.setup import (
    make_accelerator,
    make_encodings,
    make_learning_rates,
    make_optimizer,
    prepare_denoiser,
)
from trueline.diffusion.training.step import DiffusionEngine
from trueline.diffusion.training.tracking import Trackers, push
from trueline.errors import UserError
from trueline.interrupts import Interrupted
from trueline.runs.record import METRICS, Run
from trueline.runs.state import State, created, held, reached
from trueline.terminal import progress, say
from trueline.training.checkpoints import (
    FROM_THE_START,
    Signals,
    checkpoints,
    claim,
    cut_back,
    kept_identity,
    resume_point,
)
from trueline.training.coupling import on_first_rank
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
        on_step: called after each step with its number.

    Raises:
        UserError: data that the objective cannot take, an option without effect, too little room
            for the cache.

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
        self.accelerator = accelerator or make_accelerator(config)
        used, self.left_out = fit_layout(examples, self.objective.spec.layout)
        processes = self.accelerator.num_processes
        accumulated = config.per_device_train_batch_size * config.gradient_accumulation_steps
        if config.num_train_epochs is not None:
            steps = math.ceil(config.num_train_epochs * len(used) / (accumulated * processes))
            config = self.config = replace(config, num_train_epochs=None, max_steps=steps)
        self.encodings = self._encodings(used)
        base = fingerprint_of({"denoiser": model.denoiser})
        self.reference = prepare_denoiser(
            config, model, self.accelerator.device, reference=self.objective.spec.reference
        )
        self.trained = [p for p in model.denoiser.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config, self.trained)
        self.schedule = make_learning_rates(config, self.optimizer)
        self.ema = self._average()
        compiled = torch.compile(model.denoiser) if config.torch_compile else model.denoiser
        self.wrapped, self.optimizer = self.accelerator.prepare(compiled, self.optimizer)
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
            snr_gamma=config.snr_gamma,
        )
        self.identity = identity(
            config, model, used,
            objective={"name": self.objective.spec.name, **self.objective.options},
            base=base, batch=self.batches.size, processes=processes,
            device=self.accelerator.device.type,
        )  # fmt: skip
        self.estimate = self._estimate()
        self.accumulator = MetricAccumulator()
        self.trackers = Trackers(self.accelerator, config)
        self.done = 0
        self._begun = self._warned = False
        self._signals = Signals()
        self._held = contextlib.ExitStack()

    # --- preparation --------------------------------------------------------------------------

    def _encodings(self, examples: Sequence[ImageExample]) -> Encodings:
        config = self.config
        self.model.place(self.accelerator.device)
        encodings = make_encodings(config, self.model, examples, self.objective.spec.layout)
        if config.encode_first:
            with progress("encoding", len(examples), quiet=self._quiet) as advance:
                encodings.prepare(advance=advance)
            if not encodings.images.budget.refused:
                self.model.place(torch.device("cpu"))  # their work is done
        return encodings

    def _estimate(self) -> Estimate | None:
        """What will be drawn comes to; the first example of this process is encoded for it."""
        if not self.config.cache_latents:
            return None
        place, index = self.batches.mine(0)[0]
        found = self.encodings.estimate(
            View(index, 0, self.batches.draw(0, place).flip),
            self.config.max_steps * self.batches.size,
            captions_dropped=self.config.caption_dropout > 0,
        )
        say(str(found), quiet=self._quiet)
        return found

    def _average(self) -> Any | None:
        if self.config.ema_decay is None:
            return None
        from diffusers.training_utils import EMAModel

        return EMAModel(self.trained, decay=self.config.ema_decay)

    # --- training -----------------------------------------------------------------------------

    def begin(self, *, resume: bool = False) -> None:
        """Have the run directory, for a new run or to go on with the one that lies there; nothing
        in it is changed before that is settled. ``train`` does it where it was not done.

        Raises:
            UserError: another process trains there; there is a run, and none is to be resumed, or
                none to resume, or one that was begun with other settings.
        """
        main, folder = self.accelerator.is_main_process, Path(self.config.output_dir)
        if main:
            self._held.enter_context(held(folder))
        checkpoint = on_first_rank(lambda: resume_point(folder) if resume else None)
        if resume:
            for line in self.identity.take_over(kept_identity(folder, checkpoint), folder):
                say(f"resumed with another {line}", quiet=self._quiet)
        if checkpoint is not None:
            self._resume(checkpoint)
            if main:
                cut_back(self._metrics_file, checkpoint)
        elif resume:
            say(FROM_THE_START, quiet=self._quiet)
            if main:
                Run(folder).begin_log()
        elif main:
            aside = claim(folder, overwrite=self.config.overwrite, also=(METRICS,))
            if aside is not None:
                say(f"set aside: {aside}", quiet=self._quiet)
            Run(folder).begin_log()
        if main:
            created(
                Run(folder), "diffusion align", objective=self.objective.spec.name,
                data=self.config.dataset_name, identity=self.identity.facts, resumed=resume,
            )  # fmt: skip
        self._begun = True

    def train(self, *, resume: bool = False) -> dict[str, float]:
        """Run the remaining steps; returns the last logged metrics.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite.
            UserError: what :meth:`begin` raises; an image cannot be read.
            Interrupted: a signal came; the last whole step is in a checkpoint.
        """
        logged: dict[str, float] = {}
        with self._held:
            if not self._begun:
                self.begin(resume=resume)
            self._begun = False
            try:
                self.batches.expect(self.done, self.config.max_steps)
                self._reached(State.PREPARED)
                with self._signals:
                    self._reached(State.TRAINING)
                    logged = self._loop(fresh=not resume)
            finally:
                self.batches.close()
                self.encodings.flush()
        return logged

    def _reached(self, now: State) -> None:
        if self.accelerator.is_main_process:
            reached(Run(self.config.output_dir), now)

    def _loop(self, *, fresh: bool) -> dict[str, float]:
        logged: dict[str, float] = {}
        title, every = self.objective.spec.name, self.config.save_steps
        with progress(title, self.config.max_steps, quiet=self._quiet) as advance:
            advance(self.done)
            self._sample_if_due(at_start=fresh)
            while self.done < self.config.max_steps:
                logged = self._step() or logged
                advance(1)
                if self.on_step is not None:
                    self.on_step(self.done)
                self._sample_if_due()
                caught = self._signals.agreed(self.accelerator.device)
                if caught or (every and self.done % every == 0):
                    self.save_checkpoint()
                if caught and self.done < self.config.max_steps:
                    folder = Path(self.config.output_dir)
                    raise Interrupted(caught, self.done, checkpoints(folder)[-1])
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
            Run(self.config.output_dir).log({"step": self.done, **row})
        self.trackers.metrics(row, self.done)
        return row

    @property
    def _metrics_file(self) -> Path:
        return Path(self.config.output_dir) / METRICS

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
            pictures = self.sample()
            columns = math.ceil(math.sqrt(len(pictures)))
            grid(pictures, columns).save(folder / f"step-{self.done:06d}.png")
            self.trackers.pictures(pictures, self.config.sample_prompts, self.done)

    def sample(self) -> list[Any]:
        """Pictures of ``sample_prompts``, each from the same noise every time."""
        config = self.config
        prompts = config.sample_prompts
        seeds = [config.sample_seed + i for i in range(len(prompts))]
        with self.encodings.alone, self.averaged(), torch.no_grad(), self.accelerator.autocast():
            made = self.model.generate(
                prompts, seeds, steps=config.num_inference_steps, guidance=config.guidance_scale
            )
        return [one.image for one in made]

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
            if self.config.save_kohya:
                self.model.save_kohya(self.config.output_dir)

    def push(self) -> str | None:
        """Upload what was saved; its address, on the main process.

        Raises:
            UserError: the hub refuses, or is out of reach.
        """
        if not self.accelerator.is_main_process:
            return None
        return push(self.config, type(self.model.pipeline).__name__)

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
        self.encodings.flush()
        if self.accelerator.is_main_process:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "scaler": None if self._scaler is None else self._scaler.state_dict(),
            }
            save_checkpoint(
                self._metrics_file, self.done, self._weights(), state, self.identity,
                limit=self.config.save_total_limit,
            )  # fmt: skip
        self.accelerator.wait_for_everyone()

    def _resume(self, folder: Path) -> None:
        weights, state = load_checkpoint(folder)
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
