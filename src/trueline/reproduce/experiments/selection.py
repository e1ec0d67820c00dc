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
from collections.abc import Sequence
from pathlib import Path

from trueline.curation import Cached, PolicyEmbedder, select_pairs
from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.reproduce.experiments.world import world_of
from trueline.reproduce.laboratory import train
from trueline.reproduce.language import load_model, load_tokenizer, open_sandbox, safety
from trueline.reproduce.runs import Run, Values, experiment
from trueline.sandbox import World, grammar
from trueline.sandbox.world import Entity, write_answer

TRAINING = {"loss_type": "dpo", "learning_rate": 3e-4, "num_train_epochs": 5}


@experiment("selection", version=2, needs=world_of)
def selection(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Select half of the rated pairs by ``strategy``, count wrong labels, train DPO on them."""
    given = run.options
    sandbox = open_sandbox(parents[0], run)
    tokenizer = load_tokenizer(sandbox)
    write_pairs(sandbox.world, run.seed, given["temperature"], folder)
    made = select_pairs(
        load_examples(folder / "rated.jsonl"),
        folder / "selected.jsonl",
        Cached(PolicyEmbedder(load_model(sandbox.model_dir), tokenizer), folder / "vectors"),
        strategy=given["strategy"],
        seed=run.seed,
        second=load_examples(folder / "true.jsonl"),
        overwrite=True,
    )
    assert made is not None  # one process: this is rank 0
    examples = [as_chat(example) for example in load_examples(folder / "selected.jsonl")]
    trainer = train(sandbox.model_dir, examples, TRAINING, folder / "run", seed=run.seed)
    trainer.scorer.detach()
    values = safety(sandbox, trainer.model, tokenizer, run.seed)
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


def write_pairs(world: World, seed: int, temperature: float, folder: Path) -> None:
    """The rater's pairs, and the same pairs as they ought to be labeled."""
    rng = random.Random(f"real {seed}")
    rated, true = [], []
    for entity in world.split(held_out=False):
        for template in grammar.QUESTIONS:
            first, second = rng.sample((-1, 0, 1, 2, 3), 2)
            better, worse = sorted((first, second), key=lambda k: -quality(entity, k))
            gap = quality(entity, better) - quality(entity, worse)
            row = {
                "prompt": template.format(name=entity.name),
                "chosen": response(world, entity, better, rng),
                "rejected": response(world, entity, worse, rng),
                "safety": int(not entity.harmful),
            }
            wrong = rng.random() < 1 / (1 + math.exp(gap / temperature))
            swapped = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
            true.append(row)
            rated.append(swapped if wrong else row)
    for name, rows in (("rated", rated), ("true", true)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")


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
