"""The study as a page: the table first, then each paper's evidence, then how to do it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from trueline.report import Facts, Report, Section, Table, Text, listed, render_report
from trueline.report.blocks import Block, Cell
from trueline.reproduce.claim import CLAIMS, OWN, PAPERS
from trueline.reproduce.claims.abstracts import BEFORE, HISTORY, asserted_table
from trueline.reproduce.outcomes import Outcome
from trueline.reproduce.study import Study
from trueline.reproduce.verdict import RULE
from trueline.reproduce.versions import kept_options, named, of
from trueline.results import Metric

AGAIN = """\
## Run it yourself

    trueline reproduce --list                        # the claims, their runs and cost
    trueline reproduce --fast                        # all, two seeds: over half an hour
    trueline reproduce                               # a night: twenty seeds
    trueline reproduce --judged                      # as registered, on the registered seeds
    trueline reproduce --judged {kept}   # from the kept results
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
"""


def again() -> list[str]:
    """How to run it."""
    kept = kept_options(of(claim.version for claim in CLAIMS.values()))
    return AGAIN.format(kept=kept).splitlines()


def standing() -> list[str]:
    """What the page says whatever was run: the abstracts' claims, its history, how to run it."""
    return [*asserted_table(), *HISTORY, *again()]


def summary(study: Study) -> str:
    """How many claims came out how, in words, each version by itself."""
    versions = sorted({one.claim.version for one in study.outcomes})
    told = []
    for version in versions:
        own = [one for one in study.outcomes if one.claim.version == version]
        counts = Counter(outcome.verdict for outcome in own)
        words = ", ".join(f"{counts[v]} {v}" for v in ("supported", "not supported", "undecided",
                                                        "not measured") if counts[v])  # fmt: skip
        which = f" of version {version}" if versions != [1] else ""
        told.append(f"Of {len(own)} claims{which}: {words}.")
    text = " ".join(told)
    failed = [
        f"{o.claim.statement}{f' (Version {o.claim.version}.)' if o.claim.version > 1 else ''}"
        for o in study.outcomes
        if o.verdict == "not supported"
    ]
    registered = [
        f"version {one['version']} (designs {one['designs']})"
        for one in study.facts.get("registered", ())
    ]
    if registered:
        text += f" As registered in {listed(registered)}."
    if failed:
        text += " Not borne out here: " + " ".join(failed)
    return text


def verdicts(one: Outcome, every: Sequence[Outcome], *, unjudged: str = "not measured") -> str:
    """A claim's verdict; of one that revises another, both side by side."""
    by = {outcome.claim.name: outcome for outcome in every}
    chain = [one]
    while (earlier := by.get(chain[0].claim.revises)) is not None:
        chain.insert(0, earlier)
    words = [outcome.verdict if outcome.effects else unjudged for outcome in chain]
    if one.claim.version == 1:
        return words[0]
    return "; ".join(f"version {outcome.claim.version}: {word}"
                     for outcome, word in zip(chain, words, strict=True))  # fmt: skip


def drawn(study: Study) -> str:
    """How many seeds, and, where versions have their own, how many each."""
    registered = study.facts.get("registered", ())
    each = [f"{len(one['seeds'])} for version {one['version']}" for one in registered]
    return f"{study.facts['seeds']} seeds" + (f" ({', '.join(each)})" if len(each) > 1 else "")


