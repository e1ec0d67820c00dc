"""Ghost products equal explicit gradients, whatever the architecture, the head or the adapter."""

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from test_scoring import SIZE, make_model, make_trees
from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline.batching import Encoder, pack, view
from trueline.data import load_examples
from trueline.diagnostics.entanglement import ghost_rules
from trueline.diagnostics.entanglement.ghost import GradientProducts, head_products
from trueline.diagnostics.entanglement.measure import token_heat_map
from trueline.diagnostics.entanglement.update import (
    applied,
    gradient_of,
    predicted_change,
    sgd_update,
    update_of,
)
from trueline.errors import UserError
from trueline.scoring import Scorer

TIED = {
    "qwen2-tied-bias": lambda: tf.Qwen2Config(**SIZE, tie_word_embeddings=True),
    "llama-padding": lambda: tf.LlamaConfig(**SIZE, tie_word_embeddings=True, pad_token_id=7),
}


def built(config, dtype=torch.float64):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():  # no norm at 1, no bias at 0: a wrong rule shows
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def model_named(name):
    return built(TIED[name]()) if name in TIED else make_model(name, "eager")


def some_trees():
    trees = make_trees(1, 3)
    for tree in trees:
        tree.branches[0].ids[0] = 7  # the padding token of one model, scored or not
    return trees


def explicit(scorer, trees, weights=None):
    """(C, C) inner products the plain way: one whole gradient a completion, all stored."""
    parameters = [p for p in scorer.model.parameters() if p.requires_grad]
    batch = scorer.pack(trees)
    tokens = scorer(trees, batch)
    rows = []
    for value in batch.sums(tokens if weights is None else tokens * weights):
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(found, parameters, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
        )
    stacked = torch.stack(rows)
    return stacked @ stacked.T


def assert_close(found, truth, atol=1e-10):
    scale = truth.abs().max().double()
    torch.testing.assert_close(found / scale, truth.double() / scale, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("formed", "at_once"), [(False, 1), (True, 1000), (True, 1 << 22)],
    ids=["token-pairs", "formed-by-rows", "formed"],
)  # fmt: skip
@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gpt2", "gpt-neox", "gemma2-softcap", "gemma3", *TIED]
)
def test_ghost_products_equal_explicit_gradients(name, formed, at_once, monkeypatch):
    """Biases, LayerNorm, RMSNorm in both forms, norms of heads, learned positions, scaled and
    padded embeddings, tied heads with their cross terms; no parameter takes the slow way."""
    monkeypatch.setattr(ghost_rules, "AT_ONCE", at_once)
    monkeypatch.setattr(ghost_rules, "_forming_is_cheaper", lambda *_: formed)
    scorer = Scorer(model_named(name))
    trees = some_trees()
    products = GradientProducts(scorer)
    assert products.explicit == set()
    truth = explicit(scorer, trees)
    whole = products(trees)
    assert_close(whole.total[0], truth)
    blocks = products(trees, group=2).total
    norms = products(trees, group=1).total.flatten()
    for i, block in enumerate(blocks):
        assert_close(block, truth[2 * i : 2 * i + 2, 2 * i : 2 * i + 2])
    assert_close(norms, truth.diagonal())
    assert "layer 0" in whole.by_layer
    assert "layer 1" in whole.by_layer


def test_token_weights_enter_the_gradients():
    scorer = Scorer(model_named("llama"))
    trees = some_trees()
    weights = torch.linspace(-1, 2, len(pack(trees).targets), dtype=torch.float64)
    assert_close(
        GradientProducts(scorer)(trees, weights=weights).total[0], explicit(scorer, trees, weights)
    )


