"""Scales: how much is spent on each experiment, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from trueline.reproduce.claim import Claim, Results
from trueline.reproduce.claims.arms import SHORT
from trueline.reproduce.runs import Arm, Run
from trueline.reproduce.verdict import Effect


@dataclass(frozen=True)
class Scale:
    """What every arm of an experiment shares.

    Args:
        name: in the results.
        seeds: how many, unless said otherwise.
        options: experiment to its options; an arm's own go before them.
        minutes: experiment to processor minutes of one run, roughly.
    """

    name: str
    seeds: int
    options: Mapping[str, Mapping[str, Any]]
    minutes: Mapping[str, float]

    def cost(self, run: Run) -> float:
        """Processor minutes of a run, roughly: more in a wide world, less with a small base."""
        much = {"wide": 2.2, "small": 0.6}.get(run.options.get("size", ""), 1.0)
        return self.minutes.get(run.experiment, 0.0) * much

    def run(self, arm: Arm, seed: int) -> Run:
        """An arm at a seed."""
        options = {**self.options.get(arm.experiment, {}), **arm.options}
        return Run(arm.experiment, options, seed, arm.title)


def _scale(
    name: str, *, seeds: int, size: str, training: Mapping[str, Any], suffix_steps: int
) -> Scale:
    options = {
        "world": {"size": size},
        "cautious": {"size": size},
        "alignment": {"size": size, **training},
        "selection": {"size": size, "temperature": 1.0},
        "course": {"temperature": 1.0},
        "suffix": {"size": size, "steps": suffix_steps, "pairs": 32},
        "painter": {"size": size},
        "pictures": {"size": size},
        "bound": {"samples": 20_000},
    }
    return Scale(name, seeds, MappingProxyType(options), _MINUTES)


_MINUTES = MappingProxyType(
    {"world": 1.2, "cautious": 0.6, "alignment": 0.45, "selection": 0.35, "suffix": 0.2,
     "course": 2.5, "painter": 1.7, "pictures": 0.5, "minima": 0.02, "bound": 0.02, "toy": 0.01,
     "condition": 0.01, "imitation": 0.01, "scores": 0.01, "likelihood": 0.05}
)  # fmt: skip

FULL = _scale(
    "full",
    seeds=20,
    size="demo",
    training={"learning_rate": 1e-4, "epochs": 5},
    suffix_steps=30,
)
"""The night's: the demo's world and the demo's training."""

FAST = replace(FULL, name="fast", seeds=2)
"""The same with two seeds, which shows signs and decides little: what it has done, the night need
not do again."""

TEST = _scale(
    "test",
    seeds=2,
    size="test",
    training={"learning_rate": 3e-4, "epochs": 1},
    suffix_steps=3,
)
"""For tests: a model that knows little. Verdicts mean nothing here."""


def plan(claims: Sequence[Claim], scale: Scale, seeds: Sequence[int]) -> list[Run]:
    """Every run the claims need, each once, after those it needs itself.

    All arms of a seed come before the next seed, so that what a budget cuts short is whole for
    fewer seeds.
    """
    found: dict[str, Run] = {}

    def add(run: Run) -> None:
        for parent in run.needs:
            add(parent)
        found.setdefault(run.key, run)

    for seed in seeds:
        for claim in claims:
            for arm in claim.arms:
                add(scale.run(arm, seed))
    return list(found.values())


def on_recipe(claim: Claim, recipe: Mapping[str, Any]) -> Claim:
    """The claim with its alignments on a recipe's model and data in place of the sandbox's."""
    arms = [Arm("recipe", own_options(arm, recipe), _untitled(arm.title)) for arm in claim.arms]
    renamed = {old.key: new.key for old, new in zip(claim.arms, arms, strict=True)}

    def judge(results: Results) -> list[Effect]:
        values = {old: results.values[new] for old, new in renamed.items()}
        return [
            replace(e, metric=replace(e.metric, name=_untitled(e.metric.name)))
            for e in claim.judge(replace(results, values=values))
        ]

    return replace(claim, arms=arms, judge=judge)


def _untitled(text: str) -> str:
    """A title without the sandbox's data set."""
    for data in SHORT.values():
        text = text.replace(f" on {data}", "")
    return text


SANDBOX_ONLY = {"data", "watched", "pairs_only"}
"""Options of an arm that mean nothing on a recipe's data."""


def own_options(arm: Arm, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's objective and options over a recipe's; the sandbox's data set is left out."""
    own = {key: value for key, value in arm.options.items() if key not in SANDBOX_ONLY}
    training = {**recipe["training"], **own.pop("training", {})}
    return {**recipe, **own, "training": training}
