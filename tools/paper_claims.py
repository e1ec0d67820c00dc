"""Write what the study found into the documentation, from the kept results of its judged runs.

python tools/paper_claims.py                          # the pages, from what is kept
python tools/paper_claims.py --keep runs/reproduce    # first keep what a judged run has so far
python tools/paper_claims.py --register               # the registration, before any judged run
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from runpy import run_path

from trueline.reproduce.kept import key_of, read_lines, write_lines
from trueline.reproduce.outcomes import Outcome
from trueline.reproduce.page import believed, markdown, three_minutes
from trueline.reproduce.preregistration import NOW, PAGE, Registered, designs_in, judged_plan
from trueline.reproduce.preregistration import page_text as registration
from trueline.reproduce.study import Study, all_claims, choose, from_kept

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
KEPT = ROOT / "studies" / "results" / f"judged-{NOW.number}.jsonl"
TABLE = re.compile(r"\| Claim \|.*\|\n\|---.*\n(?:\|.*\n)*(?:\n\*\*What we believe now\.\*\*.*\n)?")
COMMAND = re.compile(r"^trueline reproduce ([A-Za-z][\w-]*)$", re.MULTILINE)


@cache
def study() -> Study:
    """The judged study, as far as its runs are kept."""
    registered = Registered(designs_in(PAGE.read_text("utf-8")), "", "")
    return from_kept(all_claims(), KEPT, registered)


def table(outcomes: Sequence[Outcome]) -> str:
    """One paper's claims, their verdicts, and what to believe of them now."""
    rows = "".join(
        f"| `{one.claim.name}` | {one.claim.statement} | {one.verdict}, {one.counted} |\n"
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


def pages() -> dict[Path, str]:
    """Every page that the study writes, as it should be."""
    papers = {path: written(path.read_text("utf-8")) for path in (DOCS / "papers").glob("*.md")}
    whole = {"reproduction.md": markdown(study()), "study.md": three_minutes(study())}
    whole["study.md"] = f"{whole['study.md'].rstrip()}\n\n{real_text()}"
    return papers | {DOCS / name: text.rstrip() + "\n" for name, text in whole.items()}


@cache
def real_text() -> str:
    """The papers' contrasts on a real model, as far as its runs are kept."""
    return str(run_path(str(ROOT / "studies" / "real_text.py"))["page"]())


def keep(folder: Path) -> None:
    """Keep the results of the judged runs that a folder has so far."""
    wanted = {run.key for run in judged_plan(all_claims())}
    write_lines((row for row in read_lines(folder) if key_of(row) in wanted), KEPT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--register", action="store_true")
    given = parser.parse_args()
    if given.register:
        PAGE.write_text(registration(all_claims()), "utf-8")
    if given.keep:
        keep(given.keep)
    for path, text in pages().items():
        path.write_text(text, "utf-8")
