"""What `trueline diffusion evaluate` does: paint, score, compare, report."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.errors import UserError
from trueline.identity import Identity, freely
from trueline.interrupts import Signals
from trueline.results import Finding, frame, to_html
from trueline.runs.record import SCORES, Run
from trueline.runs.state import State, created, held, reached, status

if TYPE_CHECKING:
    from trueline.diffusion.evaluation.evaluate import Gallery, Sampling


@dataclass(frozen=True)
class Painted:
    """Models compared by their pictures: the findings, and the page that shows them."""

    findings: Sequence[Finding]
    page: Path

    def to_frame(self) -> Any:
        """All metrics as a pandas DataFrame."""
        return frame(self.findings)

    def _repr_html_(self) -> str:
        return to_html(self.findings, "Pictures compared")


def evaluate(
    base: Any,
    aligned: Any,
    *,
    prompts: str | Path | Sequence[str],
    scorer: str | Sequence[str],
    output: str | Path = "runs/diffusion-evaluation",
    steps: int = 50,
    guidance: float = 7.5,
    seed: int = 0,
    batch_size: int = 4,
    limit: int | None = None,
    dtype: str = "float32",
    quiet: bool = True,
) -> Painted:
    """Paint the same prompts from the same noise with each model, and say which is better.

    Args:
        base: the model before: a diffusers folder or a hub id.
        aligned: a run, a run directory, a folder or a hub id, or several.
        prompts: a text file, one a line, or a JSONL; or the prompts themselves.
        scorer: pickscore, clip=ID, ... or several.
        output: folder of pictures, findings and report.
        steps, guidance, seed, batch_size: of the sampler.
        limit: only the first so many prompts.
        dtype: float32, bfloat16 or float16.
        quiet: keep progress back.
    """
    from trueline.diffusion.evaluation.evaluate import Sampling, read_prompts

    given = read_prompts(Path(prompts), limit) if isinstance(prompts, str | Path) else prompts
    several = [aligned] if isinstance(aligned, str | os.PathLike) else aligned
    with Signals("this batch of pictures"), held(output):
        return _evaluate(
            os.fspath(base),
            [os.fspath(one) for one in several],
            list(given)[:limit],
            [scorer] if isinstance(scorer, str) else list(scorer),
            Sampling(seed, steps, guidance, batch_size),
            output=Path(output),
            dtype=dtype,
            quiet=quiet,
        )


def _evaluate(
    base: str,
    aligned: list[str],
    prompts: list[str],
    scorers: list[str],
    sampling: Sampling,
    *,
    output: Path,
    dtype: str,
    quiet: bool,
) -> Painted:
    from trueline.diffusion.evaluation.evaluate import compare
    from trueline.diffusion.evaluation.scorers import make_scorer
    from trueline.report import render_report
    from trueline.runs.diffusion.story import evaluation_report

    quiet_libraries()
    device = _device()
    made = dict(make_scorer(text, device) for text in scorers)
    labels = _labels(base, aligned)
    run = accepted(output, labels, prompts, scorers, asdict(sampling), dtype)
    galleries = [
        _gallery(base, None if source == base else source, label, prompts, sampling,
                 output=output, dtype=dtype, device=device, quiet=quiet)
        for label, source in labels.items()
    ]  # fmt: skip
    findings, scores = compare(galleries[0], galleries[1:], prompts, made, seed=sampling.seed)
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
    return Painted(findings, page)


def accepted(
    output: Path,
    labels: Mapping[str, str],
    prompts: Sequence[str],
    scorers: Sequence[str],
    sampling: Mapping[str, Any],
    dtype: str,
) -> Run:
    """The folder for this evaluation: new, the same one again, or with other scorers.

    Raises:
        UserError: it holds something else.
    """
    run = Run(output)
    facts = {"models": dict(labels), "prompts": list(prompts), "sampling": dict(sampling),
             "dtype": dtype, "scorers": list(scorers)}  # fmt: skip
    own, kept = Identity.of(facts, {"scorers": freely}), status(run)
    if kept is not None and kept.verb != "diffusion evaluate":
        raise UserError(f"{output} holds a run of another kind; name another --output")
    if kept is not None:
        own.take_over(Identity(kept.identity), output, "name another --output")
    data = f"{len(prompts)} prompts"
    created(run, "diffusion evaluate", data=data, identity=own.facts, resumed=kept is not None)
    reached(run, State.WORKING)
    return run


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
    from trueline.runs.diffusion.story import image_paths
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
