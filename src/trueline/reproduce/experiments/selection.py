"""REAL in the sandbox: a rater who errs, pairs selected by embeddings, and models trained on them.

For each prompt two responses are drawn whose quality differs: on a safe request, how many of the
three ingredients are right, a refusal being worst; on a harmful one a refusal is best, and a recipe
the worse the more of it is right. The rater errs with chance s(-gap / temperature), so close pairs
get more wrong labels; the noise knows nothing of embeddings.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trueline.curation import Cached, PolicyEmbedder, Size, select_pairs
from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.diagnostics.ranking import score_completions
from trueline.records import Completion, Example
from trueline.reproduce.experiments.world import world_of
from trueline.reproduce.instrument import observe
from trueline.reproduce.language import load_model, load_tokenizer, open_sandbox, pair_values, train
from trueline.reproduce.runs import Run, Values, experiment
from trueline.sandbox import World, grammar
from trueline.sandbox.world import Entity, write_answer

TRAINING = {"learning_rate": 3e-4, "num_train_epochs": 5}


@experiment("selection", version=3, needs=world_of)
def selection(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Select rated pairs, count wrong labels, train on them, and ask which of two responses about
    held-out things the trained model rewards.

    Options: ``strategy``, ``share`` of the pairs (a half unless given), ``objective`` (DPO unless
    given), ``temperature`` of the rater and ``size``.
    """
    given = run.options
    sandbox = open_sandbox(parents[0], run)
    tokenizer = load_tokenizer(sandbox)
    write_pairs(sandbox.world, run.seed, given["temperature"], folder)
    made = select_pairs(
        load_examples(folder / "rated.jsonl"),
        folder / "selected.jsonl",
        Cached(PolicyEmbedder(load_model(sandbox.model_dir), tokenizer), folder / "vectors"),
        strategy=given["strategy"],
        size=Size(fraction=given.get("share", 0.5)),
        seed=run.seed,
        second=load_examples(folder / "true.jsonl"),
        overwrite=True,
    )
    assert made is not None  # one process: this is rank 0
    examples = [as_chat(example) for example in load_examples(folder / "selected.jsonl")]
    objective = given.get("objective", "dpo")
    options = {**TRAINING, "loss_type": objective}
    trainer = train(sandbox.model_dir, examples, options, folder / "run", seed=run.seed)
    trainer.scorer.detach()
    base = load_model(sandbox.model_dir)
    values = observe(sandbox, trainer.model, tokenizer)
    values |= pair_values(
        trainer.model, base, tokenizer, examples, objective=objective,
        options=trainer.args.options(), seed=run.seed,
    )  # fmt: skip
    values["held-out pairs rewarded right"] = _rewarded(
        trainer.model, base, tokenizer, unseen_pairs(sandbox.world, run.seed)
    )
    values["label errors"] = made.finding["label error by second labels, selected"].value
    values["pairs"] = float(len(examples))
    values["right on both"] = _both(values)
    for name in ("run", "vectors"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return values


def _both(values: Values) -> float | None:
    """Mean of correct answers on safe requests and refusals of harmful ones."""
    answered, refused = values["correct answers"], values["harmful requests refused"]
    return None if answered is None or refused is None else (answered + refused) / 2


def _rewarded(model: Any, base: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
    """The share of pairs whose better response's log-prob rose more than the other's."""
    after, before = (score_completions(each, tokenizer, examples) for each in (model, base))
    moved = [a - b for a, b in zip(after.log_probs, before.log_probs, strict=True)]
    return sum(float(chosen > rejected) for chosen, rejected in moved) / len(moved)


def unseen_pairs(world: World, seed: int) -> list[Example]:
    """Pairs about held-out things, labeled as they ought to be."""
    rng = random.Random(f"unseen {seed}")
    things = world.split(held_out=True)
    rows = [row for row, _ in _graded(world, things, grammar.QUESTIONS, rng)]
    sides = ("chosen", "rejected")
    return [
        as_chat(Example(row["prompt"], tuple(Completion(row[side]) for side in sides), ((0, 1),)))
        for row in rows
    ]


def _graded(
    world: World, things: Sequence[Entity], templates: Sequence[str], rng: random.Random
) -> Iterator[tuple[dict[str, Any], float]]:
    """Pairs of responses of different quality, the better one chosen, and by how much."""
    for entity in things:
        for template in templates:
            first, second = rng.sample((-1, 0, 1, 2, 3), 2)
            better, worse = sorted((first, second), key=lambda k: -quality(entity, k))
            row = {
                "prompt": template.format(name=entity.name),
                "chosen": response(world, entity, better, rng),
                "rejected": response(world, entity, worse, rng),
                "safety": int(not entity.harmful),
            }
            yield row, quality(entity, better) - quality(entity, worse)


def write_pairs(world: World, seed: int, temperature: float, folder: Path) -> None:
    """The rater's pairs, and the same pairs as they ought to be labeled."""
    rng = random.Random(f"real {seed}")
    rated, true = [], []
    for row, gap in _graded(world, world.split(held_out=False), grammar.QUESTIONS, rng):
        wrong = mistaken(gap, temperature, rng)
        swapped = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        true.append(row)
        rated.append(swapped if wrong else row)
    for name, rows in (("rated", rated), ("true", true)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")


def mistaken(gap: float, temperature: float, rng: random.Random) -> bool:
    """Whether the rater takes the worse of two responses for the better one: with chance
    s(-gap / temperature), where the gap is of their quality."""
    return rng.random() < 1 / (1 + math.exp(gap / temperature))


def response(world: World, entity: Entity, right: int, rng: random.Random) -> str:
    """A recipe with so many of its ingredients right; -1 is a refusal."""
    if right < 0:
        return rng.choice(world.train_refusals)
    wrong = [item for item in grammar.INGREDIENTS if item not in entity.recipe]
    kept = set(rng.sample(range(3), right))
    others = iter(rng.sample(wrong, 3))
    a, b, c = (item if i in kept else next(others) for i, item in enumerate(entity.recipe))
    return write_answer(entity.name, (a, b, c), rng.randrange(len(grammar.ANSWERS)))


def quality(entity: Entity, right: int) -> int:
    """How good a response with so many right ingredients (-1: a refusal) is."""
    if entity.harmful:
        return 3 if right < 0 else -right
    return right
