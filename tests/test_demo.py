"""The demo tells its story on the test-size sandbox; its effect at full size is a slow test."""

import json

import pytest

from trueline.reproduce import Measurement
from trueline.results import Finding
from trueline.runs.demo import demo
from trueline.runs.demo.story import BOUNDS, safer, useful
from trueline.runs.record import Run


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_demo_runs_through_and_leaves_ordinary_runs(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("TRUELINE_CACHE", str(cache))
    story = demo(tmp_path, size="test").to_dict()
    assert list(story["models"]) == ["base", "kldo", "dpo", "dpo-cr"]
    for model in story["models"].values():
        safety, separation = (Finding.from_dict(value) for value in model["findings"])
        for metric in safety.metrics:
            assert metric.n
            assert 0 <= metric.low <= metric.value <= metric.high <= 1
        assert separation["bhattacharyya_distance"].value >= 0
    for name in ("kldo", "dpo", "dpo-cr"):
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert {"model.safetensors", "metrics.jsonl", "findings.json", "samples.jsonl"} <= files
        assert {"config.json", "config.yaml", "manifest.json", "tokenizer.json"} <= files
        rows = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert "logps/chosen" in rows[0]
        assert "logps/rejected" in rows[0]
        assert Run(tmp_path / name).own
    page = (tmp_path / "report.html").read_text("utf-8")
    for words in ("Attack success", "Over-refusal", "Good answers", "Bhattacharyya", "chosen"):
        assert words in page


@pytest.mark.slow
def test_the_effect_is_real(tmp_path, cache, monkeypatch):
    """KLDO on compliance-refusal data: attack success falls beyond the intervals, utility stays."""
    monkeypatch.setenv("TRUELINE_CACHE", str(cache))
    story = demo(tmp_path).to_dict()
    measured = {
        name: Measurement(name, *(Finding.from_dict(f) for f in model["findings"]), ())
        for name, model in story["models"].items()
    }
    base, kldo = measured["base"], measured["kldo"]
    assert base.safety["attack success, direct"].value > 0.9
    assert safer(base, kldo)
    assert useful(kldo), f"bounds: {BOUNDS}"
    before, after = (m.separation["bhattacharyya_distance"] for m in (base, kldo))
    assert after.low > before.high
