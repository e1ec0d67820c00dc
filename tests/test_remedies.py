"""The remedies: pairwise normalized gradients and token masks, exact under any split."""

import json
import math
import random
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from closeness import assert_same_movement
from test_scoring import make_model, make_trees
from test_training import StopAt, config, lora, run_script, trainer, weights
from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline import AlignmentTrainer
from trueline.batching import Branch, Encoder, TokenTree, view
from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.diagnostics.entanglement.ghost import GradientProducts
from trueline.diagnostics.entanglement.update import applied, gradient_of, sgd_update
from trueline.diagnostics.ranking.scores import score_completions
from trueline.errors import UserError
from trueline.objectives import OBJECTIVES, bind
from trueline.objectives.weighting import normalized
from trueline.sandbox import build_sandbox, grammar
from trueline.scoring import Scorer
from trueline.training import StepEngine
from trueline.training.reference import Reference, ReferenceCache
from trueline.training.remedies import PairNormalizer, SparseMasks, difference_mask
from trueline.training.sampling import BatchPlan

PAIRED = [name for name, spec in OBJECTIVES.items() if spec.layout == "paired"]
MASKABLE = [name for name in PAIRED if OBJECTIVES[name].reference]


def ids(*values):
    return np.array(values, dtype=np.int32)


def branch(*values):
    return Branch(ids(*values), np.ones(len(values), dtype=bool))


# --- the normalized pair -------------------------------------------------------------------------


def test_normalized_keeps_the_total_push_and_balances_its_halves():
    c = torch.tensor([-0.3, 0.2, -1.0, 1.0, 0.7, -0.4], dtype=torch.float64)
    norms = torch.tensor([2.0, 5.0, 1.0, 4.0, 3.0, 2.0], dtype=torch.float64)
    pushes = (normalized(c, norms).abs() * norms).view(-1, 2)
    before = (c.abs() * norms).view(-1, 2).sum(1)
    torch.testing.assert_close(pushes[:, 0], before / 2)
    torch.testing.assert_close(pushes[:, 1], before / 2)
    assert (normalized(c, norms).sign() == c.sign()).all(), "also past a target, where both turn"


@pytest.mark.parametrize("pair", [(-1.0, 0.0), (0.0, 0.5), (0.0, 0.0), (-1.0, -0.5), (0.3, 0.2)])
def test_pairs_that_are_not_pulled_apart_stay_as_they_are(pair):
    """An inactive hinge leaves imitation alone; a pull on both in one direction stays one."""
    assert normalized(torch.tensor(pair), torch.tensor([2.0, 5.0])).tolist() == pytest.approx(pair)


def test_a_vanishing_gradient_makes_no_nan():
    c = torch.tensor([-1.0, 1.0])
    assert normalized(c, torch.tensor([0.0, 5.0])).tolist() == [-1.0, 1.0]


def test_one_pair_moves_apart_where_dpo_drags_both_down():
    """The guarantee: one pair, first order, plain gradient descent."""
    scorer = Scorer(make_model("llama"))
    rng = np.random.default_rng(0)
    ending = rng.integers(3, 61, 12).tolist()
    tree = TokenTree(ids(5, 6), (branch(8, *ending), branch(9, *ending[:-1], 11)), (True, False))
    c = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    batch = scorer.pack([tree])

    def change(coefficients):
        update = sgd_update(1e-5)(gradient_of(scorer, [tree], coefficients))
        with torch.no_grad():
            before = batch.sums(scorer([tree], batch))
            with applied(scorer.model, update):
                return (batch.sums(scorer([tree], batch)) - before).tolist()

    gram = GradientProducts(scorer)([tree]).total[0]
    shaped = PairNormalizer(scorer)([tree], c)
    up, down = change(shaped)
    assert up > 0 > down
    cosine = (gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()).item()
    total = (gram[0, 0].sqrt() + gram[1, 1].sqrt()).item() / 2
    assert up == pytest.approx(1e-5 * total * gram[0, 0].sqrt().item() * (1 - cosine), rel=0.02)
    assert down == pytest.approx(-1e-5 * total * gram[1, 1].sqrt().item() * (1 - cosine), rel=0.02)


# --- exact under any split -----------------------------------------------------------------------


def perturbed():
    other = make_model("llama")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return other


