"""A run is what it says: what is kept is what was trained, one seed is one result, what is encoded
is what was drawn, a resumed run is the one that was begun."""

import copy
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tiny_diffusion import (
    PIPELINES,
    logged,
    pick_rows,
    tiny_sd,
    tiny_sdxl,
    trainer,
    weights,
    write_folder,
)
from trueline.diffusion import (
    DiffusionEngine,
    Reference,
    bind_diffusion,
    load_image_examples,
    load_text_to_image,
    text_to_image,
)
from trueline.diffusion.data.batches import Batches, Drawing
from trueline.diffusion.data.encode import Encodings
from trueline.diffusion.data.frames import Framing
from trueline.errors import UserError
from trueline.interrupts import Interrupted

# --- P1: what is saved is what was trained -------------------------------------------------------


def predictions(run, denoiser):
    batch = next(run.batches.micro_batches(0))
    with torch.no_grad():
        return run.engine._predict(denoiser.eval(), batch)


@pytest.mark.parametrize(
    ("name", "rank", "alpha"), [(name, *both) for name in PIPELINES for both in ((2, 8), (8, 4))]
)
def test_p1_an_adapter_reloads_as_it_was_trained_bit_for_bit(tmp_path, name, rank, alpha):
    """By plain diffusers (peft for PixArt, which has no adapters in diffusers), and by evaluate."""
    base = PIPELINES[name]()
    base.save_pretrained(tmp_path / "base")
    run = trainer(
        tmp_path / "run", copy.deepcopy(base), use_peft=True, lora_r=rank, lora_alpha=alpha,
        ema_decay=0.5, learning_rate=0.05, max_steps=2,
    )  # fmt: skip
    before = predictions(run, getattr(base, run.model.component))
    run.train()
    run.save_model()
    with run.averaged():
        trained = predictions(run, run.model.denoiser)
    assert (trained - before).norm() > 0.1
    if name == "pixart":
        from peft import PeftModel

        base.transformer = PeftModel.from_pretrained(base.transformer, tmp_path / "run")
    else:
        base.load_lora_weights(str(tmp_path / "run"))
    assert torch.equal(predictions(run, getattr(base, run.model.component)), trained)
    ours = load_text_to_image(str(tmp_path / "base"), adapter=str(tmp_path / "run"))
    assert torch.equal(predictions(run, ours.denoiser), trained)


def test_p1_an_adapter_that_does_not_say_its_alpha_is_named(tmp_path, caplog):
    tiny_sd().save_pretrained(tmp_path / "base")
    run = trainer(tmp_path / "run", use_peft=True, max_steps=1)
    run.train()
    run.save_model()
    load_text_to_image(str(tmp_path / "base"), adapter=str(tmp_path / "run"))
    assert "alpha" not in caplog.text
    from safetensors.torch import load_file, save_file

    file = tmp_path / "run" / "pytorch_lora_weights.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})
    load_text_to_image(str(tmp_path / "base"), adapter=str(tmp_path / "run"))
    assert "does not say its alpha" in caplog.text


# --- P2: one seed, one result --------------------------------------------------------------------


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", PIPELINES)
def test_p2_one_seed_is_one_result_whatever_was_drawn_before(tmp_path, name):
    found = {}
    for label, noise, seed in (("a", 1, 0), ("b", 2, 0), ("c", 1, 1)):
        pipeline = PIPELINES[name]()
        torch.manual_seed(noise)
        run = trainer(tmp_path / label, pipeline, use_peft=True, lora_dropout=0.2, max_steps=2,
                      seed=seed, learning_rate=0.05)  # fmt: skip
        start = weights(run)
        run.train()
        run.save_model()
        files = sorted((tmp_path / label).glob("*.safetensors"))
        found[label] = start, [md5(file) for file in files]
    assert len(found["a"][1]) == 1
    assert found["a"][1] == found["b"][1]
    assert not torch.equal(found["a"][0], found["c"][0]), "the seed decides the adapter's start"


@pytest.mark.slow
def test_p2_one_command_is_one_file(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "base")
    write_folder(tmp_path / "data", 4)
    sums = set()
    for number in (1, 2):
        out = tmp_path / str(number)
        command = [sys.executable, "-m", "trueline", "diffusion", "align",
                   "--model_name_or_path", tmp_path / "base", "--dataset_name", tmp_path / "data",
                   "--use_peft", "true", "--max_steps", 2, "--learning_rate", "0.05",
                   "--cache_dir", "none", "--output_dir", out]  # fmt: skip
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "ACCELERATE_USE_CPU": "1"}
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        sums.add(md5(out / "pytorch_lora_weights.safetensors"))
    assert len(sums) == 1


