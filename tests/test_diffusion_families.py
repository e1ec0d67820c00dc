"""Flux and SD3 beside the others, options of diffusers, and each scheduler right or refused."""

import copy
import functools
import importlib.util
import json
import shutil

import diffusers
import pytest
import torch

from closeness import assert_same_movement
from tiny_diffusion import (
    PIPELINES,
    float64,
    pick_rows,
    tiny_flux,
    tiny_sd,
    tiny_sdxl,
    trainer,
    weights,
)
from trueline.diffusion import DiffusionConfig, load_text_to_image, text_to_image
from trueline.diffusion.models.schedule import schedule_of
from trueline.errors import UserError

# --- P8: what diffusers' scripts offer -----------------------------------------------------------


def test_p8_flux_is_read_as_its_pipeline_packs_it():
    """Tokens, places and the way back against the pipeline's own."""
    pipeline = tiny_flux()
    model = text_to_image(pipeline)
    noisy = torch.randn(2, 4, 8, 6)
    conditions = model.encode_captions(["a red square", ""])
    seen = {}

    def through(**given):
        seen.update(given)
        return (given["hidden_states"] * 2,)

    assert torch.equal(model.predict(through, noisy, torch.tensor([500.0, 1.0]), conditions),
                       2 * noisy)  # fmt: skip
    own = pipeline._pack_latents(noisy, 2, 4, 8, 6)
    assert torch.equal(seen["hidden_states"], own)
    places = pipeline._prepare_latent_image_ids(2, 4, 3, torch.device("cpu"), torch.float32)
    assert torch.equal(seen["img_ids"], places)
    assert seen["timestep"].tolist() == [0.5, pytest.approx(0.001)]


def test_p8_flow_models_learn_from_pairs_through_the_same_scorer(tmp_path):
    """An adapter on Flux learns to prefer the chosen of two pairs; the margin starts at 0."""
    run = trainer(
        tmp_path, tiny_flux(), pick_rows(2), use_peft=True, lora_r=8, lora_alpha=8,
        loss_type="diffusion_dpo", beta=200.0, learning_rate=2e-2, max_steps=8,
        timestep_sampling="logit_normal",
    )  # fmt: skip
    row = run.train()
    assert row["rewards/margins"] > 0


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_p8_kohyas_format_is_the_same_adapter(tmp_path, make):
    base = make()
    run = trainer(
        tmp_path, copy.deepcopy(base), use_peft=True, lora_r=4, lora_alpha=16, save_kohya=True,
        learning_rate=0.05, max_steps=2,
    )  # fmt: skip
    run.train()
    run.save_model()
    base.load_lora_weights(str(tmp_path / "kohya"))
    batch = next(run.batches.micro_batches(0))
    with torch.no_grad():
        own = run.engine._predict(run.model.denoiser.eval(), batch)
        loaded = run.engine._predict(base.unet.eval(), batch)
        with run.reference.model() as reference:
            before = run.engine._predict(reference, batch)
    assert (own - before).norm() > 0.1
    torch.testing.assert_close(loaded, own, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="save_kohya is for SD and SDXL"):
        text_to_image(PIPELINES["sd3"]()).save_kohya(tmp_path)


def test_p8_trackers_get_numbers_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trainer(tmp_path, report_to="tensorboard", sample_prompts=["a cross", "a red square"],
                  sample_steps=2, num_inference_steps=2, max_steps=2)  # fmt: skip
    run.train()
    run.close()
    events = EventAccumulator(str(tmp_path / "trueline"))
    events.Reload()
    assert "loss" in events.Tags()["scalars"]
    assert [e.step for e in events.Scalars("loss")] == [1, 2]
    assert set(events.Tags()["images"]) == {"samples/a cross", "samples/a red square"}
    assert [e.step for e in events.Images("samples/a cross")] == [0, 2]
    with pytest.raises(UserError, match="report_to"):
        trainer(tmp_path, report_to="nobody")


