"""`trueline reproduce [CLAIM ...]`: measure the papers' claims, with intervals and verdicts."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trueline.cli.common import Json, console, out, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trueline.reproduce.claim import Claim
    from trueline.reproduce.scales import Scale
    from trueline.reproduce.study import Study


def reproduce(
    claims: Annotated[
        list[str] | None, typer.Argument(help="Claims, or papers; all of them unless named.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say which claims there are.")] = False,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Fewer seeds and epochs: half an hour on two cores for all."),
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="How many seeds; more decide more.")] = None,
    jobs: Annotated[
        int, typer.Option(help="Processes, of one thread each; 0: none but this.", min=0)
    ] = 2,
    budget: Annotated[
        float | None, typer.Option(help="Minutes after which no further run is begun.", min=0)
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML: a real model and data in place of the sandbox.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of runs, results and page.")] = Path(
        "runs/reproduce"
    ),
    json: Json = False,
) -> None:
    """Measure the papers' claims in the sandbox: effects with intervals, and honest verdicts.

    Runs that several claims need are done once, and kept in OUTPUT: after an interruption, or
    with more seeds, the same command goes on from there. Ends in OUTPUT/report.html,
    results.json and reproduction.md.
    """
    from trueline.reproduce.page import markdown, write_page
    from trueline.reproduce.scales import FAST, FULL
    from trueline.reproduce.study import choose, read_recipe
    from trueline.reproduce.study import reproduce as run_study

    scale = FAST if fast else FULL
    chosen = choose(claims or [])
    if list_:
        _list(chosen, scale, json)
        return
    # one thread for each process; numpy's is read when a worker starts, so it is set before
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    study = run_study(
        chosen,
        scale,
        output,
        seeds=seeds,
        jobs=jobs,
        budget=None if budget is None else 60 * budget,
        recipe=None if recipe is None else read_recipe(recipe),
        command="trueline " + shlex.join(_typed()),
        tell=lambda line: console.print(line, style="dim", markup=False, highlight=False),
    )
    page = write_page(study, output)
    (output / "reproduction.md").write_text(markdown(study), "utf-8")
    if json:
        print_json(study.to_dict())
    else:
        _show(study)
        console.print(f"The evidence: {page}", markup=False)
    if study.facts["runs"]["not begun"] or study.facts["runs"]["failed"]:
        console.print("Some runs are missing; the same command goes on from here.", markup=False)
    if study.facts["runs"]["failed"]:
        raise typer.Exit(1)


def _typed() -> list[str]:
    """The verb and what followed it."""
    words = sys.argv[1:]
    return words if "reproduce" in words else ["reproduce"]


def _list(claims: Sequence[Claim], scale: Scale, json: bool) -> None:
    from trueline.reproduce.scales import plan

    rows = []
    for claim in claims:
        runs = plan([claim], scale, range(scale.seeds))
        minutes = sum(scale.minutes.get(run.experiment, 0.0) for run in runs)
        rows.append(
            {
                "claim": claim.name,
                "paper": claim.paper,
                "statement": claim.statement,
                "measured": claim.measured,
                "expected": claim.expected,
                "runs": len(runs),
                "processor_minutes": round(minutes, 1),
                "recipe": claim.on_recipe,
            }
        )
    together = plan(claims, scale, range(scale.seeds))
    total = sum(scale.minutes.get(run.experiment, 0.0) for run in together)
    if json:
        print_json(rows)
        return
    for row in rows:
        cost = f"{row['runs']} runs, about {row['processor_minutes']:.0f} min"
        own = ", --recipe" if row["recipe"] else ""
        out.print(f"[bold]{row['claim']}[/bold]  ({row['paper']}; {cost}{own})", highlight=False)
        out.print(f"    {row['statement']}", markup=False, highlight=False)
    out.print(
        f"Together {len(together)} runs, about {total:.0f} processor minutes at scale "
        f"{scale.name} ({scale.seeds} seeds); claims share runs.",
        style="dim",
        markup=False,
    )


def _show(study: Study) -> None:
    from trueline.reproduce.page import summary

    for outcome in study.outcomes:
        head = f"[bold]{outcome.verdict:13}  {outcome.claim.name}[/bold]  ({outcome.counted})"
        out.print(head, highlight=False)
        for effect in outcome.effects:
            line = f"  {effect.verdict:13}  {effect.metric.name} {effect.claimed}: {effect.shown}"
            out.print(line, markup=False, highlight=False)
        for note in outcome.notes:
            out.print(f"  {note}", style="dim", markup=False, highlight=False)
    out.print(summary(study), markup=False, highlight=False)
