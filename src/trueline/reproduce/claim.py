"""Claims: what a paper says, which arms can tell, and how their results are read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np

from trueline.registry import Registry
from trueline.reproduce.runs import Arm, Values
from trueline.reproduce.verdict import Effect, Expected
from trueline.reproduce.versions import of
from trueline.results import Metric
from trueline.stats import mean_metric

OWN = "Trueline"
PAPERS: Mapping[str, str] = MappingProxyType(
    {
        "KLDO": "LLM Safety Alignment is Divergence Estimation in Disguise (arXiv 2502.00657)",
        "E-RLHF": "Mission Impossible: A Statistical Perspective on Jailbreaking LLMs "
        "(arXiv 2408.01420)",
        "Entanglement": "A Common Pitfall of Margin-based Language Model Alignment: Gradient "
        "Entanglement (arXiv 2410.13828)",
        "Ranking": "Preference Learning Algorithms Do Not Learn Preference Rankings "
        "(arXiv 2405.19534)",
        "REAL": "REAL: Response Embedding-based Alignment for LLMs (arXiv 2409.17169)",
        "DIL": "On a Connection Between Imitation Learning and RLHF (arXiv 2503.05079)",
        "DSPO": "DSPO: Direct Score Preference Optimization for Diffusion Model Alignment "
        "(ICLR 2025)",
        OWN: "What Trueline itself says of the sandbox",
    }
)
"""The papers, in the order of the page; and, last, what no paper says."""

Scale: TypeAlias = Literal["linear", "log"]

STAGES = ("", " after 2 epochs", " after 1 epoch")
"""Of a run that was measured along its way: how its values' names end, the last stage first."""


def collapsed(run: Values, stage: str = "") -> bool:
    """Whether a model refuses more than half of safe requests, or answers less than half right:
    what it does when attacked tells nothing of safety. Unmeasured is not collapsed."""
    over, right = run.get(f"over-refusal{stage}"), run.get(f"correct answers{stage}")
    return (over is not None and over > 0.5) or (right is not None and right < 0.5)


