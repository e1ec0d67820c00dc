"""Write what was measured on the real model into the pages, from studies/results.

python tools/measured.py                                   # the pages, from what is kept
python tools/measured.py --keep runs/real/summary.json     # a run of `make real`
python tools/measured.py --keep benchmarks/results/throughput-hh-*-SmolLM2-*.json
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trueline.results import Metric

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "studies" / "results"
PAGES = [ROOT / "README.md", ROOT / "examples/real/README.md", ROOT / "docs/performance.md"]
COLUMNS = {"base": "base", "kldo": "KLDO", "dpo": "DPO", "lora": "SFT, then DPO, LoRA"}
RATES = {
    "attack success, advbench, direct": "AdvBench, asked",
    "attack success, advbench, prefill": "AdvBench, answer begun",
    "attack success, xstest, direct": "XSTest's unsafe, asked",
    "over-refusal, xstest, direct": "XSTest's safe, refused",
    "answers: incoherent": "incoherent answers",
    "kl": "KL from the base, nats an answer",
}
WAYS = {
    (False, False): "all weights, float32",
    (False, True): "all weights, bf16",
    (True, False): "LoRA, float32",
    (True, True): "LoRA, bf16",
}
OURS = "trueline dpo"
SMOLLM2 = "throughput-smollm2"


def real() -> str:
    """The rates of each model that `make real` left, and of how many prompts they are."""
    kept = _read("real")
    models = kept["models"]
    lines = [f"| | {' | '.join(COLUMNS[name] for name in models)} | n |"]
    lines.append("|---" * (len(models) + 2) + "|")
    for name, said in RATES.items():
        told = kept["rates"].get(name, {})
        metrics = [Metric(**told[model]) if model in told else None for model in models]
        cells = ["" if metric is None else str(metric) for metric in metrics]
        counts = {metric.n for metric in metrics if metric is not None and metric.n}
        if counts or any(cells):
            n = ", ".join(map(str, sorted(counts)))
            lines.append(f"| {said} | {' | '.join(cells)} | {n} |")
    return "\n".join(lines) + "\n"


def throughput() -> str:
    """A row for every contender and way to train: pace, ratio round by round, peak memory."""
    lines = ["| | | pairs per processor second | `trueline dpo` is faster by | peak memory |"]
    lines.append("|---" * 5 + "|")
    for way, results in _cases():
        own = results["seconds"][OURS]
        for place, (name, seconds) in enumerate(results["seconds"].items()):
            pace = _spread([results["pairs"] / taken for taken in seconds])
            ratio = _spread([t / o for t, o in zip(seconds, own, strict=True)])
            memory = results["memory"].get(name)
            cells = [WAYS[way] if place == 0 else "", name, pace, "1" if name == OURS else ratio]
            told = "" if memory is None else f"{memory:.1f} GiB"
            lines.append("| " + " | ".join([*cells, told]) + " |")
    return "\n".join(lines) + "\n"


def faster() -> str:
    """How many times TRL's pace, over the ways to train, in one clause."""
    ratios: dict[str, list[float]] = {}
    memory = []
    for _, results in _cases():
        own = results["seconds"][OURS]
        for name in ("TRL dpo, defaults", "TRL dpo, tuned"):
            both = zip(results["seconds"][name], own, strict=True)
            ratios.setdefault(name, []).append(statistics.median(t / o for t, o in both))
            if name in results["memory"]:
                memory.append(results["memory"][OURS] / results["memory"][name])
    plain, tuned = (f"{min(r):.1f} to {max(r):.1f} times" for r in ratios.values())
    share = f"{min(memory):.2f} to {max(memory):.2f} of its memory"
    return (
        f"{plain} TRL's throughput at its defaults and {tuned} tuned, in {share}, on "
        "SmolLM2-135M and one CPU thread"
    )


def _cases() -> Iterator[tuple[tuple[bool, bool], dict[str, Any]]]:
    for way, results in sorted(_read(SMOLLM2).items()):
        yield (way.startswith("lora"), way.endswith("bf16")), results


def _spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f})"


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((KEPT / f"{name}.json").read_text("utf-8"))
    return found


def keep(files: Sequence[Path]) -> None:
    """Keep the numbers of these files, and nothing that names a place of one machine."""
    for file in files:
        told = json.loads(file.read_text("utf-8"))
        if "rates" in told and "models" in told:
            _write("real", told)
            continue
        way = f"{'lora' if told['lora'] else 'full'}-{'bf16' if told['bf16'] else 'float32'}"
        kept = KEPT / f"{SMOLLM2}.json"
        found = _read(SMOLLM2) if kept.exists() else {}
        names = ("seconds", "pairs", "tokens", "memory", "machine", "rounds", "steps", "batch")
        found[way] = {name: told[name] for name in names}
        _write(SMOLLM2, found)


def _write(name: str, value: dict[str, Any]) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def written(page: str) -> str:
    """The page with its present tables and clauses, each between its two marks."""
    for part, kept in ((real, "real"), (throughput, SMOLLM2), (faster, SMOLLM2)):
        mark = f"<!-- {part.__name__} -->"
        if mark in page and (KEPT / f"{kept}.json").exists():
            line = "" if part is faster else "\n"
            page = re.sub(
                f"(?<={mark}).*?(?={mark})",
                lambda _: line + part(),  # noqa: B023
                page,
                flags=re.DOTALL,
            )
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--keep", type=Path, nargs="+", default=(), metavar="FILE")
    keep(parser.parse_args().keep)
    for path in PAGES:
        path.write_text(written(path.read_text("utf-8")), "utf-8")
