"""Aligning the sandbox's base model, and everything that is measured of the result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trueline.records import Example
from trueline.reproduce.claim import STAGES
from trueline.reproduce.experiments.world import world_of
from trueline.reproduce.instrument import observe, searched, staged
from trueline.reproduce.language import (
    alignment_examples,
    load_model,
    load_tokenizer,
    open_sandbox,
    pair_values,
    train,
)
from trueline.reproduce.runs import Run, Values, experiment
from trueline.sandbox import Sandbox


def bases_of(run: Run) -> Sequence[Run]:
    """The world; and, where it starts from that, the base that a prefix makes cautious."""
    world = world_of(run)
    if not run.options.get("cautious"):
        return world
    own = {"size": run.options["size"]}
    return [*world, Run("cautious", own, run.seed, "a base that the prefix makes cautious")]


@experiment("alignment", version=2, needs=bases_of)
def alignment(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Train by an objective on one of the sandbox's data sets; attack, probe and rank.

    Options: ``objective``, ``data``, ``prefix`` and ``defense`` (see
    :func:`~trueline.reproduce.language.alignment_examples`), ``cautious`` (start from that base),
    ``watched`` (measured after 1 and 2 epochs, too), ``pairs_only`` (no attacks), ``gcg``
    (suffixes searched for so many things), ``training`` (other fields of
    :class:`~trueline.AlignmentConfig`), ``learning_rate``, ``epochs`` and ``size``.
    """
    given = run.options
    sandbox = open_sandbox(parents[0], run)
    base = parents[1] / "model" if given.get("cautious") else sandbox.model_dir
    examples, options = examples_of(run, sandbox), training_of(run)
    along = Along((1, 2) if given.get("watched") else ())
    begin = time.process_time()
    trainer = train(base, examples, options, folder / "run", seed=run.seed, callbacks=[along])
    values: dict[str, float | None] = {"training seconds": time.process_time() - begin}
    trainer.scorer.detach()
    tokenizer = load_tokenizer(sandbox)
    start = load_model(base).eval()
    values |= pair_values(
        trainer.model,
        start,
        tokenizer,
        examples,
        objective=given["objective"],
        options=trainer.args.options(),
        seed=run.seed,
    )
    if not given.get("pairs_only"):
        values |= observe(sandbox, trainer.model, tokenizer, start)
    if given.get("gcg"):
        values |= searched(sandbox, trainer.model, tokenizer, given["gcg"])
    for stage, weights in zip(STAGES[:0:-1], along.kept, strict=False):
        earlier = load_model(base)
        earlier.load_state_dict(weights)
        values |= staged(observe(sandbox, earlier, tokenizer, start), stage)
    shutil.rmtree(folder / "run")  # its log and empty folders; nothing reads them again
    return values


def examples_of(run: Run, sandbox: Sandbox) -> list[Example]:
    """What such a run is trained on."""
    given = run.options
    return alignment_examples(
        sandbox, given["data"], given.get("prefix"), defense=given.get("defense", False)
    )


def training_of(run: Run) -> dict[str, Any]:
    """The training options of such a run, beside the sandbox's own."""
    given = run.options
    return {
        "learning_rate": given["learning_rate"],
        "num_train_epochs": given["epochs"],
        "loss_type": given["objective"],
        **given.get("training", {}),
    }


class Along(TrainerCallback):
    """Keeps a model's weights after these epochs."""

    def __init__(self, epochs: Sequence[int]) -> None:
        self.epochs = epochs
        self.kept: list[dict[str, Any]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Copy them."""
        if round(state.epoch or 0) in self.epochs:
            weights = kwargs["model"].state_dict()
            self.kept.append({name: tensor.clone() for name, tensor in weights.items()})
