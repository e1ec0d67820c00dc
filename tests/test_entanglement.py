"""Entanglement: the algebra of a pair, any objective's pulls, and the finding as a user gets it."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline.batching import Encoder, view
from trueline.data import load_examples
from trueline.diagnostics import entanglement
from trueline.diagnostics.entanglement.measure import Measurement
from trueline.diagnostics.entanglement.pairs import Entangled, pulls, statistics_of
from trueline.diagnostics.entanglement.words import finding
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.objectives import bind
from trueline.scoring import Scorer


def pair(inner, chosen, rejected, up=1.0, down=1.0):
    return Entangled(*(np.array([float(x)]) for x in (inner, chosen, rejected, up, down)))


# --- the algebra ---------------------------------------------------------------------------------


def test_the_spec_s_unit_case():
    """|g_w|^2 = 1, |g_l|^2 = 4, I = 2: both fall, and still the margin grows."""
    found = pair(2, 1, 4)
    assert found.change_chosen.item() == -1
    assert found.change_rejected.item() == -2
    assert found.cases.item() == "both_fall"
    assert found.condition_chosen.item() == 2.0
    assert found.condition_rejected.item() == 0.5


def test_the_minimum_takes_both_norms_unlike_the_official_code():
    """The paper's released code writes min(|g_w|^2, |g_w|^2): wrong where |g_l| is smaller."""
    assert pair(2, 4, 1).over_smaller.item() == 2.0
    assert pair(2, 1, 4).over_smaller.item() == 2.0


@pytest.mark.parametrize(
    ("values", "case"),
    [
        ((-1, 1, 1), "ideal"),
        ((0.5, 1, 1), "ideal"),
        ((2, 4, 1), "both_rise"),
        ((1, 1, 1), "other"),  # equal gradients: nothing moves
        ((0.1, 1, 1, 1, -1), "both_rise"),  # a negative pull on the rejected lifts it
        ((0.1, 1, 1, -1, -1), "other"),  # past a target, backwards
        ((2, 1, 4, 3, 1), "both_rise"),  # d_w/d_l = 3 turns "both fall" around
    ],
)
def test_cases(values, case):
    assert pair(*values).cases.item() == case


def test_conditions_are_undefined_for_a_pull_that_is_not_positive():
    found = pair(0.1, 1, 1, 1, -1)
    assert math.isnan(found.condition_chosen.item())
    assert math.isnan(found.condition_rejected.item())


def test_conditions_tell_the_signs_of_the_changes():
    rng = np.random.default_rng(0)
    g_w, g_l = rng.normal(size=(2, 500, 3))
    up, down = rng.uniform(0.1, 2, size=(2, 500))
    found = Entangled((g_w * g_l).sum(1), (g_w**2).sum(1), (g_l**2).sum(1), up, down)
    assert ((found.condition_chosen < 1) == (found.change_chosen > 0)).all()
    assert ((found.condition_rejected < 1) == (found.change_rejected < 0)).all()
    ideal = found.cases == "ideal"
    assert 0 < ideal.sum() < 500


# --- any objective's pulls, against the closed forms of the paper's table -------------------------

A, B, U, V, W, L = -40.0, -55.0, -2.0, 3.0, 20, 50  # log-probs, log-ratios and lengths of a pair
ONE = PairedLogProbs(
    *(
        CompletionLogProbs(
            torch.tensor([p], dtype=torch.float64),
            torch.tensor([n]),
            torch.tensor([p - r], dtype=torch.float64),
        )
        for p, n, r in ((A, W, U), (B, L, V))
    )
)


def s(x):
    return 1 / (1 + math.exp(-x))


def orpo_pulls():
    p_w, p_l = math.exp(A / W), math.exp(B / L)
    odds = math.log(p_w / (1 - p_w)) - math.log(p_l / (1 - p_l))
    c = 0.1 * s(-odds)
    return 1 / W + c / (W * (1 - p_w)), c / (L * (1 - p_l))


