"""Write what becomes of TRL's words into docs/from-trl.md, as the code states it: run it after
changing src/trueline/trl.py."""

from __future__ import annotations

import re
from pathlib import Path

from trueline.trl import ALWAYS, FOREIGN, HONORED, LOSSES, SCRIPTS, WORDS

PAGE = Path(__file__).parents[1] / "docs" / "from-trl.md"


def words() -> str:
    """Every field of TRL's that has a fate of its own."""
    rows = [f"| `{name}` | {', '.join(scripts)} | honored |\n" for name, scripts in HONORED.items()]
    for word in WORDS:
        of = "every one" if set(SCRIPTS) <= set(word.scripts) else ", ".join(word.scripts)
        fate = "not needed" if word.fate == "nothing" else "**refused**"
        rows.append(f"| `{word.name}` | {of} | {fate}: {word.says} |\n")
    return "| Field | Of | What happens |\n|---|---|---|\n" + "".join(sorted(rows))


def losses() -> str:
    """Every script's losses, as objectives with their options."""
    rows = []
    for script, own in LOSSES.items():
        for name, loss in own.items():
            options = {"weight": f"{loss.weight:g}"} if loss.weight != 1 else {}
            told = ", ".join(f"`{k}: {v}`" for k, v in {**options, **loss.options}.items())
            link = f"[`{loss.name}`](objectives.md#{loss.name})"
            rows.append(f"| `{script}` | `{name}` | {link} | {told} | {loss.differs} |\n")
    head = "| Script | `loss_type` | Objective | With | What stays different |\n"
    return head + "|---|---|---|---|---|\n" + "".join(rows)


def always() -> str:
    """What differs for every script."""
    return "".join(f"- {line}.\n" for line in ALWAYS)


def others() -> str:
    """What to write for other trainers' keys."""
    rows = [
        f"| {trainer} | `{key}` | {ours} |\n"
        for trainer, keys in FOREIGN.items()
        for key, ours in keys.items()
    ]
    return "| Of | Key | Write |\n|---|---|---|\n" + "".join(rows)


def written(page: str) -> str:
    """The page with its present tables and list, each between its two marks."""
    for part in (words, losses, always, others):
        mark = f"<!-- {part.__name__} -->\n"
        page = re.sub(f"(?<={mark}).*?(?={mark})", lambda _: part(), page, flags=re.DOTALL)  # noqa: B023
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
