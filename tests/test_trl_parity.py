"""Where TRL 1.16 and Trueline define the same loss, the numbers and the gradients agree.

TRL's own code runs here, with a model that is a table of log-probs. It is no dependency; to run
these, install it beside Trueline (``pip install trl==1.16.0``). A factor says how the conventions
differ.
"""

import json
from collections import defaultdict
from types import SimpleNamespace

import datasets
import pytest
import torch
from jinja2 import TemplateError

from corpus import CHATS, PLAIN, TEMPLATES, generated_from, sequences, small, text_example
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives import bind
from trueline.prompts import Renderer

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl==1.16.0")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not trl.__version__.startswith("1.16"), reason="written against TRL 1.16"),
]

B, T, PROMPT = 6, 14, 3


def table(rows, seed=0):
    """Per-token log-probs (rows, T - 1) and a completion mask (rows, T)."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(2, T - PROMPT, (rows,), generator=generator)
    position = torch.arange(T)
    mask = ((position >= PROMPT) & (position < PROMPT + length[:, None])).long()
    tokens = -torch.rand(rows, T - 1, generator=generator, dtype=torch.float32) * 2
    return (tokens * mask[:, 1:]).requires_grad_(True), mask, length


class Table(torch.nn.Module):
    """A model that answers with the table, whatever it is asked."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, **_):
        zeros = torch.zeros_like(self.tokens.detach())
        return SimpleNamespace(
            log_probs=self.tokens, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )


def fake_trainer(**settings):
    same = lambda x: x  # noqa: E731
    return SimpleNamespace(
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather=same, gather_for_metrics=same
        ),
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        **settings,
    )


def dpo_trainer(loss_type, beta=0.1, label_smoothing=0.0, weights=None):
    names = [loss_type] if isinstance(loss_type, str) else loss_type
    return fake_trainer(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        beta=beta,
        label_smoothing=label_smoothing,
        loss_types=names,
        loss_weights=weights or [1.0] * len(names),
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05),
    )


def trl_paired(trainer, tokens, mask, reference):
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[:B],
        "ref_rejected_logps": reference[B:],
    }
    loss = trl.DPOTrainer._compute_loss(trainer, Table(tokens), inputs, False)
    return loss.detach(), torch.autograd.grad(loss, tokens)[0]


def ours_paired(objective, tokens, length, reference):
    sums = tokens.sum(1)
    pairs = PairedLogProbs(
        CompletionLogProbs(sums[:B], length[:B], reference[:B]),
        CompletionLogProbs(sums[B:], length[B:], reference[B:]),
    )
    loss = objective.loss(pairs)
    return loss.detach(), torch.autograd.grad(loss, tokens)[0]


def same_on_pairs(trainer, objective, factor=1.0, equal_lengths=False):
    tokens, mask, length = table(2 * B)
    if equal_lengths:
        mask = ((torch.arange(T) >= PROMPT) & (torch.arange(T) < T - 2)).long().expand(2 * B, T)
        length = mask.sum(1)
        tokens = (tokens.detach() - 0.1).mul(mask[:, 1:]).requires_grad_(True)
    reference = tokens.detach().sum(1) + 4 * torch.randn(2 * B)
    value, gradient = trl_paired(trainer, tokens, mask, reference)
    ours, own = ours_paired(objective, tokens, length, reference)
    torch.testing.assert_close(factor * ours, value, rtol=1e-5, atol=1e-6)
    inside = mask[:, 1:].bool()
    torch.testing.assert_close(factor * own[inside], gradient[inside], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("loss_type", "options", "factor"),
    [
        ("sigmoid", {"beta": 0.3}, 1),
        ("hinge", {"beta": 0.3}, 1),
        ("ipo", {"beta": 0.3, "reduction": "mean"}, 1),  # TRL divides by the length
        ("exo_pair", {"beta": 0.3, "label_smoothing": 0.01}, 1),
        ("nca_pair", {"beta": 0.3}, 1),
        ("robust", {"beta": 0.3, "label_smoothing": 0.1}, 1),
        ("sppo_hard", {"beta": 0.3}, 2),  # TRL adds the two squares, the paper's loss is their mean
        ("aot", {"beta": 0.3, "label_smoothing": 0.1}, 1),  # within one batch they agree (F11)
        ("aot_unpaired", {"beta": 0.3}, 1),
        ("apo_zero", {"beta": 0.3}, 1),
        ("apo_down", {"beta": 0.3}, 1),
        ("discopop", {"beta": 0.3}, 1),
    ],
)
def test_paired_losses(loss_type, options, factor):
    trainer = dpo_trainer(loss_type, options["beta"], options.get("label_smoothing", 0.0))
    same_on_pairs(trainer, bind(loss_type, options), factor)