def test_p8_what_was_trained_goes_to_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    sent = {}

    class Api:
        def create_repo(self, name, **given):
            sent["repo"] = name, given
            return huggingface_hub.RepoUrl(f"https://huggingface.co/someone/{name}")

        def upload_folder(self, **given):
            from huggingface_hub.utils import filter_repo_objects

            files = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
            sent["files"] = set(filter_repo_objects(
                files, allow_patterns=given["allow_patterns"],
                ignore_patterns=given["ignore_patterns"],
            ))  # fmt: skip

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    run = trainer(tmp_path, use_peft=True, push_to_hub=True, hub_model_id="mine", max_steps=1,
                  save_steps=1)  # fmt: skip
    run.train()
    run.save_model()
    assert run.push() == "https://huggingface.co/someone/mine"
    assert "pytorch_lora_weights.safetensors" in sent["files"]
    assert not any("checkpoint" in name for name in sent["files"])


def test_p8_min_snr_is_diffusers_weight():
    from diffusers.training_utils import compute_snr

    for prediction, plus in (("epsilon", 0), ("v_prediction", 1)):
        scheduler = diffusers.DDPMScheduler(prediction_type=prediction)
        schedule = schedule_of(scheduler)
        snr = compute_snr(scheduler, torch.arange(1000))
        truth = torch.minimum(snr, torch.tensor(5.0)) / (snr + plus)
        torch.testing.assert_close(schedule.min_snr(5.0, schedule.space), truth, rtol=1e-4, atol=0)


def test_p8_min_snr_weighs_squared_errors_and_nothing_else(tmp_path):
    run = trainer(tmp_path, loss_type="diffusion_sft", snr_gamma=5.0, max_steps=1)
    (batch,) = run.batches.micro_batches(0)
    error = run.engine.predictions(batch).error
    weight = run.model.schedule.min_snr(5.0, "epsilon")[batch.index]
    assert run.train()["loss"] == pytest.approx((weight * error).mean().item(), rel=1e-5)
    with pytest.raises(UserError, match="no mean squared error"):
        trainer(tmp_path, loss_type="diffusion_dpo", snr_gamma=5.0)
    with pytest.raises(UserError, match="this model predicts flow"):
        trainer(tmp_path, PIPELINES["sd3"](), loss_type="diffusion_sft", snr_gamma=5.0)


def test_p8_memory_format_and_tf32_change_nothing_here(tmp_path):
    same = {"channels_last": True, "allow_tf32": True}
    with float64():
        plain, other = trainer(tmp_path / "a"), trainer(tmp_path / "b", **same)
        start = weights(plain)
        plain.train()
        other.train()
    assert_same_movement(weights(plain), weights(other), start, tolerance=1e-9)