# --- P3: what is drawn is encoded, and no more ---------------------------------------------------


def counted(model):
    """The sizes of all that goes through the image encoder from now on."""
    calls, encode = [], model.encode_images
    model.encode_images = lambda pixels: calls.append(len(pixels)) or encode(pixels)
    return calls


def test_p3_only_what_is_drawn_is_encoded_when_it_is_drawn(tmp_path, monkeypatch):
    """400 pairs of which 4 are used: at most 8 images encoded before the second step."""
    calls, seen = [], []
    encode = text_to_image(tiny_sd()).__class__.encode_images
    monkeypatch.setattr(
        "trueline.diffusion.models.families.TextToImage.encode_images",
        lambda self, pixels: calls.append(len(pixels)) or encode(self, pixels),
    )
    rows = pick_rows(4) * 100
    for number, row in enumerate(rows):
        rows[number] = {**row, "caption": f"a red square {number}"}
    run = trainer(tmp_path / "run", rows=rows, max_steps=2, cache_dir=str(tmp_path / "cache"))
    run.on_step = lambda step: seen.append(sum(calls))
    run.train()
    assert seen[0] <= 8, "two pairs, and the next two while these train"
    assert seen[1] <= 8
    read = {view.example for view in run.encodings.frames._keys}
    assert len(read) <= 4, "the workers read ahead what will be drawn, and no more"


def test_p3_the_next_step_is_encoded_while_this_one_trains(tmp_path, monkeypatch):
    """Its encoding waits for this step's prediction: were it done between the steps, in vain."""
    run = trainer(tmp_path, max_steps=3)
    predicted, threads = threading.Event(), []
    encode, predict, made = run.model.encode_images, run.model.predict, run.batches._made

    def encoding(pixels):
        threads.append(threading.current_thread())
        return encode(pixels)

    def predicting(*given):
        predicted.set()
        return predict(*given)

    def making(step):
        assert step == 0 or predicted.wait(20), "nothing was predicted beside the encoding"
        return made(step)

    monkeypatch.setattr(run.model, "encode_images", encoding)
    monkeypatch.setattr(run.model, "predict", predicting)
    monkeypatch.setattr(run.batches, "_made", making)
    run.train()
    assert threads
    assert threading.main_thread() not in threads
    run.close()
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_p3_an_error_in_training_leaves_nobody_at_work(tmp_path, error):
    """Who reads and encodes ahead goes home at once: 64 pictures are expected by then, each of a
    slow disk, and Python's exit would wait for them all. The same trainer can go on."""
    run, read = trainer(tmp_path, rows=pick_rows(4) * 50, max_steps=60), []

    def at_work():
        return [t.name for t in threading.enumerate() if t.name.startswith(("frames", "encoding"))]

    def slow(read_source):
        return lambda: read.append(time.sleep(0.02)) or read_source()

    for number, example in enumerate(run.encodings.examples):
        images = tuple(replace(source, read=slow(source.read)) for source in example.images)
        run.encodings.examples[number] = replace(example, images=images)

    def fail(step):
        raise error

    run.on_step = fail
    with pytest.raises(error):
        run.train()
    assert not at_work()
    before = len(read)
    assert before < 40, "what was only expected is not read any more"
    run.on_step = lambda step: signal.raise_signal(signal.SIGTERM) if step == 3 else None
    with pytest.raises(Interrupted):
        run.train()
    assert run.done == 3
    assert not at_work()


@pytest.mark.parametrize("flip", [False, True])
def test_p3_the_estimate_is_what_comes(tmp_path, flip):
    rows = pick_rows(6)
    options = {"max_steps": 2, "random_flip": flip, "caption_dropout": 0.2}
    run = trainer(tmp_path, tiny_sdxl(), rows, **options, cache_dir=str(tmp_path / "cache"))
    run.train()
    there = run.encodings.images.bytes + run.encodings.captions.bytes
    disk = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.safetensors"))
    assert 0.5 * run.estimate.bytes < there <= run.estimate.bytes
    assert there < disk < there + 4096, "two shards and their headers"
    latent = run.encodings.latents([next(iter(run.encodings.frames._keys))])
    assert latent["mean"].dtype == torch.float16
    assert latent["time_ids"].dtype == torch.float32


