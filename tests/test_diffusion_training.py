"""Aligning tiny pipelines of the real classes: exactness, caches, resuming, what is logged."""

import copy
import logging

import pytest
import torch
from PIL import Image

import processes
from closeness import assert_same_movement
from tiny_diffusion import (
    PIPELINES,
    float64,
    logged,
    pick_rows,
    picture,
    tiny_sd,
    tiny_sdxl,
    trainer,
    weights,
)
from trueline.diffusion import (
    DIFFUSION_OBJECTIVES,
    DiffusionConfig,
    DiffusionEngine,
    DiffusionTrainer,
    Reference,
    bind_diffusion,
    load_image_examples,
    text_to_image,
)
from trueline.diffusion.data.batches import Batches, Drawing
from trueline.diffusion.data.encode import Encodings
from trueline.diffusion.data.frames import Framing, View
from trueline.diffusion.data.keeping import Keeping
from trueline.errors import UserError
from trueline.training import NonFiniteError


def moved(pipeline, amount=0.05):
    """A copy whose denoiser differs a little, so that no log-ratio is 0."""
    other = copy.deepcopy(pipeline)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in other.unet.parameters():
            p += amount * torch.randn(p.shape, generator=generator)
    return other


# --- the split does not matter ------------------------------------------------------------------


def step_gradient(name, micro, options=None, mu=None):
    """Loss and gradient of one effective batch of 6 pairs, in float64, off the reference."""
    reference, policy = tiny_sd(), moved(tiny_sd())
    model = text_to_image(policy)
    examples = load_image_examples(pick_rows(6)).examples
    encodings = Encodings(model, examples, Framing(16, flip=True))
    objective = bind_diffusion(name, options, sdpo_mu=mu)
    batches = Batches(
        encodings, model, Drawing(0, True, 0.3), layout=objective.spec.layout, size=6, micro=micro
    )
    policy.unet.double()
    frozen = Reference(reference.unet.double(), adapter=False) if objective.spec.reference else None
    engine = DiffusionEngine(objective, model, frozen)
    micros = list(batches.micro_batches(0))
    result = engine.step(micros, total=batches.total(0))
    gradient = torch.cat([p.grad.flatten() for p in policy.unet.parameters()])
    return result.loss, gradient


@pytest.mark.parametrize("name", [*DIFFUSION_OBJECTIVES, "ipo", "dil", "aot", "aot_unpaired"])
def test_every_split_of_a_batch_gives_the_same_gradient(name):
    loss, truth = step_gradient(name, 6)
    assert truth.abs().max() > 0
    for micro in (1, 4):
        again, gradient = step_gradient(name, micro)
        assert again == pytest.approx(loss, rel=1e-5)
        assert_same_movement(gradient, truth, 0.0)


def test_a_one_sided_objective_saves_a_backward_and_changes_nothing(monkeypatch):
    """DSPO with a fixed target: the rejected images' predictions are made without a graph."""
    options = {"beta": 0.9, "detach": True}
    loss, gradient = step_gradient("dspo", 3, options)
    monkeypatch.setattr("trueline.diffusion.bind.BoundDiffusion.one_sided", False)
    again, truth = step_gradient("dspo", 3, options)
    assert again == pytest.approx(loss, rel=1e-6)
    assert_same_movement(gradient, truth, 0.0)


def test_the_kto_baseline_matters_here():
    """Otherwise the test above would not see a baseline that is the micro-batch's own."""
    loss, _ = step_gradient("diffusion_kto", 6, {"beta": 20.0})
    model = text_to_image(moved(tiny_sd()))
    assert abs(loss - 0.5) > 1e-4
    assert model.schedule.space == "epsilon"


