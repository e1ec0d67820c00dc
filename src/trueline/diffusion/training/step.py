"""One optimizer step: noised images, predictions, objective, backward.

    batch -> predictions -> objective -> backward

The loss is the mean over the effective batch, whatever the split. Where an objective couples the
batch (Diffusion-KTO's baseline, AOT's sort) only scalars meet: the policy's predictions are made
once without gradient to know them and once more for the backward, or only once where there is one
micro-batch; the reference's are made once and kept for the step.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from trueline.diffusion.bind import BoundDiffusion
from trueline.diffusion.data.batches import NoisyBatch
from trueline.diffusion.models.adapters import adapter_off
from trueline.diffusion.models.families import TextToImage
from trueline.diffusion.models.predictions import (
    AnyPredictions,
    LabeledPredictions,
    PairedPredictions,
    Predictions,
    Space,
)
from trueline.diffusion.training.metrics import diffusion_metrics
from trueline.errors import UserError
from trueline.training.coupling import gather, world_size
from trueline.training.metrics import Sums
from trueline.training.step import NonFiniteError

ErrorSpace: TypeAlias = Literal["native", "epsilon"]


class Reference:
    """The frozen reference: a copy of the denoiser, or the denoiser with its adapter off.

    Args:
        denoiser: the policy as it starts.
        adapter: whether it carries an adapter to switch off; otherwise it is copied now.
    """

    def __init__(self, denoiser: Any, *, adapter: bool) -> None:
        self.denoiser = denoiser if adapter else copy.deepcopy(denoiser).requires_grad_(False)
        self.adapter = adapter
        if not adapter:
            self.denoiser.eval()

    @contextmanager
    def model(self) -> Iterator[Any]:
        """The reference, without gradient and without dropout."""
        with torch.no_grad():
            if not self.adapter:
                yield self.denoiser
                return
            training = self.denoiser.training
            self.denoiser.eval()
            try:
                with adapter_off(self.denoiser):
                    yield self.denoiser
            finally:
                self.denoiser.train(training)


@dataclass(frozen=True)
class DiffusionStep:
    """The effective batch's loss (all processes have the whole) and this one's metrics."""

    loss: float
    metrics: Sequence[Sums]


class DiffusionEngine:
    """Turns an effective batch into gradients.

    Args:
        objective: what to minimize.
        model: the text-to-image model whose denoiser is trained.
        reference: or None for an objective without one.
        error_space: ``"native"`` takes errors of what the model predicts, ``"epsilon"`` of the
            noise that its predictions stand for.
        autocast: the forward passes' precision context; errors and losses are float32 always.
        seed: of dropout, with the step and the micro-batch.
        snr_gamma: min-SNR weights of the losses; None weighs all timesteps alike.

    Raises:
        UserError: the objective assumes predictions of noise and these are others, or it is no mean
            squared error and cannot be weighed by timestep.
    """

    def __init__(
        self,
        objective: BoundDiffusion,
        model: TextToImage,
        reference: Reference | None,
        *,
        error_space: ErrorSpace = "native",
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        seed: int = 0,
        snr_gamma: float | None = None,
    ) -> None:
        if error_space not in ("native", "epsilon"):
            raise UserError(f"error_space must be native or epsilon, got {error_space!r}")
        native = model.schedule.space
        if error_space == "epsilon" and native == "epsilon":
            error_space = "native"
        self.space: Space = native if error_space == "native" else "epsilon"
        objective.require_space(self.space)
        self.objective = objective
        self.model = model
        self.reference = reference
        self.autocast = autocast
        self.seed = seed
        self.weights: Tensor | None = None
        if snr_gamma is not None:
            if not objective.spec.squared_error:
                raise UserError(
                    f"snr_gamma has no meaning for objective {objective.spec.name!r}, which is no "
                    "mean squared error; leave it out"
                )
            self.weights = model.schedule.min_snr(snr_gamma, self.space)

    def step(
        self,
        micro_batches: Sequence[NoisyBatch],
        *,
        total: int,
        step: int = 0,
        through: nn.Module | None = None,
        backward: Callable[[Tensor], Any] = torch.Tensor.backward,
        no_sync: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> DiffusionStep:
        """Accumulate the gradient of the effective batch's loss in the denoiser's parameters.

        Args:
            micro_batches: this process's share of the effective batch.
            total: losses in the whole of it.
            step: which step this is; with the seed it decides dropout.
            through: the wrapper to call (DDP), where it is not the denoiser itself.
            backward: called with a scalar, once a micro-batch.
            no_sync: entered for all micro-batches but the last (gradients meet once a step).

        Raises:
            NonFiniteError: a loss is not finite.
        """
        first, kept, met = self._meet(micro_batches, step, through)
        losses, metrics = [], []
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with contextlib.nullcontext() if last else no_sync():
                reference = kept[number] if kept else None
                predictions = first or self.predictions(
                    batch, through, (step, number), reference=reference
                )
                each = self.objective.losses(predictions, **met[number])
                if self.weights is not None:
                    pairs = self.objective.spec.layout == "paired"
                    index = batch.index[0::2] if pairs else batch.index
                    each = each * self.weights.to(each.device)[index]
                loss = each.sum() / total
                _check(loss, batch)
                backward(loss * world_size())
            losses.append(loss.detach())
            metrics.append(diffusion_metrics(_detached(predictions), self.objective))
        everyone, _ = gather(torch.stack(losses)[:, None].double())
        return DiffusionStep(float(everyone.sum()), metrics)

    def _meet(
        self, micro_batches: Sequence[NoisyBatch], step: int, through: nn.Module | None
    ) -> tuple[AnyPredictions | None, list[Tensor], Sequence[Mapping[str, Tensor]]]:
        """What the effective batch's parts must know of each other; with a single micro-batch also
        its predictions, whose graph then waits for it, with several the reference's predictions."""
        if not self.objective.meets:
            return None, [], [{}] * len(micro_batches)
        single = len(micro_batches) == 1
        parts, rows, kept = None, [], []
        for number, batch in enumerate(micro_batches):
            reference = self._reference(batch)
            with torch.set_grad_enabled(single):
                parts = self.predictions(
                    batch, through if single else None, (step, number), reference=reference
                )
            if reference is not None and not single:
                kept.append(reference)
            row = self.objective.rows(parts)
            assert row is not None
            rows.append(row)
        whole, mine = gather(torch.cat(rows))
        start, met = mine.start, []
        for row in rows:
            met.append(self.objective.met(whole, slice(start, start + len(row))))
            start += len(row)
        return parts if single else None, kept, met

    def predictions(
        self,
        batch: NoisyBatch,
        through: nn.Module | None = None,
        dropout: tuple[int, int] = (0, 0),
        *,
        reference: Tensor | None = None,
    ) -> AnyPredictions:
        """What the objective sees of a micro-batch, in float32.

        Args:
            batch: the noised images.
            through: the wrapper to call, where it is not the denoiser itself.
            dropout: what seeds it: the step and the micro-batch.
            reference: the reference's predictions, where they were made before.
        """
        with self.autocast(), _seeded(batch.noisy.device, self.seed, *dropout):
            policy = self._policy(self.model.denoiser if through is None else through, batch)
        if reference is None:
            reference = self._reference(batch)
        target = batch.target
        if self.space != self.model.schedule.space:
            convert = self.model.schedule.to_epsilon
            target = convert(target, batch.noisy, batch.index)
            policy = convert(policy, batch.noisy, batch.index)
            if reference is not None:
                reference = convert(reference, batch.noisy, batch.index)
        whole = Predictions(policy, target, reference, self.space)
        layout = self.objective.spec.layout
        if layout == "completion":
            return whole
        if layout == "unpaired":
            return LabeledPredictions(whole, batch.desirable)
        return PairedPredictions(whole.map(lambda x: x[0::2]), whole.map(lambda x: x[1::2]))

    def _reference(self, batch: NoisyBatch) -> Tensor | None:
        """The reference's predictions, of what the model predicts."""
        if self.reference is None:
            return None
        with self.reference.model() as model, self.autocast():
            return self._predict(model, batch)

    def _policy(self, model: Any, batch: NoisyBatch) -> Tensor:
        """The policy's predictions; in one batch, unless the rejected images need no gradient."""
        if not self.objective.one_sided:
            return self._predict(model, batch)
        with torch.no_grad():
            rejected = self._predict(self.model.denoiser, batch, slice(1, None, 2))
        chosen = self._predict(model, batch, slice(0, None, 2))
        return torch.stack([chosen, rejected], dim=1).flatten(0, 1)

    def _predict(self, model: Any, batch: NoisyBatch, rows: slice = slice(None)) -> Tensor:
        noisy = batch.noisy[rows].to(self.model.denoiser.dtype)
        conditions = {name: value[rows] for name, value in batch.conditions.items()}
        return self.model.predict(model, noisy, batch.times[rows], conditions).float()


def _detached(batch: AnyPredictions) -> AnyPredictions:
    if isinstance(batch, Predictions):
        return batch.map(torch.Tensor.detach)
    if isinstance(batch, LabeledPredictions):
        return LabeledPredictions(batch.predictions.map(torch.Tensor.detach), batch.desirable)
    return PairedPredictions(
        batch.chosen.map(torch.Tensor.detach), batch.rejected.map(torch.Tensor.detach)
    )


def _check(loss: Tensor, batch: NoisyBatch) -> None:
    if not torch.isfinite(loss):
        names = ", ".join(batch.names[:4])
        raise NonFiniteError(
            f"the loss is not finite on {names}{' and others' if len(batch.names) > 4 else ''}; "
            "training stopped before the update. Lower the learning rate or beta, or train with "
            "mixed_precision: no or bf16"
        )


@contextmanager
def _seeded(device: torch.device, *seed: int) -> Iterator[None]:
    """Dropout drawn from the seed alone, so that a second pass and a resumed run see the same."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(hash(seed) % 2**63)
        yield