def test_p3_too_little_room_is_said_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("trueline.diffusion.data.encode.free_bytes", lambda folder: 100)
    with pytest.raises(UserError, match=r"at most .* GB of encodings: 6 images.*cache_limit_gb"):
        trainer(tmp_path, cache_dir=str(tmp_path / "cache"), max_steps=1,
                per_device_train_batch_size=3)  # fmt: skip
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_p3_a_bounded_cache_changes_no_number(tmp_path, caplog):
    options = {"max_steps": 4, "random_crop": True, "random_flip": True}
    rows = pick_rows(3, size=(24, 18))
    found = []
    for number, (limit, workers) in enumerate(((None, 0), (3e-6, 0), (3e-6, 3))):
        run = trainer(tmp_path / str(number), rows=rows, **options, cache_limit_gb=limit,
                      dataloader_num_workers=workers)  # fmt: skip
        run.train()
        found.append(weights(run))
    assert run.encodings.images.bytes + run.encodings.captions.bytes <= 3000
    assert "the limit of 3e-06 GB is reached" in caplog.text
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_p3_the_next_example_stands_in_for_one_that_cannot_be_read(tmp_path):
    rows = pick_rows(4)
    rows[1]["jpg_0"] = b"no picture"
    run = trainer(tmp_path, rows=rows, skip_bad=True, max_steps=2)
    run.train()
    assert run.encodings.stand_in(1, False) == 2
    assert list(run.encodings.bad) == [1]
    rows = [{**row, "jpg_0": b"none"} for row in rows]
    with pytest.raises(UserError, match="no example has readable images"):
        trainer(tmp_path, rows=rows, skip_bad=True)


def test_p3_max_samples_bounds_the_download(monkeypatch):
    import datasets

    pulled = []

    def rows():
        for number, row in enumerate(pick_rows(4) * 10):
            pulled.append(number)
            yield row

    def load(source, name, *, split, streaming=False):
        assert streaming, "a data set that is not streamed is downloaded whole"
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_image_examples("someone/pairs", limit=3)
    assert len(data.examples) == 3
    assert len(pulled) <= 4
    assert data.examples[0].images[0].read() == pick_rows(1)[0]["jpg_1"]


# --- P4: a resumed run is the run that was begun -------------------------------------------------


def test_p4_each_difference_of_a_resumed_run_is_named(tmp_path):
    options = {"use_peft": True, "save_steps": 2, "max_steps": 2}
    trainer(tmp_path, **options).train()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    other = tiny_sd()
    with torch.no_grad():
        next(other.unet.parameters())[0] += 0.1
    changes = {
        "learning_rate": ({"learning_rate": 0.5}, None, None),
        "adapter.alpha": ({"lora_alpha": 4}, None, None),
        "adapter.dropout": ({"lora_dropout": 0.5}, None, None),
        "objective.beta": ({"beta": 0.5}, None, None),
        "seed": ({"seed": 3}, None, None),
        "effective batch": ({"gradient_accumulation_steps": 2}, None, None),
        "model": ({}, other, None),
        "data": ({}, None, pick_rows(6)[::-1]),
        "max_steps": ({"max_steps": 1}, None, None),
    }
    for name, (given, pipeline, rows) in changes.items():
        run = trainer(tmp_path, pipeline, rows, **{**options, **given})
        with pytest.raises(UserError, match=rf"begun with other settings \(.*{name}: "):
            run.begin(resume=True)
        run._held.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_p4_a_run_may_go_on_longer_and_say_more(tmp_path, capsys):
    options = {"save_steps": 2, "learning_rate": 1e-2, "save_total_limit": 1}
    whole = trainer(tmp_path / "whole", **options, max_steps=4)
    whole.train()
    trainer(tmp_path / "cut", **options, max_steps=2).train()
    again = trainer(tmp_path / "cut", **options, max_steps=4,
                    per_device_train_batch_size=1, gradient_accumulation_steps=2,
                    disable_tqdm=False)  # fmt: skip
    again.train(resume=True)
    assert "max_steps: 2 before, 4 now" in capsys.readouterr().err
    assert [row["step"] for row in logged(tmp_path / "cut")] == [1, 2, 3, 4]
    assert (weights(again) - weights(whole)).norm() < 1e-5 * weights(whole).norm()
    with pytest.raises(UserError, match="holds a run already"):
        trainer(tmp_path / "cut", overwrite=False).train()