def test_bco_pair_is_bco_without_its_shift():  # F8
    """TRL adds a pair's two losses and has lost the published shift; without it they agree."""
    tokens, mask, length = table(2 * B)
    reference = tokens.detach().sum(1) + 4 * torch.randn(2 * B)
    value, gradient = trl_paired(dpo_trainer("bco_pair"), tokens, mask, reference)
    batch = UnpairedLogProbs(
        CompletionLogProbs(tokens.sum(1), length, reference), torch.arange(2 * B) < B
    )
    objective = bind("bco")
    loss = 2 * objective.loss(batch)
    torch.testing.assert_close(loss.detach(), value)
    torch.testing.assert_close(torch.autograd.grad(loss, tokens)[0], gradient)
    shift = objective.measure(batch)
    assert abs(shift) > 1e-3
    assert not torch.isclose(2 * objective.loss(batch, shift=shift).detach(), value, rtol=1e-4)


def test_sft_agrees_where_all_lengths_do():
    """TRL weighs each token of the batch alike, Trueline each completion."""
    same_on_pairs(dpo_trainer("sft"), bind(["sft", "dpo"], weights=[1, 1e-12]), equal_lengths=True)


def test_weighted_sums():
    """MPO's recipe in TRL's documentation: its bco_pair counts twice in ours."""
    trainer = dpo_trainer(["sigmoid", "hinge"], weights=[0.8, 0.2])
    same_on_pairs(trainer, bind(["dpo", "hinge"], weights=[0.8, 0.2]))
    trainer = dpo_trainer(["sigmoid", "apo_zero"], weights=[0.8, 0.2])
    same_on_pairs(trainer, bind(["dpo", "apo_zero_unpaired"], weights=[0.8, 0.4]))


