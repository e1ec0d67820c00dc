"""What `trueline diffusion align` does: a text-to-image model aligned, and what is known of it."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.errors import UserError
from trueline.results import Finding, Metric
from trueline.runs.diffusion.evaluate import quiet_libraries
from trueline.runs.run import Run
from trueline.runs.state import held
from trueline.stats import mean_metric
from trueline.terminal import console

if TYPE_CHECKING:
    from trueline.diffusion import DiffusionConfig, DiffusionTrainer
    from trueline.diffusion.data.load import ImageData


def align(config: str | Path | None = None, /, *, resume: bool = False, **options: Any) -> Run:
    """Align a text-to-image model with DSPO, Diffusion-DPO, or any of their peers.

    Args:
        config: a flat YAML file of options.
        resume: go on from the last checkpoint of output_dir.
        options: every key of the configuration; they beat the file.

    Example:
        >>> align("examples/diffusion/dspo.yaml", max_steps=100)  # doctest: +SKIP
    """
    settings = read_options(config, options)
    return Run(run_alignment(settings, resume=resume)["output_dir"])


def read_options(config: str | Path | None, given: dict[str, Any]) -> DiffusionConfig:
    """The configuration: the file, and over it what was given."""
    from trueline.diffusion import load_diffusion_config

    return load_diffusion_config(config, given)


def run_alignment(config: DiffusionConfig, *, resume: bool = False) -> dict[str, Any]:
    """Load, align, save; the run directory holds all there is to know."""
    from trueline.diffusion import DiffusionTrainer, load_image_examples, load_text_to_image

    quiet_libraries()
    if config.model_name_or_path is None:
        raise UserError("model_name_or_path is missing: give a diffusers folder or a hub id")
    if config.dataset_name is None:
        raise UserError("dataset_name is missing: give a JSONL file, a folder or a hub id")
    config.bind()  # before anything is loaded
    data = load_image_examples(
        config.dataset_name,
        split=config.dataset_train_split,
        name=config.dataset_config,
        skip_bad=config.skip_bad,
        limit=config.max_samples,
    )
    model = load_text_to_image(
        config.model_name_or_path,
        revision=config.model_revision,
        dtype=config.dtype,
        variant=config.model_variant,
        vae=config.vae_model_name_or_path,
    )
    trainer = DiffusionTrainer(model, config, data.examples)
    config = trainer.config  # with its number of steps
    with contextlib.ExitStack() as stack:
        if trainer.accelerator.is_main_process:
            stack.enter_context(held(config.output_dir))
        return _align(config, trainer, data, resume=resume)


def _align(
    config: DiffusionConfig, trainer: DiffusionTrainer, data: ImageData, *, resume: bool
) -> dict[str, Any]:
    trainer.begin(resume=resume)
    notes = _notes(data, trainer)
    if trainer.accelerator.is_main_process:
        for note in notes:
            console.print(note, style="yellow", markup=False, highlight=False)
        _write_run_files(config, trainer, notes)
    last = trainer.train(resume=resume)
    trainer.save_model()
    notes = _notes(data, trainer)
    hub = trainer.push() if config.push_to_hub else None
    findings = [training_finding(config.output_dir, trainer.objective.spec.name)]
    if trainer.accelerator.is_main_process:
        Run.create(config.output_dir).save(findings)
        console.print(findings[0].summary, highlight=False)
        console.print(f"model, metrics and samples: {config.output_dir}", highlight=False)
    result = {
        "output_dir": config.output_dir,
        "steps": trainer.done,
        "examples": len(trainer.encodings.examples) - len(trainer.encodings.bad),
        "dropped": notes,
        "hub": hub,
        "metrics": last,
        "findings": [finding.to_dict() for finding in findings],
    }
    trainer.close()
    return result


def _notes(data: ImageData, trainer: DiffusionTrainer) -> list[str]:
    """What of the data is not used, and why."""
    notes = [*data.notes(), *(f"left out: {line}" for line in trainer.encodings.bad.values())]
    if trainer.left_out:
        notes.append(f"left out {trainer.left_out} examples without an image to imitate")
    return notes


def _write_run_files(config: DiffusionConfig, trainer: DiffusionTrainer, notes: list[str]) -> None:
    """Configuration and manifest, before the first step."""
    run = Run.create(config.output_dir)
    resolved = dataclasses.asdict(config) | {"objective_options": dict(trainer.objective.options)}
    run.write_config(resolved)
    run.write_manifest(
        command="trueline diffusion align",
        seed=config.seed,
        data=config.dataset_name,
        examples=len(trainer.encodings.examples),
        dropped=notes,
        effective_batch=trainer.batches.size,
        pipeline=type(trainer.model.pipeline).__name__,
        predicts=trainer.model.schedule.space,
        reference=_reference(trainer),
        cache=str(trainer.encodings.images.folder or "none"),
        encodings=None if trainer.estimate is None else str(trainer.estimate),
        identity=dict(trainer.identity.facts),
    )


def _reference(trainer: DiffusionTrainer) -> str:
    if trainer.reference is None:
        return "none"
    return "the adapter off" if trainer.reference.adapter else "a frozen copy"


def training_finding(output_dir: str | Path, objective: str) -> Finding:
    """The last tenth of the logged steps: implicit accuracy, and whether the chosen images' error
    rose above the reference's."""
    rows = Run(output_dir).rows
    last = rows[-max(len(rows) // 10, min(len(rows), 5)) :]
    names = {
        "loss": "loss",
        "rewards/accuracies": "implicit accuracy",
        "diffusion/chosen_shift": "error on chosen images, against the reference",
        "diffusion/rejected_shift": "error on rejected images, against the reference",
        "diffusion/w": "weight w",
    }
    found = {title: [row[key] for row in last if key in row] for key, title in names.items()}
    metrics = [
        Metric(title, sum(values) / len(values), n=len(values), unit="rate")
        if title == "implicit accuracy"  # a share of pairs; rows say nothing of its spread
        else mean_metric(title, values)
        for title, values in found.items()
        if values
    ]
    summary = f"{objective}, mean of the last {len(last)} logged rows: " + "; ".join(
        f"{metric.name} {metric}" for metric in metrics
    )
    shift = next((m.value for m in metrics if m.name.startswith("error on chosen")), None)
    advice = ""
    if shift is not None and shift > 0:
        advice = (
            "The error on chosen images rose above the reference's. An extrapolation such as "
            "DSPO's does that on purpose; under Diffusion-DPO it is how models degrade. Look at "
            "the samples, and compare with `trueline diffusion evaluate`."
        )
    return Finding("alignment", f"{summary}.", metrics, advice)
