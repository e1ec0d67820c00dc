"""`trueline bound`: how likely a jailbreak must be, in E-RLHF's picture of an output space."""

from __future__ import annotations

from typing import Annotated

import typer

from trueline.cli.common import Json, metrics, out, print_json


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
