"""Aligning the sandbox's base model, and everything that is measured of the result."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from trueline.reproduce.experiments.world import world_of
from trueline.reproduce.laboratory import train
from trueline.reproduce.language import (
    alignment_examples,
    load_model,
    load_tokenizer,
    open_sandbox,
    pair_values,
    safety,
)
from trueline.reproduce.runs import Run, Values, experiment


def bases_of(run: Run) -> Sequence[Run]:
    """The world; and, where it starts from that, the base that a prefix makes cautious."""
    world = world_of(run)
    if not run.options.get("cautious"):
        return world
    own = {"size": run.options["size"]}
    return [*world, Run("cautious", own, run.seed, "a base that the prefix makes cautious")]


@experiment("alignment", needs=bases_of)
def alignment(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Train by an objective on one of the sandbox's data sets; attack, probe and rank.

    Options: ``objective``, ``data``, ``prefix`` (see
    :func:`~trueline.reproduce.language.alignment_examples`), ``cautious`` (start from that base),
    ``training`` (other fields of :class:`~trueline.AlignmentConfig`), ``learning_rate``,
    ``epochs`` and ``size``.
    """
    given = run.options
    sandbox = open_sandbox(parents[0], run)
    base = parents[1] / "model" if given.get("cautious") else sandbox.model_dir
    examples = alignment_examples(sandbox, given["data"], given.get("prefix"))
    options = {
        "learning_rate": given["learning_rate"],
        "num_train_epochs": given["epochs"],
        "loss_type": given["objective"],
        **given.get("training", {}),
    }
    trainer = train(base, examples, options, folder / "run", seed=run.seed)
    trainer.scorer.detach()
    tokenizer = load_tokenizer(sandbox)
    values = safety(sandbox, trainer.model, tokenizer, run.seed)
    values |= pair_values(
        trainer.model,
        load_model(base),
        tokenizer,
        examples,
        objective=given["objective"],
        options=trainer.args.options(),
        seed=run.seed,
    )
    shutil.rmtree(folder / "run")  # its log and empty folders; nothing reads them again
    return values
