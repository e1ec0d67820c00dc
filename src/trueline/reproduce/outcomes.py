"""What came of the claims: each judged from the runs there are, a paper's claims together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trueline.errors import UserError
from trueline.reproduce.claim import CLAIMS, Claim, Results
from trueline.reproduce.engine import Done
from trueline.reproduce.runs import Arm
from trueline.reproduce.scales import Scale, plan
from trueline.reproduce.verdict import Effect, Verdict, decided, overall
from trueline.results import Metric
from trueline.stats import holm, mean_metric


@dataclass(frozen=True)
class Outcome:
    """What came of one claim.

    Args:
        claim: the claim.
        seeds: those at which all of its arms were run.
        effects: its parts; empty where nothing was measured.
        evidence: for each arm, the listed values' means over those seeds.
        notes: what is missing, and why.
        p: after Holm's correction over its paper's claims in its version; None where nothing is
            left to chance.
    """

    claim: Claim
    seeds: Sequence[int]
    effects: Sequence[Effect]
    evidence: Mapping[str, Sequence[Metric]]
    notes: Sequence[str] = ()
    p: float | None = None

    @property
    def verdict(self) -> Verdict:
        return overall(self.effects, self.p)

    @property
    def counted(self) -> str:
        """How many seeds, in words."""
        return "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {
            "claim": self.claim.name,
            "version": self.claim.version,
            "revises": self.claim.revises,
            "paper": self.claim.paper,
            "statement": self.claim.statement,
            "measured": self.claim.measured,
            "verdict": self.verdict,
            "p_holm": self.p,
            "seeds": list(self.seeds),
            "effects": [effect.to_dict() for effect in self.effects],
            "arms": {
                title: {metric.name: asdict(metric) for metric in metrics}
                for title, metrics in self.evidence.items()
            },
            "caveat": self.claim.caveat,
            "notes": list(self.notes),
        }


def judge_all(
    claims: Sequence[Claim],
    scale: Scale,
    seeds: Mapping[int, Sequence[int]],
    done: Done,
    *,
    whole: bool,
) -> list[Outcome]:
    """Each claim's outcome, at its version's seeds; with ``whole`` only those of papers all of
    whose runs of that version are there, and exact ones that have their own."""
    found = []
    for own in together(claims):
        drawn = seeds[own[0].version]
        runs = plan(own, scale, drawn)
        there = sum(run.key in done.values or run.key in done.failed for run in runs)
        if whole and there < len(runs):
            note = f"{there} of {len(runs)} runs are there; it is judged when all are."
            found += [Outcome(claim, (), (), {}, (note,)) for claim in own]
        else:
            found += [judge(claim, scale, drawn, done) for claim in own]
    return found


def together(claims: Sequence[Claim]) -> list[list[Claim]]:
    """The claims that are judged at one time: an exact one by itself, others with their paper's of
    the same version."""
    exact = [[claim] for claim in claims if claim.arithmetic]
    others = [
        [claim for claim in claims if claim.family == family and not claim.arithmetic]
        for family in dict.fromkeys(claim.family for claim in claims)
    ]
    return [*exact, *filter(None, others)]


def judge(claim: Claim, scale: Scale, seeds: Sequence[int], done: Done) -> Outcome:
    """A claim's outcome from the runs there are."""
    runs = {arm.key: {seed: scale.run(arm, seed).key for seed in seeds} for arm in claim.arms}
    whole = [s for s in seeds if all(keys[s] in done.values for keys in runs.values())]
    notes = []
    if len(whole) < len(seeds):
        notes.append(f"{len(whole)} of {len(seeds)} seeds have all their runs.")
    failures = {done.failed[k] for keys in runs.values() for k in keys.values() if k in done.failed}
    notes += [f"A run failed: {reason}." for reason in sorted(failures)]
    values = {arm: {s: done.values[keys[s]] for s in whole} for arm, keys in runs.items()}
    results = Results(whole, values)
    effects: Sequence[Effect] = ()
    try:
        effects = [_enough(one, len(whole)) for one in claim.judge(results)] if whole else ()
    except UserError as error:  # a statistic that these values do not allow
        notes.append(f"It could not be judged: {error}.")
    notes += [
        f"{effect.metric.name}: scored at {effect.metric.n} of {len(whole)} seeds."
        for effect in effects
        if not effect.exact and (effect.metric.n or 0) < len(whole)
    ]
    evidence = {arm.title: means(results, arm, claim.shows) for arm in claim.arms} if whole else {}
    return Outcome(claim, whole, effects, evidence, notes)


def _enough(effect: Effect, seeds: int) -> Effect:
    """The effect; without an interval, and so undecided, at fewer than half of the seeds."""
    if effect.exact or 2 * (effect.metric.n or 0) >= seeds:
        return effect
    return replace(effect, metric=replace(effect.metric, low=None, high=None))


def corrected(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with Holm's correction: a paper's claims in one version are a family, also those
    not run."""
    found = list(outcomes)
    for family in dict.fromkeys(one.claim.family for one in outcomes):
        every = {c.name: 1.0 for c in CLAIMS.values() if c.family == family and not c.arithmetic}
        own = [(place, one) for place, one in enumerate(found) if one.claim.family == family]
        chances = {one.claim.name: decided(one.effects)[1] for _, one in own}
        known = {name: p for name, p in chances.items() if p is not None}
        adjusted = holm({**every, **known})
        for place, one in own:
            if one.claim.name in known:
                found[place] = replace(one, p=adjusted[one.claim.name])
    return found


def means(results: Results, arm: Arm, shows: Mapping[str, str]) -> list[Metric]:
    """An arm's values, name to unit: their means over seeds with Student's 95% intervals."""
    found = []
    for name, unit in shows.items():
        numbers = [results.values[arm.key][seed].get(name) for seed in results.seeds]
        scored = [number for number in numbers if number is not None]
        metric = mean_metric(name, scored, unit=unit)
        if unit == "rate" and metric.low is not None and metric.high is not None:
            metric = replace(metric, low=max(metric.low, 0.0), high=min(metric.high, 1.0))
        found.append(metric)
    return found
