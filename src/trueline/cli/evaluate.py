"""How safe is it? `trueline evaluate`: benchmark x attack x judge on a model; `trueline judge`:
kept answers again; `trueline bound`: how likely a jailbreak must be, in E-RLHF's picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from trueline.cli.common import Json, console, metrics, out, print_json
from trueline.runs.record import Key

if TYPE_CHECKING:
    from trueline.results import Finding

Many = list[str] | None


def evaluate(
    model: Annotated[
        Many, typer.Option("--model", "-m", help="Model folder, hub id, or a server's name for it.")
    ] = None,
    benchmark: Annotated[
        Many, typer.Option("--benchmark", "-b", help="name=SOURCE[,option=value]...")
    ] = None,
    attack: Annotated[
        Many, typer.Option("--attack", "-a", help="name[,option=value]..., joined with +.")
    ] = None,
    judge: Annotated[
        Many, typer.Option("--judge", "-j", help="name[=MODEL][,option=value]...")
    ] = None,
    utility: Annotated[
        Many, typer.Option("--utility", "-u", help="name=SOURCE[,option=value]...")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A YAML file of these options.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder of the evaluation; a subfolder for each of several "
            "models. [default: runs/evaluate/MODEL]"
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Folder of answers and verdicts shared by evaluations.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="transformers, vllm or openai (with --base-url).")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of local weights; auto if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts in a batch; 32.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Of an answer; 512.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0, which is greedy.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    plain: Annotated[
        bool | None, typer.Option("--plain", help="Ask without the chat template.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Prompts of each benchmark, a share of each category.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of attacks and sampling.")] = None,
    imports: Annotated[
        Many, typer.Option("--import", help="A module with attacks, judges, ... of your own.")
    ] = None,
    list_names: Annotated[
        bool, typer.Option("--list", help="List benchmarks, attacks, judges and utilities.")
    ] = False,
    json: Json = False,
) -> None:
    """Evaluate a model: benchmark x attack x judge, and what it is still good for.

    Killed at any moment, the same command goes on; with another judge it generates nothing anew.
    Writes judgements.jsonl, findings.json and samples.jsonl; `trueline compare` and `trueline
    report` read them.
    """
    from trueline import plugins
    from trueline.runs.evaluate import read_options, run_evaluation

    if list_names:
        plugins.load(imports or [])
        _list(json)
        return
    given = {
        "model": model, "benchmark": benchmark, "attack": attack, "judge": judge,
        "utility": utility, "output": output, "cache": cache, "backend": backend,
        "base_url": base_url, "dtype": dtype, "batch_size": batch_size,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "system": system,
        "plain": plain, "limit": limit, "seed": seed, "import": imports,
    }  # fmt: skip
    options = read_options(config, {k: v for k, v in given.items() if v not in (None, [])})
    results = run_evaluation(options, quiet=json, show=None if json else _show)
    if json:
        print_json(results if len(results["models"]) > 1 else results["models"][0])


def judge(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that evaluate wrote.")
    ],
    judge: Annotated[
        list[str], typer.Option("--judge", "-j", help="name[=MODEL][,option=value]...")
    ],
    json: Json = False,
) -> None:
    """Judge kept answers again: nothing is generated, and the evaluated model is not loaded.

    The new judges' rows and findings stand beside those that were there, with how far every two
    judges agree.
    """
    from trueline.runs.judges import judge_run

    told = []
    for run in runs:
        for folder, findings, notes in judge_run(run, judge, quiet=json):
            if not json:
                _show(folder.name, findings, notes, folder)
            found = [finding.to_dict() for finding in findings]
            told.append({"output": str(folder), "findings": found, "notes": list(notes)})
    if json:
        print_json(told)


def _table(title: str, judged: Sequence[Finding]) -> Table:
    """Measures down, judges across; rates of success first, then what the answers were like."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("rate [95% interval]")
    table.add_column("n", justify="right")
    for finding in judged:
        table.add_column(escape(Key.judge_of(finding) or finding.name), justify="right")
    by_name = [{m.name: m for m in f.metrics} for f in judged]
    names = list(dict.fromkeys(m.name for f in judged for m in f.metrics))
    for metric in sorted(names, key=lambda n: "," not in n):
        found = [own.get(metric) for own in by_name]
        counts = {m.n for m in found if m is not None}
        alike = len(counts) == 1
        cells = ["" if m is None else str(m) if alike else f"{m} (n={m.n})" for m in found]
        table.add_row(escape(metric), str(counts.pop()) if alike else "", *map(escape, cells))
    return table


