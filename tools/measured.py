"""Write what was measured on the real model into the pages, from studies/results.

python tools/measured.py                                   # the pages, from what is kept
python tools/measured.py --keep runs/real/summary.json     # a run of `make real`
python tools/measured.py --keep benchmarks/results/throughput-hh-*-SmolLM2-*.json
python tools/measured.py --keep benchmarks/results/scale.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trueline.results import Metric

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "studies" / "results"
PAGES = [ROOT / "README.md", ROOT / "examples/real/README.md", ROOT / "docs/performance.md"]
PICTURE = ROOT / "docs" / "img" / "memory-by-rows.svg"
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
NOUNS = {
    "encoding": "rows encoded",
    "server": "prompts to a server",
    "local": "answers of 1 to 256 tokens, sampled here",
    "inspect": "rows inspected",
    "dedup": "prompts looked through for near-duplicates",
    "copies": "prompts looked through for copies",
}
WHO = {
    "trueline": "trueline",
    "trueline-rows": "row by row",
    "map": "`datasets.map`, as TRL does it",
    "dictionary": "a dictionary",
    "pool": "a pool of threads",
    "plain": "plain batches",
    "call": "the tokenizer's call alone, 512 rows at once",
    "loop": "a plain loop",
}
LOSSES = {"simpo": "SimPO", "dpo": "DPO", "kto": "KTO"}


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
            if name not in results["seconds"]:
                continue
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


def by_rows() -> str:
    """A start on rows that were encoded before, and a reference cache, by how many there are."""
    header = ["rows", "objective", "trainer made, s", "first step begins, s",
              "processor in all, s", "memory, MiB", "of it mapped from files, MiB"]  # fmt: skip
    rows = [
        [f"{r['count']:,}", LOSSES[r["loss"]], f"{r['trainer made']:.1f}",
         f"{r['first step begins']:.1f}", f"{r['processor seconds']:.1f}",
         f"{r['anonymous MiB']:.0f}", f"{r['file MiB']:.0f}"]
        for loss in LOSSES for r in _lines("restart", loss=loss)
    ]  # fmt: skip
    sums = ["completions", "who", "memory over an empty process, MiB", "opened in, processor s",
            "look-ups a second, one by one", "in batches"]  # fmt: skip
    kept = [
        [f"{r['count']:,}", WHO[r["by"]],
         f"{r['anonymous MiB'] - r['anonymous MiB before']:.0f}", f"{r['processor seconds']:.2f}",
         f"{r['look-ups a second, one by one']:,.0f}",
         _count(r.get("look-ups a second, in batches"))]
        for r in _lines("reference")
    ]  # fmt: skip
    return f"{_table(header, rows)}\n{_table(sums, kept)}"


def by_peer() -> str:
    """Encoding, a server's replies and near-duplicates: pace beside what others do."""
    header = ["work", "who", "a processor second", "a second", "memory, MiB"]
    rows = [
        [f"{r['count']:,} {_noun(r)}{_more(r)}", WHO[r["by"]],
         f"{r['count'] / r['processor seconds']:,.0f}", f"{r['count'] / r['seconds']:,.0f}",
         f"{r['anonymous MiB']:.0f}"]
        for name in NOUNS for r in _lines(name)
    ]  # fmt: skip
    return _table(header, rows)


