"""What `trueline demo` does: the whole story in the sandbox, from a base model to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.results import frame, to_html
from trueline.terminal import console, progress

if TYPE_CHECKING:
    from trueline.reproduce import Measurement
    from trueline.results import Finding
    from trueline.sandbox import Sandbox, Size


@dataclass(frozen=True)
class Story:
    """A demo told: its page, the seconds it took, and what was measured of each model."""

    page: Path
    seconds: float
    measurements: Sequence[Any]
    summary: str

    @property
    def findings(self) -> dict[str, list[Finding]]:
        """By model."""
        return {m.name: list(m.findings) for m in self.measurements}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        models = {
            name: {"findings": [finding.to_dict() for finding in findings]}
            for name, findings in self.findings.items()
        }
        return {"report": str(self.page), "seconds": round(self.seconds, 1), "models": models}

    def to_frame(self) -> Any:
        """All metrics of all models as a pandas DataFrame."""
        import pandas as pd

        parts = {name: frame(findings) for name, findings in self.findings.items()}
        return pd.concat(parts, names=["model"]).reset_index("model").reset_index(drop=True)

    def _repr_html_(self) -> str:
        return "".join(to_html(found, name) for name, found in self.findings.items())


def demo(
    output: str | Path = "runs/demo", *, seed: int = 0, size: Size = "demo", quiet: bool = True
) -> Story:
    """Build a small world, align a model in it, and show what changed.

    Args:
        output: folder of the runs and the report.
        seed: another world, other data, other weights.
        size: demo, or test: seconds, and a model that knows little.
        quiet: keep progress back.

    Example:
        >>> demo("runs/demo").to_frame()  # doctest: +SKIP
    """
    import torch
    import transformers

    from trueline.report import render_report
    from trueline.reproduce import align, measure
    from trueline.runs.demo.story import RECIPES, demo_report, summary

    torch.set_num_threads(1)  # the models are tiny: a second thread waits more than it works
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    folder = Path(output)
    begin = time.monotonic()
    say = _teller(begin, quiet)
    sandbox = _sandbox(seed, size, say)
    tokenizer = transformers.AutoTokenizer.from_pretrained(sandbox.model_dir)
    base = transformers.AutoModelForCausalLM.from_pretrained(sandbox.model_dir)
    say("measuring the base model")
    measurements: list[Measurement] = [
        measure(sandbox, base, tokenizer, "base", folder=folder / "base")
    ]
    for recipe in RECIPES:
        say(f"aligning with {recipe.objective} on {recipe.data.replace('_', '-')} data")
        torch.manual_seed(seed)
        trainer = align(sandbox, recipe, folder, seed=seed, quiet=quiet)
        trainer.scorer.detach()
        say(f"measuring {recipe.name}")
        run = folder / recipe.name
        measurements.append(measure(sandbox, trainer.model, tokenizer, recipe.name, folder=run))
    elapsed = time.monotonic() - begin
    told = demo_report(measurements, folder, sandbox, seed=seed, seconds=elapsed)
    page = render_report(told, folder / "report.html")
    return Story(page, elapsed, measurements, summary(measurements))


def _teller(begin: float, quiet: bool) -> Callable[[str], None]:
    def say(what: str) -> None:
        if not quiet:
            console.print(f"[dim]{time.monotonic() - begin:5.0f} s[/dim]  {what}", highlight=False)

    return say


def _sandbox(seed: int, size: Size, say: Callable[[str], None]) -> Sandbox:
    """The sandbox, built once and kept in the cache."""
    from trueline.files import cache_folder
    from trueline.sandbox import build_sandbox

    folder = cache_folder("sandbox") / f"{size}-{seed}"
    say("building the world and training its base model (kept for the next time)")
    done = 0
    with progress("base model", 0) as advance:

        def step(now: int, steps: int, loss: float) -> None:
            nonlocal done
            advance(now - done, steps)
            done = now

        return build_sandbox(folder, seed=seed, size=size, progress=step)
