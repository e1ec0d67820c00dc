"""Write what the study found into the documentation, from the kept results of its judged runs.

python tools/paper_claims.py                          # the pages, from what is kept
python tools/paper_claims.py --keep runs/reproduce    # first keep what a judged run has so far
python tools/paper_claims.py --register               # the newest version, before its first run
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from statistics import fmean
from types import ModuleType

from trueline.reproduce.kept import key_of, read_lines, rows_of, write_lines
from trueline.reproduce.outcomes import Outcome
from trueline.reproduce.page import believed, markdown, three_minutes, verdicts
from trueline.reproduce.preregistration import as_written, judged_plan
from trueline.reproduce.preregistration import page_text as registration
from trueline.reproduce.study import Study, all_claims, choose, from_kept
from trueline.reproduce.versions import STUDIES, VERSIONS, of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TABLE = re.compile(r"\| Claim \|.*\|\n\|---.*\n(?:\|.*\n)*(?:\n\*\*What we believe now\.\*\*.*\n)?")
COMMAND = re.compile(r"^trueline reproduce ([A-Za-z][\w-]*)$", re.MULTILINE)


@cache
def study() -> Study:
    """The judged study, as far as its runs are kept."""
    return from_kept(all_claims(), as_written(all_claims()))


@cache
def real_text() -> ModuleType:
    """The papers' contrasts on a real model, as far as its runs are kept."""
    sys.path.append(str(STUDIES))
    return import_module("real_text")


def table(outcomes: Sequence[Outcome]) -> str:
    """One paper's claims, their verdicts, and what to believe of them now."""
    rows = "".join(
        f"| `{one.claim.name}` | {one.claim.statement} | {verdicts(one, study().outcomes)}, "
        f"{one.counted} |\n"
        for one in outcomes
    )
    return f"| Claim | | In the sandbox |\n|---|---|---|\n{rows}\n{believed(outcomes)}\n"


def written(page: str) -> str:
    """A paper's page with its present claims."""
    command = COMMAND.search(page)
    if command is None:
        return page
    names = {claim.name for claim in choose([command[1]])}
    own = [one for one in study().outcomes if one.claim.name in names]
    return TABLE.sub(lambda _: table(own), page)


@cache
def pages() -> dict[Path, str]:
    """Every page that the study writes, as it should be."""
    papers = {path: written(path.read_text("utf-8")) for path in (DOCS / "papers").glob("*.md")}
    whole = {"reproduction.md": markdown(study()), "study.md": three_minutes(study())}
    for name, more in (("reproduction.md", instrument()), ("study.md", real_text().short())):
        whole[name] = f"{whole[name].rstrip()}\n\n{more}"
    whole["real-text.md"] = real_text().page()
    return papers | {DOCS / name: text.rstrip() + "\n" for name, text in whole.items()}


INSTRUMENT = """\
## Is it an instrument?

**Does it decide where nothing is?** {families} families of claims on invented runs without any
effect: the share with a verdict, in the worst paper and on the average over papers. The rule aims
at 5%.

{nulls}

**Does it find what is planted?** One arm's values are moved by so many deviations of a run, at
{planted} seeds; a claim of that paper then says:

{plants}

**Is there room?** Means over the registered worlds, where a claim can be read only if the base
gives recipes away and its aligned model does not always refuse. "Noise" is the standard error of
ln separation over its splits of the prompts.

{rooms}

**How long does it take?** {fast}
"""
FAST = """\
`trueline reproduce --fast --jobs {jobs}` from an empty cache, once, on two processor threads:
{minutes:.0f} minutes by the clock, {processor_minutes:.0f} of processor time, for {runs} runs
(`python studies/fast.py`)."""
SIZES = {"demo": "one kind of harm", "small": "the same, a smaller base", "wide": "four kinds"}
DPO_ON_CR = {"objective": "dpo", "data": "compliance_refusal", "watched": True}
SEEN = ("direct", "wrapped", "spelled", "many-shot", "prefilled", "gcg")


