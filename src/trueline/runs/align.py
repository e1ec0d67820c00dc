"""What `trueline align` does: from a preference file to an aligned model and what is known."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.runs import state
from trueline.runs.record import FINISHED
from trueline.runs.run import Run
from trueline.terminal import console

if TYPE_CHECKING:
    from trueline.config import DataArguments, RunConfig
    from trueline.data import Stream
    from trueline.records import Example
    from trueline.training import AlignmentTrainer

DRAWN = 4096
"""Prompts that are watched are drawn from so many held-out rows at most."""


def align(config: str | Path | None = None, /, *, resume: bool = False, **options: Any) -> Run:
    """Train a model with any objective.

    Args:
        config: a flat YAML file of options.
        resume: go on from the last whole checkpoint of output_dir.
        options: every key of the configuration; they beat the file.

    Returns:
        The run: its configuration, log, findings and model.

    Raises:
        UserError: an unknown key, a value of the wrong type, data that cannot be read, ...

    Example:
        >>> run = align("examples/hh/dpo.yaml", max_steps=100)  # doctest: +SKIP
    """
    run = read_options(config, options)
    for note in run.notes:
        console.print(f"note: {note}", style="dim", highlight=False)
    return Run(run_alignment(run, resume=resume)["output_dir"])


def read_options(
    config: str | Path | None, overrides: Mapping[str, Any], *, script: str | None = None
) -> RunConfig:
    """The configuration: the file, and over it what was given; in the words of TRL's ``script``
    where one is named."""
    from trueline.config import load_run_config
    from trueline.objectives import OBJECTIVES

    options = {name for spec in OBJECTIVES.values() for name in spec.options}
    options |= _own_options(config, overrides)
    return load_run_config(config, overrides, options, script=script)


def _own_options(config: str | Path | None, overrides: Mapping[str, Any]) -> set[str]:
    """Options of objectives that are the user's own, ``my_package.losses:mine``."""
    from trueline.config import read_yaml
    from trueline.objectives import find

    given = {} if config is None else read_yaml(config)
    names = overrides.get("loss_type") or given.get("loss_type") or []
    listed = names if isinstance(names, list) else [names]
    return {key for name in listed if ":" in str(name) for key in find(str(name)).options}


def run_alignment(run: RunConfig, *, resume: bool = False) -> dict[str, Any]:
    """Load, train, evaluate, save; the run directory holds all there is to know."""
    import transformers

    from trueline.errors import UserError, built_from_options
    from trueline.models import load_model, load_tokenizer, lora_config
    from trueline.training import AlignmentTrainer

    transformers.utils.logging.disable_progress_bar()
    if not (resume or run.training.overwrite):
        _claim(run)  # a used folder is refused before anything is loaded
    _say_precision(run)
    with built_from_options():
        adapter = lora_config(run.model)
    train, test = load_datasets(run.data, run.training.seed)
    if test is None and str(getattr(run.training.eval_strategy, "value", "no")) != "no":
        raise UserError(
            "eval_strategy asks for evaluation and there is no held-out data; set test_size (a "
            "share of the prompts) or eval_dataset_name, or eval_strategy: 'no'"
        )
    if run.watch.answers_steps and test is None:
        raise UserError(
            "answers_steps answers held-out prompts, and there are none; set test_size (a share of "
            "the prompts) or eval_dataset_name, or leave it out"
        )
    conversational = next(iter(train)).conversational
    tokenizer = load_tokenizer(run.model)
    model = load_model(run.model)
    reference = run.model.reference_model_name_or_path
    if tokenizer.chat_template and not conversational:
        console.print(
            "note: the data is plain text, so the tokenizer's chat template is not applied; "
            "as_chat: true makes a conversation of it",
            style="dim",
        )
    with built_from_options():
        trainer = AlignmentTrainer(
            model,
            load_model(run.model, name=reference) if reference else None,
            args=run.training,
            train_dataset=train,
            eval_dataset=test,
            processing_class=tokenizer,
            peft_config=adapter,
        )
    for source, trees in ((train, trainer.train_dataset), (test, trainer.eval_dataset)):
        if source is not None and trainer.is_world_process_zero():
            _say_read(source.source, trees.about)  # of a stream what its beginning tells
    trainer.facts = {
        "command": "trueline align",
        **dataclasses.asdict(run.model),
        **dataclasses.asdict(run.data),
        **dataclasses.asdict(run.watch),
        **{k: getattr(v, "value", v) for k, v in _given(run).items() if v is not None},
    }
    if run.watch.answers_steps:
        _watch_answers(run, trainer, test or ())
    with contextlib.ExitStack() as held:
        if trainer.is_world_process_zero():
            held.enter_context(state.held(_output(run)))
        return _train(run, trainer, resume=resume)