def test_an_adapters_own_parameters_alone_count():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.5)
    model = get_peft_model(make_model("llama", "eager"), config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    scorer = Scorer(model.train())
    products = GradientProducts(scorer)
    assert all("lora_" in name for name in products.names.values())
    assert products.explicit == set()
    found = products(some_trees()).total[0]
    assert model.training, "the mode is given back"
    model.eval()
    assert_close(found, explicit(scorer, some_trees()))


def test_what_no_rule_covers_is_taken_explicitly_and_never_dropped():
    """Mixture-of-experts layers hold their weights outside of any linear module (float32: their
    kernel knows no other)."""
    config = tf.MixtralConfig(**SIZE, num_local_experts=3, num_experts_per_tok=2)
    scorer = Scorer(built(config, torch.float32))
    products = GradientProducts(scorer)
    assert_close(products(some_trees()).total[0], explicit(scorer, some_trees()), atol=1e-4)


def test_a_rule_that_does_not_hold_is_found_out_before_it_is_used():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x @ self.weight.T

    model = make_model("llama", "eager")
    old = model.model.layers[0].self_attn.q_proj
    new = Doubled(old.in_features, old.out_features, bias=False).double()
    new.weight = old.weight
    model.model.layers[0].self_attn.q_proj = new
    scorer = Scorer(model)
    products = GradientProducts(scorer)
    assert [products.names[p] for p in products.explicit] == [
        "model.layers.0.self_attn.q_proj.weight"
    ]
    assert_close(products(some_trees()).total[0], explicit(scorer, some_trees()))


@pytest.mark.parametrize("name", ["gpt2", "llama-padding"])
def test_the_plain_scoring_path_gives_the_same(name):
    scorer = Scorer(model_named(name))
    proxy = head_products(scorer, some_trees()).total
    scorer.detach()
    scorer.fast = False
    products = GradientProducts(scorer)
    assert [products.names[p] for p in products.explicit] == []
    assert_close(products(some_trees()).total[0], explicit(scorer, some_trees()))
    assert_close(head_products(scorer, some_trees()).total, proxy, atol=1e-6)


def test_frozen_models_have_no_gradient():
    model = make_model("llama").requires_grad_(False)
    with pytest.raises(UserError, match="no parameter of the model requires a gradient"):
        GradientProducts(Scorer(model))


# --- the LM head alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma2-softcap"])
def test_the_proxy_is_the_heads_part_of_the_exact_product(name):
    model = make_model(name, "eager")
    if name != "llama":
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # untied
    scorer = Scorer(model)
    exact = GradientProducts(scorer)(some_trees()).by_layer["lm_head"]
    assert_close(head_products(scorer, some_trees()).total, exact)


def test_two_single_tokens_in_one_context_never_entangle():
    """Closed form at the head: cosine of e_a - s and e_b - s, at most 0 where s is flat."""
    scorer = Scorer(tiny_llama(dtype=torch.float64))
    encode = Encoder(tiny_tokenizer(chat=False))
    rows = [{"prompt": "what color", "chosen": "blue", "rejected": "green"}]
    (tree,) = (t for e in load_examples(rows) for t in view(e, encode(e), "paired"))
    for branch in tree.branches:
        branch.mask[1:] = False
    gram = head_products(scorer, [tree]).total[0]
    assert gram[0, 1] <= min(gram[0, 0], gram[1, 1])
    assert gram[0, 1] < 0


# --- token by token ------------------------------------------------------------------------------


def test_a_heat_map_adds_up_to_the_pairs_inner_product():
    scorer = Scorer(tiny_llama(dtype=torch.float64))
    encode = Encoder(tiny_tokenizer())
    tree = next(t for e in load_examples(pair_rows(3)) for t in view(e, encode(e), "paired"))
    products = GradientProducts(scorer)
    found = token_heat_map(products, tiny_tokenizer(), tree)
    assert not found["cut"]
    assert found["chosen"][-1] == found["rejected"][-1] == "</s>"
    inner, cosine = np.array(found["inner"]), np.array(found["cosine"])
    assert inner.shape == cosine.shape == (len(found["chosen"]), len(found["rejected"]))
    assert inner.sum() == pytest.approx(float(products([tree]).total[0, 0, 1]), rel=1e-9)
    assert cosine[0, 0] == pytest.approx(1.0), "the same first token in the same context"
    assert np.abs(cosine).max() <= 1 + 1e-5


# --- along a real update -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen2-tied-bias"])
def test_forward_mode_agrees_with_the_gram_matrix(name):
    scorer = Scorer(model_named(name))
    trees = some_trees()
    c = torch.linspace(-1, 2, 6, dtype=torch.float64)
    update = sgd_update(0.1)(gradient_of(scorer, trees, c))
    gram = explicit(scorer, trees)
    found = predicted_change(scorer, trees, update)
    torch.testing.assert_close(found, -0.1 * gram @ c, rtol=1e-5, atol=1e-6)


def test_the_update_is_the_optimizers_own_and_moves_nothing():
    """Adam with a past, decay and clipping, on a model that shall not notice."""
    model, trees = make_model("llama"), some_trees()
    scorer = Scorer(model)
    c = torch.linspace(-1, 2, 6, dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def train():
        optimizer.zero_grad()
        for name, gradient in gradient_of(scorer, trees, c).items():
            dict(model.named_parameters())[name].grad = gradient
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update = update_of(optimizer, model, max_grad_norm=0.5)(gradient_of(scorer, trees, c))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with applied(model, update):
        inside = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    train()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(inside[name], parameter.detach())


def test_prediction_is_the_limit_of_what_is_observed():
    """First order: a tenth of the step leaves a hundredth of the error."""
    scorer = Scorer(make_model("llama"))
    trees = some_trees()
    gradient = gradient_of(scorer, trees, torch.tensor([-1.0, 1.0] * 3))
    batch = scorer.pack(trees)
    errors = []
    for rate in (1e-4, 1e-5):
        update = sgd_update(rate)(gradient)
        with torch.no_grad():
            before = batch.sums(scorer(trees, batch))
            with applied(scorer.model, update):
                observed = batch.sums(scorer(trees, batch)) - before
        errors.append((observed - predicted_change(scorer, trees, update)).abs().max().item())
    assert errors[1] < errors[0] / 50