@pytest.mark.parametrize("peft", [False, True])
def test_accumulation_equals_one_batch_over_steps(tmp_path, peft):
    runs, start = [], None
    for size, accumulation in ((4, 1), (1, 4)):
        options = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulation,
            "loss_type": "diffusion_kto",
            "beta": 100.0,
            "use_peft": peft,
            "ema_decay": 0.9,
            "learning_rate": 1e-2,
        }
        with float64():
            run = trainer(tmp_path / str(size), **options)
            start = weights(run)
            run.train()
        runs.append(run)
    assert_same_movement(weights(runs[0]), weights(runs[1]), start, tolerance=1e-9)
    with runs[0].averaged():
        averaged = weights(runs[0])
    assert not torch.equal(averaged, weights(runs[0]))


def aligned(name, folder, processes):
    """The trainer after four steps of four pairs, however many processes share them."""
    config = DiffusionConfig(
        loss_type=name,
        beta=20.0,
        output_dir=str(folder / name),
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4 // processes,
        learning_rate=1e-2,
        random_flip=True,
        caption_dropout=0.2,
        cache_dir=str(folder / "cache"),
        logging_steps=1,
        disable_tqdm=True,
    )
    examples = load_image_examples(pick_rows(6)).examples
    with float64():
        run = DiffusionTrainer(text_to_image(tiny_sd()), config, examples)
        start = weights(run)
        row = run.train()
    return run, {"start": start, "weights": weights(run), "row": row}


def test_two_processes_equal_one(tmp_path):
    names, folder = ("diffusion_kto", "aot"), tmp_path / "two"

    def work(rank):
        for name in names:
            run, found = aligned(name, folder, 2)
            if rank == 0:
                torch.save(found, folder / f"{name}.pt")
        run.close()

    processes.spread(work, folder, 2)
    folders = list((folder / "cache").iterdir())
    assert len(folders) == 2, "both processes know the encoders by one name"
    assert all(len(list(part.iterdir())) >= 2 for part in folders), "each encoded its share"
    for name in names:
        _, one = aligned(name, tmp_path / "one", 1)
        two = torch.load(folder / f"{name}.pt")
        assert_same_movement(one["weights"], two["weights"], one["start"], tolerance=1e-9)
        for key in ("loss", "diffusion/chosen_error", "rewards/margins", "grad_norm"):
            assert one["row"][key] == pytest.approx(two["row"][key], rel=1e-6), key


# --- the reference ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "flux", "pixart"])
def test_adapter_off_equals_a_frozen_copy_bit_for_bit(tmp_path, name):
    frozen = copy.deepcopy(PIPELINES[name]())
    run = trainer(
        tmp_path, copy.deepcopy(frozen), use_peft=True, lora_dropout=0.5, learning_rate=0.1
    )
    before = run.reference
    run.train()
    batch = next(run.batches.micro_batches(5))
    run.model.denoiser.train()
    with before.model() as adapted:
        off = run.engine._predict(adapted, batch)
    with torch.no_grad():
        truth = run.engine._predict(getattr(frozen, run.model.component).eval(), batch)
        policy = run.engine._predict(run.model.denoiser.eval(), batch)
    assert torch.equal(off, truth)
    assert (policy - truth).abs().max() > 1e-4


def test_every_objective_starts_at_its_golden_value(tmp_path):
    """The first logged loss, before any update, on both ways of keeping a reference."""
    for peft in (False, True):
        run = trainer(tmp_path, loss_type="diffusion_dpo", use_peft=peft, max_steps=1)
        row = run.train()
        assert row["loss"] == pytest.approx(0.693147, abs=1e-6)
        assert row["rewards/margins"] == 0
        assert row["diffusion/chosen_shift"] == 0
        assert row["diffusion/w"] == 0.5


def test_a_reference_free_objective_keeps_no_copy(tmp_path):
    assert trainer(tmp_path, loss_type="mapo").reference is None
    assert trainer(tmp_path, loss_type="diffusion_sft").reference is None


