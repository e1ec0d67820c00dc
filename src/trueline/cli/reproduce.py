"""`trueline reproduce [CLAIM ...]`: measure the papers' claims, with intervals and verdicts."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trueline.cli.common import Json, console, out, print_json

if TYPE_CHECKING:
    from trueline.runs.reproduce import Costs, Reproduced


def reproduce(
    claims: Annotated[
        list[str] | None, typer.Argument(help="Claims, or papers; all of them unless named.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say which claims there are.")] = False,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Two seeds: over half an hour on two cores for all."),
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="How many seeds; more decide more.")] = None,
    first_seed: Annotated[int, typer.Option(help="The first seed.", min=0)] = 0,
    judged: Annotated[
        bool,
        typer.Option(
            "--judged",
            help="As registered in studies/PREREGISTRATION.md and later versions: their seeds, "
            "whole papers, one look.",
        ),
    ] = False,
    kept: Annotated[
        list[Path] | None,
        typer.Option(
            help="Lines of results, or a folder of runs: judged, and nothing is run. May be given "
            "several times."
        ),
    ] = None,
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
    results.json, reproduction.md and runs.jsonl, from which --kept makes all of it again.
    """
    from trueline.runs import reproduce as verb

    if list_:
        _list(verb.costs(*(claims or []), fast=fast), json)
        return
    made = verb.reproduce(
        *(claims or []), fast=fast, seeds=seeds, first_seed=first_seed, judged=judged,
        kept=kept or (),
        jobs=jobs, budget=budget, recipe=recipe,
        output=output, command="trueline " + shlex.join(_typed()),
        tell=lambda line: console.print(line, style="dim", markup=False, highlight=False),
    )  # fmt: skip
    if json:
        print_json(made.study.to_dict())
    else:
        _show(made)
        console.print(f"The evidence: {made.page}", markup=False)
    if made.missing:
        console.print("Some runs are missing; the same command goes on from here.", markup=False)
    if made.failed:
        raise typer.Exit(1)


def _typed() -> list[str]:
    """The verb and what followed it."""
    words = sys.argv[1:]
    return words if "reproduce" in words else ["reproduce"]


def _list(found: Costs, json: bool) -> None:
    if json:
        print_json(found.rows)
        return
    for row in found.rows:
        cost = f"{row['runs']} runs, about {row['processor_minutes']:.0f} min"
        own = ", --recipe" if row["recipe"] else ""
        out.print(f"[bold]{row['claim']}[/bold]  ({row['paper']}; {cost}{own})", highlight=False)
        out.print(f"    {row['statement']}", markup=False, highlight=False)
    out.print(
        f"Together {found.runs} runs, about {found.minutes:.0f} processor minutes at scale "
        f"{found.scale} ({found.seeds} seeds); claims share runs.",
        style="dim",
        markup=False,
    )


def _show(made: Reproduced) -> None:
    for outcome in made.study.outcomes:
        head = f"[bold]{outcome.verdict:13}  {outcome.claim.marked}[/bold]  ({outcome.counted})"
        out.print(head, highlight=False)
        for effect in outcome.effects:
            line = f"  {effect.verdict:13}  {effect.metric.name} {effect.claimed}: {effect.shown}"
            out.print(line, markup=False, highlight=False)
        for note in outcome.notes:
            out.print(f"  {note}", style="dim", markup=False, highlight=False)
    out.print(made.summary, markup=False, highlight=False)