def step_gradient(name, size, *, normalize, mask, steps=2):
    """The summed gradients of some steps, and the masks they taught, in float64."""
    policy = make_model("llama")
    scorer, objective = Scorer(policy), bind(name)
    masks = None
    if mask == "sparse":
        masks = SparseMasks(61, penalty=0.02, learning_rate=5.0)
        masks.values = torch.linspace(0.2, 0.9, 122).view(2, 61)
    reference = None
    if objective.spec.reference:
        cache = ReferenceCache(None, tokens=masks is not None)
        reference = Reference(Scorer(perturbed()), cache)
    trees = make_trees(0, 12)
    if mask == "difference":
        trees = [difference_mask(tree) for tree in trees]
    engine = StepEngine(
        objective,
        scorer,
        reference,
        shape=PairNormalizer(scorer, masks) if normalize else None,
        masks=masks,
    )
    plan = BatchPlan(trees, 6, micro_batch_size=size, mismatched=engine._mismatched)
    for _, indices in zip(range(steps), plan, strict=False):
        engine.step(plan.share(indices))
        if masks is not None:
            masks.update()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
    return gradient, None if masks is None else masks.values


CASES = [(name, True, None) for name in PAIRED]
CASES += [(name, False, "sparse") for name in MASKABLE]
CASES += [("dpo", False, "difference"), ("simpo", True, "difference"), ("dpo", True, "sparse")]


@pytest.mark.parametrize(("name", "normalize", "mask"), CASES)
def test_every_split_gives_the_same_update(name, normalize, mask):
    truth, taught = step_gradient(name, 6, normalize=normalize, mask=mask)
    plain, _ = step_gradient(name, 6, normalize=False, mask=None)
    assert not torch.allclose(truth, plain, rtol=1e-3), "the remedy does something"
    gradient, taught_again = step_gradient(name, 2, normalize=normalize, mask=mask)
    torch.testing.assert_close(gradient, truth, rtol=1e-6, atol=1e-8)
    if mask == "sparse":
        torch.testing.assert_close(taught_again, taught, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """gloo; 3 batches of held-out pairs for two ranks, and a last batch of 3 training pairs."""
    given = ["pair_weighting=normalized", "token_mask=sparse", "entanglement_steps=3"]
    given += ["per_device_eval_batch_size=2"]
    options = [f"--set={item}" for item in given]
    run_script(tmp_path / "two", "dpo", *options, processes=2)
    run_script(tmp_path / "one", "dpo", *options)
    one, two = (torch.load(tmp_path / n / "dpo.pt") for n in ("one", "two"))
    assert_same_movement(one["weights"], two["weights"], weights(tiny_llama()))
    assert len(one["entangle"]) > 20
    assert one["entangle"] == pytest.approx(two["entangle"], rel=1e-3, abs=1e-4)


# --- token masks ---------------------------------------------------------------------------------


def masks_of(chosen, rejected, prompt=(1,)):
    tree = TokenTree(ids(*prompt), (branch(*chosen), branch(*rejected)), (True, False))
    return [b.mask.astype(int).tolist() for b in difference_mask(tree).branches]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ((5, 6, 9), (5, 7, 8, 9), [[0, 1, 0], [0, 1, 1, 0]]),
        ((5, 6, 7), (8, 9), [[1, 1, 1], [1, 1]]),  # nothing shared
        ((4, 5, 6, 7), (6, 7, 4, 5), [[0, 0, 1, 1], [1, 1, 0, 0]]),  # one block, the first longest
        ((5, 2), (5, 6, 2), [[0, 1], [0, 1, 0]]),  # nothing of its own: where they part
        ((5, 6), (5, 6, 7), [[0, 1], [0, 0, 1]]),  # it ends there: its last
        ((5, 6), (5, 6), [[1, 1], [1, 1]]),  # equal pairs are left alone
    ],
)
def test_difference_mask(chosen, rejected, expected):
    assert masks_of(chosen, rejected) == expected


def test_difference_mask_keeps_unscored_tokens_unscored_and_something_to_score():
    first = Branch(ids(5, 6, 7), np.array([True, False, True]))
    tree = TokenTree(ids(1), (first, branch(5, 8, 7)), (True, False))
    found = difference_mask(tree).branches
    assert [b.mask.astype(int).tolist() for b in found] == [[0, 0, 1], [0, 1, 0]]
    assert masks_of((5, 6), (7, 6), prompt=())[0] == [0, 1], "nothing predicts the first token"


def test_the_trainer_masks_policy_and_reference_alike(tmp_path):
    run = trainer(tmp_path, token_mask="difference", max_steps=1)
    run.train()
    first = run.state.log_history[0]
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-6)
    own = sum(b.length for tree in run.train_dataset for b in tree.branches)
    plain = trainer(tmp_path / "plain")
    assert own < sum(b.length for tree in plain.train_dataset for b in tree.branches)


