"""Write what the study found into the documentation, from the kept results of its judged runs.

python tools/paper_claims.py                          # the pages, from what is kept
python tools/paper_claims.py --keep runs/reproduce    # first keep what a judged run has so far
python tools/paper_claims.py --register               # the newest version, before its first run
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
from trueline.reproduce.page import believed, markdown, three_minutes, verdicts
from trueline.reproduce.preregistration import as_written, judged_plan
from trueline.reproduce.preregistration import page_text as registration
from trueline.reproduce.study import Study, all_claims, choose, from_kept
from trueline.reproduce.versions import STUDIES, VERSIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TABLE = re.compile(r"\| Claim \|.*\|\n\|---.*\n(?:\|.*\n)*(?:\n\*\*What we believe now\.\*\*.*\n)?")
COMMAND = re.compile(r"^trueline reproduce ([A-Za-z][\w-]*)$", re.MULTILINE)


@cache
def study() -> Study:
    """The judged study, as far as its runs are kept."""
    return from_kept(all_claims(), as_written(all_claims()))


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
        SystemExit: it has no claims, or results already.
    """
    newest, claims = VERSIONS[-1], all_claims()
    page, lines = studies / newest.file, studies / newest.lines
    if lines.exists() and read_lines(lines):
        raise SystemExit(f"{page.name} stands: {lines.name} holds runs of it; a changed design is "
                         "a new version, with its reason and seeds of its own")  # fmt: skip
    if not any(claim.version == newest.number for claim in claims):
        raise SystemExit(f"version {newest.number} has no claims")
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
