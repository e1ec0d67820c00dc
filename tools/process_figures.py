"""Write what the matrix of engines measured into docs/tasks/several-gpus.md: run it after

TRUELINE_FIGURES=studies/results/processes.json pytest -m slow tests/test_distributed.py -k matrix
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tasks" / "several-gpus.md"
KEPT = ROOT / "studies" / "results" / "processes.json"
SPLITS = {
    "one": "one micro-batch", "many": "several", "ragged": "a ragged epoch",
    "tokens": "a token budget",
}  # fmt: skip


def figures() -> str:
    """How far two processes end from one, by engine, objective and how the batch is cut."""
    kept = json.loads(KEPT.read_text("utf-8"))
    rows: dict[tuple[str, str], dict[str, float]] = {}
    steps, held = set(), {}
    for name, row in kept.items():
        engine, objective, case = name.split()
        split = case.rsplit("-", 1)[0]
        of = rows.setdefault((engine, objective), {})
        of[split] = max(of.get(split, 0.0), row["apart"])
        steps.add(row["steps"])
        held.setdefault(engine, []).append(row["held"])
    lines = [
        f"| `{engine}` | {objective} | "
        + " | ".join(f"{of[split]:.1e}" if split in of else "" for split in SPLITS)
        + f" | {min(held[engine]):.2f} to {max(held[engine]):.2f} |\n"
        for (engine, objective), of in sorted(rows.items())
    ]
    assert steps == {4}, "every one of them took as many optimizer steps as it should"
    head = f"| Engine | Objective | {' | '.join(SPLITS.values())} | held |\n"
    return head + "|---" * (len(SPLITS) + 3) + "|\n" + "".join(lines)


def written(page: str) -> str:
    """The page with its present table, between its two marks."""
    mark = "<!-- figures -->\n"
    return re.sub(f"(?<={mark}).*?(?={mark})", lambda _: figures(), page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