@pytest.mark.parametrize("mask", ["difference", "sparse"])
def test_evaluation_speaks_of_whole_completions(mask, tmp_path):
    options = {"eval_dataset": pair_rows(5), "token_mask_learning_rate": 5.0}
    if mask == "difference":
        del options["token_mask_learning_rate"]
    run = trainer(tmp_path, token_mask=mask, max_steps=3, entanglement_steps=2, **options)
    run.train()
    found = run.evaluate()["eval_logps/chosen"]
    encode = Encoder(tiny_tokenizer())
    trees = [t for e in load_examples(pair_rows(5)) for t in view(e, encode(e), "paired")]
    batch = run.scorer.pack(trees)
    with torch.no_grad():
        whole = batch.sums(run.scorer(trees, batch))[0::2].mean()
    assert found == pytest.approx(float(whole), rel=1e-5)


def masked_loss(scorer, reference, trees, objective, values, penalty):
    """The published formula, directly: l(sum m u, sum m v) + penalty (|m_w|_1 + |m_l|_1)."""
    batch = scorer.pack(trees)
    with torch.no_grad():
        policy, under = scorer(trees, batch), reference(trees)
    side = batch.owners % 2
    m = values[side, batch.targets]
    chosen = torch.tensor([True, False] * len(trees))
    from trueline.objectives.base import assemble

    logps = (batch.sums(m * policy), batch.length, batch.sums(m * under), chosen)
    return objective.loss(assemble("paired", *logps)) + penalty * m.sum() / len(trees)


@pytest.mark.parametrize("name", ["dpo", "ipo", "sppo"])
def test_masks_go_down_the_gradient_of_the_formula(name):
    scorer, other = Scorer(make_model("llama")), Scorer(perturbed())
    reference = Reference(other, ReferenceCache(None, tokens=True))
    masks = SparseMasks(61, penalty=0.02, learning_rate=1.0)
    masks.values = torch.linspace(0.3, 0.6, 122, dtype=torch.float64).view(2, 61)
    values = masks.values.clone().requires_grad_()
    trees = make_trees(0, 5)
    loss = masked_loss(scorer, other, trees, bind(name), values, 0.02)
    (slope,) = torch.autograd.grad(loss, values)
    plan = BatchPlan(trees, 5, micro_batch_size=2)
    engine = StepEngine(bind(name), scorer, reference, masks=masks)
    engine.step(plan.share(next(iter(plan))))
    torch.testing.assert_close(masks._slope, slope, rtol=1e-5, atol=1e-6)
    before = masks.values.clone()
    report = masks.update()
    torch.testing.assert_close(masks.values, (before - slope).clamp(0, 1), rtol=1e-5, atol=1e-6)
    assert 0.3 < report["masks/chosen"] < 0.6


def test_learned_masks_end_at_exactly_zero_and_survive_a_checkpoint(tmp_path):
    options = {
        "token_mask": "sparse",
        "token_mask_penalty": 0.3,
        "token_mask_learning_rate": 2.0,
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    assert (whole.masks.values == 0).any()
    assert whole.state.log_history[-2]["masks/zero"] > 0
    part = trainer(tmp_path / "part", **options)
    part.add_callback(StopAt(5))
    part.train()
    resumed = trainer(tmp_path / "part", **options)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(resumed.masks.values, whole.masks.values)
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_the_cache_on_disk_gives_tokens_too(tmp_path):
    options = {"token_mask": "sparse", "max_steps": 3, "reference_cache": str(tmp_path / "cache")}
    runs = [trainer(tmp_path / name, **options) for name in ("one", "two")]
    for run in runs:
        run.train()
    assert torch.equal(weights(runs[0].model), weights(runs[1].model))


# --- through the trainer -------------------------------------------------------------------------


def test_normalized_pairs_with_an_adapter_train(tmp_path):
    run = trainer(tmp_path, peft_config=lora(), pair_weighting="normalized", max_steps=2)
    before = weights(run.model).clone()
    run.train()
    assert math.isfinite(run.state.log_history[0]["loss"])
    assert not torch.equal(weights(run.model), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair_weighting": "normalised"}, "must be 'normalized'"),
        ({"pair_weighting": "normalized", "loss_type": "kto"}, "no effect on objective 'kto'"),
        ({"token_mask": "sparse", "loss_type": "simpo"}, "reads no reference"),
        ({"token_mask": "difference", "token_mask_penalty": 0.1}, "without token_mask: sparse"),
        ({"token_mask": "sparse", "token_mask_penalty": 0.0}, "must be positive"),
        ({"entanglement_pairs": 4}, "without entanglement_steps"),
        ({"entanglement_steps": 2}, "held-out preference pairs"),
        ({"entanglement_steps": -2, "eval_dataset": pair_rows(3)}, "a number >= 0"),
    ],
)
def test_options_without_effect_are_errors(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **options)