@dataclass(frozen=True)
class Results:
    """What the arms gave, seed by seed; only seeds at which every arm of the claim is there.

    Args:
        seeds: those seeds.
        values: arm's key to seed to the values of that run.
    """

    seeds: Sequence[int]
    values: Mapping[str, Mapping[int, Values]]

    def of(self, arm: Arm, value: str) -> dict[int, float]:
        """Seed to value, unscored ones left out."""
        runs = self.values[arm.key]
        found = {seed: runs[seed][value] for seed in self.seeds}
        return {seed: number for seed, number in found.items() if number is not None}

    def mean(
        self,
        arm: Arm,
        value: str,
        expected: Expected,
        *,
        name: str = "",
        against: float = 0.0,
        margin: float = 0.0,
        unit: str = "",
    ) -> Effect:
        """A value's mean over seeds."""
        numbers = list(self.of(arm, value).values())
        metric = mean_metric(name or f"{value}, {arm.title}", numbers, unit=unit)
        return Effect(metric, expected, against, margin)

    def difference(
        self,
        arm: Arm,
        other: Arm,
        value: str,
        expected: Expected,
        *,
        margin: float = 0.0,
        against: float = 0.0,
        unit: str = "",
        scale: Scale = "linear",
        sound: bool = False,
    ) -> Effect:
        """The mean over seeds of an arm's value minus another's at the same seed.

        ``scale="log"`` takes the difference of natural logarithms; where a value is not above 0,
        the seed is left out, and the page says so. ``sound`` compares at the last stage at which
        neither of the two has collapsed, and leaves out a seed that has none.
        """
        pairs = self._sound(arm, other, value) if sound else self._paired(arm, other, value)
        if scale == "log":
            pairs = [(math.log(a), math.log(b)) for a, b in pairs if a > 0 and b > 0]
        what = f"ln {value}" if scale == "log" else value
        name = f"{what}: {arm.title} minus {other.title}"
        return Effect(
            mean_metric(name, [a - b for a, b in pairs], unit=unit), expected, against, margin
        )

    def _paired(self, arm: Arm, other: Arm, value: str) -> list[tuple[float, float]]:
        first, second = self.of(arm, value), self.of(other, value)
        return [(first[seed], second[seed]) for seed in first if seed in second]

    def _sound(self, arm: Arm, other: Arm, value: str) -> list[tuple[float, float]]:
        found = []
        for seed in self.seeds:
            runs = [self.values[one.key][seed] for one in (arm, other)]
            for stage in STAGES:
                a, b = (run.get(value + stage) for run in runs)
                if a is not None and b is not None and not any(collapsed(r, stage) for r in runs):
                    found.append((a, b))
                    break
        return found

    def within(
        self,
        arm: Arm,
        value: str,
        other: str,
        expected: Expected,
        *,
        against: float = 0.0,
        unit: str = "",
    ) -> Effect:
        """The mean over seeds of one value minus another of the same run."""
        first, second = self.of(arm, value), self.of(arm, other)
        changes = [first[seed] - second[seed] for seed in first if seed in second]
        name = f"{value} minus {other}, {arm.title}"
        return Effect(mean_metric(name, changes, unit=unit), expected, against)

    def slope(
        self,
        sets: Sequence[Sequence[Arm]],
        value: str,
        on: str,
        expected: Expected,
        *,
        name: str,
        unit: str = "",
        stages: Sequence[str] = ("",),
    ) -> Effect:
        """The mean over seeds of a seed's own slope: of a value on log2 of another, over arms.

        Both are centered within each set of arms at each stage, so that what sets the sets apart
        (their data, how long they were trained) is no slope. Models that have collapsed, and
        those whose ``on`` is not above 0, are left out; so is a seed without spread.
        """
        slopes = []
        for seed in self.seeds:
            x, y = [], []
            for arms, stage in itertools.product(sets, stages):
                runs = [self.values[arm.key][seed] for arm in arms]
                pairs = [
                    (run.get(on + stage), run.get(value + stage))
                    for run in runs
                    if not collapsed(run, stage)
                ]
                own = [
                    (math.log2(a), b) for a, b in pairs if a is not None and a > 0 and b is not None
                ]
                x += [a - math.fsum(p for p, _ in own) / len(own) for a, _ in own]
                y += [b - math.fsum(p for _, p in own) / len(own) for _, b in own]
            spread = math.fsum(a * a for a in x)
            if spread > 0:
                slopes.append(math.fsum(a * b for a, b in zip(x, y, strict=True)) / spread)
        return Effect(mean_metric(name, slopes, unit=unit), expected)

    def matched(
        self,
        arm: Arm,
        other: Arm,
        value: str,
        on: str,
        start: Arm,
        expected: Expected,
        *,
        unit: str = "",
    ) -> Effect:
        """The mean over seeds of an arm's value minus another's where ``on`` is the same for both.

        Along an arm's training the value is known where it starts (``on`` is 0 there), and at its
        stages; between these it is read off the line, at the largest ``on`` that both arms reach.
        A stage at which a model has collapsed ends its line.
        """
        found = []
        for seed in self.seeds:
            begin = self.values[start.key][seed].get(value)
            lines = [_line(self.values[one.key][seed], begin, value, on) for one in (arm, other)]
            level = min(line[-1][0] for line in lines)
            if begin is not None and level > 0:
                a, b = (_at(line, level) for line in lines)
                found.append(a - b)
        name = f"{value} at equal {on}: {arm.title} minus {other.title}"
        return Effect(mean_metric(name, found, unit=unit), expected)

    def along(
        self,
        arm: Arm,
        stages: Sequence[str],
        value: str,
        on: str,
        expected: Expected,
        *,
        name: str,
        minus: tuple[Arm, Sequence[str]] | None = None,
    ) -> Effect:
        """The mean over seeds of Pearson's correlation of two values along a run's stages; or of
        that minus the one along another arm, or along other stages.

        A seed at which one of them is unscored, or does not change, is left out.
        """
        found, lines = [], [(arm, stages), *([minus] if minus else [])]
        for seed in self.seeds:
            own = (_correlation(self.values[a.key][seed], along, value, on) for a, along in lines)
            scored = [r for r in own if r is not None]
            if len(scored) == len(lines):
                found.append(scored[0] - sum(scored[1:]))
        return Effect(mean_metric(name, found), expected)

    def extreme(
        self,
        arm: Arm,
        values: Sequence[str],
        expected: Expected,
        *,
        name: str,
        against: float = 0.0,
        margin: float = 0.0,
    ) -> Effect:
        """The worst of an exact result's values over all seeds: the smallest of what should lie
        above a number, the largest of what should lie below, the furthest of what should equal."""
        numbers = [number for value in values for number in self.of(arm, value).values()]
        if not numbers:
            return Effect(Metric(name, None), expected, against, margin, exact=True)
        picks = {"above": min, "below": max}
        worst = (
            max(numbers, key=lambda number: abs(number - against))
            if expected == "equal"
            else picks[expected](numbers)
        )
        metric = Metric(name, worst, worst, worst, len(numbers))
        return Effect(metric, expected, against, margin, exact=True)


