"""What `trueline demo` does: the whole story in the sandbox, from a base model to a report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.errors import UserError
from trueline.results import Metric, frame, to_html
from trueline.terminal import console, progress

if TYPE_CHECKING:
    from trueline.results import Finding
    from trueline.runs.demo.models import Measurement, Model
    from trueline.sandbox import Sandbox, Size


@dataclass(frozen=True)
class Story:
    """A demo told: its page, the seconds it took, and what was measured of each model.

    Args:
        page: the report.
        seconds: all of it took.
        measurements: of each model, here.
        summary: in words.
        elsewhere: by model and measure, means over the study's worlds; empty while there are none.
    """

    page: Path
    seconds: float
    measurements: Sequence[Any]
    summary: str
    elsewhere: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)

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
        for name, metrics in self.elsewhere.items():
            models[name]["elsewhere"] = [asdict(metric) for metric in metrics.values()]
        return {"report": str(self.page), "seconds": round(self.seconds, 1), "models": models}

    def to_frame(self) -> Any:
        """All metrics of all models as a pandas DataFrame."""
        import pandas as pd

        parts = {name: frame(findings) for name, findings in self.findings.items()}
        return pd.concat(parts, names=["model"]).reset_index("model").reset_index(drop=True)

    def _repr_html_(self) -> str:
        return "".join(to_html(found, name) for name, found in self.findings.items())


def demo(
    output: str | Path = "runs/demo",
    *,
    seed: int = 0,
    size: Size = "demo",
    jobs: int = 0,
    quiet: bool = True,
) -> Story:
    """Build a small world, align a model in it, and show what changed, here and in other worlds.

    Args:
        output: folder of the runs and the report.
        seed: another world, other data, other weights.
        size: demo, or test: seconds, and a model that knows little.
        jobs: processes that align and measure, of one thread each; 0: none but this. In a script,
            more need the guard ``if __name__ == "__main__":``. The results are the same.
        quiet: keep progress back.

    Raises:
        UserError: another size, a seed that is still to be judged, or a process that died.

    Example:
        >>> demo("runs/demo").to_frame()  # doctest: +SKIP
    """
    import torch
    import transformers

    from trueline.report import render_report
    from trueline.runs.demo.models import MODELS, SCALES
    from trueline.runs.demo.story import demo_report, summary
    from trueline.runs.demo.worlds import Worlds

    if size not in SCALES:
        raise UserError(f"the demo's size is one of {', '.join(SCALES)}, got {size!r}")
    worlds = Worlds.read()
    worlds.check(seed)
    worlds = worlds.besides(seed)
    torch.set_num_threads(1)  # the models are tiny: a second thread waits more than it works
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    folder, say = Path(output), Teller(time.time(), quiet)
    begin = time.monotonic()
    sandbox = _sandbox(seed, size, say)
    measurements = _measured(MODELS, sandbox, folder, size, jobs, say)
    elapsed = time.monotonic() - begin
    command = f"trueline demo --seed {seed}" + (f" --size {size}" if size != "demo" else "")
    told = demo_report(measurements, folder, sandbox, worlds, command=command, seconds=elapsed)
    page = render_report(told, folder / "report.html")
    text = summary(measurements, worlds)
    return Story(page, elapsed, measurements, text, worlds.levels())


@dataclass(frozen=True)
class Teller:
    """Lines of progress, from this process or another."""

    begin: float
    quiet: bool

    def __call__(self, what: str) -> None:
        if not self.quiet:
            console.print(f"[dim]{time.time() - self.begin:5.0f} s[/dim]  {what}", highlight=False)


def _measured(
    models: Sequence[Model], sandbox: Sandbox, folder: Path, size: Size, jobs: int, say: Teller
) -> list[Measurement]:
    """Every model aligned and measured, the longest first.

    Raises:
        UserError: a process died.
    """
    from trueline.reproduce.workers import Workers
    from trueline.runs.demo.models import make

    bars = not jobs and not say.quiet  # two processes' would mix
    with Workers(min(jobs, len(models))) as workers:
        futures = [
            workers.submit(make, model, sandbox, folder, size, say, quiet=not bars)
            for model in reversed(models)
        ]
        return workers.results(futures)[::-1]


def _sandbox(seed: int, size: Size, say: Teller) -> Sandbox:
    """The sandbox, built once and kept in the cache."""
    from trueline.files import cache_folder
    from trueline.sandbox import build_sandbox

    folder = cache_folder("sandbox") / f"{size}-{seed}"
    say("building the world and training its base model (kept for the next time)")
    done = 0
    with progress("base model", 0, quiet=say.quiet) as advance:

        def step(now: int, steps: int, loss: float) -> None:
            nonlocal done
            advance(now - done, steps)
            done = now

        return build_sandbox(folder, seed=seed, size=size, progress=step)
