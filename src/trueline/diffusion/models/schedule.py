"""Noise schedules: how an image is noised, and what a model is to predict of it.

    x_t = a_t x_0 + b_t eps

with a^2 + b^2 = 1 for diffusion and a = 1 - b for flow matching. The targets are eps, or
v = a eps - b x_0, or (flow) eps - x_0. At a given x_t each is an affine function of eps:

    eps = e,    eps = a v + b x_t,    eps = x_t + a v

so that any model's predictions can be converted to noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from trueline.diffusion.models.predictions import Space, per_image
from trueline.errors import UserError

TimestepSampling: TypeAlias = Literal["uniform", "logit_normal"]

SPACES: dict[str, Space] = {"epsilon": "epsilon", "v_prediction": "v"}


@dataclass(frozen=True)
class Schedule:
    """Coefficients of T training timesteps.

    Args:
        space: what the model predicts.
        signal: (T,) a_t.
        noise: (T,) b_t.
        times: (T,) what the model is told: the timestep, or 1000 sigma in flow matching.
    """

    space: Space
    signal: Tensor
    noise: Tensor
    times: Tensor

    def __len__(self) -> int:
        return len(self.times)

    def add_noise(self, clean: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """(B, ...) x_t of clean images at (B,) timestep indices."""
        a, b = self._at(index, clean)
        return a * clean + b * noise

    def target(self, clean: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """(B, ...) what the model is to predict."""
        if self.space == "epsilon":
            return noise
        if self.space == "flow":
            return noise - clean
        a, b = self._at(index, clean)
        return a * noise - b * clean

    def to_epsilon(self, prediction: Tensor, noisy: Tensor, index: Tensor) -> Tensor:
        """(B, ...) the noise that a prediction at ``noisy`` stands for."""
        if self.space == "epsilon":
            return prediction
        a, b = self._at(index, noisy)
        return noisy + a * prediction if self.space == "flow" else a * prediction + b * noisy

    def min_snr(self, gamma: float, space: Space) -> Tensor:
        """(T,) min-SNR weights min(SNR, gamma) / SNR of noise errors, / (SNR + 1) of v errors.

        Raises:
            UserError: flow matching, which the weights are not made for.
        """
        if space == "flow":
            raise UserError(
                "snr_gamma is for predictions of noise or v, and this model predicts flow; leave "
                "it out (timestep_sampling: logit_normal is what flow matching has)"
            )
        snr = (self.signal.double() / self.noise.double()).square()
        least = snr.clamp(max=gamma)
        if space == "v":
            return (least / (snr + 1)).float()
        return torch.where(snr > 0, least / snr, torch.ones_like(snr)).float()  # its limit at 0

    def draw(self, rng: np.random.Generator, sampling: TimestepSampling = "uniform") -> int:
        """A timestep's index: each as likely, or denser in the middle as SD3 was trained."""
        if sampling == "uniform":
            return int(rng.integers(len(self)))
        u = 1 / (1 + np.exp(-rng.standard_normal()))
        return min(int(u * len(self)), len(self) - 1)

    def _at(self, index: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        at = index.to(self.signal.device)
        return tuple(per_image(c[at].to(like), like) for c in (self.signal, self.noise))  # type: ignore[return-value]


NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
         "rescale_betas_zero_snr")  # fmt: skip
"""What of a scheduler's configuration decides how it noises."""


def schedule_of(scheduler: Any) -> Schedule:
    """The training schedule behind a diffusers scheduler.

    A sampler may change the schedule for its own ends: Euler's and DPM-Solver's last step of zero
    signal is not quite zero, and others ignore ``rescale_betas_zero_snr``. So it is worked out
    anew, as DDPM does, and has to agree with the sampler's where neither is changed.

    Raises:
        UserError: it predicts something else than noise, v or flow, or noises in another way.
    """
    kind = type(scheduler).__name__
    config: Any = getattr(scheduler, "config", {})
    if "FlowMatch" in kind and not config.get("invert_sigmas"):
        # one instance may have been set to an inference run: take the training schedule anew
        fresh = type(scheduler).from_config(config)
        count = config.num_train_timesteps
        sigmas, times = fresh.sigmas[:count].float(), fresh.timesteps[:count].float()
        return Schedule("flow", 1 - sigmas, sigmas, times)
    if not hasattr(scheduler, "alphas_cumprod") or "beta_schedule" not in config:
        raise UserError(
            f"{kind} has no training schedule that alignment knows; it takes schedulers with "
            "alphas_cumprod (DDPM, DDIM, Euler, DPM-Solver ...) and FlowMatch ones"
        )
    prediction = config.get("prediction_type")
    if prediction not in SPACES:
        raise UserError(
            f"{kind} predicts {prediction!r}; alignment knows {', '.join(SPACES)} and flow matching"
        )
    kept = _signal(kind, {name: config[name] for name in NOISE if name in config})
    plain = type(scheduler).from_config(config, rescale_betas_zero_snr=False).alphas_cumprod.float()
    if not torch.allclose(_signal(kind, {n: config[n] for n in NOISE[:-1] if n in config}), plain):
        raise UserError(f"{kind} noises in a way of its own, which alignment does not know")
    return Schedule(SPACES[prediction], kept.sqrt(), (1 - kept).sqrt(), torch.arange(len(kept)))


def _signal(kind: str, noise: Mapping[str, Any]) -> Tensor:
    """(T,) a_t^2 of the standard schedules."""
    from diffusers import DDPMScheduler

    try:
        return DDPMScheduler(**noise).alphas_cumprod.float()
    except NotImplementedError:
        raise UserError(f"{kind}: {noise.get('beta_schedule')!r} is no schedule DDPM has") from None


def check_sampling(schedule: Schedule, sampling: str) -> None:
    """Logit-normal timesteps belong to flow matching.

    Raises:
        UserError: another name, or another schedule.
    """
    if sampling not in ("uniform", "logit_normal"):
        raise UserError(f"timestep_sampling must be uniform or logit_normal, got {sampling!r}")
    if sampling == "logit_normal" and schedule.space != "flow":
        raise UserError(
            "timestep_sampling: logit_normal is for flow matching, and this model predicts "
            f"{schedule.space!r}; use uniform"
        )