D, BETA = U - V, 0.1
CLOSED = {
    "dpo": ({}, (BETA * s(-BETA * D),) * 2),
    "r_dpo": ({"length_alpha": 0.02}, (BETA * s(-BETA * D - 0.02 * (W - L)),) * 2),
    "ipo": ({"beta": 0.1}, (2 * (1 / 0.2 - D),) * 2),
    "simpo": (
        {"beta": 2.0, "simpo_gamma": 0.5},
        tuple(2 * s(-2 * A / W + 2 * B / L + 0.5) / n for n in (W, L)),
    ),
    "rrhf": ({"rrhf_lambda": 0.3}, (1 / W + 0.3, 1 / L)),
    "slic": ({"slic_delta": 20.0, "slic_lambda": 0.3}, (1.3, 1.0)),
    "cpo": ({"cpo_alpha": 0.3}, (BETA * s(-BETA * (A - B)) + 0.3, BETA * s(-BETA * (A - B)))),
    "dpop": (
        {"dpop_lambda": 5.0},
        tuple(BETA * s(-BETA * (D - 5 * -U)) * k for k in (1 + 5, 1)),
    ),
    "kto": (
        {"desirable_weight": 2.0},
        (
            2 * BETA * s(BETA * U) * s(-BETA * U),
            BETA * s(BETA * V) * s(-BETA * V),
        ),
    ),
    "sppo": ({}, (1 / 0.2 - U, 1 / 0.2 + V)),
    "orpo": ({}, orpo_pulls()),
}


@pytest.mark.parametrize("name", CLOSED)
def test_pulls_of_any_objective_equal_the_table(name):
    options, (up, down) = CLOSED[name]
    found = [float(x[0]) for x in pulls(bind(name, options), ONE)]
    scale = 0.5 if name == "kto" else 1.0  # ours is a mean over completions, two to a pair
    assert found == pytest.approx([scale * up, scale * down], rel=1e-9)


def test_pulls_do_not_depend_on_how_many_pairs_there_are():
    many = ONE.map(lambda x: x.repeat(5))
    for name in ("dpo", "kto", "simpo"):
        up, down = pulls(bind(name), ONE)
        assert pulls(bind(name), many)[0] == pytest.approx(np.repeat(up, 5))
        assert pulls(bind(name), many)[1] == pytest.approx(np.repeat(down, 5))


def test_statistics_are_taken_of_all_pairs():
    assert statistics_of(bind("dpo"), ONE) == {}
    strangers = ONE.rejected.map(lambda x: x + 0)
    assert statistics_of(bind("kto"), ONE, strangers)["baseline"].item() == pytest.approx(V)


# --- the finding ---------------------------------------------------------------------------------

SHARED = [  # one word differs, and a long ending is the same
    {
        "prompt": f"{w} why ?",
        "chosen": f"{a} the sky is blue and we help because grass is green",
        "rejected": f"{b} the sky is blue and we help because grass is green",
    }
    for w, a, b in (("one", "yes", "no"), ("two", "no", "yes"), ("three", "maybe", "no"))
]


