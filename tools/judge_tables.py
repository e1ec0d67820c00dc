"""Write how judges did on labeled answers, and what a real model's answers are, into
docs/judges.md, from studies/results.

    python tools/judge_tables.py                                  # the page, from what is kept
    python tools/judge_tables.py --keep words=a.json encoder=b.json
    python tools/judge_tables.py --sort runs/real/evaluate/base runs/real/evaluate/kldo

``--keep`` takes what `trueline calibrate-judge LABELS --fit FILE --json` printed, ``--sort``
folders of evaluations; both keep counts alone.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from trueline.evaluation.calibrate import JudgeQuality
from trueline.evaluation.harness.log import read_log
from trueline.evaluation.labels import LABELS
from trueline.stats import Calibration

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "judges.md"
KEPT = ROOT / "studies" / "results" / "judges-xstest.json"
SORTED = ROOT / "studies" / "results" / "sorted-smollm2.json"
READS = {"words": "learned, words", "encoder": "learned, sentence encoder"}
LEFT_OUT = {
    "xstest-completions-llama2orig": "Llama-2, its own system prompt",
    "xstest-completions-mistralguard": "Mistral, guardrail prompt",
    "xstest-completions-mistralinstruct": "Mistral, no system prompt",
    "all": "each tenth of the prompts",
}


def keep(printed: dict[str, Path]) -> dict[str, Any]:
    """The counts of what was printed, and nothing else."""
    found: dict[str, Any] = {}
    for reads, path in printed.items():
        told = json.loads(path.read_text("utf-8"))
        found[reads] = {"fitted_to": told["fitted_to"], "prompts": told["prompts"]}
        found[reads]["tests"] = told["tests"]
    return found


def quality(told: dict[str, Any]) -> JudgeQuality:
    """What was kept of one judge, as it was measured."""
    return JudgeQuality(
        told["judge"], told["measure"], Calibration.from_dict(told), told["unparsable"], told["n"]
    )


def judges(kept: dict[str, Any]) -> str:
    """A row for every judge on every model, and on the prompts, that it was not fitted to."""
    head = ("Left out", "n", "Judge", "Accuracy", "Sensitivity", "Specificity")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    first = next(iter(kept.values()))["tests"]
    for test, groups in first.items():
        for group in groups:
            rows = [("phrases", groups[group]["phrases"])]
            rows += [(READS[r], kept[r]["tests"][test][group]["learned"]) for r in kept]
            for place, (name, told) in enumerate(rows):
                found = quality(told).finding
                cells = [found[m] for m in ("accuracy", "sensitivity", "specificity")]
                what = [LEFT_OUT[group], str(told["n"])] if place == 0 else ["", ""]
                lines.append("| " + " | ".join([*what, name, *map(str, cells)]) + " |")
    return "\n".join(lines) + "\n"


def sort(folders: list[Path]) -> dict[str, Any]:
    """How many answers of each evaluation are of which kind, by judge, prompt and attack."""
    found: dict[str, Any] = {}
    for folder in folders:
        for row in read_log(folder).judgements:
            asked = f"{'harmful' if row.harmful else 'safe'}, {row.attack}"
            counts = found.setdefault(folder.name, {}).setdefault(row.judge, {})
            of = counts.setdefault(asked, {})
            of[row.label] = of.get(row.label, 0) + 1
    return found


def kinds(counted: dict[str, Any]) -> str:
    """A row for every model, prompt and judge: how many answers are of which kind."""
    labels = [label for label in LABELS if label != "empty"]
    lines = [f"| Model | Asked | Judge | {' | '.join(labels)} |", "|---" * (len(labels) + 3) + "|"]
    for model, judged in counted.items():
        for asked in next(iter(judged.values())):
            for judge, counts in judged.items():
                cells = [str(counts[asked].get(label, "")) for label in labels]
                lines.append("| " + " | ".join([model, asked, judge, *cells]) + " |")
    return "\n".join(lines) + "\n"


def written(page: str, kept: dict[str, Any], counted: dict[str, Any]) -> str:
    """The page with its tables, each between its two marks."""
    for name, table in (("judges", judges(kept)), ("kinds", kinds(counted))):
        mark = f"<!-- {name} -->\n"
        page = re.sub(f"(?<={mark}).*?(?={mark})", lambda _: table, page, flags=re.DOTALL)  # noqa: B023
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--keep", nargs="+", metavar="READS=FILE")
    parser.add_argument("--sort", nargs="+", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.keep:
        named = (text.partition("=") for text in given.keep)
        value = keep({name: Path(file) for name, _, file in named})
        KEPT.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    if given.sort:
        SORTED.write_text(json.dumps(sort(given.sort), indent=1) + "\n", "utf-8")
    both = (json.loads(path.read_text("utf-8")) for path in (KEPT, SORTED))
    PAGE.write_text(written(PAGE.read_text("utf-8"), *both), "utf-8")
