"""A real model and data: the part of the claims that log-probs of pairs can tell."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import transformers

from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.reproduce.language import pair_values, train
from trueline.reproduce.runs import Run, Values, experiment

UNSAVED = {"save_strategy": "no", "report_to": "none", "logging_strategy": "no"}
"""Beside these, AlignmentConfig's own defaults hold, not the sandbox's."""


@experiment("recipe")
def recipe(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Align the recipe's model on its data by an objective, and rank the pairs."""
    given = run.options
    model_dir, options = given["model_name_or_path"], dict(given["training"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    loaded = load_examples(given["dataset_name"], skip_bad=given["skip_bad"])
    examples = [example for example in loaded if example.pairs]
    if tokenizer.chat_template:
        examples = [as_chat(example) for example in examples]
    count = min(given["max_samples"], len(examples))
    drawn = random.Random(f"recipe {run.seed}").sample(examples, count)
    options = {**options, "loss_type": given["objective"]}
    trainer = train(model_dir, drawn, options, folder / "run", seed=run.seed, defaults=UNSAVED)
    trainer.scorer.detach()
    base = transformers.AutoModelForCausalLM.from_pretrained(model_dir).to(trainer.model.device)
    values = pair_values(
        trainer.model,
        base,
        tokenizer,
        drawn,
        objective=given["objective"],
        options=trainer.args.options(),
        seed=run.seed,
        max_length=trainer.args.max_length,
    )
    shutil.rmtree(folder / "run")
    return values