# --- encodings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_cached_equals_uncached(tmp_path, name):
    rows = pick_rows(4, size=(24, 18))
    options = {"random_flip": True, "random_crop": True, "caption_dropout": 0.3}
    losses = []
    for cache in ({"cache_latents": False, "cache_dir": None}, {"cache_dir": str(tmp_path / "c")},
                  {"cache_dir": str(tmp_path / "c")}, {"cache_dir": "none"}):  # fmt: skip
        run = trainer(tmp_path / "run", PIPELINES[name](), rows, **options, **cache)
        run.train()
        losses.append([row["loss"] for row in logged(tmp_path / "run")])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-4)
    files = list((tmp_path / "c").rglob("*.safetensors"))
    assert len(files) == 2, "the second run found everything: images and captions, one shard each"


def test_the_cache_is_keyed_by_content_and_resumes(tmp_path):
    model = text_to_image(tiny_sd())
    calls = []
    encode = model.encode_images
    model.encode_images = lambda pixels: calls.append(len(pixels)) or encode(pixels)
    examples = load_image_examples(pick_rows(6)).examples

    def prepared(given, size=16, **options):
        calls.clear()
        encodings = Encodings(model, given, Framing(size, **options), Keeping(tmp_path))
        encodings.prepare()
        return sum(calls)

    class Stop(Exception):
        pass

    def stop(done):
        stop.left -= done
        if stop.left == 0:
            raise Stop

    stop.left = 3
    calls.clear()
    encodings = Encodings(model, examples, Framing(16), Keeping(tmp_path, batch_size=2))
    with pytest.raises(Stop):
        encodings.prepare(advance=stop)
    first = sum(calls)
    assert 0 < first < 12
    assert prepared(examples) == 12 - first, "goes on where it stopped"
    assert prepared(examples[::-1]) == 0, "order does not matter"
    assert prepared(examples, size=8) == 12, "the resolution does"
    assert prepared(examples, flip=True) == 12, "mirrored copies are asked for"
    with torch.no_grad():
        model.pipeline.vae.encoder.conv_in.weight += 0.1
    assert prepared(examples) == 12, "another encoder"


