"""What `trueline align` does: from a preference file to an aligned model and what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.terminal import console

if TYPE_CHECKING:
    from trueline.config import DataArguments, RunConfig
    from trueline.records import Example
    from trueline.results import Finding
    from trueline.training import AlignmentTrainer

def run_alignment(run: RunConfig, *, resume: bool = False) -> dict[str, Any]:
    """Load, train, evaluate, save; the run directory holds all there is to know."""
    import transformers

    from trueline.errors import UserError
    from trueline.models import load_model, load_tokenizer, lora_config, merge_adapter
    from trueline.report import log_findings, settle_tensorboard, write_model_card
    from trueline.results import save_findings
    from trueline.training import AlignmentTrainer

    transformers.utils.logging.disable_progress_bar()
    _say_precision(run)
    adapter = lora_config(run.model)
    train, test = load_datasets(run.data, run.training.seed)
    if test is None and str(getattr(run.training.eval_strategy, "value", "no")) != "no":
        raise UserError(
            "eval_strategy asks for evaluation and there is no held-out data; set test_size (a "
            "share of the prompts) or eval_dataset_name, or eval_strategy: 'no'"
        )
    tokenizer = load_tokenizer(run.model)
    model = load_model(run.model)
    reference = run.model.reference_model_name_or_path
    if tokenizer.chat_template and not train[0].conversational:
        console.print(
            "note: the data is plain text, so the tokenizer's chat template is not applied; "
            "as_chat: true makes a conversation of it",
            style="dim",
        )
    trainer = AlignmentTrainer(
        model,
        load_model(run.model, name=reference) if reference else None,
        args=run.training,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    _write_run_files(run, trainer, resume=resume)
    settle_tensorboard(trainer)
    before = trainer.evaluate_first() if test and not resume else None
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        console.print(
            f"interrupted after step {trainer.state.global_step}; --resume goes on from the last "
            f"checkpoint in {_output(run)}, if there is one (save_strategy, save_steps)"
        )
        raise SystemExit(130) from None
    after = trainer.evaluate() if test else None
    trainer.save_model()
    trainer.save_state()
    findings = [held_out_finding(after, before, reference=trainer.reference is not None)] if after else []
    if encoding := trainer.encoder.told.finding():
        findings.append(encoding)
    log_findings(trainer, findings)
    if trainer.is_world_process_zero():
        save_findings(_output(run), findings)
        write_model_card(_output(run))
        _show(findings, _output(run))
    trainer.accelerator.wait_for_everyone()
    if run.model.merge_adapter and trainer.is_world_process_zero():
        console.print(f"merged: {merge_adapter(_output(run), run.model)}", highlight=False)
    trainer.accelerator.end_training()
    return {
        "output_dir": str(_output(run)),
        "steps": trainer.state.global_step,
        "findings": [finding.to_dict() for finding in findings],
    }


def _say_precision(run: RunConfig) -> None:
    """On a CPU, bf16 against float32: where what was asked for is the slower one, and by how much."""
    from trueline.precision import bf16_speed, slow_bf16

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


def load_datasets(data: DataArguments, seed: int) -> tuple[list[Example], list[Example] | None]:
    """Train and, where there are any, held-out examples.

    Held-out rows come from ``eval_dataset_name``; else from a share of the prompts
    (``test_size``); else from the test split of a folder or a hub data set that has one.
    """
    from trueline.data import DataError
    from trueline.data.split import split_by_prompt
    from trueline.errors import UserError

    if data.dataset_name is None:
        raise UserError("dataset_name is missing: give a file, a folder or a hub id")
    train = _read(data, data.dataset_name, data.dataset_train_split)
    if data.eval_dataset_name is not None:
        return train, _read(data, data.eval_dataset_name, data.dataset_test_split)
    if data.test_size:
        return split_by_prompt(train, data.test_size, seed)
    if Path(data.dataset_name).is_file() or data.dataset_test_split == data.dataset_train_split:
        return train, None
    try:
        return train, _read(data, data.dataset_name, data.dataset_test_split)
    except DataError as error:
        console.print(f"no held-out data: {error}", style="dim", highlight=False)
        return train, None


def _read(data: DataArguments, source: str, split: str) -> list[Example]:
    from trueline.data import load_examples
    from trueline.data.chat import as_chat

    single = Path(source).is_file()  # which has no splits
    examples = load_examples(
        source,
        split="train" if single else split,
        name=data.dataset_config,
        skip_bad=data.skip_bad,
        form=data.dataset_form,
        limit=data.max_samples,
    )
    rows = [as_chat(example) if data.as_chat else example for example in examples]
    for reason, drop in examples.report.dropped.items():
        places = ", ".join(drop.places)
        console.print(f"dropped {drop.count} rows, {reason}: {places}", style="yellow")
    if unread := ", ".join(examples.report.unread):
        console.print(f"columns of {source} that are not read: {unread}", style="yellow")
    return rows


def held_out_finding(
    after: dict[str, float], before: dict[str, float] | None, *, reference: bool = True
) -> Finding:
    """Ranking and reward accuracy on held-out pairs, with Wilson intervals."""
    from trueline.stats import rate
    from trueline.results import Finding, Metric

    n = int(after["eval_samples"])
    metrics: list[Metric] = [Metric("eval_loss", after["eval_loss"], n=n)]
    names = {
        "gap/ranking_accuracy": "ranking accuracy",
        "gap/ranking_accuracy_per_token": "ranking accuracy per token",
        "rewards/accuracies": "reward accuracy",
    }
    for key, title in names.items():
        for prefix, values in (("base", before), ("eval", after)):
            value = (values or {}).get(f"{prefix}_{key}")
            if value is None or (prefix == "base" and reference and key.startswith("rewards")):
                continue  # before training every reward is 0: its accuracy says nothing
            label = f"{title}, {'before' if prefix == 'base' else 'after'}"
            metrics.append(rate(label, round(value * n), n))
    for side in ("chosen", "rejected"):
        for prefix, values in (("base", before), ("eval", after)):
            value = (values or {}).get(f"{prefix}_logps/{side}")
            if value is not None:
                when = "before" if prefix == "base" else "after"
                metrics.append(Metric(f"log-prob of {side}, {when}", value, n=n, unit="nats"))
    accuracy = next((m for m in metrics if m.name == "reward accuracy, after"), None)
    relative = "relative to its reference" if reference else "by its own log-probs"
    summary = (
        f"On {n} held-out examples the aligned model prefers the chosen answer, {relative}, in "
        f"{accuracy} (ties count one half)."
        if accuracy
        else f"Held-out loss {after['eval_loss']:.4g} on {n} examples."
    )
    return Finding("held-out", summary, metrics)


def _write_run_files(run: RunConfig, trainer: AlignmentTrainer, *, resume: bool) -> None:
    """config.yaml and manifest.json, before the first step; a new run starts its own metrics."""
    import dataclasses

    import yaml

    from trueline.files import write_json
    from trueline.results import manifest

    if not trainer.is_world_process_zero():
        return
    folder = _output(run)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = {
        **dataclasses.asdict(run.model),
        **dataclasses.asdict(run.data),
        **{
            key: getattr(value, "value", value)  # of transformers' enumerations
            for key in run.given
            if not key.endswith("token") and (value := getattr(run.training, key, None)) is not None
        },
        "loss_type": run.training.loss_type,
        **dict(trainer.objective.options),
        "coupling": run.training.coupling,
        "max_length": run.training.max_length,
        "learning_rate": run.training.learning_rate,
        "seed": run.training.seed,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=True), "utf-8")
    reference = trainer.reference.cache.folder if trainer.reference is not None else None
    facts = manifest(
        command="trueline align",
        seed=run.training.seed,
        data=run.data.dataset_name,
        data_hash=_file_hash(run.data.dataset_name),
        train_examples=len(trainer.train_dataset),
        encoding=dict(trainer.encoder.counts),
        scoring="packed" if trainer.scorer.fast else "plain",
        reference=reference.name if reference is not None else None,
        reference_is=trainer.reference_words,
    )
    write_json(folder / "manifest.json", facts)
    if not resume:
        (folder / "metrics.jsonl").unlink(missing_ok=True)


def _file_hash(name: str | None) -> str | None:
    import hashlib

    path = Path(name or "")
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _show(findings: list[Finding], folder: Path) -> None:
    from rich.table import Table

    for finding in findings:
        table = Table(title=finding.name, title_justify="left")
        table.add_column("measure")
        table.add_column("value [95% interval]", justify="right")
        table.add_column("n", justify="right")
        for metric in finding.metrics:
            table.add_row(metric.name, str(metric), str(metric.n))
        console.print(table)
        console.print(finding.summary)
    console.print(f"model, metrics and findings: {folder}", highlight=False)
