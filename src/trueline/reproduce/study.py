"""A study: claims, planned, run and judged; and its files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trueline.config import NOT_NEEDED, RENAMED, AlignmentConfig, load_run_config, read_yaml
from trueline.errors import UserError
from trueline.files import write_json
from trueline.reproduce.claim import CLAIMS, PAPERS, Claim, Results
from trueline.reproduce.engine import Done, Tell, perform
from trueline.reproduce.runs import Arm, load_all
from trueline.reproduce.scales import Scale, on_recipe, plan
from trueline.reproduce.verdict import RULE, Effect, Verdict, decided, overall
from trueline.results import Metric, manifest
from trueline.runs.state import State, created, held, reached
from trueline.stats import holm, mean_metric

UNABLE = "A recipe cannot measure it: it needs the sandbox's truth or harmful prompts."


SAMPLES = 2000
"""A recipe's examples are drawn at each seed; so many, unless its max_samples says otherwise."""

DECIDED = {"loss_type", "loss_weights", "output_dir", "seed", "objective_options"}
"""What a recipe leaves to the claims."""


@dataclass(frozen=True)
class Outcome:
    """What came of one claim.

    Args:
        claim: the claim.
        seeds: those at which all of its arms were run.
        effects: its parts; empty where nothing was measured.
        evidence: for each arm, the listed values' means over those seeds.
        notes: what is missing, and why.
        p: after Holm's correction over its paper's claims; None where nothing is left to chance.
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


@dataclass(frozen=True)
class Study:
    """Everything that `trueline reproduce` prints and writes."""

    outcomes: Sequence[Outcome]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {**self.facts, "rule": RULE, "claims": [one.to_dict() for one in self.outcomes]}


def all_claims() -> list[Claim]:
    """Every claim, in the order of the papers."""
    load_all("trueline.reproduce.experiments")
    load_all("trueline.reproduce.claims")
    order = list(PAPERS)
    return sorted(CLAIMS.values(), key=lambda claim: order.index(claim.paper))


def choose(names: Sequence[str]) -> list[Claim]:
    """The claims by name, or by paper; all of them where none is named.

    Raises:
        UserError: an unknown name, with the nearest one.
    """
    every = all_claims()
    if not names:
        return every
    papers = {paper.lower(): paper for paper in PAPERS}
    wanted = {
        claim.name
        for name in names
        for claim in (
            [c for c in every if c.paper == papers[name.lower()]]
            if name.lower() in papers
            else [CLAIMS[name]]
        )
    }
    return [claim for claim in every if claim.name in wanted]


def reproduce(
    claims: Sequence[Claim],
    scale: Scale,
    output: Path,
    *,
    seeds: int | None = None,
    jobs: int = 1,
    budget: float | None = None,
    recipe: Mapping[str, Any] | None = None,
    command: str = "trueline reproduce",
    tell: Tell = lambda line: None,
) -> Study:
    """Run what the claims need and judge them; ``results.json`` goes to ``output``.

    Args:
        claims: which.
        scale: how much is spent.
        output: folder of runs (kept, and used again) and results.
        seeds: how many; the scale's unless given.
        jobs: processes; 0 for this one alone.
        budget: seconds after which no run is begun.
        recipe: a real model and data in place of the sandbox; see :func:`read_recipe`.
        command: what to type to do it again.
        tell: called with lines of progress.
    """
    count = scale.seeds if seeds is None else seeds
    if count < 1 or jobs < 0:
        raise UserError(f"seeds must be at least 1 and jobs at least 0, got {count} and {jobs}")
    unable = [claim for claim in claims if recipe is not None and not claim.on_recipe]
    able = [
        claim if recipe is None else on_recipe(claim, recipe)
        for claim in claims
        if claim not in unable
    ]
    if not able:
        known = ", ".join(claim.name for claim in all_claims() if claim.on_recipe)
        raise UserError(f"a recipe cannot measure {claims[0].name}; it can measure {known}")
    begin = time.monotonic()
    runs = plan(able, scale, range(count))
    tell(f"{len(able)} claims need {len(runs)} runs")
    about = scale.name if recipe is None else str(recipe["dataset_name"])
    with held(output) as record:
        created(record, "reproduce", data=f"{len(able)} claims, {about}")
        reached(record, State.WORKING)
        done = perform(runs, output / "runs", jobs=jobs, budget=budget, tell=tell)
        outcomes = corrected([judge(claim, scale, range(count), done) for claim in able])
        outcomes += [Outcome(claim, (), (), {}, (UNABLE,)) for claim in unable]
        facts = {
            "scale": scale.name,
            "settings": recipe if recipe is not None else dict(scale.options),
            "seeds": count,
            "runs": {"planned": len(runs), "measured": len(done.values),
                     "failed": len(done.failed), "not begun": len(done.left)},
            "processor_minutes": round(sum(done.seconds.values()) / 60, 1),
            "wall_minutes": round((time.monotonic() - begin) / 60, 1),
            "kept_from_before": done.kept,
            "command": command,
            "manifest": manifest(),
        }  # fmt: skip
        study = Study(outcomes, facts)
        write_json(output / "results.json", study.to_dict())
        missing = len(done.failed) + len(done.left)
        if missing:
            reached(record, State.BROKEN_OFF, f"{missing} of {len(runs)} runs are missing")
    return study


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
        effects = claim.judge(results) if whole else ()
    except UserError as error:  # a statistic that these values do not allow
        notes.append(f"It could not be judged: {error}.")
    notes += [
        f"{effect.metric.name}: scored at {effect.metric.n} of {len(whole)} seeds."
        for effect in effects
        if not effect.exact and (effect.metric.n or 0) < len(whole)
    ]
    evidence = {arm.title: _means(results, arm, claim.shows) for arm in claim.arms} if whole else {}
    return Outcome(claim, whole, effects, evidence, notes)


def corrected(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with Holm's correction: a paper's claims are one family, also those not run."""
    found = list(outcomes)
    for paper in dict.fromkeys(one.claim.paper for one in outcomes):
        family = {c.name: 1.0 for c in CLAIMS.values() if c.paper == paper and not c.arithmetic}
        own = [(place, one) for place, one in enumerate(found) if one.claim.paper == paper]
        chances = {one.claim.name: decided(one.effects)[1] for _, one in own}
        known = {name: p for name, p in chances.items() if p is not None}
        adjusted = holm({**family, **known})
        for place, one in own:
            if one.claim.name in known:
                found[place] = replace(one, p=adjusted[one.claim.name])
    return found


