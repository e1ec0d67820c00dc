"""Separation: closed forms, the right vector of the right token, and what the finding says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, silhouette_score
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tiny import WORDS, pair_rows, tiny_llama, tiny_tokenizer
from trueline.data import load_examples
from trueline.diagnostics import (
    bhattacharyya_distance,
    fisher_ratio,
    hidden_states,
    separation,
    separation_of,
)
from trueline.diagnostics.separation import (
    separation_change,
    separation_change_of,
    separation_profile,
)
from trueline.diagnostics.separation.callback import SeparationCallback
from trueline.diagnostics.separation.data import prompts_of, read_prompts
from trueline.diagnostics.separation.fit import auroc
from trueline.diagnostics.separation.hidden import layer_states
from trueline.errors import UserError
from trueline.records import Message
from trueline.results import Finding

# -- closed forms -----------------------------------------------------------------------------


def cloud(mean, cov, n: int = 50, seed: int = 0) -> np.ndarray:
    """Points whose sample mean and covariance (n - 1) are exactly the given ones."""
    mean, cov = np.atleast_1d(mean).astype(float), np.atleast_2d(cov).astype(float)
    z = np.random.default_rng(seed).normal(size=(n, len(mean)))
    z -= z.mean(axis=0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False).reshape(len(mean), -1))).T
    return mean + z @ np.linalg.cholesky(cov).T


def test_equal_covariances_give_an_eighth_of_mahalanobis() -> None:
    cov = [[2.0, 0.6], [0.6, 1.0]]
    gap = np.array([3.0, -1.0])
    expected = gap @ np.linalg.inv(cov) @ gap / 8
    assert bhattacharyya_distance(cloud([0, 0], cov), cloud(gap, cov, seed=1)) == pytest.approx(
        expected
    )


def test_equal_means_give_the_log_determinants() -> None:
    # 1-D, variances 1 and 9: S = 5, 1/2 ln(5 / sqrt(1 * 9)) = 1/2 ln(5/3) = 0.2554128
    assert bhattacharyya_distance(cloud(0, 1), cloud(0, 9)) == pytest.approx(0.2554128)


def test_one_dimension_with_both_terms() -> None:
    # means 0 and 4, variances 1 and 3: 1/8 * 16 / 2 + 1/2 ln(2 / sqrt 3) = 1 + 0.0719205
    assert bhattacharyya_distance(cloud(0, 1), cloud(4, 3)) == pytest.approx(1.0719205)


def test_the_coefficient_is_the_integral_it_stands_for() -> None:
    a, b = cloud(0, 1), cloud(1.5, 2.5)
    x = np.linspace(-20, 20, 40001)
    density = lambda m, v: np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)  # noqa: E731
    overlap = np.trapezoid(np.sqrt(density(0, 1) * density(1.5, 2.5)), x)
    assert math.exp(-bhattacharyya_distance(a, b)) == pytest.approx(overlap, abs=1e-9)


def test_distance_is_a_symmetric_invariant() -> None:
    a, b = cloud([0, 0], np.eye(2)), cloud([2, 1], [[3, 1], [1, 2]])
    d = bhattacharyya_distance(a, b)
    mix = np.array([[2.0, 1.0], [0.3, -1.0]])
    assert bhattacharyya_distance(b, a) == pytest.approx(d)
    assert bhattacharyya_distance(a @ mix + 5, b @ mix + 5) == pytest.approx(d)
    assert bhattacharyya_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_shrinkage_by_hand() -> None:
    # both covariances diag(3, 1), trace / 2 = 2, s = 1/2: diag(2.5, 1.5); gap (1, 0): 1/8 / 2.5
    a, b = cloud([0, 0], np.diag([3, 1])), cloud([1, 0], np.diag([3, 1]))
    assert bhattacharyya_distance(a, b, shrinkage=0.5) == pytest.approx(1 / 8 / 2.5)


def test_a_singular_cloud_is_an_error_until_it_is_shrunk() -> None:
    line = np.column_stack([np.arange(6.0), np.zeros(6)])
    with pytest.raises(UserError, match="singular"):
        bhattacharyya_distance(line, cloud([0, 0], np.eye(2)))
    assert math.isfinite(bhattacharyya_distance(line, line + 1, shrinkage=1e-6))


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [([1.0, 2.0], [[1.0]], "arrays of points"), ([[1.0]], [[1.0], [2.0]], "two points")],
)
def test_shapes_are_checked(a, b, said: str) -> None:
    with pytest.raises(UserError, match=said):
        bhattacharyya_distance(a, b)
    with pytest.raises(UserError, match="shrinkage"):
        bhattacharyya_distance([[1.0], [2.0]], [[1.0], [2.0]], shrinkage=1.0)


def test_fisher_ratio_is_the_best_directions() -> None:
    a, b = cloud([0, 0], [[2, 0.5], [0.5, 1]]), cloud([1, 2], [[1, -0.2], [-0.2, 3]])
    angles = np.linspace(0, np.pi, 20001)
    best = 0.0
    for w in np.column_stack([np.cos(angles), np.sin(angles)]):
        pa, pb = a @ w, b @ w
        best = max(best, (pa.mean() - pb.mean()) ** 2 / (pa.var(ddof=1) + pb.var(ddof=1)))
    assert fisher_ratio(a, b) == pytest.approx(best, rel=1e-6)


def test_auroc_equals_sklearn() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40) + 2.0, rng.integers(0, 9, 30) + 0.0
    labels = [1] * 40 + [0] * 30
    assert auroc(a[:, None], b[:, None]) == pytest.approx(
        roc_auc_score(labels, np.concatenate([a, b]))
    )


def test_the_silhouettes_interval_holds_its_value() -> None:
    points = np.concatenate([cloud([0, 0], np.eye(2), n=40), cloud([0.3, 0], np.eye(2), n=40)])
    labels = [True] * 40 + [False] * 40
    finding = separation_of(points, labels, preset="paper", n_bootstrap=200)
    metric = finding["silhouette"]
    assert metric.low < metric.value < metric.high
    xy = np.column_stack([finding.figures["scatter"]["x"], finding.figures["scatter"]["y"]])
    assert metric.value == pytest.approx(silhouette_score(xy, labels), abs=1e-4)


# -- hidden states ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    changes = {"hidden_size": 32, "num_attention_heads": 4, "attention_dropout": 0.5}
    return tiny_llama(dtype=torch.float64, **changes)


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


PROMPTS = [user("what color is the sea"), user("sorry"), user("say the color .")]


def one(model, tokenizer, text: str, layer: int) -> torch.Tensor:
    """(T, d) of one prompt alone: no padding, no batch."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    model.eval()
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states[layer][0].float()