def _watch_answers(run: RunConfig, trainer: AlignmentTrainer, test: Iterable[Example]) -> None:
    """Have the trainer answer a few held-out prompts every so many steps."""
    from trueline.errors import UserError
    from trueline.evaluation.watching import watch_training
    from trueline.training.coupling import on_first_rank

    if trainer.sharded:
        raise UserError(
            "answers_steps generates from the whole model, which FSDP and DeepSpeed spread over "
            "processes; leave it out, or train with plain data parallelism or an adapter"
        )
    prompts = [example.prompt for example in islice(test, DRAWN)]
    watch_training(trainer, prompts, run.watch, reference=_start(trainer), once=on_first_rank)


def _start(trainer: AlignmentTrainer) -> Any:
    """What a model's own answers are measured from: the objective's reference, or else the model
    as it starts; None for the base under a new adapter."""
    from trueline.models import REFERENCE, freeze_copy, frozen_copy, trained_adapter
    from trueline.training.distributed import kept_copy

    model = trainer.model
    if trainer.reference is not None and trainer.reference.scorer is not trainer.scorer:
        return trainer.reference.scorer.model
    if not hasattr(model, "peft_config"):
        return kept_copy(model).requires_grad_(False).eval()
    if not trained_adapter(model):
        return None
    if REFERENCE not in model.peft_config:
        freeze_copy(model)

    @contextlib.contextmanager
    def frozen() -> Iterator[Any]:
        with frozen_copy(model):
            yield model

    return frozen


def _given(run: RunConfig) -> dict[str, Any]:
    """What was asked for of the training, without secrets."""
    return {k: getattr(run.training, k, None) for k in run.given if not k.endswith("token")}


def _train(run: RunConfig, trainer: AlignmentTrainer, *, resume: bool) -> dict[str, Any]:
    from trueline.evaluation.watching import watched
    from trueline.models import merge_adapter
    from trueline.report import log_findings, settle_tensorboard, write_model_card
    from trueline.training.coupling import on_first_rank

    if not resume:
        on_first_rank(lambda: _claim(run))
    resumed = trainer.begin(resume)
    settle_tensorboard(trainer)
    if trainer.eval_dataset and resumed is None:
        trainer.evaluate_first()
    trainer.train(resume_from_checkpoint=resume)
    if trainer.eval_dataset:
        trainer.evaluate()
    if run.training.streaming and trainer.is_world_process_zero():
        _say_read(trainer.sources["train"], trainer.train_dataset.about)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        told = [trainer.encoder.told.finding(), *watched(trainer.run.rows, run.watch)]
        if seen := [finding for finding in told if finding is not None]:
            trainer.run.keep(seen)
    findings = Run(_output(run)).own if trainer.is_world_process_zero() else []
    log_findings(trainer, findings)
    if trainer.is_world_process_zero():
        write_model_card(_output(run))
        console.print(f"model, metrics and findings: {_output(run)}", highlight=False)
    trainer.accelerator.wait_for_everyone()
    if run.model.merge_adapter and trainer.is_world_process_zero():
        console.print(f"merged: {merge_adapter(_output(run), run.model)}", highlight=False)
    trainer.accelerator.end_training()
    return {
        "output_dir": str(_output(run)),
        "steps": trainer.state.global_step,
        "findings": [finding.to_dict() for finding in findings],
    }


def _claim(run: RunConfig) -> None:
    """Have the folder: a run that was finished there, or left a checkpoint, is refused or set aside
    by name."""
    from trueline.training.checkpoints import claim

    aside = claim(_output(run), overwrite=run.training.overwrite, also=FINISHED)
    if aside is not None:
        console.print(f"set aside: {aside}", highlight=False, markup=False)


