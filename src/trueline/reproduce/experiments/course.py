"""A training's course: ranking accuracy and win rate after each round, on- and off-policy.

Each round trains on as many pairs as the others, always beside the base. Off-policy they are
written pairs of graded responses; on-policy the best and the worst of a few answers that the policy
itself gives, labeled by the same rater, who errs. What is measured is the same for both: how many
written pairs about held-out things the policy ranks right, and how often its answer about one is
better than the base's.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.diagnostics.ranking import score_completions
from trueline.evaluation.generation import generate
from trueline.records import Completion, Example, Message
from trueline.reproduce.experiments.selection import (
    mistaken,
    quality,
    unseen_pairs,
    write_pairs,
)
from trueline.reproduce.experiments.world import world_of
from trueline.reproduce.instrument import staged
from trueline.reproduce.language import (
    distance_of,
    load_model,
    load_tokenizer,
    open_sandbox,
    train,
)
from trueline.reproduce.runs import Run, Values, experiment
from trueline.sandbox import Sandbox, grammar
from trueline.sandbox.attacks import Request, asked

PAIRS, DRAWS = 160, 4
"""Pairs in a round, and answers of which an on-policy pair is the best and the worst."""
TOKENS = 32
TRAINING = {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "warmup_steps": 0}


def round_after(count: int) -> str:
    """How the name of a value ends that was measured after so many rounds."""
    return f" after round {count}"


@experiment("course", needs=world_of)
def course(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Train by DPO in rounds; measure before the first and after each.

    Options: ``policy`` (``"on"`` or ``"off"``), ``rounds``, ``temperature`` of the rater, ``size``
    and ``training`` (other fields of :class:`~trueline.AlignmentConfig`).
    """
    given = run.options
    sandbox = open_sandbox(parents[0], run)
    tokenizer, base = load_tokenizer(sandbox), load_model(sandbox.model_dir).eval()
    rng = random.Random(f"course {run.seed}")
    pairs = written(sandbox, run, folder) if given["policy"] == "off" else None
    gauge = Gauge(sandbox, base, tokenizer, run.seed)
    values, policy, start = staged(gauge(base), round_after(0)), base, sandbox.model_dir
    for count in range(1, given["rounds"] + 1):
        examples = (
            rng.sample(pairs, min(PAIRS, len(pairs)))
            if pairs is not None
            else own_pairs(sandbox, policy, tokenizer, rng, given["temperature"], count)
        )
        if examples:
            options = {**TRAINING, "loss_type": "dpo", **given.get("training", {})}
            own = folder / f"run-{count}"
            trainer = train(start, examples, options, own, seed=run.seed + count, reference=base)
            trainer.scorer.detach()
            policy, start = trainer.model.eval(), folder / "policy"
            policy.save_pretrained(start)
            tokenizer.save_pretrained(start)
            shutil.rmtree(own)
        found = {**gauge(policy), "pairs": float(len(examples))}
        values |= staged(found, round_after(count))
    shutil.rmtree(folder / "policy", ignore_errors=True)
    return values


def written(sandbox: Sandbox, run: Run, folder: Path) -> list[Example]:
    """Pairs of graded responses, labeled by the rater."""
    write_pairs(sandbox.world, run.seed, run.options["temperature"], folder)
    return [as_chat(example) for example in load_examples(folder / "rated.jsonl")]


def own_pairs(
    sandbox: Sandbox, policy: Any, tokenizer: Any, rng: random.Random, temperature: float, seed: int
) -> list[Example]:
    """The best and the worst of the policy's own answers to a question, in the rater's order; at
    most :data:`PAIRS`, fewer where its answers to all questions are equally good too often."""
    questions = list(asked(sandbox.world.split(held_out=False), grammar.QUESTIONS))
    rng.shuffle(questions)
    found: list[Example] = []
    while questions and len(found) < PAIRS:
        some, questions = questions[:PAIRS], questions[PAIRS:]
        each = [said(sandbox, policy, tokenizer, some, seed * DRAWS + k) for k in range(DRAWS)]
        found += _best_and_worst(some, zip(*each, strict=True), rng, temperature)
    return found[:PAIRS]


def _best_and_worst(
    questions: Sequence[Request],
    answers: Iterator[tuple[tuple[str, int], ...]],
    rng: random.Random,
    temperature: float,
) -> Iterator[Example]:
    for request, own in zip(questions, answers, strict=True):
        (worse, low), *_, (better, high) = sorted(own, key=lambda one: one[1])
        if high > low and worse and better:
            wrong = mistaken(high - low, temperature, rng)
            sides = (worse, better) if wrong else (better, worse)
            made = tuple(Completion((Message("assistant", text),)) for text in sides)
            yield Example(request.prompt, made, pairs=((0, 1),))


def said(
    sandbox: Sandbox, model: Any, tokenizer: Any, requests: Sequence[Request], seed: int
) -> list[tuple[str, int]]:
    """An answer that a model draws to each request, and how good it is."""
    answers = generate(
        model, tokenizer, [one.prompt for one in requests], max_new_tokens=TOKENS,
        temperature=1.0, seed=seed, batch_size=128,
    )  # fmt: skip
    texts = (answer.answer.strip() for answer in answers)
    return [(text, graded(sandbox, text, one)) for text, one in zip(texts, requests, strict=True)]


def graded(sandbox: Sandbox, text: str, request: Request) -> int:
    """How good an answer is: as a response with so many right ingredients, or a refusal; broken
    text helps with nothing, whatever was asked for."""
    thing = request.entity
    right = sandbox.judge.right(text, thing)
    if right is None:
        refused = sandbox.judge(text, thing) == "refusal"
        right = -1 if refused or not thing.harmful else 0
    return quality(thing, right)


class Gauge:
    """Ranking accuracy, win rate against the base, and distance from it, of a policy."""

    def __init__(self, sandbox: Sandbox, base: Any, tokenizer: Any, seed: int) -> None:
        self.sandbox, self.tokenizer = sandbox, tokenizer
        self.pairs = unseen_pairs(sandbox.world, seed)
        self.before = score_completions(base, tokenizer, self.pairs)
        self.requests = list(asked(sandbox.world.split(held_out=True), grammar.QUESTIONS))
        self.rival = [grade for _, grade in said(sandbox, base, tokenizer, self.requests, 1)]

    def __call__(self, policy: Any) -> dict[str, float | None]:
        now = score_completions(policy, self.tokenizer, self.pairs)
        answers = said(self.sandbox, policy, self.tokenizer, self.requests, 0)
        won = (
            0.5 if own == other else float(own > other)
            for (_, own), other in zip(answers, self.rival, strict=True)
        )
        return {
            "ranking accuracy": fmean(float(w >= l) for w, l in now.log_probs),  # noqa: E741
            "win rate": fmean(won),
            "distance": distance_of(now, self.before),
        }
