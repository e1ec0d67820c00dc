"""Separation: closed forms, the right vector of the right token, and what the finding says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, silhouette_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trueline.diagnostics import (
    bhattacharyya_distance,
    fisher_ratio,
    hidden_states,
    separation,
    separation_of,
)
from trueline.diagnostics.distances import auroc
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

WORDS = [
    "how",
    "to",
    "bake",
    "a",
    "cake",
    "pick",
    "the",
    "lock",
    "open",
    "my",
    "door",
    "please",
    "kill",
]
TEMPLATE = (
    "<bos>{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}"
    "{{ m.content }} <eos> {% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<unk>", "<bos>", "<eos>", "<user>", "<bot>"]
    core = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    found.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>"]})
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def model(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            attention_dropout=0.5,
        )
    ).double()


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


PROMPTS = [user("how to bake a cake"), user("kill"), user("pick the lock please")]


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
        states = one(
            model, tokenizer, f"<bos><user> {message.content} <eos>".replace("><", "> <"), layer
        )
        torch.testing.assert_close(vector, states[-1])


def test_the_generation_prompt(model, tokenizer) -> None:
    found = hidden_states(model, tokenizer, PROMPTS, position="generation_prompt")
    for vector, (message,) in zip(found, PROMPTS, strict=True):
        states = one(model, tokenizer, f"<bos> <user> {message.content} <eos> <bot>", -1)
        torch.testing.assert_close(vector, states[-1])


def test_the_mean_leaves_bos_out(model, tokenizer) -> None:
    found = hidden_states(model, tokenizer, PROMPTS, position="mean")
    for vector, (message,) in zip(found, PROMPTS, strict=True):
        states = one(model, tokenizer, f"<bos> <user> {message.content} <eos>", -1)
        torch.testing.assert_close(vector, states[1:].mean(dim=0))


def test_plain_text_is_read_to_its_end(model, tokenizer) -> None:
    found = hidden_states(model, tokenizer, ["how to kill", "bake"])
    torch.testing.assert_close(found[0], one(model, tokenizer, "how to kill", -1)[-1])


def test_adapters_count(model, tokenizer) -> None:
    from peft import LoraConfig, get_peft_model

    plain = hidden_states(model, tokenizer, PROMPTS)
    config = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    adapted = get_peft_model(LlamaForCausalLM(model.config).double(), config)
    adapted.get_base_model().load_state_dict(model.state_dict(), strict=False)
    found = hidden_states(adapted, tokenizer, PROMPTS)
    assert not torch.allclose(found, plain)
    assert found.shape == plain.shape


def test_hidden_states_say_what_is_wrong(model, tokenizer) -> None:
    for kwargs, said in (
        ({"layer": 7}, "layer must be between"),
        ({"position": "first"}, "position must be"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(UserError, match=said):
            hidden_states(model, tokenizer, PROMPTS, **kwargs)
    with pytest.raises(UserError, match="needs conversations"):
        hidden_states(model, tokenizer, ["how"], position="generation_prompt")
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
    from trueline.results import load_findings, save_findings

    points, harmful = population(6.0)
    found = separation_of(points, harmful, n_bootstrap=20)
    save_findings(tmp_path, [found])
    assert load_findings(tmp_path) == [found]


@pytest.mark.parametrize(
    ("states", "harmful", "kwargs", "said"),
    [
        (np.zeros((4, 3)), [True] * 3, {}, "4, 3"),
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
        user(" ".join([*rng.choice(WORDS[:-1], rng.integers(1, 6)), *(["kill"] if bad else [])]))
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
