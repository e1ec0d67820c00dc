"""How often Trueline's intervals hold the truth where items come in few groups.

    python studies/coverage.py            # writes results/coverage.json; some minutes of one core
    python studies/coverage.py 20         # one number of groups, the others as they are
    python studies/coverage.py --table    # the table of docs/statistics.md from it

Groups have rates of their own around the truth (a Beta, for pairs a Dirichlet distribution), so
that two items of a group correlate as said. Even groups hold five items each, uneven ones 1 to 10.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from trueline.stats import clustered_rate, paired_difference, rate

RESULT = Path(__file__).parent / "results" / "coverage.json"
RUNS, SEED = 1000, 20
GROUPS = (5, 10, 20, 40)
ALIKE = (0.0, 0.2, 0.5, 0.9)
SIZES = {"even": (5,), "uneven": (1, 2, 3, 5, 9, 10)}
RATES = (0.02, 0.1, 0.3, 0.5, 0.9)
CHANGES = ((0.1, 0.1), (0.3, 0.1), (0.5, 0.02), (0.05, 0.0), (0.02, 0.02))
"""Shares fixed and broken; the last two leave few changes to go by."""


def drawn(
    rng: np.random.Generator, chances: Sequence[float], alike: float, sizes: Sequence[int]
) -> tuple[np.ndarray, list[int]]:
    """Each item's kind, and its group; two items of a group are of one draw with chance alike."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    possible = np.array(chances) > 0
    own = np.tile(np.array(chances), (len(sizes), 1))
    if alike:
        weights = np.array(chances)[possible] * (1 - alike) / alike
        own[:, possible] = rng.dirichlet(weights, len(sizes))
    u = rng.random(len(labels))
    kinds = (u[:, None] > own.cumsum(1)[labels, :-1]).sum(1)
    return kinds, labels.tolist()


def covered(
    rng: np.random.Generator, chances: Sequence[float], alike: float, sizes: Sequence[int],
    truth: float, interval: Callable[[np.ndarray, list[int]], tuple[float, float]], runs: int,
) -> float:  # fmt: skip
    """The share of intervals that hold the truth."""
    hits = 0
    for _ in range(runs):
        low, high = interval(*drawn(rng, chances, alike, sizes))
        hits += low - 1e-12 <= truth <= high + 1e-12
    return hits / runs


def of_rate(kinds: np.ndarray, groups: list[int]) -> tuple[float, float]:
    """The interval that evaluations and comparisons give."""
    found = clustered_rate("x", (kinds == 0).tolist(), groups)
    return float(found.low or 0), float(found.high or 0)


def alone(kinds: np.ndarray, groups: list[int]) -> tuple[float, float]:
    """Wilson's interval, blind to groups, for comparison."""
    found = rate("x", (kinds == 0).tolist())
    return float(found.low or 0), float(found.high or 0)


def of_change(kinds: np.ndarray, groups: list[int]) -> tuple[float, float]:
    """The interval of a paired difference; kinds are fixed, broken, unchanged."""
    found = paired_difference((kinds == 0).tolist(), (kinds == 1).tolist(), groups=groups)
    return float(found.low or 0), float(found.high or 0)


def measure(count: int, runs: int) -> list[dict[str, object]]:
    """Every cell of one number of groups."""
    rng, rows = np.random.default_rng([SEED, count]), []
    for shape, pattern in SIZES.items():
        sizes = np.resize(pattern, count).tolist()
        for alike in ALIKE:
            where = {"groups": count, "sizes": shape, "alike": alike}
            for p in RATES:
                given = (rng, (p, 1 - p), alike, sizes, p)
                rows.append({**where, "rate": p, "coverage": covered(*given, of_rate, runs),
                             "wilson": covered(*given, alone, runs // 2)})  # fmt: skip
            for fixed, broken in CHANGES:
                chances = (fixed, broken, 1 - fixed - broken)
                found = covered(rng, chances, alike, sizes, broken - fixed, of_change, runs // 2)
                rows.append({**where, "fixed": fixed, "broken": broken, "coverage": found})
    return rows


def write(counts: Sequence[int]) -> None:
    """Measure these numbers of groups; others keep what they have."""
    rows = json.loads(RESULT.read_text("utf-8"))["rows"] if RESULT.is_file() else []
    for count in counts:
        rows = [row for row in rows if row["groups"] != count] + measure(count, RUNS)
    rows.sort(key=lambda row: row["groups"])
    facts = {"seed": SEED, "runs": RUNS, "runs_of_pairs": RUNS // 2, "nominal": 0.95}
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    head = json.dumps(facts)[1:-1]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(f'{{{head}, "rows": [\n  {lines}\n]}}\n', "utf-8")


def tables(result: dict[str, object]) -> str:
    """Lowest and highest coverage over sizes and likeness, for each number of groups."""
    rows = result["rows"]
    assert isinstance(rows, list)
    heads = [(f"rate {p:g}", lambda r, p=p: r.get("rate") == p) for p in RATES]
    heads += [(f"fixed {f:g}, broken {b:g}", lambda r, f=f, b=b: (r.get("fixed"), r.get("broken"))
               == (f, b)) for f, b in CHANGES]  # fmt: skip
    lines = ["| | " + " | ".join(f"{m} groups" for m in GROUPS) + " |",
             "|---|" + "---|" * len(GROUPS)]  # fmt: skip
    for head, holds in heads:
        cells = []
        for m in GROUPS:
            own = [r["coverage"] for r in rows if r["groups"] == m and holds(r)] or [math.nan]
            cells.append(f"{min(own):.3f} to {max(own):.3f}".replace("0.", "."))
        lines.append(f"| {head} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    words = sys.argv[1:]
    if words != ["--table"]:
        write([int(word) for word in words] or GROUPS)
    print(tables(json.loads(RESULT.read_text("utf-8"))), end="")
