"""The study as a page: the table first, then each paper's evidence, then how to do it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from trueline.report import Facts, Report, Section, Table, Text, render_report
from trueline.report.blocks import Block, Cell
from trueline.reproduce.abstracts import HISTORY, asserted_table
from trueline.reproduce.claim import PAPERS
from trueline.reproduce.study import Outcome, Study
from trueline.reproduce.verdict import RULE
from trueline.results import Metric

AGAIN = """\
## Run it yourself

    trueline reproduce --list                        # the claims, their runs and cost
    trueline reproduce --fast                        # all of them: about half an hour on two cores
    trueline reproduce                               # a night: twenty seeds, full training
    trueline reproduce KLDO e-dpo-safer --seeds 5    # a paper's claims, and one more
    trueline reproduce objectives-that-protect --recipe recipe.yaml

Runs are kept by their content: an interrupted command goes on where it stopped, and more seeds add
to those there are. A recipe names a model and preference data of your own, and holds any training
options:

    model_name_or_path: my-model
    dataset_name: my-pairs.jsonl
    max_samples: 2000
    learning_rate: 5.0e-7

A claim is one decorated function in `src/trueline/reproduce/claims/`: which arms it needs, and how
their results are read. An experiment is one in `src/trueline/reproduce/experiments/`.
""".splitlines()


def standing() -> list[str]:
    """What the page says whatever was run: the abstracts' claims, its history, how to run it."""
    return [*asserted_table(), *HISTORY, *AGAIN]


def summary(study: Study) -> str:
    """How many claims came out how, in words."""
    counts = Counter(outcome.verdict for outcome in study.outcomes)
    words = ", ".join(f"{counts[v]} {v}" for v in ("supported", "not supported", "undecided",
                                                    "not measured") if counts[v])  # fmt: skip
    failed = [o.claim.statement for o in study.outcomes if o.verdict == "not supported"]
    text = f"Of {len(study.outcomes)} claims: {words}."
    if failed:
        text += " Not borne out here: " + " ".join(failed)
    return text


def report_of(study: Study) -> Report:
    """The page as blocks."""
    overview = Section("Claims", RULE, [_overview(study.outcomes)])
    papers = [
        Section(paper, title, list(_evidence(own)))
        for paper, title in PAPERS.items()
        if (own := [o for o in study.outcomes if o.claim.paper == paper])
    ]
    facts = study.facts
    again = Section(
        "What it ran on, and how to run it again",
        "Runs that are there already are used again; delete the folder to start afresh.",
        [
            Facts("Settings", {k: v for k, v in facts.items() if k not in ("manifest", "command")},
                  command=str(facts["command"]), open=True),
            Facts("Versions and machine", facts["manifest"]),
        ],
    )  # fmt: skip
    where = "a real model" if "model_name_or_path" in facts["settings"] else "the sandbox"
    subtitle = f"Measured in {where}, scale {facts['scale']}, {facts['seeds']} seeds"
    return Report("Seven papers' claims, measured", summary(study), [overview, *papers, again],
                  subtitle=subtitle)  # fmt: skip


def _overview(outcomes: Sequence[Outcome]) -> Block:
    rows: list[list[Cell]] = []
    for outcome in outcomes:
        claim = outcome.claim
        name = f"{claim.paper}: {claim.name}"
        if not outcome.effects:
            rows.append([name, claim.statement, None, None, None, outcome.verdict])
        for place, effect in enumerate(outcome.effects):
            first = place == 0
            rows.append([
                name if first else "",
                claim.statement if first else "",
                f"{effect.metric.name} {effect.claimed}",
                effect.shown,
                effect.verdict,
                f"{outcome.verdict} {_chance(outcome)}".strip() if first else "",
            ])  # fmt: skip
    return Table(("claim", "what it says", "part, and where it should lie",
                  "effect [95% interval]", "part", "verdict"), rows)  # fmt: skip


def _chance(outcome: Outcome) -> str:
    if outcome.p is None:
        return ""
    return "p < 0.001 by Holm" if outcome.p < 0.001 else f"p = {outcome.p:.3f} by Holm"


def _evidence(outcomes: Sequence[Outcome]) -> list[Block]:
    blocks: list[Block] = []
    for outcome in outcomes:
        claim = outcome.claim
        seeds = f" Seeds: {len(outcome.seeds)}." if outcome.seeds else ""
        blocks.append(
            Text(f"{claim.name}: {outcome.verdict}.\n\n{claim.statement} Measured: "
                 f"{claim.measured}{seeds}")
        )  # fmt: skip
        blocks += _arms(outcome.evidence)
        words = [*outcome.notes]
        unsure = outcome.verdict != "supported"
        words.append(f"Why it might come out so: {claim.caveat}" if unsure else claim.caveat)
        blocks.append(Text(" ".join(words), note=True))
    return blocks


def _arms(evidence: Mapping[str, Sequence[Metric]]) -> list[Block]:
    names = [metric.name for metric in next(iter(evidence.values()), ())]
    if not names:
        return []
    rows: list[list[Cell]] = [[title, *metrics] for title, metrics in evidence.items()]
    return [Table(("mean over seeds", *names), rows, compare="column")]


def write_page(study: Study, output: Path) -> Path:
    """``report.html`` in the output folder."""
    return render_report(report_of(study), output / "report.html")


def markdown(study: Study) -> str:
    """The table for the documentation, with settings and date."""
    facts = study.facts
    runs, made = facts["runs"], facts["manifest"]
    recipe = "model_name_or_path" in facts["settings"]
    whole = runs["measured"] == runs["planned"]
    unfinished = "" if whole else " The other runs had not been made when this was written."
    lines = [
        "# Seven papers' claims, measured",
        "",
        "Written by `trueline reproduce`; do not edit by hand.",
        "",
        summary(study),
        "",
        f"`{facts['command']}` on {made['created'][:10]}: scale {facts['scale']}, "
        f"{facts['seeds']} seeds, {runs['measured']} of {runs['planned']} runs, "
        f"{facts['processor_minutes']} processor minutes in all "
        f"(torch {made['versions'].get('torch')}).{unfinished}",
        "",
        RULE,
        "",
        "| Paper | Claim | Part, and where it should lie | Effect [95% interval] | Verdict |",
        "|---|---|---|---|---|",
    ]
    for outcome in study.outcomes:
        claim = outcome.claim
        lines.append(f"| {claim.paper} | **{claim.name}**: {claim.statement} | "
                     f"{outcome.counted} | {_chance(outcome)} | "
                     f"**{outcome.verdict}** |")  # fmt: skip
        lines += [
            f"| | | {effect.metric.name} {effect.claimed} | {effect.shown} | {effect.verdict} |"
            for effect in outcome.effects
        ]
    lines += ["", "## What is measured, and why it might come out so", ""]
    for outcome in study.outcomes:
        claim = outcome.claim
        lines += [f"**{claim.name}** ({claim.paper}). {claim.measured} {claim.caveat} "
                  + " ".join(outcome.notes), ""]  # fmt: skip
    return "\n".join(line.rstrip() for line in [*lines, *(AGAIN if recipe else standing())])