def _means(results: Results, arm: Arm, shows: Mapping[str, str]) -> list[Metric]:
    found = []
    for name, unit in shows.items():
        numbers = [results.values[arm.key][seed].get(name) for seed in results.seeds]
        scored = [number for number in numbers if number is not None]
        metric = mean_metric(name, scored, unit=unit)
        if unit == "rate" and metric.low is not None and metric.high is not None:
            metric = replace(metric, low=max(metric.low, 0.0), high=min(metric.high, 1.0))
        found.append(metric)
    return found


def read_recipe(path: Path) -> dict[str, Any]:
    """A YAML file as `trueline align` takes it: model, preference data, and how to train.

    Raises:
        UserError: an unknown key, one of the two named is missing, or one that claims decide.
    """
    values = read_yaml(path)
    read = load_run_config(path, {"loss_type": "dpo", **values})
    wanted = {
        "model_name_or_path": read.model.model_name_or_path,
        "dataset_name": read.data.dataset_name,
    }
    missing = [key for key, value in wanted.items() if not value]
    if missing:
        raise UserError(f"a recipe needs model_name_or_path and dataset_name: {path}")
    known = {*wanted, "skip_bad", "max_samples", *NOT_NEEDED}
    given = {RENAMED.get(key, key) for key in values} - known
    usable = {field.name for field in fields(AlignmentConfig)} - DECIDED
    useless = sorted(given - usable)
    if useless:
        raise UserError(f"{', '.join(useless)} would have no effect in a recipe; leave it out")
    training = {key: getattr(read.training, key) for key in sorted(given)}
    drawn = {"skip_bad": read.data.skip_bad, "max_samples": read.data.max_samples or SAMPLES}
    return {**wanted, **drawn, "training": training}
