"""The fast path equals the naive computation, in value and in gradient, on every architecture."""

import copy
from dataclasses import fields

import numpy as np
import pytest
import torch
import transformers as tf

from trueline.batching import Branch, TokenTree, pack
from trueline.scoring import Scorer, Shortcuts, head_log_probs, plain_log_probs, scoring
from trueline.scoring import attention as attention_module
from trueline.scoring import head as head_module
from trueline.scoring import scorer as scorer_module

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 128,
}
NEOX = {key: value for key, value in SIZE.items() if key != "num_key_value_heads"}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61, "n_positions": 128}
ARCHITECTURES = {
    "llama": lambda: tf.LlamaConfig(**SIZE),
    "qwen3": lambda: tf.Qwen3Config(**SIZE, head_dim=8),
    "mistral-window": lambda: tf.MistralConfig(**SIZE, sliding_window=6),
    "gemma": lambda: tf.GemmaConfig(**SIZE, head_dim=8),
    "gemma2-softcap": lambda: tf.Gemma2Config(**SIZE, head_dim=8, sliding_window=6),
    "gemma3": lambda: tf.Gemma3TextConfig(**SIZE, head_dim=8, sliding_window=6),
    "gpt2": lambda: tf.GPT2Config(**GPT2),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**NEOX),
}


def make_model(name, attention="sdpa", dtype=torch.float64):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(
        ARCHITECTURES[name](), attn_implementation=attention
    )
    return model.to(dtype).eval()