def warmed(rows):
    """A model that has read the chosen completions, as a policy has before preference training."""
    model, encode = tiny_llama(dtype=torch.float64), Encoder(tiny_tokenizer())
    trees = [t for e in load_examples(rows) for t in view(e, encode(e), "paired")]
    scorer = Scorer(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        batch = scorer.pack(trees)
        (-batch.sums(scorer(trees, batch))[0::2]).mean().backward()
        optimizer.step()
    scorer.detach()
    return model


def test_the_finding_predicts_what_a_step_does_and_leaves_the_model_alone():
    model = tiny_llama(dtype=torch.float64).train()
    before = copy.deepcopy(model.state_dict())
    seen = []
    found = entanglement(
        model,
        tiny_tokenizer(),
        load_examples(pair_rows(10)),
        optimizer_update=1e-3,
        batch_size=4,
        heat_maps=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert model.training
    assert "forward" not in model.__dict__
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert found.name == "entanglement"
    data = found.figures["pairs"]
    for side in ("chosen", "rejected"):  # Gram matrix, forward mode and the real step agree
        gram = 1e-3 * np.array(data[f"batch_change_{side}"])
        assert data[f"predicted_{side}"] == pytest.approx(gram, rel=1e-4)
        assert data[f"observed_{side}"] == pytest.approx(gram, rel=0.05)
    assert found["entangle/prediction_sign_agrees"].value == 1.0
    assert found["entangle/cosine"].n == 10
    layers = found.figures["layers"]
    assert layers["layer"] == ["embed_tokens", "layer 0", "layer 1", "lm_head", "norm"]
    assert sum(layers["inner"]) == pytest.approx(np.mean(data["inner_product"]))
    assert np.shape(found.figures["gram"]["inner"]) == (8, 8)
    assert len(found.figures["heat_maps"]) == 1
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_shared_ending_entangles_and_the_words_say_so():
    found = entanglement(warmed(SHARED), tiny_tokenizer(), load_examples(SHARED), heat_maps=0)
    assert found["entangle/cosine"].value > 0.5
    apart = [{**row, "rejected": "cannot sorry"} for row in SHARED]
    less = entanglement(warmed(SHARED), tiny_tokenizer(), load_examples(apart), heat_maps=0)
    assert less["entangle/cosine"].value < found["entangle/cosine"].value
    assert found["entangle/chosen_falls"].value == 0.0
    assert found["entangle/batch_chosen_falls"].value >= 0.5
    assert "other pairs of its batch lower it" in found.advice


def test_a_pair_that_lowers_its_own_chosen_calls_for_the_remedy():
    pairs = Entangled(*(np.full(40, x) for x in (2.0, 1.0, 4.0, 1.0, 1.0)))
    changes = np.stack([pairs.change_chosen, pairs.change_rejected], axis=1)
    said = finding(
        Measurement(pairs, {}, changes, np.eye(2), None),
        objective="dpo",
        ids=[str(i) for i in range(40)],
        groups=np.arange(40),
        per_layer=False,
        heat_maps=[],
        proxy=False,
    )
    assert said["entangle/case_both_fall"].value == 1.0
    assert "pushes both down in 100.0%" in said.summary
    assert "pair_weighting: normalized" in said.advice
    assert "layers" not in said.figures


def test_reference_comes_as_a_model_as_numbers_or_not_at_all():
    model, tokenizer, rows = tiny_llama(), tiny_tokenizer(), load_examples(pair_rows(4))
    other = tiny_llama(1)
    at_start = entanglement(model, tokenizer, rows, heat_maps=0)
    assert at_start["entangle/d_chosen"].value == pytest.approx(0.05), "log-ratios are 0"
    given = entanglement(model, tokenizer, rows, reference=other, heat_maps=0)
    scorer = Scorer(other)
    trees = [t for e in rows for t in view(e, Encoder(tokenizer)(e), "paired")]
    with torch.no_grad():
        values = scorer.pack(trees).sums(scorer(trees)).reshape(-1, 2).tolist()
    listed = entanglement(model, tokenizer, rows, reference=values, heat_maps=0)
    assert listed["entangle/d_chosen"].value == pytest.approx(given["entangle/d_chosen"].value)
    assert given["entangle/d_chosen"].value != pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("name", ["kto", "kldo", "aot", "simpo", "sft", ["dpo", "sft"]])
def test_any_objective(name):
    found = entanglement(
        tiny_llama(), tiny_tokenizer(), load_examples(pair_rows(4)), objective=name, heat_maps=0
    )
    assert math.isfinite(found["entangle/change_chosen"].value)


def test_the_proxy_is_called_one_and_has_names_of_its_own():
    examples = load_examples(pair_rows(4))
    found = entanglement(tiny_llama(), tiny_tokenizer(), examples, method="head", heat_maps=0)
    assert "proxy" in found.summary
    assert "method='exact'" in found.advice
    assert all(metric.name.startswith("entangle/head_proxy/") for metric in found.metrics)


def test_pairs_are_drawn_by_the_seed():
    def ids(seed):
        found = entanglement(
            tiny_llama(),
            tiny_tokenizer(),
            load_examples(pair_rows(12)),
            max_pairs=4,
            heat_maps=0,
            seed=seed,
        )
        return found.figures["pairs"]["id"]

    assert len(ids(0)) == 4
    assert ids(0) == ids(0) != ids(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "simpo", "reference": tiny_llama()}, "reads no reference"),
        ({"method": "heads"}, "must be 'exact' or 'head'"),
        ({"method": "head"}, "neither would have an effect"),
        ({"max_pairs": 1}, "at least 2"),
        ({"optimizer_update": -1.0}, "must be positive"),
        ({"reference": [[0.0, 0.0]]}, "for every pair"),
        ({"objective": "kto", "reference": [[0.0, 0.0]] * 4}, "give the reference model"),
        ({"options": {"gamma": 1}}, "has no effect on objective 'dpo'"),
    ],
)
def test_what_cannot_be_is_an_error(options, message):
    with pytest.raises(UserError, match=message):
        entanglement(tiny_llama(), tiny_tokenizer(), load_examples(pair_rows(4)), **options)


def test_data_without_pairs_is_an_error():
    rows = [{"prompt": "why ?", "completion": "because", "label": True}]
    with pytest.raises(UserError, match="preference pair"):
        entanglement(tiny_llama(), tiny_tokenizer(), load_examples(rows))