@pytest.mark.parametrize("layer", [-1, 0, 1, 2, -2])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_the_last_prompt_token(model, tokenizer, layer: int, batch_size: int) -> None:
    model.train()
    found = hidden_states(model, tokenizer, PROMPTS, layer=layer, batch_size=batch_size)
    assert model.training
    assert found.shape == (3, 32)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    for vector, (message,) in zip(found, PROMPTS, strict=True):
        states = one(model, tokenizer, f"<s> user : {message.content}", layer)
        torch.testing.assert_close(vector, states[-1])


def test_the_generation_prompt(model, tokenizer) -> None:
    found = hidden_states(model, tokenizer, PROMPTS, position="generation_prompt")
    for vector, (message,) in zip(found, PROMPTS, strict=True):
        states = one(model, tokenizer, f"<s> user : {message.content} assistant :", -1)
        torch.testing.assert_close(vector, states[-1])


def test_the_mean_leaves_bos_out(model, tokenizer) -> None:
    found = hidden_states(model, tokenizer, PROMPTS, position="mean")
    for vector, (message,) in zip(found, PROMPTS, strict=True):
        states = one(model, tokenizer, f"<s> user : {message.content}", -1)
        torch.testing.assert_close(vector, states[1:].mean(dim=0))


def test_plain_text_is_read_to_its_end(model, tokenizer) -> None:
    found = hidden_states(model, tokenizer, ["say the color", "sorry"])
    torch.testing.assert_close(found[0], one(model, tokenizer, "<s> say the color", -1)[-1])