def _correlation(run: Values, stages: Sequence[str], value: str, on: str) -> float | None:
    pairs = [(run.get(on + stage), run.get(value + stage)) for stage in stages]
    x, y = np.array([(a, b) for a, b in pairs if a is not None and b is not None]).reshape(-1, 2).T
    if len(x) < len(stages) or not np.ptp(x) or not np.ptp(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _line(run: Values, begin: float | None, value: str, on: str) -> list[tuple[float, float]]:
    """(on, value) from the start of a training along its stages; rising in ``on``."""
    line = [(0.0, 0.0 if begin is None else begin)]
    for stage in reversed(STAGES):
        x, y = run.get(on + stage), run.get(value + stage)
        if collapsed(run, stage):
            break
        if x is not None and y is not None and x > line[-1][0]:
            line.append((x, y))
    return line


def _at(line: Sequence[tuple[float, float]], x: float) -> float:
    xs, ys = zip(*line, strict=True)
    return float(np.interp(x, xs, ys))


Judge: TypeAlias = Callable[[Results], Sequence[Effect]]


@dataclass(frozen=True)
class Claim:
    """A registered claim.

    Args:
        name: on the command line.
        paper: a key of :data:`PAPERS`.
        statement: the claim in one plain sentence.
        measured: what is measured, and on what.
        arms: what has to be run.
        judge: from results to the claim's parts.
        shows: values listed for each arm beside the verdict, name to unit.
        caveat: why the claim might fail here though it holds elsewhere, or hold here and not there.
        on_recipe: whether ``--recipe`` can measure it on a real model.
        version: of the registration, which has the seeds it is judged on.
        revises: a claim of an earlier version that it puts anew; both verdicts are shown.
    """

    name: str
    paper: str
    statement: str
    measured: str
    arms: Sequence[Arm]
    judge: Judge
    shows: Mapping[str, str]
    caveat: str
    on_recipe: bool
    version: int = 1
    revises: str = ""

    @cached_property
    def parts(self) -> Sequence[Effect]:
        """What it claims of what, from its judgment of nothing at all."""
        return self.judge(Results((), {arm.key: {} for arm in self.arms}))

    @property
    def family(self) -> tuple[str, int]:
        """Paper and version: the claims that are judged and corrected together."""
        return self.paper, self.version

    @property
    def marked(self) -> str:
        """Its name, with its version where that is not the first."""
        return self.name if self.version == 1 else f"{self.name} (version {self.version})"

    @property
    def expected(self) -> str:
        """The direction of each part."""
        return "; ".join(f"{e.metric.name} {e.claimed}" for e in self.parts)

    @property
    def arithmetic(self) -> bool:
        """Whether nothing in it is left to chance."""
        return all(part.exact for part in self.parts)


CLAIMS: Registry[Claim] = Registry("claim")


def claim(
    name: str,
    *,
    paper: str,
    statement: str,
    measured: str,
    arms: Sequence[Arm],
    shows: Mapping[str, str],
    caveat: str,
    on_recipe: bool = False,
    version: int = 1,
    revises: str = "",
) -> Callable[[Judge], Judge]:
    """Register a claim; see :class:`Claim`."""
    if not of([version]):
        raise ValueError(f"claim {name!r}: there is no version {version!r} of the registration")
    if paper not in PAPERS:
        raise ValueError(f"claim {name!r}: no paper {paper!r} among {', '.join(PAPERS)}")

    def add(judge: Judge) -> Judge:
        made = Claim(name, paper, statement, measured, arms, judge, shows, caveat, on_recipe,
                     version, revises)  # fmt: skip
        CLAIMS.add(name, made)
        return judge

    return add
