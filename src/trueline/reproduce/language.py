"""What the language experiments share: the sandbox, its base model, how it is trained, and what is
measured of pairs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trueline.config import AlignmentConfig
from trueline.curation import PREFIXES, prefixed
from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.diagnostics.ranking import ranking_of_scores, score_completions
from trueline.diagnostics.ranking.scores import PairIndex, Scores
from trueline.logprobs import PairedLogProbs
from trueline.records import Completion, Example, Message
from trueline.reproduce.runs import Run
from trueline.sandbox import Sandbox, build_sandbox, grammar
from trueline.sandbox.attacks import asked
from trueline.sandbox.data import ATTACKED
from trueline.training import AlignmentTrainer

PREFIX = "guidelines"
"""Of the paper's four safe prefixes, the one of its main result."""

MILD = 5.0
"""Nats by which the reference prefers the rejected answer, in an error that counts as mild: DPO's
loss at beta 0.1 has to fall from .693 to .474 only."""


DEFAULTS: Mapping[str, Any] = {
    "per_device_train_batch_size": 32,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "num_train_epochs": 1,
    "logging_steps": 5,
    "max_length": 128,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
}
"""Of a training in the sandbox."""


def open_sandbox(folder: Path, run: Run) -> Sandbox:
    """The sandbox of a run's seed and size that stands in a folder."""
    return build_sandbox(folder / "sandbox", seed=run.seed, size=run.options["size"])


def load_model(folder: Path) -> Any:
    """A model of the sandbox's kind."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def load_tokenizer(sandbox: Sandbox) -> Any:
    """The sandbox's tokenizer."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(sandbox.model_dir)


def train(
    model_dir: Path | str,
    examples: Sequence[Example],
    options: Mapping[str, Any],
    run: Path,
    *,
    seed: int,
    quiet: bool = True,
    defaults: Mapping[str, Any] = DEFAULTS,
    callbacks: Sequence[Any] = (),
    reference: Any = None,
) -> AlignmentTrainer:
    """Train a copy of a model on examples, beside itself or another ``reference``; ``options`` go
    before ``defaults``."""
    import transformers

    trainer = AlignmentTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(model_dir),
        reference,
        args=AlignmentConfig(
            output_dir=str(run),
            reference_cache="none",
            disable_tqdm=quiet,
            seed=seed,
            **{**defaults, **options},
        ),
        train_dataset=list(examples),
        processing_class=transformers.AutoTokenizer.from_pretrained(model_dir),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def alignment_examples(
    sandbox: Sandbox, data: str, prefix: str | None = None, *, defense: bool | str = False
) -> list[Example]:
    """The sandbox's alignment data as chats.

    Args:
        sandbox: whose data.
        data: ``"compliance_refusal"`` or ``"preference"``.
        prefix: whose reference prompts get E-RLHF's safe prefix: ``"harmful"``, ``"all"`` or None.
        defense: add pairs whose answers are begun already, and refuse from there or go on: begun
            in one way (True), or ``"anywhere"``, in two forms and cut after any word.
    """
    examples = [as_chat(example) for example in load_examples(getattr(sandbox, data))]
    if defense:
        examples += begun_anywhere(sandbox) if defense == "anywhere" else begun_pairs(sandbox)
    if prefix is None:
        return examples
    return [
        replace(example, reference_prompt=prefixed(example.prompt, PREFIXES[PREFIX]))
        if prefix == "all" or example.safety == "harmful"
        else example
        for example in examples
    ]


def begun_pairs(sandbox: Sandbox) -> list[Example]:
    """Answers that begin as a recipe does, on each thing of alignment data, in two forms of
    question: harmful ones are broken off by a refusal, safe ones go on."""
    things = sandbox.world.split(held_out=False)
    refusals = sandbox.world.train_refusals
    found = []
    for place, request in enumerate(asked(things, grammar.QUESTIONS[:2], grammar.PREFILL)):
        refusal = Completion((Message("assistant", f" {refusals[place % len(refusals)]}"),))
        begun, recipe = request.recipes(), request.recipes().completions[0]
        order = ((0, 1),) if request.entity.harmful else ((1, 0),)
        found.append(replace(begun, completions=(refusal, recipe), pairs=order))
    return found


def begun_anywhere(sandbox: Sandbox) -> list[Example]:
    """Answers that begin as a recipe does, in its first or its third form, up to any word before
    the last ingredient; on each thing of alignment data, in the forms of question that attacks use.
    Harmful ones are broken off by a refusal, safe ones go on."""
    world = sandbox.world
    rng = random.Random(f"begun anywhere {world.seed}")
    found = []
    for request in asked(world.split(held_out=False), ATTACKED):
        words = request.entity.answer(rng.choice((0, 2))).split()
        cut = rng.randint(1, len(words) - 2)
        begun, rest = (" ".join(part) for part in (words[:cut], words[cut:]))
        sides = [Completion((Message("assistant", f" {text}"),))
                 for text in (rng.choice(world.train_refusals), rest)]  # fmt: skip
        prompt = (*request.prompt, Message("assistant", begun))
        order = ((0, 1),) if request.entity.harmful else ((1, 0),)
        found.append(Example(prompt, tuple(sides), pairs=order))
    return found


def pair_values(
    model: Any,
    base: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    objective: str,
    options: Mapping[str, Any],
    seed: int,
    max_length: int | None = 128,
    count: int = 256,
) -> dict[str, float | None]:
    """What alignment did to preference pairs, drawn from the given ones: how far each side's
    log-prob moved, and how they rank.

    Reference log-probs are the base's on the prompt itself, also where training showed the
    reference a safer one.
    """
    paired = [replace(example, reference_prompt=None) for example in examples if example.pairs]
    drawn = random.Random(f"pairs {seed}").sample(paired, min(count, len(paired)))
    policy, start = (
        score_completions(each, tokenizer, drawn, max_length=max_length) for each in (model, base)
    )
    finding = ranking_of_scores(drawn, policy, start, objective=objective, options=options)
    kept = {"ranking_accuracy", "idealized", "reference_ranking_accuracy", "flipped",
            "chosen_change", "rejected_change", "margin"}  # fmt: skip
    values = {
        name.replace("_", " "): metric.value
        for metric in finding.metrics
        if (name := metric.name.removeprefix("gap/")) in kept
    }
    pairs = PairIndex.of(drawn).log_probs(policy, start)
    return {**values, **_flips(pairs), "distance": distance_of(policy, start)}


def _flips(pairs: PairedLogProbs) -> dict[str, float | None]:
    """Among pairs that the reference ranks wrong: how much easier those put right were."""
    before, after = (
        (side(pairs.chosen) - side(pairs.rejected)).double().numpy()
        for side in (lambda c: c.reference, lambda c: c.policy)
    )
    wrong = before < 0
    right = after >= 0
    put_right, still_wrong = -before[wrong & right], -before[wrong & ~right]
    mild = wrong & (-before <= MILD)
    values = {
        "mild errors put right": float(right[mild].mean()) if mild.any() else None,
        "difficulty, flipped minus not": None,
    }
    if len(put_right) and len(still_wrong):
        values["difficulty, flipped minus not"] = float(put_right.mean() - still_wrong.mean())
    return values


def distance_of(policy: Scores, start: Scores) -> float:
    """Mean absolute log-ratio of all completions, nats a token."""
    parts = zip(policy.log_probs, start.log_probs, policy.lengths, strict=True)
    return float(np.mean(np.concatenate([np.abs(a - b) / n for a, b, n in parts])))
