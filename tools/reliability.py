"""Write the figures of docs/reliability.md from studies/results/reliability.json.

python tests/stress/run.py --work DIR        # measures; goes on where it was
python tools/reliability.py DIR              # keeps the counts of DIR, and writes the page
python tools/reliability.py                  # writes the page from what is kept
"""

import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "studies" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"

PLANNED = {"kills": 200, "damages": 24, "options": 14, "faults": 12, "configs": 5000, "files": 5000}
TITLES = {
    "kills": "Kills at a moment of writing, then gone on",
    "damages": "Damage, then gone on",
    "options": "Options changed on resuming",
    "faults": "Faults of the machine",
    "configs": "Configurations at random",
    "files": "Data files at random",
}


def counted(work):
    """What the rows in a folder of the harness come to."""
    found = {}
    for part in PLANNED:
        path = Path(work) / f"{part}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found[part] = {
            "done": len(rows),
            "well": sum(row["ok"] for row in rows),
            "outcomes": dict(sorted(Counter(row.get("outcome", "") for row in rows).items())),
            "verbs": dict(sorted(Counter(_verb(row, part) for row in rows).items())),
            "kills": sum(row.get("kills", 0) for row in rows),
            "moments": len({(row.get("kind"), row.get("what")) for row in rows}),
        }
    return found


def _verb(row, part):
    """What a row is of; those of the fuzzer's first kinds do not say."""
    return (
        row.get("verb") or row.get("kind") or {"configs": "align", "files": "texts"}.get(part, "")
    )


def figures(found):
    """The page's tables."""
    lines = ["| What | Planned | Run | As it should be |", "|---|---|---|---|"]
    for part, title in TITLES.items():
        one = found[part]
        lines.append(f"| {title} | {PLANNED[part]:,} | {one['done']:,} | {one['well']:,} |")
    kills = found["kills"]
    if kills["done"]:
        verbs = ", ".join(f"{name} {n}" for name, n in kills["verbs"].items())
        lines += [
            "",
            f"The {kills['done']} kills, by verb: {verbs}. With those that met the run that",
            f"went on, {kills['kills']} processes were killed, at {kills['moments']} kinds of",
            "moment (what was written, and how).",
        ]
    for part in ("damages", "configs", "files"):
        if found[part]["done"]:
            told = ", ".join(f"{name} {n:,}" for name, n in found[part]["outcomes"].items())
            what = ", ".join(f"{name} {n:,}" for name, n in found[part]["verbs"].items())
            lines += ["", f"{TITLES[part]}: {told} ({what})."]
    return "\n".join(lines) + "\n"


def page(found):
    """The page with its figures."""
    text = PAGE.read_text("utf-8")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{figures(found)}\n{END}{rest.split(END)[1]}"


def main():
    if len(sys.argv) > 1:
        DATA.write_text(json.dumps(counted(sys.argv[1]), indent=1) + "\n")
    PAGE.write_text(page(json.loads(DATA.read_text())), "utf-8")


if __name__ == "__main__":
    main()
