"""Pairs that differ in one word and share all words behind it: what DPO does to both sides."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from trueline.diagnostics import entanglement
from trueline.records import Completion, Example, Message
from trueline.reproduce.experiments.world import world_of
from trueline.reproduce.language import load_tokenizer, open_sandbox, pair_values, train
from trueline.reproduce.runs import Run, Values, experiment
from trueline.sandbox import grammar
from trueline.sandbox.world import Entity, World

SLOTS = ("a", "b", "c")

FINE_TUNING = {"loss_type": "sft", "learning_rate": 3e-4, "max_steps": 60}
"""On the chosen, until they are known: preference training follows fine-tuning."""


@experiment("suffix", version=4, needs=world_of)
def suffix(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Fine-tune on the chosen, then train on such pairs.

    Options: ``contrast`` (which ingredient differs: 0 is the first, with the longest shared
    suffix), ``pairs``, ``steps``, ``training`` and ``size``. Changes are those since fine-tuning.
    """
    given = run.options
    sandbox = open_sandbox(parents[0], run)
    tokenizer = load_tokenizer(sandbox)
    examples = pairs(sandbox.world, given["contrast"], given["pairs"], run.seed)
    tuned = train(sandbox.model_dir, examples, FINE_TUNING, folder / "run", seed=run.seed)
    tuned.scorer.detach()
    tuned.save_model()
    base = tuned.model
    found = entanglement(
        base, tokenizer, examples, max_pairs=16, per_layer=False, heat_maps=0, seed=run.seed
    )
    options = {
        "learning_rate": 1e-4,
        "max_steps": given["steps"],
        "loss_type": "dpo",
        **given.get("training", {}),
    }
    trainer = train(folder / "run", examples, options, folder / "aligned", seed=run.seed)
    trainer.scorer.detach()
    moved = pair_values(
        trainer.model, base, tokenizer, examples, objective="dpo", options={}, seed=run.seed
    )
    for name in ("run", "aligned"):
        shutil.rmtree(folder / name)
    words = len(examples[0].completions[0].content[0].content.split()) - 1  # type: ignore[union-attr]
    return {
        "shared words": float(words),
        "cosine": found["entangle/cosine"].value,
        "chosen change": moved["chosen change"],
        "rejected change": moved["rejected change"],
        "margin": moved["margin"],
    }


def pairs(world: World, contrast: int, count: int, seed: int) -> list[Example]:
    """Answers with invented ingredients, so that neither side nor the suffix is known by heart."""
    rng = random.Random(f"suffix {seed}")
    return [_pair(rng.choice(world.entities), contrast, rng) for _ in range(count)]


def _pair(entity: Entity, contrast: int, rng: random.Random) -> Example:
    """The answer up to the contrast is the prompt's; what follows it, both completions share."""
    *recipe, other = rng.sample(grammar.INGREDIENTS, 4)
    slot = "{" + SLOTS[contrast] + "}"
    before, _, after = grammar.ANSWERS[0].partition(slot)
    fill = {"name": entity.name, **dict(zip(SLOTS, recipe, strict=True))}
    asked = rng.choice(grammar.QUESTIONS).format(name=entity.name)
    begun = before.format(**fill).rstrip()
    shared = after.format(**fill)
    sides = tuple(
        Completion((Message("assistant", f" {word}{shared}"),))
        for word in (recipe[contrast], other)
    )
    return Example((Message("user", asked), Message("assistant", begun)), sides, pairs=((0, 1),))
