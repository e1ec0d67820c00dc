"""A study: claims, planned, run and judged; and its files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trueline.config import NOT_NEEDED, RENAMED, AlignmentConfig, load_run_config, read_yaml
from trueline.errors import UserError
from trueline.files import write_json
from trueline.reproduce.claim import CLAIMS, PAPERS, Claim
from trueline.reproduce.engine import Done, Tell, perform
from trueline.reproduce.kept import done_of, key_of, read_lines, results_in, rows_of, write_lines
from trueline.reproduce.outcomes import Outcome, corrected, judge_all
from trueline.reproduce.preregistration import Registered, judged_plan, judged_seeds
from trueline.reproduce.runs import Run, load_all
from trueline.reproduce.scales import FULL, Scale, on_recipe, plan
from trueline.reproduce.verdict import RULE
from trueline.reproduce.versions import STUDIES, VERSIONS, check_seeds, kept_options, of
from trueline.results import manifest
from trueline.runs.state import State, created, held, reached

UNABLE = "A recipe cannot measure it: it needs the sandbox's truth or harmful prompts."


SAMPLES = 2000
"""A recipe's examples are drawn at each seed; so many, unless its max_samples says otherwise."""

DECIDED = {"loss_type", "loss_weights", "output_dir", "seed", "objective_options"}
"""What a recipe leaves to the claims."""


@dataclass(frozen=True)
class Study:
    """Everything that `trueline reproduce` prints and writes."""

    outcomes: Sequence[Outcome]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {**self.facts, "rule": RULE, "claims": [one.to_dict() for one in self.outcomes]}


def all_claims() -> list[Claim]:
    """Every claim, in the order of the papers, and of a paper in that of the versions.

    Raises:
        ValueError: one revises what is no claim of an earlier version.
    """
    load_all("trueline.reproduce.experiments")
    load_all("trueline.reproduce.claims")
    for claim in [one for one in CLAIMS.values() if one.revises]:
        revised = CLAIMS.get(claim.revises)
        if revised is None or revised.version >= claim.version:
            raise ValueError(
                f"claim {claim.name!r} of version {claim.version}: no claim {claim.revises!r} of "
                "an earlier version that it could revise"
            )
    order = list(PAPERS)
    return sorted(CLAIMS.values(), key=lambda one: (order.index(one.paper), one.version))


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
    first_seed: int = 0,
    jobs: int = 1,
    budget: float | None = None,
    recipe: Mapping[str, Any] | None = None,
    judged: Sequence[Registered] = (),
    kept: Sequence[Path] = (),
    command: str = "trueline reproduce",
    tell: Tell = lambda line: None,
) -> Study:
    """Run what the claims need and judge them; ``results.json`` and ``runs.jsonl``, the results of
    every run, go to ``output``.

    Args:
        claims: which.
        scale: how much is spent.
        output: folder of runs (kept, and used again) and results.
        seeds: how many; the scale's unless given.
        first_seed: the first of them.
        jobs: processes; 0 for this one alone.
        budget: seconds after which no run is begun.
        recipe: a real model and data in place of the sandbox; see :func:`read_recipe`.
        judged: the committed preregistrations: their seeds, and their claims paper by paper, each
            paper of a version judged once all of its runs are there.
        kept: lines of results, or folders of runs, to judge in place of running anything.
        command: what to type to do it again.
        tell: called with lines of progress.
    """
    drawn = judged_seeds() if judged else _seeds(scale, seeds, first_seed, jobs)
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
    runs = judged_plan(able) if judged else plan(able, scale, drawn[1])
    tell(f"{len(able)} claims need {len(runs)} runs")
    about = scale.name if recipe is None else str(recipe["dataset_name"])
    with held(output) as record:
        created(record, "reproduce", data=f"{len(able)} claims, {about}")
        reached(record, State.WORKING)
        if kept:
            rows = [row for path in kept for row in read_lines(path)]
            done = _of(done_of(rows), runs)
        else:
            done = perform(runs, output / "runs", jobs=jobs, budget=budget, tell=tell)
            rows = list(results_in(output / "runs"))
        study = concluded(able, scale, drawn, runs, done, registration=judged)
        outcomes = [Outcome(claim, (), (), {}, (UNABLE,)) for claim in unable]
        facts = {
            **study.facts,
            "settings": recipe if recipe is not None else dict(scale.options),
            "wall_minutes": round((time.monotonic() - begin) / 60, 1),
            "command": command,
            "manifest": manifest(),
        }
        study = Study([*study.outcomes, *outcomes], facts)
        write_json(output / "results.json", study.to_dict())
        wanted = {run.key for run in runs}
        write_lines((row for row in rows if key_of(row) in wanted), output / "runs.jsonl")
        missing = len(done.failed) + len(done.left)
        if missing:
            reached(record, State.BROKEN_OFF, f"{missing} of {len(runs)} runs are missing")
    return study


def concluded(
    claims: Sequence[Claim],
    scale: Scale,
    seeds: Mapping[int, Sequence[int]],
    runs: Sequence[Run],
    done: Done,
    *,
    registration: Sequence[Registered] = (),
) -> Study:
    """The claims judged from the runs that are there, each at its version's seeds."""
    found = corrected(judge_all(claims, scale, seeds, done, whole=bool(registration)))
    outcomes = sorted(found, key=lambda one: claims.index(one.claim))
    every = sorted({seed for claim in claims for seed in seeds[claim.version]})
    facts = {
        "scale": scale.name,
        "settings": dict(scale.options),
        "seeds": len(every),
        "first_seed": every[0],
        "registered": [one.to_dict() for one in registration],
        "runs": {"planned": len(runs), "measured": len(done.values),
                 "failed": len(done.failed), "not begun": len(done.left)},
        "processor_minutes": round(sum(done.seconds.values()) / 60, 1),
        "kept_from_before": done.kept,
    }  # fmt: skip
    return Study(outcomes, facts)


def from_kept(
    claims: Sequence[Claim], registration: Sequence[Registered], studies: Path = STUDIES
) -> Study:
    """The judged study as the kept lines have it; nothing is run and nothing is written."""
    runs, versions = judged_plan(claims), of(claim.version for claim in claims)
    done = _of(done_of(rows_of(versions, studies)), runs)
    study = concluded(claims, FULL, judged_seeds(), runs, done, registration=registration)
    command = f"trueline reproduce --judged {kept_options(versions)}"
    return Study(study.outcomes, {**study.facts, "command": command})


def _seeds(scale: Scale, seeds: int | None, first: int, jobs: int) -> dict[int, Sequence[int]]:
    """So many from the first, for claims of every version."""
    count = scale.seeds if seeds is None else seeds
    if count < 1 or jobs < 0 or first < 0:
        raise UserError(
            f"seeds must be at least 1, jobs and the first seed at least 0, got {count}, {jobs} "
            f"and {first}"
        )
    drawn = range(first, first + count)
    check_seeds(drawn)
    return {version.number: drawn for version in VERSIONS}


def _of(done: Done, runs: Sequence[Run]) -> Done:
    """What was kept of these runs; the others are left."""
    wanted = {run.key for run in runs}
    values = {key: value for key, value in done.values.items() if key in wanted}
    left = [run for run in runs if run.key not in values]
    seconds = {key: done.seconds[key] for key in values}
    return Done(values, seconds, {}, left, len(values))


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