def test_a_damaged_shard_is_set_aside(tmp_path, caplog):
    model = text_to_image(tiny_sd())
    examples = load_image_examples(pick_rows(2)).examples
    Encodings(model, examples, Framing(16), Keeping(tmp_path)).prepare()
    (shard,) = tmp_path.glob("images-*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:200])
    encodings = Encodings(model, examples, Framing(16), Keeping(tmp_path))
    encodings.prepare()
    assert "is damaged" in caplog.text
    assert encodings.latents([View(0, 0)])["mean"].shape == (1, 4, 8, 8)


def test_a_pair_shares_noise_time_crop_flip_and_caption(tmp_path):
    """A pair of one picture twice is the same twice, whatever is drawn."""
    twice = [
        {
            "caption": "a red square",
            "chosen": picture(i, (30, 18)),
            "rejected": picture(i, (30, 18)),
        }
        for i in range(4)
    ]
    run = trainer(
        tmp_path, tiny_sdxl(), twice, random_flip=True, random_crop=True, caption_dropout=0.5
    )
    seen, captions = set(), set()
    for step in range(6):
        for batch in run.batches.micro_batches(step):
            for tensor in (batch.noisy, batch.target, batch.times, *batch.conditions.values()):
                assert torch.equal(tensor[0::2], tensor[1::2])
            seen.update(batch.times.tolist())
            captions.update(row.abs().sum().item() == 0 for row in batch.conditions["states"])
    assert len(seen) > 6, "another time for each pair and step"
    assert captions == {True, False}, "some captions are dropped: to what guidance takes for none"


def test_sdxl_is_told_the_chosen_images_size_and_crop(tmp_path):
    rows = [
        {"caption": "a cross", "chosen": picture(0, (32, 16)), "rejected": picture(1, (16, 24))}
    ]
    run = trainer(tmp_path, tiny_sdxl(), rows, per_device_train_batch_size=1)
    (batch,) = run.batches.micro_batches(0)
    assert batch.conditions["time_ids"].tolist() == [[16, 32, 0, 8, 16, 16]] * 2


def test_flips_mirror_pixels_and_crops():
    model = text_to_image(tiny_sdxl())
    rows = [{"caption": "a cross", "image": picture(3, (40, 16)), "label": True}]
    examples = load_image_examples(rows).examples
    mirrored = picture_flipped(rows[0]["image"])
    other = load_image_examples([{**rows[0], "image": mirrored}]).examples
    found = [
        Encodings(model, given, Framing(16, flip=True)).latents([View(0, 0, flip)])
        for given, flip in ((examples, True), (other, False))
    ]
    for name in ("mean", "logvar", "time_ids"):
        torch.testing.assert_close(found[0][name], found[1][name])


def picture_flipped(data):
    import io

    image = Image.open(io.BytesIO(data)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("cached", [True, False])
def test_a_corrupt_image_is_named_and_an_error_or_skipped(tmp_path, cached):
    rows = pick_rows(4)
    rows[2]["jpg_1"] = rows[2]["jpg_1"][:60]
    cache = {} if cached else {"cache_latents": False, "cache_dir": None}
    with pytest.raises(UserError, match=r"row 3, jpg_1 is no readable image.*skip_bad"):
        trainer(tmp_path, rows=rows, **cache).train()
    run = trainer(tmp_path, rows=rows, skip_bad=True, **cache)
    run.train()
    assert list(run.encodings.bad) == [2]
    assert "row 3, jpg_1" in run.encodings.bad[2]


# --- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("peft", [False, True])
def test_resuming_is_bit_equal_and_leaves_the_reference(tmp_path, peft):
    options = {
        "use_peft": peft,
        "ema_decay": 0.9,
        "max_steps": 6,
        "save_steps": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
        "caption_dropout": 0.2,
        "loss_type": "diffusion_dpo",
        **({"lora_dropout": 0.3} if peft else {}),
    }
    whole = trainer(tmp_path / "whole", **options)
    whole.train()

    class Killed(Exception):
        pass

    def kill(step):
        if step == 5:
            raise Killed

    cut = trainer(tmp_path / "cut", **options)
    cut.on_step = kill
    with pytest.raises(Killed):
        cut.train()
    again = trainer(tmp_path / "cut", **options)
    again.train(resume=True)
    assert torch.equal(weights(again), weights(whole))
    for run in (again, whole):
        run.ema.copy_to(run.trained)
    assert torch.equal(weights(again), weights(whole))
    rows = [logged(tmp_path / name) for name in ("whole", "cut")]
    assert rows[1][-1] == rows[0][-1], "the margins would differ, had the reference moved"
    assert rows[0][-1]["rewards/margins"] != 0


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    trainer(tmp_path, save_steps=2).train()
    with pytest.raises(UserError, match=r"objective.name: dspo before, dmpo now"):
        trainer(tmp_path, loss_type="dmpo").train(resume=True)
    with pytest.raises(UserError, match="no whole checkpoint"):
        trainer(tmp_path / "none").train(resume=True)
    run = trainer(tmp_path / "limit", save_steps=1, save_total_limit=2)
    run.train()
    assert sorted(p.name for p in (tmp_path / "limit").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]


# --- precision, options, what is said -----------------------------------------------------------


def test_losses_are_float32_under_bf16(tmp_path):
    run = trainer(
        tmp_path, mixed_precision="bf16", gradient_checkpointing=True, optimizer="adafactor"
    )
    batch = next(run.batches.micro_batches(0))
    seen = run.engine.predictions(batch, run.wrapped)
    assert seen.chosen.policy.dtype == seen.chosen.target.dtype == torch.float32
    assert torch.equal(seen.chosen.policy, seen.chosen.reference), "bit for bit under autocast"
    assert run.train()["loss"] > 0


@pytest.mark.parametrize("name", ["sd3", "v"])
def test_error_space_epsilon_makes_noise_objectives_apply(tmp_path, name):
    def pipeline():
        return PIPELINES["sd3"]() if name == "sd3" else tiny_sd(prediction_type="v_prediction")

    with pytest.raises(UserError, match="error_space: epsilon"):
        trainer(tmp_path, pipeline(), loss_type="mapo")
    run = trainer(tmp_path, pipeline(), loss_type="mapo", error_space="epsilon")
    run.train()
    batch = next(run.batches.micro_batches(0))
    seen = run.engine.predictions(batch)
    clean_again = run.model.schedule.add_noise(
        torch.zeros_like(batch.noisy), seen_target(seen), batch.index
    )
    residue = batch.noisy - clean_again  # x_t - b eps = a x_0: what noise was added is the target
    a = run.model.schedule.signal[batch.index].view(-1, 1, 1, 1)
    target = run.model.schedule.target(residue / a, seen_target(seen), batch.index)
    torch.testing.assert_close(target, batch.target, rtol=1e-3, atol=1e-3)


def seen_target(pairs):
    both = torch.stack([pairs.chosen.target, pairs.rejected.target], dim=1)
    return both.flatten(0, 1)


def test_metrics_are_logged_under_the_common_names(tmp_path):
    run = trainer(tmp_path, loss_type="dspo", beta=1.0, sdpo_mu=0.1)
    run.train()
    rows = logged(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    expected = {"loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected",
                "rewards/margins", "rewards/accuracies", "diffusion/w", "diffusion/w_held",
                "diffusion/chosen_shift", "diffusion/rejected_shift", "diffusion/chosen_error",
                "diffusion/rejected_error", "diffusion/sdpo_lambda"}  # fmt: skip
    assert expected <= set(rows[0])
    last = rows[-1]
    assert last["rewards/margins"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"]
    )
    assert last["rewards/chosen"] == pytest.approx(-last["diffusion/chosen_shift"] / 2)


def test_a_rising_error_on_chosen_images_is_warned_of_once(tmp_path, caplog):
    run = trainer(tmp_path, loss_type="diffusion_dpo", learning_rate=0.05, max_steps=8)
    with caplog.at_level(logging.WARNING, "trueline.diffusion.training.trainer"):
        run.train()
    said = [r for r in caplog.records if "to prefer worse than it did" in r.getMessage()]
    assert len(said) == 1


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path):
    run = trainer(tmp_path)
    before = weights(run)
    hook = run.trained[0].register_hook(lambda g: g * float("nan"))
    with pytest.raises(NonFiniteError, match="not finite in step 1"):
        run.train()
    hook.remove()
    assert torch.equal(weights(run), before)
    with torch.no_grad():
        run.trained[0].fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"loss is not finite on data: row \d"):
        run.train()


def test_unpaired_and_completion_layouts(tmp_path):
    labeled = [{"caption": "a cross", "image": picture(i), "label": bool(i % 2)} for i in range(6)]
    row = trainer(tmp_path, rows=labeled, loss_type="diffusion_kto").train()
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins"} <= set(row)
    run = trainer(tmp_path, rows=labeled, loss_type="diffusion_sft")
    assert run.left_out == 3
    assert len(next(run.batches.micro_batches(0))) == 2
    with pytest.raises(UserError, match="compares pairs"):
        trainer(tmp_path, rows=labeled, loss_type="dspo")


@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_and_saved_models(tmp_path, name):
    """Sample grids during training, and a folder that diffusers loads as it stands."""
    from diffusers import DiffusionPipeline

    shape = {"sample_prompts": ["a red square", "a cross"], "num_inference_steps": 2}
    run = trainer(tmp_path, PIPELINES[name](), sample_steps=3, ema_decay=0.5, **shape)
    run.train()
    grids = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert grids == ["step-000000.png", "step-000003.png"]
    run.save_model()
    loaded = text_to_image(DiffusionPipeline.from_pretrained(tmp_path))
    with run.averaged():
        for own, saved in zip(run.trained, loaded.denoiser.parameters(), strict=True):
            assert torch.equal(own, saved)
