"""What `trueline diffusion evaluate` does: paint, score, compare, report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.terminal import console

if TYPE_CHECKING:
    from trueline.diffusion.evaluation.evaluate import Gallery, Sampling


def run_evaluation(
    base: str,
    aligned: list[str],
    prompts: list[str],
    scorers: list[str],
    sampling: Sampling,
    *,
    output: Path,
    dtype: str = "float32",
    quiet: bool = False,
) -> dict[str, Any]:
    """Everything `trueline diffusion evaluate` does; returns what it prints as JSON."""
    from dataclasses import asdict

    from trueline.diffusion.evaluation.evaluate import compare
    from trueline.diffusion.evaluation.scorers import make_scorer
    from trueline.report import render_report
    from trueline.runs.diffusion_story import evaluation_report
    from trueline.runs.record import SCORES, Run

    quiet_libraries()
    device = _device()
    made = dict(make_scorer(text, device) for text in scorers)
    labels = _labels(base, aligned)
    galleries = [
        _gallery(base, None if source == base else source, label, prompts, sampling,
                 output=output, dtype=dtype, device=device, quiet=quiet)
        for label, source in labels.items()
    ]  # fmt: skip
    findings, scores = compare(galleries[0], galleries[1:], prompts, made, seed=sampling.seed)
    run = Run.create(output)
    facts = dict(
        run.write_manifest(
            command=shlex.join(["trueline", *sys.argv[1:]]),
            models=labels,
            scorers=scorers,
            prompts=len(prompts),
            sampling=asdict(sampling),
        )
    )
    run.save(findings)
    rows = [
        {"prompt": prompt, "seed": sampling.seed + k,
         "scores": {s: {m: v[k] for m, v in found.items()} for s, found in scores.items()}}
        for k, prompt in enumerate(prompts)
    ]  # fmt: skip
    run.write(SCORES, rows)
    command = str(facts.pop("command"))
    report = evaluation_report(galleries, prompts, findings, scores, facts, command)
    page = render_report(report, output / "report.html")
    console.print(f"pictures, scores and report: {output}", markup=False, highlight=False)
    return {"report": str(page), "findings": [finding.to_dict() for finding in findings]}


def _gallery(
    base: str,
    source: str | None,
    label: str,
    prompts: list[str],
    sampling: Sampling,
    *,
    output: Path,
    dtype: str,
    device: str,
    quiet: bool,
) -> Gallery:
    """One model's pictures; it is loaded for them alone, so that models never share memory."""
    from trueline.diffusion import load_text_to_image
    from trueline.diffusion.evaluation.evaluate import is_adapter, paint
    from trueline.runs.diffusion_story import image_paths
    from trueline.terminal import progress

    if source is not None and is_adapter(source):
        model = load_text_to_image(base, dtype=dtype, adapter=source)
    else:
        model = load_text_to_image(source or base, dtype=dtype)
    model.denoiser.to(device)
    with progress(f"painting, {label}", len(prompts), quiet=quiet) as advance:
        folder = image_paths(output, label)
        return paint(model, label, prompts, sampling, folder=folder, advance=advance)


def _labels(base: str, aligned: list[str]) -> dict[str, str]:
    """Short names of the models, told apart where folders share one."""
    names = [Path(source).name for source in aligned]
    labels = {"base": base}
    for source, name in zip(aligned, names, strict=True):
        label = source if names.count(name) > 1 or name == "base" else name
        labels[label] = source
    return labels


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def quiet_libraries() -> None:
    """Their progress bars and notices would stand between ours."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        import diffusers
    except ImportError:
        return  # what needs it says so
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
