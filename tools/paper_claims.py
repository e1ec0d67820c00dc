"""Write each paper's claims into its page, as the code states them and as docs/reproduction.md
measured them, and into that page what does not depend on a run: run it after changing either."""

from __future__ import annotations

import re
from pathlib import Path

from trueline.reproduce.claim import Claim
from trueline.reproduce.page import standing
from trueline.reproduce.study import choose

PAPERS = Path(__file__).parents[1] / "docs" / "papers"
MEASURED = PAPERS.parent / "reproduction.md"
TABLE = re.compile(r"\| Claim \|.*\|\n\|---.*\n(?:\|.*\n)*")
VERDICT = re.compile(
    r"^\| .*?\| \*\*([\w-]+)\*\*: .*\| (\d+ seeds?) \|.*\| \*\*([\w ]+)\*\* \|$", re.MULTILINE
)
COMMAND = re.compile(r"^trueline reproduce ([\w-]+)$", re.MULTILINE)


def table(claims: list[Claim]) -> str:
    """The claims of one paper as the page has them."""
    found = VERDICT.findall(MEASURED.read_text("utf-8"))
    verdicts = {name: f"{verdict}, {seeds}" for name, seeds, verdict in found}
    rows = "".join(
        f"| `{claim.name}` | {claim.statement} | {verdicts[claim.name]} |\n" for claim in claims
    )
    return f"| Claim | | In the sandbox |\n|---|---|---|\n{rows}"


def written(page: str) -> str:
    """A paper's page with its present claims."""
    command = COMMAND.search(page)
    if command is None:
        return page
    return TABLE.sub(lambda _: table(choose([command[1]])), page)


STANDING = re.compile(r"^## (Every claim of the abstracts|Run it yourself)$", re.MULTILINE)


def told(page: str) -> str:
    """The measured page with its present end: the abstracts' claims, its history, how to run it."""
    found = STANDING.search(page)
    return page[: found.start() if found else len(page)] + "\n".join(standing()).rstrip() + "\n"


if __name__ == "__main__":
    MEASURED.write_text(told(MEASURED.read_text("utf-8")), "utf-8")
    for path in PAPERS.glob("*.md"):
        path.write_text(written(path.read_text("utf-8")), "utf-8")