def _say_precision(run: RunConfig) -> None:
    """On a CPU, bf16 against float32: where what was asked for is the slower one, by how much."""
    from trueline.models.precision import bf16_speed, slow_bf16

    if run.training.device.type != "cpu" or run.training.fp16:
        return
    if run.training.bf16:
        line = slow_bf16("bf16: true", "bf16: false")
    elif "bf16" not in run.given and bf16_speed() > 1.2:
        line = (
            f"bf16: true would multiply {bf16_speed():.1f} times faster than float32 on this "
            "processor (a product of 1024, timed)"
        )
    else:
        return
    if line:
        console.print(f"note: {line}", style="dim", highlight=False)


def _output(run: RunConfig) -> Path:
    return Path(run.training.output_dir or "runs/align")


def load_datasets(data: DataArguments, seed: int) -> tuple[Stream, Stream | None]:
    """Train and, where there are any, held-out examples.

    Held-out rows come from ``eval_dataset_name``; else from a share of the prompts
    (``test_size``); else from the test split of a folder or a hub data set that has one.
    """
    from trueline.data import DataError
    from trueline.data.mapped import split_by_prompt
    from trueline.errors import UserError

    train: Stream
    if data.datasets:
        train = _mixture(data, seed)
    elif data.dataset_name is None:
        raise UserError("dataset_name is missing: give a file, a folder or a hub id")
    else:
        train = _read(data, data.dataset_name, data.dataset_train_split)
    if data.eval_dataset_name is not None:
        return train, _read(data, data.eval_dataset_name, data.dataset_test_split)
    if data.test_size:
        return split_by_prompt(train, data.test_size, seed)
    if data.dataset_name is None:
        return train, None
    if Path(data.dataset_name).is_file() or data.dataset_test_split == data.dataset_train_split:
        return train, None
    try:
        test = _read(data, data.dataset_name, data.dataset_test_split)
        next(iter(test))  # the hub is asked only now
    except DataError as error:
        console.print(f"no held-out data: {error}", style="dim", highlight=False)
        return train, None
    return train, test


def _mixture(data: DataArguments, seed: int) -> Stream:
    """The sources of ``datasets``, one after the other or by weight."""
    from trueline.data import Mixed
    from trueline.errors import UserError

    if data.dataset_name is not None:
        raise UserError("dataset_name names one source and datasets several; give one of the two")
    if data.dataset_config is not None:
        raise UserError("dataset_config is of dataset_name; of datasets each has its own name")
    entries = data.datasets or []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise UserError(f"each of datasets must be {{path: ..., weight: ...}}, got {entry!r}")
        unknown = set(entry) - {"path", "name", "split", "weight"}
        if unknown:
            raise UserError(
                f"datasets: {min(unknown)!r} is not known; path, name, split and weight are"
            )
    weights = [entry.get("weight") for entry in entries]
    given = [weight for weight in weights if weight is not None]
    if given and (len(given) < len(weights) or not all(isinstance(w, int | float) for w in given)):
        raise UserError(f"give each of datasets a weight, a number, or none of them; got {weights}")
    sources = [
        _read(
            dataclasses.replace(data, dataset_config=entry.get("name")),
            entry["path"],
            entry.get("split") or data.dataset_train_split,
        )
        for entry in entries
    ]
    return Mixed(sources, [float(w) for w in given] if given else None, seed=seed)


def _read(data: DataArguments, source: str, split: str) -> Stream:
    from trueline.data import Mapped, load_examples
    from trueline.data.mapped import as_chat

    single = Path(source).is_file()  # which has no splits
    examples = load_examples(
        source,
        split="train" if single else split,
        name=data.dataset_config,
        skip_bad=data.skip_bad,
        form=data.dataset_form,
        limit=data.max_samples,
    )
    return Mapped(examples, as_chat, "as_chat") if data.as_chat else examples


def _say_read(source: str | None, about: Mapping[str, Any]) -> None:
    """What was left out when the rows were read, now or when they were encoded."""
    for reason, drop in about.get("dropped", {}).items():
        places = ", ".join(drop["places"])
        console.print(f"dropped {drop['count']} rows, {reason}: {places}", style="yellow")
    if unread := ", ".join(about.get("unread", {})):
        console.print(f"columns of {source} that are not read: {unread}", style="yellow")
