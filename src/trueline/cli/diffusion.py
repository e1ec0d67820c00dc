"""`trueline diffusion`: align text-to-image models, compare them, and see the objectives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueline.cli.common import Json, console, out, print_json
from trueline.runs.diffusion_evaluate import quiet_libraries, run_evaluation

if TYPE_CHECKING:
    from trueline.diffusion import DiffusionConfig, DiffusionTrainer
    from trueline.diffusion.data.load import ImageData
    from trueline.results import Finding

SCORER_HELP = (
    "pickscore, clip=ID, hpsv2=ID, imagereward=FILE, aesthetics=FILE, or "
    "my_package.module:function; may be repeated."
)

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(no_args_is_help=True, help="Align text-to-image diffusion models, and compare.")


@app.callback()
def root() -> None:
    """Align text-to-image diffusion models, and compare."""


@app.command(context_settings=CONTEXT)
def align(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A flat YAML file of options.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of output_dir.")
    ] = False,
    json: Json = False,
) -> None:
    """Align a text-to-image model with DSPO, Diffusion-DPO, or any of their peers.

    Every key of the configuration is also an option: --loss_type dspo, --beta 0.05,
    --use_peft true. The command line beats the file.
    """
    from trueline.config import parse_overrides
    from trueline.diffusion import load_diffusion_config

    settings = load_diffusion_config(config, parse_overrides(context.args))
    if json:
        settings.disable_tqdm = True
    result = run_diffusion(settings, resume=resume)
    if json:
        print_json(result)


def run_diffusion(config: DiffusionConfig, *, resume: bool = False) -> dict[str, Any]:
    """Load, align, save; the run directory holds all there is to know."""
    from trueline.diffusion import DiffusionTrainer, load_image_examples, load_text_to_image
    from trueline.errors import UserError
    from trueline.runs.record import Run
    from trueline.training.checkpoints import Interrupted

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
        config.model_name_or_path, revision=config.model_revision, dtype=config.dtype
    )
    trainer = DiffusionTrainer(model, config, data.examples)
    trainer.begin(resume=resume)
    notes = _notes(data, trainer)
    if trainer.accelerator.is_main_process:
        for note in notes:
            console.print(note, style="yellow", markup=False, highlight=False)
        _write_run_files(config, trainer, notes)
    try:
        last = trainer.train(resume=resume)
    except Interrupted as error:
        console.print(f"{error}; --resume goes on from {error.checkpoint}", highlight=False)
        raise typer.Exit(128 + error.number) from None
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
    import dataclasses

    from trueline.runs.record import Run

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
    from trueline.results import Finding, Metric
    from trueline.runs.record import Run
    from trueline.stats import mean_metric

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


# --- evaluate -------------------------------------------------------------------------------------


@app.command()
def evaluate(
    base: Annotated[str, typer.Option(help="The model before: a diffusers folder or a hub id.")],
    aligned: Annotated[
        list[str], typer.Option(help="A run directory, a folder or a hub id; may be repeated.")
    ],
    prompts: Annotated[Path, typer.Option(help="A text file, one a line, or a JSONL.")],
    scorer: Annotated[
        list[str],
        typer.Option(help=SCORER_HELP),
    ],
    output: Annotated[Path, typer.Option(help="Folder of pictures, findings and report.")] = Path(
        "runs/diffusion-evaluation"
    ),
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.5,
    seed: Annotated[int, typer.Option(help="Of the first prompt's noise; common to all.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.")] = 4,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Json = False,
) -> None:
    """Paint the same prompts from the same noise with each model, and say which is better.

    Win rates with intervals, the exact sign test, and the pictures side by side in
    OUTPUT/report.html.
    """
    from trueline.diffusion.evaluation.evaluate import Sampling, read_prompts

    sampling = Sampling(seed, steps, guidance, batch_size)
    given = read_prompts(prompts, limit)
    result = run_evaluation(
        base, aligned, given, scorer, sampling, output=output, dtype=dtype, quiet=json
    )
    if json:
        print_json(result)
        return
    for finding in result["findings"]:
        out.print(finding["summary"], markup=False, highlight=False)


@app.command()
def objectives(json: Json = False) -> None:
    """List the objectives on images, with equation, options and source."""
    from rich.table import Table

    from trueline.diffusion import DIFFUSION_OBJECTIVES
    from trueline.diffusion.bind import carried_over

    specs = list(DIFFUSION_OBJECTIVES.values())
    if json:
        rows = [
            {"name": s.name, "summary": s.summary, "layout": s.layout, "reference": s.reference,
             "epsilon_only": s.epsilon_only, "equation": s.equation, "source": s.source,
             "options": dict(s.options)}
            for s in specs
        ]  # fmt: skip
        print_json({"diffusion": rows, "carried_over": carried_over()})
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("objective", "equation", "options"):
        table.add_column(column, no_wrap=column == "objective")
    for spec in specs:
        options = ", ".join(f"{key}={value}" for key, value in spec.options.items())
        table.add_row(spec.name, spec.equation, options)
    out.print(table, markup=False)
    out.print(f"and with -L/2 for a log-prob: {', '.join(carried_over())}", highlight=False)
