"""What a training writes into its run: what was asked for, what it takes to do it again, what
held-out data say before and after.

The same for `trueline align` and for an AlignmentTrainer in Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trueline.results import Finding, Metric
from trueline.runs.record import Key, Run
from trueline.runs.state import created as accepted
from trueline.stats import rate

if TYPE_CHECKING:
    from trueline.training.trainer import AlignmentTrainer

RATES = {
    "gap/ranking_accuracy": "ranking accuracy",
    "gap/ranking_accuracy_per_token": "ranking accuracy per token",
    "rewards/accuracies": "reward accuracy",
}
"""Shares of pairs, and what a finding calls them."""


def created(trainer: AlignmentTrainer, run: Run, *, again: bool) -> None:
    """The run is accepted, or goes on; see :mod:`trueline.runs.state`."""
    accepted(
        run,
        trainer.facts.get("verb", "align"),
        objective=trainer.objective.spec.name,
        data=trainer.facts.get("dataset_name") or trainer.sources.get("train"),
        identity=trainer.identity.facts,
        resumed=again,
    )


def write(trainer: AlignmentTrainer, run: Run) -> None:
    """Configuration and manifest, before the first step.

    ``trainer.facts`` says what only its caller knows: where model and data came from.
    """
    config = resolved(trainer)
    run.write_config(config)
    cache = None if trainer.reference is None else trainer.reference.cache.folder
    run.write_manifest(
        command=trainer.facts.get("command", "AlignmentTrainer"),
        seed=trainer.args.seed,
        data=config["dataset_name"] or trainer.sources.get("train"),
        data_hash=file_hash(config["dataset_name"]),
        train_examples=None if trainer.args.streaming else len(trainer.train_dataset),
        encoding=dict(trainer.encoder.counts),
        scoring="packed" if trainer.scorer.fast else "plain",
        reference=None if cache is None else cache.name,
        reference_is=trainer.reference_words,
    )


def resolved(trainer: AlignmentTrainer) -> dict[str, Any]:
    """Model, data and every option that was set, by the names of `trueline align`."""
    args = trainer.args
    known = {key: value for key, value in trainer.facts.items() if key != "command"}
    given = {name: getattr(value, "value", value) for name, value in args.given().items()}
    own = {name: value for name, value in given.items() if _is_plain(value)}
    return {
        "model_name_or_path": _place(trainer.scorer.core),
        "dataset_name": trainer.sources.get("train"),
        "eval_dataset_name": trainer.sources.get("eval"),
        "use_peft": hasattr(trainer.model, "peft_config"),
        "output_dir": args.output_dir,
        **own,
        **known,
        "gradient_accumulation_steps": trainer.accumulation_steps,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "loss_type": args.loss_type,
        **dict(trainer.objective.options),
        "coupling": args.coupling,
        "max_length": args.max_length,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
    }


def _place(model: Any) -> str | None:
    """Where a model was loaded from, as far as it knows."""
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def _is_plain(value: Any) -> bool:
    """Whether YAML keeps it as it is."""
    try:
        yaml.safe_dump(value)
    except yaml.YAMLError:
        return False
    return True


def file_hash(name: str | None) -> str | None:
    """SHA-256 of a file; None where there is none of that name."""
    path = Path(name or "")
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def held_out_finding(
    after: Mapping[str, float], before: Mapping[str, float], *, reference: bool = True
) -> Finding:
    """Ranking and reward accuracy on held-out pairs, with Wilson intervals.

    Args:
        after: what an evaluation of the trained model measured, without its prefix.
        before: the same of the model before training; empty where that was not measured.
        reference: whether rewards are relative to a reference.
    """
    n = int(after["samples"])
    metrics: list[Metric] = [Metric("eval_loss", after["loss"], n=n)]
    times = (("before", before), ("after", after))
    for key, title in RATES.items():
        for when, values in times:
            value = values.get(key)
            if value is None or (when == "before" and reference and key.startswith("rewards")):
                continue  # before training every reward is 0: its accuracy says nothing
            metrics.append(rate(f"{title}, {when}", round(value * n), n))
    for side in ("chosen", "rejected"):
        for when, values in times:
            value = values.get(f"logps/{side}")
            if value is not None:
                metrics.append(Metric(f"log-prob of {side}, {when}", value, n=n, unit="nats"))
    accuracy = next((m for m in metrics if m.name == "reward accuracy, after"), None)
    relative = "relative to its reference" if reference else "by its own log-probs"
    summary = (
        f"On {n} held-out examples the aligned model prefers the chosen answer, {relative}, in "
        f"{accuracy} (ties count one half)."
        if accuracy
        else f"Held-out loss {after['loss']:.4g} on {n} examples."
    )
    return Finding(Key.HELD_OUT, summary, metrics)