def test_label_smoothing_is_ignored_by_trls_default_loss_and_honored_by_ours():  # F7
    tokens, mask, length = table(2 * B)
    reference = tokens.detach().sum(1) + torch.randn(2 * B)
    plain, _ = trl_paired(dpo_trainer("sigmoid"), tokens, mask, reference)
    smoothed, _ = trl_paired(dpo_trainer("sigmoid", 0.1, 0.3), tokens, mask, reference)
    assert plain == smoothed
    ours = [
        ours_paired(bind("dpo", options), tokens, length, reference)[0]
        for options in ({}, {"label_smoothing": 0.3})
    ]
    torch.testing.assert_close(ours[0], plain)
    assert ours[1] != ours[0]


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_unpaired_losses(name):
    """At the same baseline, class weights included: the mean over the batch, both."""
    tokens, mask, length = table(2 * B)
    reference = tokens.detach().sum(1) + 4 * torch.randn(2 * B)
    desirable = torch.arange(2 * B) % 3 == 0
    kl = torch.full((2 * B,), 1.3)
    trainer = fake_trainer(
        loss_type=name,
        beta=0.2,
        calculate_KL=name == "kto",
        desirable_weight=1.5,
        undesirable_weight=0.5,
        _compute_kl_logps=lambda model, batch: kl,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": desirable,
        "ref_logps": reference,
        "ref_KL_logps": torch.zeros(2 * B),
    }
    value = trl.KTOTrainer._compute_loss(trainer, Table(tokens), inputs, False)
    (gradient,) = torch.autograd.grad(value, tokens)
    options = {"beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    batch = UnpairedLogProbs(CompletionLogProbs(tokens.sum(1), length, reference), desirable)
    given = {"baseline": kl.mean()} if name == "kto" else {}
    loss = bind(name, options).loss(batch, **given)
    (own,) = torch.autograd.grad(loss, tokens)
    inside = mask[:, 1:].bool()
    torch.testing.assert_close(loss.detach(), value.detach())
    torch.testing.assert_close(own[inside], gradient[inside])


def test_simpo_cpo_and_orpo():
    """Their contrast agrees; TRL's likelihood term also averages over the prompt's tokens."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    tokens, _, length = table(2 * B)
    sums = tokens.detach().sum(1)
    mean = sums / length
    pairs = PairedLogProbs(
        CompletionLogProbs(sums[:B], length[:B]), CompletionLogProbs(sums[B:], length[B:])
    )
    common = {"accelerator": SimpleNamespace(device=torch.device("cpu")), "alpha": 0.0}
    cpo = SimpleNamespace(**common, loss_type="sigmoid", beta=0.3, label_smoothing=0.0)
    losses, _, _ = CPOTrainer.cpo_loss(cpo, sums[:B], sums[B:])
    ours = bind("cpo", {"beta": 0.3, "cpo_alpha": 0}).losses(pairs)
    torch.testing.assert_close(ours, losses)
    simpo = SimpleNamespace(
        **common, loss_type="simpo", beta=2.0, simpo_gamma=0.5, label_smoothing=0.0
    )
    losses, _, _ = CPOTrainer.cpo_loss(simpo, mean[:B], mean[B:])
    torch.testing.assert_close(bind("simpo").losses(pairs), losses)
    orpo = SimpleNamespace(**common, beta=0.1)
    bonus, *_ = ORPOTrainer.odds_ratio_loss(orpo, mean[:B], mean[B:])
    torch.testing.assert_close(bind("orpo").losses(pairs), -mean[:B] - bonus)


@pytest.mark.parametrize("kind", ["bytes", "unigram", "first", "always", "legacy"])
def test_r5_ids_are_trls_wherever_these_are_right(kind):
    """Right: the prompt's ids are what generation starts from, all decode to the text, no text of a
    row makes a control token. Elsewhere docs/from-trl.md says what differs."""
    agree = 0
    plain = {"prompt": small(kind, puts="bos")}
    for name, template in {**plain, **TEMPLATES}.items():
        tokenizer = template if name == "prompt" else small(kind, template)
        rows = PLAIN if name == "prompt" else CHATS
        for example in rows.values():
            example = text_example(*example) if name == "prompt" else example
            try:
                theirs, ours = trls_ids(tokenizer, example), list(sequences(tokenizer, example))
            except (UserError, TemplateError):
                continue  # a template that refuses the row, in the same words for both
            prompts = {tuple(prompt) for prompt, _, _ in ours}
            assert prompts == {tuple(generated_from(tokenizer, example))}
            spelled = Renderer(tokenizer).control.spelled(whole_text(example))
            for (prompt, answer), (own_prompt, own_answer, text) in zip(theirs, ours, strict=False):
                right = prompt == own_prompt and not spelled
                if right and faithful(tokenizer, prompt + answer, text):
                    assert prompt + answer == own_prompt + own_answer, (name, example)
                    agree += 1
    assert agree >= 10, "a vocabulary that knows few letters gives few texts back"


def trls_ids(tokenizer, example):
    """The ids of prompt and answer, for the first two answers, by TRL's own preparation."""
    answers = (*example.completions, example.completions[-1])[:2]
    row = dict(zip(("chosen", "rejected"), map(as_trl, answers), strict=True))
    row["prompt"] = as_trl(SimpleNamespace(content=example.prompt))
    if example.template:
        row["tools"] = json.dumps(example.template["tools"])
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    settings = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    rows = datasets.Dataset.from_list([row])
    (made,) = trl.DPOTrainer._prepare_dataset(trainer, rows, tokenizer, settings, "train")
    return [(made["prompt_ids"], made[f"{side}_ids"]) for side in ("chosen", "rejected")]


def as_trl(side):
    plain = isinstance(side.content, str)
    return side.content if plain else [turn.to_dict() for turn in side.content]


def whole_text(example):
    parts = [example.prompt, *(completion.content for completion in example.completions)]
    return "\n".join(p if isinstance(p, str) else json.dumps(as_trl(SimpleNamespace(content=p)),
                     ensure_ascii=False) for p in parts)  # fmt: skip


def faithful(tokenizer, ids, text):
    """Whether ids, less the BOS and EOS that stand around plain text, decode to the text."""
    renderer = Renderer(tokenizer)
    text = renderer.control.restore(text)
    around = {renderer.decode(part) for part in (ids, ids[1:], ids[:-1], ids[1:-1])}
    return text in around
