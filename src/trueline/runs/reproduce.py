"""What `trueline reproduce` does: measure the papers' claims, with intervals and verdicts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.files import write_text
from trueline.reproduce.page import markdown, summary, write_page
from trueline.reproduce.preregistration import Registered, registered
from trueline.reproduce.scales import FAST, FULL, plan
from trueline.reproduce.study import Study, choose, read_recipe
from trueline.reproduce.study import reproduce as run_study
from trueline.runs.state import held


@dataclass(frozen=True)
class Reproduced:
    """Claims measured: the study, the page that tells it, and whether runs are missing."""

    study: Study
    page: Path

    @property
    def missing(self) -> int:
        """Runs that were not begun or failed; the same call goes on from there."""
        return self.failed + int(self.study.facts["runs"]["not begun"])

    @property
    def failed(self) -> int:
        """Runs that failed."""
        return int(self.study.facts["runs"]["failed"])

    @property
    def summary(self) -> str:
        """How many claims hold."""
        return summary(self.study)

    def to_frame(self) -> Any:
        """One row an effect, as a pandas DataFrame."""
        import pandas as pd

        rows = [
            {"claim": outcome.claim.name, "paper": outcome.claim.paper, "effect": e.metric.name,
             "value": e.metric.value, "low": e.metric.low, "high": e.metric.high,
             "verdict": e.verdict}
            for outcome in self.study.outcomes for e in outcome.effects
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False))


def reproduce(
    *claims: str,
    fast: bool = False,
    seeds: int | None = None,
    first_seed: int = 0,
    judged: bool = False,
    kept: str | Path | Sequence[str | Path] = (),
    jobs: int = 2,
    budget: float | None = None,
    recipe: str | Path | None = None,
    output: str | Path = "runs/reproduce",
    command: str = "trueline reproduce",
    tell: Callable[[str], None] = lambda line: None,
) -> Reproduced:
    """Measure the papers' claims in the sandbox: effects with intervals, and honest verdicts.

    Args:
        claims: claims, or papers; all of them unless named.
        fast: two seeds.
        seeds: how many; more decide more.
        first_seed: the first of them.
        judged: as registered in studies/PREREGISTRATION.md and its later versions: a version's
            claims of a paper together, on its own seeds. A claim stands for those judged with it.
        kept: lines of results, or folders of runs: judged, and nothing is run.
        jobs: processes, of one thread each; 0: none but this.
        budget: minutes after which no further run is begun.
        recipe: YAML: a real model and data in place of the sandbox.
        output: folder of runs, results and page.
        command: what to type to do it again.
        tell: called with lines of progress.

    Example:
        >>> reproduce("minima-are-divergences", jobs=0).to_frame()  # doctest: +SKIP
    """
    chosen, folder = choose(claims), Path(output)
    registration: list[Registered] = []
    if judged:
        if fast or seeds is not None or first_seed or recipe is not None:
            raise UserError("--judged has the seeds, scale and data of the registration; leave out "
                            "--fast, --seeds, --first-seed and --recipe")  # fmt: skip
        families = {claim.family for claim in chosen}
        chosen = [claim for claim in choose(()) if claim.family in families]
        registration = registered(chosen)
        for one in registration:
            tell(f"As registered: version {one.version.number}, designs {one.hash}, commit "
                 f"{one.commit} of {one.date}")  # fmt: skip
    # one thread for each process; numpy's is read when a worker starts, so it is set before
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    with held(folder):
        study = run_study(
            chosen,
            FAST if fast else FULL,
            folder,
            seeds=seeds,
            first_seed=first_seed,
            judged=registration,
            kept=[Path(path) for path in ([kept] if isinstance(kept, (str, Path)) else kept)],
            jobs=jobs,
            budget=None if budget is None else 60 * budget,
            recipe=None if recipe is None else read_recipe(Path(recipe)),
            command=command,
            tell=tell,
        )
        page = write_page(study, folder)
        write_text(folder / "reproduction.md", markdown(study))
    return Reproduced(study, page)


@dataclass(frozen=True)
class Costs:
    """Claims and what they cost: a row each, and all together, which share runs."""

    rows: Sequence[dict[str, Any]]
    runs: int
    minutes: float
    scale: str
    seeds: int


def costs(*claims: str, fast: bool = False) -> Costs:
    """What claims there are, what they say, and what measuring them takes."""
    scale, chosen = FAST if fast else FULL, choose(claims)
    rows = []
    for claim in chosen:
        runs = plan([claim], scale, range(scale.seeds))
        minutes = sum(scale.cost(run) for run in runs)
        rows.append(
            {
                "claim": claim.name,
                "paper": claim.paper,
                "version": claim.version,
                "statement": claim.statement,
                "measured": claim.measured,
                "expected": claim.expected,
                "runs": len(runs),
                "processor_minutes": round(minutes, 1),
                "recipe": claim.on_recipe,
            }
        )
    together = plan(chosen, scale, range(scale.seeds))
    total = sum(scale.cost(run) for run in together)
    return Costs(rows, len(together), total, scale.name, scale.seeds)