def bars() -> str:
    """Each goal of the work on scale, what was measured, and what stands beside it."""
    real = _last("encoding", by="trueline", processes=1)["tokenizer"]

    def pace(name: str, **only: Any) -> str:
        row = _last(name, **only)
        return f"{row['count'] / row['processor seconds']:,.0f}"

    def both(name: str, peer: str, **only: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        theirs = _last(name, by=peer, **only)
        ours = _last(name, by="trueline", **{**only, "count": theirs["count"]})
        if ours.get("result") != theirs.get("result"):
            raise SystemExit(f"{name}: trueline and {peer} do not find the same")
        return ours, theirs

    def cost(row: dict[str, Any]) -> str:
        return f"{row['processor seconds']:.1f} s, {row['anonymous MiB']:.0f} MiB"

    starts = [_last("restart", loss=loss) for loss in LOSSES]
    told = [f"{LOSSES[r['loss']]} {r['first step begins']:.0f} s ({r['count']:,})" for r in starts]
    least = min(r["anonymous MiB"] for r in _lines("restart"))
    most = max(r["anonymous MiB"] for r in _lines("restart"))
    looked, parsed = both("inspect", "loop")
    copies, as_set = both("dedup", "loop", near=0.0)
    near, loop = both("dedup", "loop", near=0.8)
    many = _last("dedup", by="trueline", near=0.8)
    table, dictionary = both("reference", "dictionary")
    asked, pool = both("server", "pool")
    failing = _last("server", by="trueline", slow=5)
    answered, plain = both("local", "plain")
    times = plain["processor seconds"] / answered["processor seconds"]
    rows = [
        ["rows encoded a processor second, one process", "2,152",
         pace("encoding", by="trueline", processes=1, tokenizer=real),
         f"{pace('encoding', by='map', processes=1, tokenizer=real)} `datasets.map`; "
         f"{pace('encoding', by='call', processes=1, tokenizer=real)} the tokenizer's call alone"],
        ["the same, two processes, their start included", "",
         pace("encoding", by="trueline", processes=2, tokenizer=real),
         f"{pace('encoding', by='map', processes=2, tokenizer=real)} `datasets.map`"],
        ["a restart's first step (rows)", "60 s", "; ".join(told), "encoded again at every start"],
        ["memory of a restart, by rows", "flat", f"{least:.0f} to {most:.0f} MiB", ""],
        [f"{looked['count']:,} rows inspected", "11 s, 62 MiB", cost(looked),
         f"{cost(parsed)}: lines parsed, measured and counted in a loop, no checks"],
        [f"copies among {copies['count']:,} prompts", "16 s, 422 MiB", cost(copies),
         f"{cost(as_set)}: a set; the same rows stay"],
        [f"near-duplicates among {many['count']:,} prompts", "600 s, memory flat", cost(many), ""],
        [f"near-duplicates among {near['count']:,} prompts", "", cost(near),
         f"{cost(loop)}: each with each in a loop; the same rows stay"],
        [f"{table['count']:,} log-probs of the reference: look-ups a second", "170,000, mapped",
         f"{table['look-ups a second, in batches']:,.0f} in batches",
         f"{dictionary['look-ups a second, one by one']:,.0f} a dictionary in memory, one by one"],
        [f"replies a second, {asked['concurrency']} under way", "320 on a machine of its own",
         f"{asked['replies a second']:.0f}", f"{pool['replies a second']:.0f} a pool of threads"],
        [f"requests that fail, of {failing['count']:,}", "a row each",
         f"{failing['failed']:,} rows, {failing['refused for good']:,} not asked again", ""],
        [f"{answered['count']:,} sampled answers, of which the longest leave last",
         "1.5 times plain batches, the same text", f"{times:.1f} times, the same text",
         f"{plain['processor seconds']:.0f} s in plain batches"],
        ["vLLM", "all requests at once", "not measured here: needs a GPU", ""],
    ]  # fmt: skip
    return _table(["work", "goal", "trueline", "beside it"], rows)


MEMORY = {"restart": "a training that starts on encoded rows", "dedup": "near-duplicates sought"}
"""Lines of the picture of memory by rows."""
STYLE = (
    "text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#1f2a37}path{fill:none;stroke-width:2}"
    ".restart{stroke:#0b6e6e;fill:#0b6e6e}.dedup{stroke:#b3541e;fill:#b3541e}path.restart,path."
    "dedup{fill:none}.axis{stroke:#b8c2cc;stroke-width:1}text.end{text-anchor:end}text.middle{"
    "text-anchor:middle}@media(prefers-color-scheme:dark){text{fill:#e6ebf0}.axis{stroke:#4a5866}"
    ".restart{stroke:#4fc3c3;fill:#4fc3c3}.dedup{stroke:#e09a68;fill:#e09a68}}"
)


def memory() -> str:
    """What a process has of its own by the number of rows, as an SVG; rows on a log scale."""
    found = {
        name: [
            (r["count"], r["anonymous MiB"])
            for r in _lines(name, by="trueline", loss="simpo", near=0.8)
            if r["count"] >= 10_000
        ]
        for name in MEMORY
    }
    most = 200 * math.ceil(max(mib for rows in found.values() for _, mib in rows) / 200)

    def x(count: float) -> float:
        return 70 + 170 * (math.log10(count) - 4)

    def y(mib: float) -> float:
        return 230 - 200 * mib / most

    parts = []
    for mib in range(0, most + 1, 200):
        parts.append(f'<path class="axis" d="M70 {y(mib):.0f}H430"/>')
        parts.append(f'<text class="end" x="62" y="{y(mib) + 4:.0f}">{mib} MiB</text>')
    parts += [
        f'<text class="middle" x="{x(count):.0f}" y="252">{count:,} rows</text>'
        for count in (10_000, 100_000, 1_000_000)
    ]
    for name, rows in found.items():
        dots = [(round(x(count), 1), round(y(mib), 1)) for count, mib in rows]
        way = "L".join(f"{right} {down}" for right, down in dots)
        parts.append(f'<path class="{name}" d="M{way}"/>')
        parts += [f'<circle class="{name}" cx="{a}" cy="{b}" r="4"/>' for a, b in dots]
        at = 60 + 20 * list(found).index(name)
        parts.append(f'<circle class="{name}" cx="478" cy="{at - 4}" r="4"/>')
        parts.append(f'<text x="490" y="{at}">{MEMORY[name]}</text>')
    title = "Memory of its own, by rows"
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 264" role="img">'
    return "\n".join([head, f"<title>{title}</title><style>{STYLE}</style>", *parts, "</svg>\n"])


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _noun(row: dict[str, Any]) -> str:
    """What a line counts."""
    return NOUNS[row["line"] if row.get("near", 1) else "copies"]


def _more(row: dict[str, Any]) -> str:
    """What else a line was measured with."""
    if row["line"] != "server":
        more = [row["tokenizer"]] if row["tokenizer"] else []
        if row["processes"] > 1:
            more.append(f"{row['processes']} processes, their start included")
        return "".join(f", {word}" for word in more)
    failed = f", {row['failed']:,} of which fail" if row["failed"] else ""
    return f", {row['concurrency']} under way{failed}"


CASE = {"count": 0, "by": "", "concurrency": 64, "slow": 0, "tokenizer": None, "processes": 1,
        "loss": "simpo", "near": 0.8}  # fmt: skip
"""What tells a line's cases apart; a line that was kept before it was asked has these."""


def _lines(name: str, **only: Any) -> list[dict[str, Any]]:
    """The last measurement of each case."""
    found = {}
    for row in _read("scale")["lines"]:
        case = {key: row.get(key, usual) for key, usual in CASE.items()}
        if row["line"] == name and only.items() <= case.items():
            found[json.dumps(case)] = row
    return sorted(found.values(), key=lambda row: (row["count"], row["concurrency"]))


def _last(name: str, **only: Any) -> dict[str, Any]:
    """Of those cases the one with most rows."""
    return _lines(name, **only)[-1]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cases() -> Iterator[tuple[tuple[bool, bool], dict[str, Any]]]:
    for way, results in sorted(_read(SMOLLM2).items()):
        yield (way.startswith("lora"), way.endswith("bf16")), results


def _spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    if len(values) == 1:
        return f"{low:.2f}"
    return f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f})"


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((KEPT / f"{name}.json").read_text("utf-8"))
    return found


def keep(files: Sequence[Path]) -> None:
    """Keep the numbers of these files, and nothing that names a place of one machine."""
    for file in files:
        if file.name == "scale.jsonl":
            lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            _write("scale", {"lines": [*_read("scale")["lines"], *lines]})
            continue
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
    for part, kept in (
        (real, "real"),
        (throughput, SMOLLM2),
        (faster, SMOLLM2),
        (by_rows, "scale"),
        (by_peer, "scale"),
        (bars, "scale"),
    ):
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
    PICTURE.write_text(memory(), "utf-8")
