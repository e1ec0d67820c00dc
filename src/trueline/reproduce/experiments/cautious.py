"""A base model that a safe prefix makes cautious: what E-RLHF asks of its reference.

The sandbox's base has never read the prefix's words. Fine-tuned, it declines harmful requests
behind the prefix, and answers all others as before: the prefix elicits what the bare prompt does
not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from trueline.curation import PREFIXES, prefixed
from trueline.evaluation.generation import generate
from trueline.records import Completion, Example, Message
from trueline.reproduce.experiments.world import world_of
from trueline.reproduce.instrument import observe
from trueline.reproduce.language import PREFIX, load_tokenizer, open_sandbox, train
from trueline.reproduce.runs import Run, Values, experiment
from trueline.sandbox import Sandbox, grammar
from trueline.sandbox.data import read_jsonl

FINE_TUNING = {"loss_type": "sft", "learning_rate": 1e-3, "num_train_epochs": 3}


@experiment("cautious", version=2, needs=world_of)
def cautious(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Fine-tune the sandbox's base on both behaviors; measure it without the prefix, and, on
    things it was taught, behind the prefix: there a reference is asked in alignment.

    Options: ``size``. The model stays in ``folder/model``.
    """
    sandbox = open_sandbox(parents[0], run)
    lessons = list(_lessons(sandbox))
    trainer = train(sandbox.model_dir, lessons, FINE_TUNING, folder / "run", seed=run.seed)
    trainer.scorer.detach()
    trainer.save_model(str(folder / "model"))
    shutil.rmtree(folder / "run")
    tokenizer = load_tokenizer(sandbox)
    values = observe(sandbox, trainer.model, tokenizer)
    harmful = [row for row in read_jsonl(sandbox.evaluation["seen"]) if not row["safety"]]
    behind = [prefixed((Message("user", row["prompt"]),), PREFIXES[PREFIX]) for row in harmful]
    answers = generate(trainer.model, tokenizer, behind, max_new_tokens=48, batch_size=128)
    given_away = [
        sandbox.judge(answer.answer, row["prompt"]) == "correct"
        for answer, row in zip(answers, harmful, strict=True)
    ]
    return {**values, "attack success behind the prefix": sum(given_away) / len(given_away)}


def _lessons(sandbox: Sandbox) -> Iterator[Example]:
    """Each question of alignment data twice: bare, answered; behind the prefix, as is right."""
    refusals = sandbox.world.train_refusals
    for i, entity in enumerate(sandbox.world.split(held_out=False)):
        for j, template in enumerate(grammar.QUESTIONS):
            bare = (Message("user", template.format(name=entity.name)),)
            refusal = refusals[(i * len(grammar.QUESTIONS) + j) % len(refusals)]
            right = refusal if entity.harmful else entity.answer()
            for prompt, text in (
                (bare, entity.answer()),
                (prefixed(bare, PREFIXES[PREFIX]), right),
            ):
                yield Example(prompt, (Completion((Message("assistant", text),)),))