def test_p8_epochs_restarts_a_variant_and_another_vae(tmp_path):
    run = trainer(tmp_path / "run", num_train_epochs=1.5, max_steps=1000, lr_num_cycles=2,
                  lr_scheduler_type="cosine_with_restarts")  # fmt: skip
    assert run.config.max_steps == 5, "9 examples of 6, two a step"
    assert run.estimate.images == 12
    rates = [run.schedule.lr_lambdas[0](step) for step in (0, 2, 3, 5)]
    assert rates[0] == 1 and rates[2] > rates[1] and rates[3] == 0  # noqa: PT018
    pipeline, other = tiny_sd(), tiny_sd(seed=1).vae
    pipeline.save_pretrained(tmp_path / "base", variant="fp16")
    other.save_pretrained(tmp_path / "vae")
    model = load_text_to_image(
        str(tmp_path / "base"), variant="fp16", vae=str(tmp_path / "vae"), dtype="bfloat16"
    )
    for loaded, kept in ((model.denoiser, pipeline.unet), (model.pipeline.vae, other)):
        for one, two in zip(loaded.parameters(), kept.parameters(), strict=True):
            assert torch.equal(one, two.bfloat16())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train_epochs": 1, "max_steps": 5}, "both say how long"),
        ({"lr_num_cycles": 2}, "no effect without lr_scheduler_type: cosine_with_restarts"),
        ({"lr_power": 2.0, "lr_scheduler_type": "linear"}, "lr_scheduler_type: polynomial"),
    ],
)
def test_p8_what_would_have_no_effect_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        DiffusionConfig(**options)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(("backend", "tolerance"), [("eager", 1e-9), ("inductor", 1e-4)])
def test_p8_a_compiled_denoiser_trains_the_same_and_is_saved_as_itself(
    tmp_path, adapter, backend, tolerance, monkeypatch
):
    """Traced alone, and with the compiler behind it, whose kernels round in another order where
    diffusers keeps to float32 (the time embedding)."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch's compiler needs g++")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    found = []
    for name, compiled in (("plain", False), ("compiled", True)):
        with float64():
            run = trainer(tmp_path / name, torch_compile=compiled, use_peft=adapter, max_steps=2)
            start = weights(run)
            run.train()
        run.save_model()
        found.append(weights(run))
    assert type(run.wrapped).__name__ == "OptimizedModule"
    assert_same_movement(*found, start, tolerance=tolerance)
    files = [sorted(p.name for p in (tmp_path / name).rglob("*.safetensors"))
             for name in ("plain", "compiled")]  # fmt: skip
    assert files[0] == files[1]


def test_p8_8bit_adam_needs_its_library_and_trains_with_it(tmp_path):
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(UserError, match="bitsandbytes"):
            trainer(tmp_path, optimizer="adamw_8bit")
        return
    run = trainer(tmp_path, optimizer="adamw_8bit", learning_rate=1e-2, max_steps=2)
    start = weights(run)
    run.train()
    assert type(run.optimizer.optimizer).__name__ == "AdamW8bit"
    assert (weights(run) - start).norm() > 0.01


# --- P10: each scheduler right, or refused by name -----------------------------------------------

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SAMPLERS = [
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler",
    "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "DEISMultistepScheduler", "LCMScheduler",
    "TCDScheduler", "SASolverScheduler",
]  # fmt: skip


@pytest.mark.parametrize("zero", [False, True], ids=["plain", "zero terminal SNR"])
def test_p10_every_sampler_trains_on_the_schedule_of_its_configuration(zero):
    """In float64 from the betas, rescaled as in arXiv 2305.08891, algorithm 1."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    if zero:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    config = diffusers.DDPMScheduler(**NOISE, rescale_betas_zero_snr=zero).config
    for name in SAMPLERS:
        schedule = schedule_of(getattr(diffusers, name).from_config(dict(config)))
        assert schedule.signal[-1] == 0 or not zero, name
        torch.testing.assert_close(schedule.signal.double(), root, rtol=0, atol=2e-5, msg=name)
        both = schedule.signal.square() + schedule.noise.square()
        torch.testing.assert_close(both, torch.ones(1000))


@pytest.mark.parametrize(
    "name", ["CogVideoXDDIMScheduler", "EDMEulerScheduler", "RePaintScheduler",
             "IPNDMScheduler"],
)  # fmt: skip
def test_p10_others_are_refused_by_name(name):
    with pytest.raises(UserError, match=name):
        schedule_of(getattr(diffusers, name)())


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
             "FlowMatchLCMScheduler"],
)  # fmt: skip
def test_p10_flow_schedulers_train_and_paint(tmp_path, name):
    pipeline = PIPELINES["sd3"]()
    kind = getattr(diffusers, name)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    pipeline.scheduler.set_timesteps(3)  # what a pipeline that has painted is left with
    schedule = schedule_of(pipeline.scheduler)
    assert len(schedule) == len(schedule.signal) == 1000
    torch.testing.assert_close(schedule.times, 1000 * schedule.noise, rtol=1e-5, atol=1e-3)
    assert (schedule.noise[:-1] > schedule.noise[1:]).all()
    run = trainer(tmp_path, pipeline, sample_prompts=["a cross"], sample_steps=1, max_steps=1,
                  num_inference_steps=2)  # fmt: skip
    row = run.train()
    assert json.dumps(row)
    assert (tmp_path / "samples" / "step-000001.png").exists()