def test_the_callback_logs_what_the_diagnostic_finds(tmp_path):
    from trueline.diagnostics import entanglement

    run = trainer(
        tmp_path,
        eval_dataset=pair_rows(6),
        entanglement_steps=2,
        entanglement_pairs=6,
        max_steps=3,
    )
    run.train()
    (logged,) = (row for row in run.state.log_history if "entangle/cosine" in row)
    assert logged["step"] == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum("entangle/cosine" in line for line in lines) == 1
    callback = next(c for c in run.callback_handler.callbacks if hasattr(c, "measure"))
    now = callback.measure()
    found = entanglement(
        run.model,
        tiny_tokenizer(),
        load_examples(pair_rows(6)),
        reference=tiny_llama(),
        heat_maps=0,
    )
    for name, value in now.items():
        assert found[name].value == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert set(now) >= {"entangle/inner_product", "entangle/case_ideal", "entangle/chosen_falls"}


def test_the_callback_measures_unpaired_objectives_with_their_own_baseline(tmp_path):
    run = trainer(
        tmp_path, eval_dataset=pair_rows(6), entanglement_steps=1, loss_type="kldo", max_steps=1
    )
    run.train()
    assert any("entangle/d_chosen" in row for row in run.state.log_history)


def test_measuring_changes_nothing_of_the_training(tmp_path):
    options = {"eval_dataset": pair_rows(6), "max_steps": 4, "disable_dropout": False}

    def run(folder, **more):
        result = trainer(folder, tiny_llama(attention_dropout=0.2), **options, **more)
        result.train()
        return weights(result.model)

    assert torch.equal(run(tmp_path / "a"), run(tmp_path / "b", entanglement_steps=1))


# --- what the remedies are for -------------------------------------------------------------------


def test_the_toy_s_table_comes_out_in_sign_and_order():
    """Suffix 0 / 3 / 15: cosine -.66 / -.09 / .36; DPO's change of the chosen +.13 / +.06 / -.21;
    normalized +.15 / +.41 / +.73, in the spec, which leaves the features' length open."""
    root = Path(__file__).parents[1]
    toy = runpy.run_path(root / "examples" / "entanglement_toy.py")
    made = toy["table"]()
    rows = list(made.values())
    change = "chosen change"
    cosine, plain, other = zip(*((a["cosine"], a[change], b[change]) for a, b in rows), strict=True)
    assert cosine == pytest.approx((-0.66, -0.09, 0.36), abs=0.06)
    assert plain[0] > plain[1] > 0 > plain[2]
    assert 0 < other[0] < other[1] < other[2]
    assert all(a < b for a, b in zip(plain, other, strict=True))
    assert all(b["rejected change"] < 0 for _, b in rows)
    page = (root / "docs" / "entanglement.md").read_text("utf-8")
    for suffix, told in zip(made, zip(cosine, plain, other, strict=True), strict=True):
        cells = re.search(rf"^\| {suffix} \| (.*) \|$", page, re.MULTILINE)[1].split(" | ")
        assert [float(cell) for cell in cells] == pytest.approx(told, abs=0.006)


@pytest.mark.slow
def test_in_the_sandbox_dpo_lowers_the_chosen_and_normalized_pairs_do_not(tmp_path):
    """Recipes with one ingredient wrong: all but one word of chosen and rejected is shared."""
    sandbox = build_sandbox(tmp_path / "sandbox", size="test")
    rng = random.Random(0)
    rows = []
    for entity in sandbox.world.split(held_out=False):
        for question in grammar.QUESTIONS:
            wrong = rng.choice([i for i in grammar.INGREDIENTS if i not in entity.recipe])
            chosen = entity.answer()
            row = {"prompt": question.format(name=entity.name), "chosen": chosen}
            rows.append({**row, "rejected": chosen.replace(entity.recipe[0], wrong)})
    examples = [as_chat(example) for example in load_examples(rows)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(sandbox.model_dir)

    def change(folder, **remedy):
        """(P, 2) changes of the log-probs of chosen and rejected."""
        model = transformers.AutoModelForCausalLM.from_pretrained(sandbox.model_dir)
        before = np.array(score_completions(model, tokenizer, examples).log_probs)
        options = {
            "per_device_train_batch_size": 16,
            "learning_rate": 3e-4,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 2,
        }
        run = AlignmentTrainer(
            model,
            args=config(folder, **options, **remedy),
            train_dataset=examples,
            processing_class=tokenizer,
        )
        run.train()
        return np.array(score_completions(model, tokenizer, examples).log_probs) - before

    plain = change(tmp_path / "dpo")
    remedied = change(tmp_path / "normalized", pair_weighting="normalized")
    for changes in (plain, remedied):
        assert (changes[:, 0] > changes[:, 1]).mean() > 0.9, "both learn to tell them apart"
    assert plain[:, 0].mean() < -1
    assert (plain[:, 0] < 0).mean() > 0.8
    assert remedied[:, 0].mean() > 0
    assert (remedied[:, 0] < 0).mean() < 0.4
    assert remedied[:, 1].mean() < -1