def test_adapters_count(model, tokenizer) -> None:
    from peft import LoraConfig, get_peft_model

    plain = hidden_states(model, tokenizer, PROMPTS)
    config = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    adapted = get_peft_model(LlamaForCausalLM(model.config).double(), config)
    adapted.get_base_model().load_state_dict(model.state_dict(), strict=False)
    found = hidden_states(adapted, tokenizer, PROMPTS)
    assert not torch.allclose(found, plain)
    assert found.shape == plain.shape


ARCHITECTURES = {
    "llama": {},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "gemma2": {"head_dim": 8},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_layers_from_one_pass_equal_the_models_own(name, tokenizer):
    """transformers' own list of hidden states is the truth; here none of it is ever stored."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
             "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": len(tokenizer),
             "max_position_embeddings": 64}  # fmt: skip
    config = CONFIG_MAPPING[name](**{**shape, **ARCHITECTURES[name]})
    model = AutoModelForCausalLM.from_config(config).eval()
    found = layer_states(model, tokenizer, PROMPTS, batch_size=2)
    assert found.shape == (4, 3, 32)
    for i, (message,) in enumerate(PROMPTS):
        for layer in range(4):
            states = one(model, tokenizer, f"<s> user : {message.content}", layer)
            torch.testing.assert_close(found[layer, i], states[-1], atol=2e-5, rtol=1e-4)
    picked = layer_states(model, tokenizer, PROMPTS, layers=[-1, 0, -2], position="mean")
    whole = layer_states(model, tokenizer, PROMPTS, position="mean")
    torch.testing.assert_close(picked, whole[[3, 0, 2]])


def test_a_model_whose_layers_cannot_be_told_gives_its_last(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model.config, "num_hidden_layers", 5)
    assert hidden_states(model, tokenizer, PROMPTS).shape == (3, 32)
    with pytest.raises(UserError, match="cannot be told"):
        hidden_states(model, tokenizer, PROMPTS, layer=1)


def test_hidden_states_say_what_is_wrong(model, tokenizer) -> None:
    for kwargs, said in (
        ({"layer": 7}, "layer must be between"),
        ({"position": "first"}, "position must be"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(UserError, match=said):
            hidden_states(model, tokenizer, PROMPTS, **kwargs)
    with pytest.raises(UserError, match="needs conversations"):
        hidden_states(model, tokenizer, ["say"], position="generation_prompt")
    with pytest.raises(UserError, match="no prompts"):
        hidden_states(model, tokenizer, [])


# -- the finding ------------------------------------------------------------------------------


def population(
    gap: float, n: int = 200, d: int = 12, seed: int = 0
) -> tuple[np.ndarray, list[bool]]:
    """Two Gaussian classes, ``gap`` apart along the first axis, which has variance 9."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, d)) * np.array([3.0] + [1.0] * (d - 1))
    harmful = [i % 2 == 0 for i in range(n)]
    points[:, 0] += np.where(harmful, gap, 0.0)
    return points, harmful


def test_the_distance_of_known_clouds_is_recovered() -> None:
    # variance 9 along the gap of 12: D_B = 1/8 * 144 / 9 = 2
    points, harmful = population(12.0, n=1200)
    found = separation_of(points, harmful, n_bootstrap=100)
    distance = found["bhattacharyya_distance"]
    assert distance.value == pytest.approx(2.0, rel=0.1)
    assert distance.low < distance.value < distance.high
    assert distance.low < 2.0 < distance.high
    assert distance.n == 600
    assert found["bhattacharyya_coefficient"].value == pytest.approx(math.exp(-distance.value))
    assert found["bhattacharyya_coefficient"].low == pytest.approx(math.exp(-distance.high))
    # AUROC of two normals: Phi(12 / (3 sqrt 2)) = Phi(2.83) = 0.9977
    assert found["probe_auroc"].value == pytest.approx(0.9977, abs=0.01)
    assert "clearly apart" in found.summary


def test_no_difference_is_found_where_there_is_none() -> None:
    points, harmful = population(0.0, n=400, d=64)
    found = separation_of(points, harmful, n_bootstrap=200)
    assert found["bhattacharyya_distance"].value < 0.1
    assert found["probe_auroc"].low < 0.5 < found["probe_auroc"].high
    assert "barely apart" in found.summary


def test_harmful_lies_to_the_right() -> None:
    for gap in (9.0, -9.0):
        points, harmful = population(gap)
        scatter = separation_of(points, harmful, n_bootstrap=0).figures["scatter"]
        x, labels = np.array(scatter["x"]), np.array(scatter["harmful"])
        assert x[labels].mean() > x[~labels].mean()


def test_the_seed_decides_and_the_measured_half_is_its_own() -> None:
    points, harmful = population(6.0)
    texts = [f"prompt {i}" for i in range(200)]
    a = separation_of(points, harmful, texts=texts, n_bootstrap=50, seed=1)
    b = separation_of(points, harmful, texts=texts, n_bootstrap=50, seed=1)
    c = separation_of(points, harmful, texts=texts, n_bootstrap=50, seed=2)
    assert a == b != c
    assert len(set(a.figures["scatter"]["text"])) == 100
    assert sum(a.figures["scatter"]["harmful"]) == 50


def test_the_papers_protocol() -> None:
    points, harmful = population(9.0)
    found = separation_of(points, harmful, preset="paper", n_bootstrap=50)
    centered = points - points.mean(axis=0)
    plane = centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T
    mask = np.array(harmful)
    expected = bhattacharyya_distance(plane[mask], plane[~mask])
    assert found["bhattacharyya_distance"].value == pytest.approx(expected, rel=1e-4)
    assert found["bhattacharyya_distance"].n == 200
    assert found["probe_auroc"].n == 100
    variance = np.linalg.svd(centered, compute_uv=False) ** 2
    assert found["explained_variance"].value == pytest.approx(variance[:2].sum() / variance.sum())
    with pytest.raises(UserError, match="leave them out"):
        separation_of(points, harmful, preset="paper", shrinkage=0.1)


def test_a_hidden_difference_gets_advice() -> None:
    points, harmful = population(0.0, n=400)
    points[:, 0] *= 20
    points[:, 1] *= 20
    points[:, 5] += np.where(harmful, 6.0, 0.0)
    found = separation_of(points, harmful, n_bootstrap=0)
    assert found["probe_auroc"].value > 0.95
    assert "other layers" in found.advice


def test_findings_survive_json(tmp_path) -> None:
    from trueline.runs.record import Run

    points, harmful = population(6.0)
    found = separation_of(points, harmful, n_bootstrap=20)
    Run(tmp_path).save([found])
    assert Run(tmp_path).own == [found]


@pytest.mark.parametrize(
    ("states", "harmful", "kwargs", "said"),
    [
        (np.zeros((4, 3)), [True] * 3, {}, "expected 4"),
        (np.zeros((2, 3)), [1, 0], {}, "true/false"),
        (np.full((20, 3), np.nan), [True, False] * 10, {}, "20 prompts are not finite"),
        (np.zeros((20, 3)), [True] * 19 + [False], {}, "1 safe prompts are too few"),
        (np.zeros((20, 3)), [True, False] * 10, {"texts": ["a"]}, "20 texts"),
        (np.zeros((20, 3)), [True, False] * 10, {"preset": "papr"}, "preset"),
        (np.zeros((20, 3)), [True, False] * 10, {"fit_fraction": 1.5}, "fit_fraction"),
        (np.zeros((20, 1)), [True, False] * 10, {}, "two dimensions"),
    ],
)
def test_separation_says_what_is_wrong(states, harmful, kwargs, said: str) -> None:
    with pytest.raises(UserError, match=said):
        separation_of(states, harmful, **kwargs)


def test_separation_of_a_model(model, tokenizer) -> None:
    rng = np.random.default_rng(0)
    harmful = [i % 2 == 0 for i in range(40)]
    prompts = [
        user(" ".join([*rng.choice(WORDS[:12], rng.integers(1, 6)), *(["sorry"] if bad else [])]))
        for bad in harmful
    ]
    found = separation(model, tokenizer, prompts, harmful, n_bootstrap=20, layer=1, position="mean")
    assert isinstance(found, Finding)
    assert found["probe_auroc"].value > 0.8
    assert len(found.figures["scatter"]["text"]) == 20
    paper = separation(model, tokenizer, prompts, harmful, n_bootstrap=0, preset="paper")
    assert paper["bhattacharyya_distance"].n == 40
    with pytest.raises(UserError, match="preset='paper' means"):
        separation(model, tokenizer, prompts, harmful, preset="paper", layer=1)


# -- two models, every layer ------------------------------------------------------------------


def test_a_change_is_measured_on_the_same_prompts():
    before, harmful = population(6.0, n=400)
    after = before + np.where(harmful, 3.0, 0.0)[:, None] * np.eye(12)[0]
    found = separation_change_of(before, after, harmful, n_bootstrap=200)
    change = found["bhattacharyya_distance, change"]
    ends = [separation_of(states, harmful, n_bootstrap=200) for states in (before, after)]
    first, second = (finding["bhattacharyya_distance"] for finding in ends)
    assert found["bhattacharyya_distance, before"].value == first.value
    assert found["bhattacharyya_distance, after"].value == second.value
    assert change.value == pytest.approx(second.value - first.value)
    assert 0 < change.low < change.value < change.high
    assert "moved harmful and safe prompts apart" in found.summary
    # paired: what both models share cancels; two independent intervals would be much wider
    apart = math.hypot(second.high - second.low, first.high - first.low)
    assert change.high - change.low < 0.7 * apart
    back = separation_change_of(after, before, harmful, n_bootstrap=200)
    assert "together" in back.summary
    assert back["bhattacharyya_distance, change"].value == pytest.approx(-change.value)


def test_the_same_model_has_not_changed():
    states, harmful = population(6.0)
    found = separation_change_of(states, states, harmful, n_bootstrap=50)
    assert found["bhattacharyya_distance, change"].value == 0
    assert found["silhouette, change"].value == 0
    assert "cannot be told" in found.summary


def test_the_change_of_a_population_lies_in_its_interval():
    # D_B = gap^2 / (8 * 9): from .5 (gap 6) to 1.125 (gap 9), the planes' noise kept small
    hits = 0
    for seed in range(10):
        before, harmful = population(6.0, n=600, d=3, seed=seed)
        after, _ = population(9.0, n=600, d=3, seed=seed)
        found = separation_change_of(before, after, harmful, n_bootstrap=100, shrinkage=0.0)
        change = found["bhattacharyya_distance, change"]
        hits += change.low < 0.625 < change.high
    assert hits >= 8


def labeled(n=80):
    rng = np.random.default_rng(0)
    harmful = [i % 2 == 0 for i in range(n)]
    prompts = [
        user(" ".join([*rng.choice(WORDS[:12], rng.integers(1, 6)), *(["sorry"] if bad else [])]))
        for bad in harmful
    ]
    return prompts, harmful


def test_a_profile_has_every_layer(model, tokenizer):
    prompts, harmful = labeled()
    found = separation_profile(model, tokenizer, prompts, harmful, n_bootstrap=20, position="mean")
    for layer in range(3):
        alone = separation(
            model, tokenizer, prompts, harmful, n_bootstrap=20, position="mean", layer=layer
        )
        for kind in ("bhattacharyya_distance", "probe_auroc"):
            assert found[f"layer {layer}, {kind}"].value == pytest.approx(alone[kind].value)
    assert len(found.figures["profile"]["probe_auroc"]) == 3
    closed = [[*p, Message("assistant", "no")] for p in prompts]  # all end in the same token
    found = separation_profile(model, tokenizer, [tuple(p) for p in closed], harmful, n_bootstrap=0)
    assert found["layer 0, probe_auroc"].value is None
    assert found["layer 2, probe_auroc"].value is not None


def test_two_models_on_the_same_prompts(model, tokenizer):
    prompts, harmful = labeled()
    other = tiny_llama(3, hidden_size=32, num_attention_heads=4)
    found = separation_change(model, other, tokenizer, prompts, harmful, n_bootstrap=0)
    own = separation(other, tokenizer, prompts, harmful, n_bootstrap=0)
    assert found["probe_auroc, after"].value == own["probe_auroc"].value


def test_separation_during_training(tmp_path, tokenizer):
    from trueline import AlignmentConfig, AlignmentTrainer

    prompts, harmful = labeled(40)
    trainer = AlignmentTrainer(
        tiny_llama(0),
        args=AlignmentConfig(
            output_dir=str(tmp_path), loss_type="dpo", max_steps=4, learning_rate=1e-3,
            reference_cache="none", disable_tqdm=True, report_to="none", save_strategy="no",
        ),
        train_dataset=pair_rows(8),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.add_callback(SeparationCallback(trainer, prompts, harmful, steps=2))
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {row["step"]: row for row in lines if "sep/probe_auroc" in row}
    assert sorted(logged) == [2, 4]
    direct = separation(trainer.model, tokenizer, prompts, harmful, n_bootstrap=0)
    for name in ("bhattacharyya_distance", "silhouette", "probe_auroc"):
        assert logged[4][f"sep/{name}"] == pytest.approx(direct[name].value, rel=1e-5)
    with pytest.raises(UserError, match="too few"):
        SeparationCallback(trainer, prompts[:4], harmful[:4], steps=2)


# -- prompts with labels ----------------------------------------------------------------------


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_alone_are_enough(tmp_path):
    rows = [{"prompt": "one", "safety": 0}, {"prompt": "two", "safety": "safe"},
            {"prompt": "one", "safety": "harmful"}]  # fmt: skip
    found = read_prompts(write(tmp_path / "p.jsonl", rows))
    assert (found.prompts, found.harmful, found.repeated) == (["one", "two"], [True, False], 1)
    chat = read_prompts(tmp_path / "p.jsonl", as_chat=True, limit=2)
    assert chat.prompts == [user("one"), user("two")]


def test_any_form_with_a_safety_column_will_do(tmp_path):
    row = {"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "safety": 1,
           "rejected": "\n\nHuman: Sky?\n\nAssistant: Red."}  # fmt: skip
    found = read_prompts(write(tmp_path / "hh.jsonl", [row]))
    assert found.harmful == [False]
    assert found.prompts[0][0].content == "Sky?"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a", "safety": 0}, {"prompt": "b", "safety": None}], "p.jsonl:2: no safety"),
        ([{"prompt": "a", "safety": 0}, {"prompt": "a", "safety": 1}], "both harmful and safe"),
        ([{"prompt": "a", "safety": 2}], "p.jsonl:1: safety must be"),
        ([{"prompt": "a", "completion": "b"}], "p.jsonl:1: no safety label"),
    ],
)
def test_labels_are_checked(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        read_prompts(write(tmp_path / "p.jsonl", rows))


def test_unlabeled_prompts_are_counted_where_they_may_be_left_out(tmp_path):
    rows = [{"prompt": "a", "safety": 0}, {"prompt": "b"}, {"prompt": "c", "safety": 1}]
    found = read_prompts(write(tmp_path / "p.jsonl", rows), skip_bad=True)
    assert (len(found.prompts), found.unlabeled) == (2, 1)
    with pytest.raises(UserError, match="none of 1 prompts has a safety label"):
        read_prompts(write(tmp_path / "q.jsonl", [{"prompt": "a", "completion": "b"}]),
                     skip_bad=True)  # fmt: skip
    examples = load_examples([{"prompt": "a", "completion": "b"}])
    assert prompts_of(examples).unlabeled == 1
