"""A run is what it says: what was trained is what is loaded, one seed is one result."""

import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny_diffusion import PIPELINES, tiny_sd, trainer, weights, write_folder
from trueline.diffusion import load_text_to_image

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
        command = [Path(sys.executable).with_name("trueline"), "diffusion", "align",
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
