"""`trueline evaluate`: how safe is it? Benchmark x attack x judge on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueline.cli.calibrate import calibrate_judge
from trueline.cli.common import Json, print_json

__all__ = ["calibrate_judge", "evaluate"]

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
    from trueline.cli.evaluate_tables import list_names_of_all, show
    from trueline.evaluation.harness.ranks import rank
    from trueline.runs.evaluate import read_options, run_evaluation

    if list_names:
        plugins.load(imports or [])
        list_names_of_all(json)
        return
    given = {
        "model": model, "benchmark": benchmark, "attack": attack, "judge": judge,
        "utility": utility, "output": output, "cache": cache, "backend": backend,
        "base_url": base_url, "dtype": dtype, "batch_size": batch_size,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "system": system,
        "plain": plain, "limit": limit, "seed": seed, "import": imports,
    }  # fmt: skip
    options = read_options(config, {k: v for k, v in given.items() if v not in (None, [])})
    results = run_evaluation(options, quiet=json, show=show)
    if json and rank() == 0:
        print_json(results if len(results["models"]) > 1 else results["models"][0])