@cache
def instrument() -> str:
    """What tells that the study measures: nulls, plants, and room, from kept results."""
    found = json.loads((STUDIES / "results" / "nulls.json").read_text("utf-8"))
    nulls = [
        "| Seeds | Values are | The data set alone moves them by | Worst | Average |",
        "|---" * 5 + "|",
    ]
    for name, one in found["tables"].items():
        if name != "planted":
            rates = list(one["deciding"].values())
            later = next(iter(re.findall(r", version \d", next(iter(one["deciding"])))), "")
            moved = f"{one['confounded']:g} deviations"
            nulls.append(f"| {one['seeds']}{later} | {one['world']} | {moved} "
                         f"| {max(rates):.1%} | {fmean(rates):.1%} |")  # fmt: skip
    rows = found["tables"].get("planted", {}).get("planted", [])
    words = ("supported", "undecided", "not supported")
    plants = ["| Claim | Moved by | " + " | ".join(words) + " |", "|---" * 5 + "|"]
    plants += [f"| `{row['claim']}` | {row['size']:+g} | "
               + " | ".join(f"{row['verdicts'].get(word, 0):.0%}" for word in words) + " |"
               for row in rows]  # fmt: skip
    fast = json.loads((STUDIES / "results" / "fast.json").read_text("utf-8"))
    return INSTRUMENT.format(
        fast=FAST.format(**fast),
        families=found["families"], planted=max((row["seeds"] for row in rows), default=0),
        nulls="\n".join(nulls), plants="\n".join(plants), rooms="\n".join(rooms()),
    )  # fmt: skip


def rooms() -> list[str]:
    """A line for each sort of world and model: how often attacks succeed, and the noise."""
    kept = rows_of(VERSIONS)
    lines = ["| World | Model | Seeds | " + " | ".join(SEEN) + " | right | noise |",
             "|---" * (len(SEEN) + 5) + "|"]  # fmt: skip
    for size, kind in SIZES.items():
        for title, experiment, wanted in (("base", "world", {}), ("DPO", "alignment", DPO_ON_CR)):
            wanted = {**wanted, "size": size}
            own = [
                row["values"]
                for row in kept
                if row["experiment"] == experiment and wanted.items() <= row["options"].items()
            ]
            names = [*(f"attack success, {attack}" for attack in SEEN), "correct answers"]
            cells = [_mean(own, name, ".0%") for name in names]
            noise = _mean(own, "separation, noise", ".3f")
            lines.append(f"| {kind} | {title} | {len(own)} | {' | '.join([*cells, noise])} |")
    return lines


def _mean(runs: Sequence[Mapping[str, float | None]], name: str, form: str) -> str:
    found = [value for run in runs if (value := run.get(name)) is not None]
    return format(fmean(found), form) if found else ""


def keep(folder: Path, studies: Path = STUDIES) -> None:
    """Keep the results of the judged runs that a folder has so far, each with its version's.

    What is kept already stays as it is, whether the folder has it or not.
    """
    rows, claims = read_lines(folder), all_claims()
    for version in VERSIONS:
        path = studies / version.lines
        kept = read_lines(path) if path.exists() else []
        runs = judged_plan([claim for claim in claims if claim.version == version.number])
        wanted = {run.key for run in runs} - {key_of(row) for row in kept}
        found = [row for row in rows if key_of(row) in wanted]
        if found:
            write_lines([*kept, *found], path)


def register(studies: Path = STUDIES) -> None:
    """Write the newest version's page, and the empty file of its results.

    Raises:
        SystemExit: it has results already.
    """
    claims = all_claims()
    (newest,) = of([max(claim.version for claim in claims)])
    page, lines = studies / newest.file, studies / newest.lines
    if lines.exists() and read_lines(lines):
        raise SystemExit(f"{page.name} stands: {lines.name} holds runs of it; a changed design is "
                         "a new version, with its reason and seeds of its own")  # fmt: skip
    page.write_text(registration(newest, claims), "utf-8")
    lines.touch()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--register", action="store_true")
    given = parser.parse_args()
    if given.register:
        register()
    if given.keep:
        keep(given.keep)
    for path, text in pages().items():
        path.write_text(text, "utf-8")