def test_p4_a_signal_ends_a_run_with_a_checkpoint(tmp_path):
    import signal

    run = trainer(tmp_path, max_steps=9)
    run.on_step = lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM after step 2") as caught:
        run.train()
    assert caught.value.checkpoint == tmp_path / "checkpoint-2"
    damaged = tmp_path / "checkpoint-2" / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"no whole checkpoint.*state.pt has"):
        trainer(tmp_path, max_steps=9).train(resume=True)


# --- P5: the reference runs once -----------------------------------------------------------------


KEPT = Path(__file__).parents[1] / "studies" / "results" / "diffusion.json"


@pytest.mark.parametrize(
    "told", json.loads(KEPT.read_text())["units"],
    ids=lambda told: f"{told['objective']}-{told['micro_batches']}",
)  # fmt: skip
def test_p5_units_of_work_a_step(monkeypatch, told):
    """A forward pass of one image is a unit, and a backward pass two: of two pairs, an uncoupled
    step takes 4 x (1 + 2) for the policy and 4 for the reference. Counted as it is, and as it was
    while the reference ran in each of the passes of a coupled objective."""
    assert units(told["objective"], told["micro_batches"]) == told["now"]
    meet = DiffusionEngine._meet

    def forgetting(*given):
        first, _, met = meet(*given)
        return first, [], met

    monkeypatch.setattr(DiffusionEngine, "_meet", forgetting)
    assert units(told["objective"], told["micro_batches"]) == told["before"]


def units(name, micro_batches):
    model = text_to_image(tiny_sd())
    work = []
    predict = model.predict

    def noted(denoiser, noisy, times, conditions):
        work.append(len(noisy) * (3 if torch.is_grad_enabled() else 1))
        return predict(denoiser, noisy, times, conditions)

    model.predict = noted
    objective = bind_diffusion(name)
    batches = Batches(
        Encodings(model, load_image_examples(pick_rows(2)).examples, Framing(16)), model,
        Drawing(), layout=objective.spec.layout, size=2, micro=2 // micro_batches,
    )  # fmt: skip
    engine = DiffusionEngine(objective, model, Reference(model.denoiser, adapter=False))
    engine.step(list(batches.micro_batches(0)), total=batches.total(0))
    return sum(work)


# --- P6: the documented ways to launch -----------------------------------------------------------


PAGE = (Path(__file__).parents[1] / "docs" / "diffusion.md").read_text("utf-8")
LAUNCHES = re.search(r"```bash\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
MODULES = {"trueline": "trueline", "accelerate": "accelerate.commands.accelerate_cli",
           "torchrun": "torch.distributed.run"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("line", LAUNCHES, ids=lambda line: line.split()[0])
def test_p6_documented_launchers_train_one_run_together(tmp_path, line):
    """Each line of the page, two processes for eight, with the page's own configuration but for the
    model, the data and the sizes."""
    assert len(LAUNCHES) == len(MODULES)
    tiny_sd().save_pretrained(tmp_path / "base")
    write_folder(tmp_path / "data", 4)
    settings = yaml.safe_load(re.search(r"```yml\n(.*?)```", PAGE, re.DOTALL)[1])
    settings |= {
        "model_name_or_path": str(tmp_path / "base"), "dataset_name": str(tmp_path / "data"),
        "resolution": 16, "max_steps": 2, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1, "cache_dir": "none", "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    program, *words = line.replace(" 8", " 2").split()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE")}
    done = subprocess.run(
        [sys.executable, "-m", MODULES[program], *words], capture_output=True, text=True,
        cwd=tmp_path, env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert facts["effective_batch"] == 2, "two processes of one pair each"
    assert facts["identity"]["processes"] == 2
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").exists()


def test_p6_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it, and no rendezvous
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    with pytest.raises(UserError, match="each would train alone"):
        trainer(tmp_path)


# --- P7: what is official ------------------------------------------------------------------------


def test_p7_recipes_have_the_official_mu():
    folder = Path(__file__).parents[1] / "examples" / "diffusion"
    found = {p.stem: yaml.safe_load(p.read_text()).get("sdpo_mu") for p in folder.glob("*.yaml")}
    assert found["sd15-diffusion-dpo"] == 0.9
    assert found["sdxl-diffusion-dpo"] == 0.6
    assert {v for k, v in found.items() if "diffusion-dpo" not in k} == {None}
