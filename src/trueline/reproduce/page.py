"""The study as a page: the table first, then each paper's evidence, then how to do it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from trueline.report import Facts, Report, Section, Table, Text, render_report
from trueline.report.blocks import Block, Cell
from trueline.reproduce.claim import PAPERS
from trueline.reproduce.claims.abstracts import BEFORE, HISTORY, asserted_table
from trueline.reproduce.outcomes import Outcome
from trueline.reproduce.study import Study
from trueline.reproduce.verdict import RULE
from trueline.results import Metric

AGAIN = """\
## Run it yourself

    trueline reproduce --list                        # the claims, their runs and cost
    trueline reproduce --fast                        # all of them: over half an hour on two cores
    trueline reproduce                               # a night: twenty seeds
    trueline reproduce --judged                      # as registered, on the registered seeds
    trueline reproduce --judged --kept studies/results/judged-1.jsonl   # from the kept results
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
    registered = study.facts.get("registered")
    if registered:
        text += (
            f" As registered in version {registered['version']} (designs {registered['designs']})."
        )
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
            before = BEFORE.get(claim.name)
            rows.append([name, claim.statement, None, None, None, outcome.verdict, before])
        for place, effect in enumerate(outcome.effects):
            first = place == 0
            rows.append([
                name if first else "",
                claim.statement if first else "",
                f"{effect.metric.name} {effect.claimed}",
                effect.shown,
                effect.verdict,
                f"{outcome.verdict} {_chance(outcome)}".strip() if first else "",
                BEFORE.get(claim.name) if first else "",
            ])  # fmt: skip
    return Table(("claim", "what it says", "part, and where it should lie",
                  "effect [95% interval]", "part", "verdict", "before"), rows)  # fmt: skip


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
    """The table for the documentation: nothing in it depends on when or where it was written."""
    facts = study.facts
    runs = facts["runs"]
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
        f"`{facts['command']}`: scale {facts['scale']}, "
        f"{facts['seeds']} seeds from {facts['first_seed']} on, {runs['measured']} of "
        f"{runs['planned']} runs, {facts['processor_minutes']} processor minutes in "
        f"all.{unfinished}",
        "",
        RULE,
        "",
        "| Paper | Claim | Part, and where it should lie | Effect [95% interval] | Verdict "
        "| Before |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in study.outcomes:
        claim = outcome.claim
        said = f"**{claim.name}**: {claim.statement}"
        lines.append(f"| {claim.paper} | {said} | {outcome.counted} | {_chance(outcome)} | "
                     f"**{outcome.verdict}** | {BEFORE.get(claim.name, '')} |")  # fmt: skip
        lines += [
            f"| | | {effect.metric.name} {effect.claimed} | {effect.shown} | {effect.verdict} | |"
            for effect in outcome.effects
        ]
    lines += ["", "## What is measured, and why it might come out so", ""]
    for outcome in study.outcomes:
        claim = outcome.claim
        lines += [f"**{claim.name}** ({claim.paper}). {claim.measured} {claim.caveat} "
                  + " ".join(outcome.notes), ""]  # fmt: skip
    return "\n".join(line.rstrip() for line in [*lines, *(AGAIN if recipe else standing())])


THREE_MINUTES = """\
# The study in three minutes

Written by `python tools/paper_claims.py` from kept results; do not edit by hand.

Seven papers on alignment claim things. Trueline measures {count} such claims in a sandbox: an
invented world whose truth is known, a model of four layers that has read about it, and pictures of
8 by 8. That is small. It can show that something happens, and why; it cannot show that it happens
in a model of seven billion parameters. What is exact is mathematics, and holds anywhere.

**Can you believe it?** Each design was written down and committed before its runs
(`studies/PREREGISTRATION.md`), the runs are on {seeds} seeds that nobody had looked at, a paper is
judged once when all of its runs are there, and its claims are corrected together. Each run's
numbers are in the repository, so that this page can be computed again. An earlier page had none of
that; its verdicts stand beside the new ones
([how it came about](reproduction.md#how-this-page-came-about)).

**Where it stands.** {summary} "Before" is the earlier page's verdict, on five seeds by an older
design and rule. Results so far: {measured} of {planned} registered runs.
"""


def three_minutes(study: Study) -> str:
    """The study on one page, for who has no more time."""
    text = THREE_MINUTES.format(count=len(study.outcomes), seeds=study.facts["seeds"],
                                summary=summary(study), **study.facts["runs"])  # fmt: skip
    lines = [text]
    for paper in PAPERS:
        own = [one for one in study.outcomes if one.claim.paper == paper]
        if not own:
            continue
        lines += [f"## {paper}", "", "| Claim | Verdict | Before | Seen |", "|---|---|---|---|"]
        for one in own:
            seen = "; ".join(f"{e.metric.name}: {e.shown}" for e in one.effects[:2])
            more = f"; and {len(one.effects) - 2} more" if len(one.effects) > 2 else ""
            verdict = one.verdict if one.effects else "not judged yet"
            before = BEFORE.get(one.claim.name, "")
            lines.append(f"| {one.claim.statement} | {verdict} | {before} | {seen}{more} |")
        lines += ["", believed(own), ""]
    return "\n".join(lines)


def believed(outcomes: Sequence[Outcome]) -> str:
    """What to believe of a paper's claims now, in words that follow from their verdicts."""
    by: dict[str, list[str]] = {}
    for one in outcomes:
        kind = "exact" if one.claim.arithmetic and one.verdict == "supported" else one.verdict
        by.setdefault(kind, []).append(f"`{one.claim.name}`")
    said = {
        "exact": "Holds, as mathematics: {}.",
        "supported": "Seen here: {}.",
        "not supported": "The contrary was seen here: {}; each says why it might be so.",
        "undecided": "Neither shown nor refuted: {}.",
        "not measured": "Not judged yet: {}.",
    }
    words = [text.format(", ".join(by[kind])) for kind, text in said.items() if kind in by]
    return "**What we believe now.** " + " ".join(words)
