"""Write what was measured of diffusion into docs/diffusion.md, from studies/results/diffusion.json.

trueline demo --diffusion --json > demo.json
python benchmarks/diffusion.py --out cost.json                  # and with --dspo
python tools/diffusion_figures.py --keep demo.json cost.json
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trueline.results import Metric

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs" / "diffusion.md", ROOT / "studies" / "results" / "diffusion.json"
RUNS = {
    "base": "base",
    "sft": "fine-tuning",
    "dspo": "DSPO, beta 1",
    "dpo": "Diffusion-DPO, beta 2000, SDPO",
    "dspo-swapped": "*DSPO, labels swapped*",
    "dspo-random": "*DSPO, random losers*",
}
COST = {"diffusion_dpo": "Diffusion-DPO", "dspo": "DSPO, fixed target"}


def units(kept: dict[str, Any]) -> str:
    """Units of work of a step of two pairs, by objective and micro-batches."""
    rows = [
        [f"`{row['objective']}`", str(row["micro_batches"]), str(row["before"]), str(row["now"])]
        for row in kept["units"]
    ]
    return _table(["two pairs, by", "micro-batches", "reference in each pass", "kept"], rows)


def world(kept: dict[str, Any]) -> str:
    """What each model of the small world paints."""
    rows = []
    for name, told in kept["world"].items():
        found = {metric["name"]: Metric(**metric) for metric in told["metrics"]}
        bright, valid, change = (
            str(found.get(m, "")) for m in ("bright", "valid", "bright, change")
        )
        rows.append([RUNS[name], bright, valid, f"{found['brightness'].value:.3f}", change])
    return _table(["", "bright", "valid", "mean brightness", "bright, change"], rows)


def cost(kept: dict[str, Any]) -> str:
    """How many steps while each does one, round by round, and the memory of each."""
    rows = []
    for objective, told in kept["cost"].items():
        own = told["speed"]["trueline"]
        for place, (name, speed) in enumerate(told["speed"].items()):
            ratio = [a / b for a, b in zip(own, speed, strict=True)]
            rows.append([
                COST[objective] if place == 0 else "",
                name,
                "1" if name == "trueline" else _spread(ratio),
                f"{told['memory'][name]:,.0f}",
            ])  # fmt: skip
    return _table(["", "", "Trueline's pace over its", "peak memory, MiB"], rows)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read() -> dict[str, Any]:
    """What is kept."""
    found: dict[str, Any] = json.loads(KEPT.read_text("utf-8"))
    return found


def keep(files: Sequence[Path]) -> None:
    """Keep what these files of the demo and the benchmark hold."""
    kept = read()
    for file in files:
        told = json.loads(file.read_text("utf-8"))
        if "models" in told:
            kept["world"] = told["models"]
        else:
            kept.setdefault("cost", {})[told.pop("objective")] = told
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def written(page: str) -> str:
    """The page with its present tables, each between its two marks."""
    kept = read()
    for part in (units, world, cost):
        if part.__name__ in kept:
            mark = f"<!-- {part.__name__} -->\n"
            text = part(kept)
            page = re.sub(f"(?<={mark}).*?(?={mark})", lambda _: text, page, flags=re.DOTALL)  # noqa: B023
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--keep", type=Path, nargs="+", default=(), metavar="FILE")
    keep(parser.parse_args().keep)
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
