"""Schedules against diffusers' own noising, and what is refused."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from trueline.diffusion import schedule_of
from trueline.diffusion.models.schedule import check_sampling
from trueline.errors import UserError

CLEAN, NOISE = torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([0, 417, 999])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_diffusion_noise_and_targets_are_diffusers(kind):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    schedule = schedule_of(scheduler)
    noisy = schedule.add_noise(CLEAN, NOISE, INDEX)
    torch.testing.assert_close(noisy, scheduler.add_noise(CLEAN, NOISE, INDEX))
    truth = NOISE if kind == "epsilon" else scheduler.get_velocity(CLEAN, NOISE, INDEX)
    target = schedule.target(CLEAN, NOISE, INDEX)
    torch.testing.assert_close(target, truth)
    torch.testing.assert_close(schedule.to_epsilon(target, noisy, INDEX), NOISE)
    assert schedule.times[INDEX].tolist() == INDEX.tolist()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_noise_and_times_are_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = schedule_of(scheduler)
    times = schedule.times[INDEX]
    noisy = schedule.add_noise(CLEAN, NOISE, INDEX)
    torch.testing.assert_close(noisy, scheduler.scale_noise(CLEAN, times, NOISE))
    target = schedule.target(CLEAN, NOISE, INDEX)
    torch.testing.assert_close(target, NOISE - CLEAN)
    torch.testing.assert_close(schedule.to_epsilon(target, noisy, INDEX), NOISE)
    scheduler.set_timesteps(4)  # an inference run must not shorten the training schedule
    assert len(schedule_of(scheduler)) == 1000


def test_every_timestep_is_as_likely_or_the_middle_more():
    schedule = schedule_of(FlowMatchEulerDiscreteScheduler())
    rng = np.random.default_rng(0)
    uniform = [schedule.draw(rng) for _ in range(4000)]
    middle = [schedule.draw(rng, "logit_normal") for _ in range(4000)]
    assert min(uniform) < 10
    assert max(uniform) > 989
    assert abs(np.mean(uniform) - 499.5) < 4 * 289 / 4000**0.5
    # P(1/4 < sigmoid(N) < 3/4) = P(|N| < ln 3) = .728
    share = np.mean([250 <= t < 750 for t in middle])
    assert abs(share - 0.728) < 4 * (0.728 * 0.272 / 4000) ** 0.5


def test_other_predictions_are_refused():
    with pytest.raises(UserError, match="predicts 'sample'"):
        schedule_of(DDIMScheduler(prediction_type="sample"))
    with pytest.raises(UserError, match="is for flow matching"):
        check_sampling(schedule_of(DDIMScheduler()), "logit_normal")
    with pytest.raises(UserError, match="no training schedule"):
        schedule_of(object())
    assert schedule_of(EulerDiscreteScheduler()).space == "epsilon"
