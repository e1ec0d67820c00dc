"""The small world: its judge is exact, its data is what it says, its effects are real (slow)."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from trueline.diffusion.data.images import decode, to_image, to_pixels
from trueline.diffusion.world import (
    BRIGHT,
    CAPTIONS,
    TOLERANCE,
    judge,
    paint,
    pairs,
    pretrain,
    random_losers,
    swapped,
    template,
    untrained,
)
from trueline.diffusion.world_runs import (
    DPO,
    DSPO,
    SFT,
    SWAPPED,
    UNGUARDED,
    align_in_world,
    load_base,
    measure_in_world,
    open_base,
)
from trueline.errors import UserError
from trueline.runs.diffusion.demo import demo


@pytest.mark.parametrize("caption", CAPTIONS)
def test_the_judge_reads_what_was_painted(caption):
    for level in (0.2, 0.55, 0.79, 0.81, 1.0):
        reading = judge(paint(caption, level), caption)
        assert reading.brightness == pytest.approx(level, abs=0.01)
        assert reading.valid
        assert reading.bright == (level >= BRIGHT)
        for other in CAPTIONS:
            if other != caption:
                assert not judge(paint(caption, level), other).valid


def test_the_judge_refuses_what_nobody_asked_for():
    noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert not judge(to_image(noise), CAPTIONS[0]).valid
    clean = to_pixels(paint(CAPTIONS[0], 0.9))
    for amount, valid in ((0.5 * TOLERANCE, True), (3 * TOLERANCE, False)):
        off = clean + 2 * amount * torch.sign(noise)
        assert judge(to_image(off), CAPTIONS[0]).valid == valid


def test_pairs_and_controls():
    data = pairs(200, seed=3)

    def levels(examples):
        read = [
            [judge(decode(s.read(), "x"), e.caption).brightness for s in e.images] for e in examples
        ]
        return np.array(read)

    own = levels(data)
    assert (own[:, 0] >= own[:, 1]).all()
    assert np.array_equal(levels(swapped(data)), own[:, ::-1])
    drawn = levels(random_losers(data))
    assert np.array_equal(drawn[:, 0], own[:, 0])
    assert 0.05 < (drawn[:, 1] > drawn[:, 0]).mean() < 0.3, "some losers are now the brighter ones"
    # the larger of two uniforms on [.2, 1] has mean .733 and is above .8 in 7 of 16 cases
    assert own[:, 0].mean() == pytest.approx(0.733, abs=0.04)
    assert (own[:, 0] >= BRIGHT).mean() == pytest.approx(7 / 16, abs=0.11)


def test_pretraining_learns_and_is_the_same_each_time():
    losses = []
    for _ in range(2):
        model = untrained()
        pretrain(model, steps=12, batch=8, progress=lambda step, steps, loss: losses.append(loss))
        weights = torch.cat([p.detach().flatten() for p in model.unet.parameters()])
    assert losses[0] == losses[2]
    assert losses[1] < 1.2
    assert sum(p.numel() for p in model.unet.parameters()) == weights.numel() == 732_771
    with pytest.raises(UserError, match="no guidance"):
        model.generate(CAPTIONS[:1], [0], steps=2, guidance=7.5)
    with pytest.raises(UserError, match="no such thing"):
        model.encode_captions(["a yellow circle"])
    assert template(CAPTIONS[0]).shape == (3, 8, 8)


@pytest.mark.slow
def test_the_effects_are_real(tmp_path):
    """DSPO brightens more than fine-tuning and keeps to what was asked for; swapped labels darken;
    Diffusion-DPO destroys the pictures unless it is guarded."""
    base = load_base()
    before = measure_in_world(open_base(base), "base", "base")
    found = {}
    for recipe in (SFT, DSPO, SWAPPED, DPO, UNGUARDED):
        model = align_in_world(recipe, base, tmp_path)
        measured = measure_in_world(model, recipe.name, recipe.title, base=before)
        found[recipe.name] = {m.name: m for m in measured.finding.metrics}
    start = before.finding["bright"].value
    assert before.finding["valid"].value >= 0.95
    assert found["dspo"]["bright"].value >= start + 0.15
    assert found["dspo"]["bright"].value > found["sft"]["bright"].value + 0.07
    assert found["dspo"]["valid"].value >= 0.95
    assert found["dspo-swapped"]["bright"].high < before.finding["bright"].low
    assert found["dpo"]["valid"].value >= 0.95
    assert found["dpo-unguarded"]["valid"].value < 0.6


@pytest.mark.slow
def test_two_processes_paint_what_one_paints(tmp_path, monkeypatch):
    """The same pictures and the same weights, whoever trains which model."""
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path / "cache"))
    one, two = (demo(tmp_path / str(jobs), size="test", jobs=jobs) for jobs in (0, 2))
    assert one.to_dict()["models"] == two.to_dict()["models"]
    for m, other in zip(one.measurements, two.measurements, strict=True):
        assert all(
            a.tobytes() == b.tobytes() for a, b in zip(m.pictures, other.pictures, strict=True)
        )
    files = [sorted((tmp_path / str(jobs)).rglob("*.safetensors")) for jobs in (0, 2)]
    assert len(files[0]) == 5
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_of_pictures_leaves_no_process(tmp_path, number):
    """It is ended while two models are aligned."""
    cache = {"TRUELINE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "trueline", "demo", "--diffusion", "--size", "test"]
    begun = subprocess.Popen([*command, "--output", str(tmp_path)], stderr=subprocess.DEVNULL,
                             env={**os.environ, **cache})  # fmt: skip
    while begun.poll() is None and not list(tmp_path.glob("dspo-*/run.json")):
        time.sleep(0.02)
    others = psutil.Process(begun.pid).children(recursive=True)
    assert len(others) >= 2
    begun.send_signal(number)
    assert begun.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    until = time.monotonic() + 20
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in others):
        assert time.monotonic() < until
        time.sleep(0.2)