def _show(name: str, findings: Sequence[Finding], notes: Sequence[str], folder: Path) -> None:
    """The rates by benchmark, attack and judge, other findings, advice and notes."""
    from trueline.runs.evaluate import FIRST

    judged = [f for f in findings if Key.judge_of(f) is not None]
    for finding in findings:
        if finding.name.startswith(FIRST):
            out.print(finding.summary, style="bold red", markup=False, highlight=False)
    if judged:
        out.print(_table(name, judged))
    for finding in findings:
        if finding not in judged and not finding.name.startswith(FIRST):
            out.print(f"{finding.name}: {finding.summary}", markup=False, highlight=False)
        if finding.advice:
            out.print(f"{finding.name}: {finding.advice}", style="yellow", markup=False)
    for note in notes:
        console.print(f"note: {note}", style="dim", markup=False, highlight=False)
    console.print(f"log, findings and samples: {folder}", markup=False, highlight=False)


def _list(json: bool) -> None:
    """Every registered benchmark, attack, judge and utility with its first sentence."""
    from trueline.runs.catalog import evaluation_parts

    groups = evaluation_parts()
    if json:
        print_json(groups)
        return
    for kind, summaries in groups.items():
        out.print(f"[bold]{kind}[/bold]")
        for name, summary in summaries.items():
            out.print(f"  [green]{name}[/green]  {escape(summary)}", highlight=False)


def inspect_export(
    run: Annotated[Path, typer.Argument(help="An evaluation folder or a run directory.")],
    output: Annotated[Path, typer.Argument(help="File to write, ending in .eval.")],
    json: Json = False,
) -> None:
    """Write an evaluation's log as an Inspect .eval file; `inspect view` shows it."""
    from trueline.runs.evaluate import export

    path, rows = export(run, output)
    if json:
        print_json({"output": str(path), "rows": rows})
    else:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def bound(
    n: Annotated[int, typer.Option(help="Explanations in the output's support.")] = 1000,
    harmful: Annotated[int, typer.Option(help="How many of them are harmful.")] = 110,
    p: Annotated[float, typer.Option(help="Harmful mass from which an answer is harmful.")] = 0.1,
    epsilon: Annotated[
        float, typer.Option(help="How far an adversary moves the distribution, in l1.")
    ] = 0.02,
    ratio: Annotated[
        float, typer.Option(help="Largest aligned density over the uniform one, outside the zone.")
    ] = 1.0,
    samples: Annotated[int, typer.Option(help="Draws of the simulation; 0 for none.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    json: Json = False,
) -> None:
    """The least chance of a jailbreak by a bounded adversary: exact, approximate and simulated.

    Arithmetic on a picture, not a measurement of a model: nobody knows a model's n, p and density.
    It shows what the bound can say, and that it says nothing of a model that concentrates on safe
    outputs (a large --ratio).
    """
    from trueline.runs.bound import bound as verb

    found = verb(n, harmful, p, epsilon, ratio=ratio, samples=samples, seed=seed)
    if json:
        print_json({**found.finding.to_dict(), "vacuous": found.vacuous})
        return
    out.print(metrics(found.finding))
    for text in (found.finding.summary, found.finding.advice):
        if text:
            out.print(f"• {text}", markup=False, highlight=False)