def report_of(study: Study) -> Report:
    """The page as blocks."""
    overview = Section("Claims", RULE, [_overview(study.outcomes)])
    papers = [
        Section(paper, title, list(_evidence(own, study.outcomes)))
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
    subtitle = f"Measured in {where}, scale {facts['scale']}, {drawn(study)}"
    return Report("Seven papers' claims, measured", summary(study), [overview, *papers, again],
                  subtitle=subtitle)  # fmt: skip


def _overview(outcomes: Sequence[Outcome]) -> Block:
    rows: list[list[Cell]] = []
    for outcome in outcomes:
        claim = outcome.claim
        name = f"{claim.paper}: {claim.marked}"
        verdict = verdicts(outcome, outcomes)
        if not outcome.effects:
            before = BEFORE.get(claim.name)
            rows.append([name, claim.statement, None, None, None, verdict, before])
        for place, effect in enumerate(outcome.effects):
            first = place == 0
            rows.append([
                name if first else "",
                claim.statement if first else "",
                f"{effect.metric.name} {effect.claimed}",
                effect.shown,
                effect.verdict,
                f"{verdict} {_chance(outcome)}".strip() if first else "",
                BEFORE.get(claim.name) if first else "",
            ])  # fmt: skip
    return Table(("claim", "what it says", "part, and where it should lie",
                  "effect [95% interval]", "part", "verdict", "before"), rows)  # fmt: skip


def _chance(outcome: Outcome) -> str:
    if outcome.p is None:
        return ""
    return "p < 0.001 by Holm" if outcome.p < 0.001 else f"p = {outcome.p:.3f} by Holm"


def _evidence(outcomes: Sequence[Outcome], every: Sequence[Outcome]) -> list[Block]:
    blocks: list[Block] = []
    for outcome in outcomes:
        claim = outcome.claim
        seeds = f" Seeds: {len(outcome.seeds)}." if outcome.seeds else ""
        blocks.append(
            Text(f"{claim.marked}: {verdicts(outcome, every)}.\n\n{claim.statement} Measured: "
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
        f"{drawn(study)} from {facts['first_seed']} on, {runs['measured']} of "
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
        said = f"**{claim.marked}**: {claim.statement}"
        verdict = verdicts(outcome, study.outcomes)
        lines.append(f"| {claim.paper} | {said} | {outcome.counted} | {_chance(outcome)} | "
                     f"**{verdict}** | {BEFORE.get(claim.name, '')} |")  # fmt: skip
        lines += [
            f"| | | {effect.metric.name} {effect.claimed} | {effect.shown} | {effect.verdict} | |"
            for effect in outcome.effects
        ]
    lines += ["", "## What is measured, and why it might come out so", ""]
    for outcome in study.outcomes:
        claim = outcome.claim
        lines += [f"**{claim.marked}** ({claim.paper}). {claim.measured} {claim.caveat} "
                  + " ".join(outcome.notes), ""]  # fmt: skip
    return "\n".join(line.rstrip() for line in [*lines, *(again() if recipe else standing())])


THREE_MINUTES = """\
# The study in three minutes

Written by `python tools/paper_claims.py` from kept results; do not edit by hand.

Seven papers on alignment claim things. Trueline measures {count} such claims in a sandbox: an
invented world whose truth is known, models of three or four layers that have read about it,
pictures of 8 by 8. That can show that something happens, and why; it cannot show that it happens in
a model of seven billion parameters. What is exact is mathematics, and holds anywhere.

**Can you believe it?** Each design was committed before its runs ({pages}). The runs are on
{seeds} that nobody had looked at. A paper is judged once, its claims corrected together. Each run's
numbers are in the repository, and this page is computed from them: {measured} of {planned}
registered runs. How often the rule decides where nothing is, and whether it finds what is planted,
is [simulated](reproduction.md#is-it-an-instrument). An earlier page had none of that, and other
verdicts: [how this one came about](reproduction.md#how-this-page-came-about).{later}
"""


LATER = """ Claims
of {versions} were registered later, when what had been judged until then was known, and are judged
on seeds of their own; where one puts an earlier one anew, both verdicts are shown."""

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "exact": "Holds, as mathematics",
        "supported": "Seen here",
        "not supported": "The contrary was seen here",
        "undecided": "Neither shown nor refuted",
        "not measured": "Not judged yet",
    }
)
"""What verdicts come to."""


def three_minutes(study: Study) -> str:
    """The study on one page, for who has no more time: what was decided, in words, and the names
    of what was not."""
    versions = of(outcome.claim.version for outcome in study.outcomes)
    later = [version for version in versions if version.number > 1]
    text = THREE_MINUTES.format(
        count=sum(not outcome.claim.revises for outcome in study.outcomes),
        pages=", ".join(f"`studies/{version.file}`" for version in versions),
        seeds=drawn(study),
        later=LATER.format(versions=named(later)) if later else "",
        **study.facts["runs"],
    )
    papers = {
        paper: own
        for paper in PAPERS
        if (own := [one for one in study.outcomes if one.claim.paper == paper])
    }
    there = {one.verdict for one in study.outcomes}
    words = [word for word in KINDS if word in there]
    lines = [text, "| Paper | " + " | ".join(map(str.capitalize, words)) + " |",
             "|---" * (len(words) + 1) + "|"]  # fmt: skip
    for paper, own in papers.items():
        counts = [sum(one.verdict == word for one in own) for word in words]
        cells = " | ".join(str(count or "") for count in counts)
        lines.append(f"| [{paper}]({_page_of(paper)}) | {cells} |")
    lines += ["", "Each claim with its effects and their intervals: [Measured](reproduction.md).",
              ""]  # fmt: skip
    for paper, own in papers.items():
        lines += [f"## {paper}", ""]
        for kind, found in _by_kind(own).items():
            if kind in ("undecided", "not measured"):
                told = [_named(one, study.outcomes) for one in found]
                lines += [f"**{KINDS[kind]}:** {', '.join(told)}.", ""]
            else:
                lines += [f"**{KINDS[kind]}:**", ""]
                lines += [f"- {_stated(one, study.outcomes)}" for one in found]
                lines.append("")
    return "\n".join(lines)


def _page_of(paper: str) -> str:
    return "papers/index.md#beyond-the-papers" if paper == OWN else f"papers/{paper.lower()}.md"


def _named(one: Outcome, every: Sequence[Outcome]) -> str:
    return f"`{one.claim.name}`{_again(one, every)}"


def _stated(one: Outcome, every: Sequence[Outcome]) -> str:
    return f"{one.claim.statement}{_again(one, every)}"


def _again(one: Outcome, every: Sequence[Outcome]) -> str:
    """Both verdicts of a claim that puts another anew; the version of any other later one."""
    return f" ({verdicts(one, every)})" if one.claim.revises else _version(one)


def _by_kind(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Claims by what their verdicts come to, in the order of :data:`KINDS`."""
    by: dict[str, list[Outcome]] = {kind: [] for kind in KINDS}
    for one in outcomes:
        exact = one.claim.arithmetic and one.verdict == "supported"
        by["exact" if exact else one.verdict].append(one)
    return {kind: found for kind, found in by.items() if found}


def believed(outcomes: Sequence[Outcome]) -> str:
    """What to believe of a paper's claims now, in words that follow from their verdicts."""
    why = {"not supported": "; each says why it might be so"}
    told = []
    for kind, found in _by_kind(outcomes).items():
        names = (f"`{one.claim.name}`{_version(one)}" for one in found)
        told.append(f"{KINDS[kind]}: {', '.join(names)}{why.get(kind, '')}.")
    return "**What we believe now.** " + " ".join(told)


def _version(one: Outcome) -> str:
    return f" (version {one.claim.version})" if one.claim.version > 1 else ""