def make_trees(seed=0, count=3, vocabulary=61):
    rng = np.random.default_rng(seed)

    def branch(n):
        mask = np.ones(n, dtype=bool)
        mask[1 : n // 3] = False  # a branch may hold tokens that are not scored
        return Branch(rng.integers(3, vocabulary, n).astype(np.int32), mask)

    return [
        TokenTree(
            rng.integers(3, vocabulary, int(rng.integers(1, 12))).astype(np.int32),
            (branch(int(rng.integers(1, 9))), branch(int(rng.integers(1, 14)))),
            (True, False),
        )
        for _ in range(count)
    ]


def naive_log_probs(model, trees):
    """One unpadded row a completion through the ordinary forward: the independent truth."""
    pieces = []
    for tree in trees:
        for branch in tree.branches:
            row = torch.from_numpy(np.concatenate([tree.prompt, branch.ids]).astype(np.int64))
            logps = model(input_ids=row[None], use_cache=False).logits[0].log_softmax(-1)
            at = torch.from_numpy(np.flatnonzero(branch.mask)) + len(tree.prompt)
            pieces.append(logps[at - 1, row[at]])
    return torch.cat(pieces)


def value_and_gradient(model, score):
    model.zero_grad()
    values = score()
    (values * torch.linspace(-1, 2, len(values), dtype=values.dtype)).sum().backward()
    return values.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_equal_to_naive(naive, fast, trees, **shortcuts):
    truth, truth_gradient = value_and_gradient(naive, lambda: naive_log_probs(naive, trees))
    scorer = Scorer(fast, shortcuts=Shortcuts(**shortcuts))
    assert scorer.fast, "the architecture is listed as verified"
    values, gradient = value_and_gradient(fast, lambda: scorer(trees))
    scorer.detach()
    torch.testing.assert_close(values, truth, rtol=1e-6, atol=1e-6)
    for key, expected in truth_gradient.items():
        torch.testing.assert_close(gradient[key], expected, rtol=1e-5, atol=2e-6, msg=key)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fast_path_equals_naive(name, attention):
    if name.startswith("gemma2") and attention == "sdpa":
        pytest.skip("transformers has no sdpa for soft-capped attention")
    naive = make_model(name, attention)
    assert_equal_to_naive(naive, copy.deepcopy(naive), make_trees())


@pytest.mark.parametrize("shortcut", [field.name for field in fields(Shortcuts)])
@pytest.mark.parametrize("name", ["llama", "mistral-window", "gpt-neox"])
def test_each_shortcut_alone_and_all_but_it_equal_naive(name, shortcut):
    naive = make_model(name)
    alone = {field.name: field.name == shortcut for field in fields(Shortcuts)}
    without = {field.name: field.name != shortcut for field in fields(Shortcuts)}
    for choice in (alone, without):
        assert_equal_to_naive(naive, copy.deepcopy(naive), make_trees(), **choice)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gpt2"])
def test_no_mask_of_the_whole_row_is_built(name, monkeypatch):
    scorer = Scorer(make_model(name))

    def refuse(*args, **kwargs):
        raise AssertionError("a mask of the whole row")

    monkeypatch.setitem(tf.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS, "trueline", refuse)
    assert scorer(make_trees()).isfinite().all()


def test_the_last_layer_sees_scored_rows_only():
    """The shortcut is taken: the last feed-forward reads as many rows as there are predictors."""
    model, trees = make_model("llama"), make_trees()
    rows = {}
    for i, layer in enumerate(model.model.layers):
        layer.mlp.gate_proj.register_forward_hook(
            lambda module, args, out, i=i: rows.update({i: args[0].shape[1]})
        )
    scorer = Scorer(model)
    batch = scorer.pack(trees)
    scorer(trees, batch)
    assert rows == {0: batch.input_ids.shape[1], 1: len(batch.layout.scored)}
    assert len(batch.layout.scored) < batch.input_ids.shape[1]
    model(input_ids=torch.tensor([[5, 6, 7, 8]]))
    assert rows == {0: 4, 1: 4}, "an ordinary call is untouched"


def test_the_last_layer_shortcut_is_left_out_where_it_does_not_fit(monkeypatch):
    """A feed-forward that runs before attention would take the rows of the batch before."""
    model, trees = make_model("llama"), make_trees()
    layer = model.model.layers[-1]

    def other_order(hidden, **kwargs):
        fed = layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden + fed + layer.self_attn(layer.input_layernorm(hidden), **kwargs)[0]

    monkeypatch.setattr(layer, "forward", other_order)
    scorer = Scorer(model)
    assert scorer.fast
    assert not scorer.shortcuts.last_layer
    torch.testing.assert_close(scorer(trees), naive_log_probs(model, trees), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2-softcap", "gpt2"])
def test_gradient_checkpointing_changes_nothing(name):
    trees = make_trees()
    model = make_model(name, "eager").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    scorer = Scorer(model)
    values, gradient = value_and_gradient(model, lambda: scorer(trees))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, gradient_again = value_and_gradient(model, lambda: scorer(trees))
    torch.testing.assert_close(values, again)
    for key in gradient:
        torch.testing.assert_close(gradient[key], gradient_again[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_chunked_head_equals_full_logits(monkeypatch, softcap):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=True).double()
    hidden = torch.randn(13, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (13,))
    upstream = torch.randn(13, dtype=torch.float64)

    def run(function):
        inputs = [hidden, head.weight, head.bias]
        out = function()
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]

    def full():
        logits = head(hidden)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    truth = run(full)
    sizes = [(elements, keep) for elements in (50, 200, 1 << 20) for keep in (0, 300, 1 << 20)]
    # one row, four rows, everything at once; computed again, kept in part, kept
    for elements, keep in sizes:
        monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", elements)
        monkeypatch.setattr(head_module, "KEEP_ELEMENTS", keep)
        for got, expected in zip(
            run(lambda: head_log_probs(head, hidden, targets, softcap=softcap)), truth, strict=True
        ):
            torch.testing.assert_close(got, expected)


def test_a_model_that_fails_the_check_takes_the_plain_path(monkeypatch, caplog):
    model = make_model("llama")
    monkeypatch.setattr(
        scorer_module,
        "packed_log_probs",
        lambda core, batch, shortcuts: torch.zeros(len(batch.targets)),
    )
    scorer = Scorer(model)
    assert not scorer.fast
    assert "plain scoring path" in caplog.text
    trees = make_trees()
    torch.testing.assert_close(scorer(trees), naive_log_probs(model, trees), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [False, True])
def test_bf16_rounds_large_logits_coarsely_and_a_wrong_token_still_shows(monkeypatch, wrong):
    """A real checkpoint's log-probs reach -20 and more, where two bf16 passes lie .16 apart."""
    model = make_model("llama", dtype=torch.float32)
    model.lm_head.weight.data.mul_(300)
    right = scorer_module.packed_log_probs

    def packed(core, batch, shortcuts):
        found = right(core, batch, shortcuts)
        return found.roll(1) if wrong else found

    monkeypatch.setattr(scorer_module, "packed_log_probs", packed)
    with torch.autocast("cpu", torch.bfloat16):
        assert Scorer(model).fast is not wrong


def test_plain_path_pads_without_effect():
    model, trees = make_model("gpt-neox"), make_trees(1, 4)
    torch.testing.assert_close(
        plain_log_probs(model, pack(trees), trees),
        naive_log_probs(model, trees),
        rtol=1e-6,
        atol=1e-6,
    )


def test_a_second_scorer_leaves_the_first_as_it_was():
    model, trees = make_model("llama"), make_trees()
    first = Scorer(model)
    truth = first(trees)
    with scoring(model) as second:
        assert second.shortcuts.last_layer
        torch.testing.assert_close(second(trees), truth)
    torch.testing.assert_close(first(trees), truth)
    first.detach()
    assert not [m for m in model.modules() if "forward" in m.__dict__]
    assert model.config._attn_implementation == "sdpa"


def test_saving_and_generating_are_untouched(tmp_path):
    model = make_model("llama", dtype=torch.float32)
    scorer = Scorer(model)
    ids = torch.tensor([[5, 6, 7]])
    generated = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    model.save_pretrained(tmp_path)
    scorer.detach()
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = again.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert generated.tolist() == expected.tolist()
    assert "trueline" not in (tmp_path / "config.json").read_text()


def flash_by_definition(
    q, k, v, starts_q, starts_k, max_q, max_k, *, scale, window_size, enable_gqa=False
):
    """What the kernel's documentation says: sequences end to end, the last query sees the last
    key, each sees ``window_size[0]`` keys back (-1: all); grouped heads only where asked for."""
    outputs = []
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    bounds = zip(
        starts_q.tolist(), starts_q.tolist()[1:], starts_k.tolist(), starts_k.tolist()[1:],
        strict=False,
    )  # fmt: skip
    for q0, q1, k0, k1 in bounds:
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        at = torch.arange(k1 - k0 - (q1 - q0), k1 - k0)[:, None] - torch.arange(k1 - k0)[None]
        mask = (at >= 0) & ((at <= window_size[0]) | (window_size[0] < 0))
        scores = torch.einsum("qhd,khd->hqk", q[q0:q1], k[k0:k1])
        scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v[k0:k1]))
    return torch.cat(outputs)


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_the_gpu_path_equals_naive(name, monkeypatch):
    """The variable-length kernel needs a GPU; what it is told is checked with its definition."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash_by_definition)
    monkeypatch.setattr(
        attention_module,
        "by_part",
        lambda q, k, v, layout, dropout, scale, softcap, window: attention_module.by_varlen(
            q, k, v, layout, scale, window
        ),
    )
    naive = make_model(name)
    assert_equal_to_naive(naive, copy.deepcopy(naive), make_trees())


def test_a_kernel_that_means_something_else_is_not_used(monkeypatch):
    def upper_left(*args, **kwargs):
        return flash_by_definition(*args, **{**kwargs, "window_size": (-1, 0)})

    works = attention_module.varlen_agrees
    cpu = (torch.device("cpu"), torch.float32, 8)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash_by_definition)
    assert works(*cpu)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", upper_left)  # knows no window
    assert not works(*cpu)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda *args: None)
    assert not works(*cpu)
