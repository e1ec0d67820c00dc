"""How often the rule of `trueline reproduce` decides where there is nothing, and what it finds.

    python studies/nulls.py          # writes results/nulls.json; some minutes of one core
    python studies/nulls.py 2        # the third of its tables, the others as they are
    python studies/nulls.py planted  # what is found of planted effects

The claims' own judgments read invented runs: no model is trained. Under a null no arm differs from
another, and what a claim says of one arm alone is 0 on average; a seed's arms share its luck.
Claims of equality are true then. Claims of arithmetic have no part in it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from trueline.reproduce.claim import PAPERS, Claim, Results
from trueline.reproduce.outcomes import Outcome, corrected
from trueline.reproduce.study import all_claims

RESULT = Path(__file__).parent / "results" / "nulls.json"
FAMILIES, SEED, SHARED = 300, 21, 1.0
WORLDS: Mapping[str, Callable[[np.random.Generator], float]] = {
    "normal": lambda rng: float(rng.normal()),
    "heavy tails (t, 3 degrees)": lambda rng: float(rng.standard_t(3)),
    "skewed (exponential)": lambda rng: float(rng.exponential()) - 1,
}
NULLS = (
    (1, 5, "normal", 0.0),
    (1, 12, "normal", 0.0),
    (1, 12, "normal", 2.0),
    (1, 12, "heavy tails (t, 3 degrees)", 0.0),
    (1, 12, "skewed (exponential)", 0.0),
    (2, 8, "normal", 0.0),
    (2, 8, "normal", 2.0),
    (2, 8, "heavy tails (t, 3 degrees)", 0.0),
    (2, 8, "skewed (exponential)", 0.0),
    (3, 8, "normal", 0.0),
    (3, 8, "heavy tails (t, 3 degrees)", 0.0),
    (3, 8, "skewed (exponential)", 0.0),
)
"""Version, whose families they are; seeds, world, and how much a data set moves its arms by itself.
"""
PLANTED = "planted"

LOGGED = ("separation", "training seconds")
"""Values that are read as logarithms."""


class Luck(dict[str, float | None]):
    """A run's values, drawn when they are asked for: the seed's share, the data's, and its own."""

    def __init__(self, draw: Callable[[], float], shared: float) -> None:
        super().__init__()
        self.draw, self.shared = draw, shared

    def __missing__(self, name: str) -> float:
        number = self.shared + self.draw()
        self[name] = math.exp(number / 4) if name.startswith(LOGGED) else 0.02 * number
        if name.startswith("correct answers"):  # none of these models has collapsed
            self[name] = 0.8 + 0.02 * number
        return float(self[name] or 0.0)

    def get(self, name: str, default: float | None = None) -> float | None:  # type: ignore[override]
        return self[name]


def judged(
    claims: list[Claim], seeds: int, rng: np.random.Generator, *, world: str = "normal",
    confounded: float = 0.0, planted: Mapping[str, float] | None = None,
) -> list[Outcome]:  # fmt: skip
    """A paper's claims on invented runs.

    Args:
        confounded: how much the data set alone moves every value of a seed's arms.
        planted: by an arm's key, what is added to all of its values, in deviations of a run.
    """
    draw = lambda: WORLDS[world](rng)  # noqa: E731
    values: dict[str, dict[int, Luck]] = {}
    for seed in range(seeds):
        common = SHARED * draw()
        moved = {data: confounded * draw() for data in ("compliance_refusal", "preference")}
        for claim in claims:
            for arm in claim.arms:
                shift = moved.get(str(arm.options.get("data")), 0.0)
                shift += (planted or {}).get(arm.key, 0.0)
                values.setdefault(arm.key, {}).setdefault(seed, Luck(draw, common + shift))
    results = Results(range(seeds), values)  # type: ignore[arg-type]
    return corrected([Outcome(c, range(seeds), c.judge(results), {}) for c in claims])


def families(
    version: int, seeds: int, world: str, confounded: float, count: int
) -> dict[str, float]:
    """By paper, the share of a version's families with any verdict."""
    rng = np.random.default_rng([SEED, seeds, list(WORLDS).index(world), int(10 * confounded)])
    found = {}
    for paper in PAPERS:
        own = [c for c in all_claims() if c.family == (paper, version) and random_parts(c)]
        if not own:
            continue
        hits = sum(
            any(o.verdict != "undecided" for o in judged(own, seeds, rng, world=world,
                                                         confounded=confounded))
            for _ in range(count)
        )  # fmt: skip
        found[paper if version == 1 else f"{paper}, version {version}"] = hits / count
    return found


def random_parts(claim: Claim) -> bool:
    """Whether all of its parts are left to chance, and not all of them settled by the null."""
    settled = all(part.against for part in claim.parts)
    return not settled and not any(part.exact for part in claim.parts)


def write(places: Sequence[str]) -> None:
    """Measure these tables anew; the others keep what they have."""
    kept = json.loads(RESULT.read_text("utf-8"))["tables"] if RESULT.is_file() else {}
    for place in places:
        if place == PLANTED:
            kept[place] = {PLANTED: planted()}
            continue
        version, seeds, world, confounded = NULLS[int(place)]
        deciding = families(version, seeds, world, confounded, FAMILIES)
        kept[place] = {"seeds": seeds, "world": world, "confounded": confounded,
                       "deciding": deciding}  # fmt: skip
    facts = {"seed": SEED, "families": FAMILIES, "tables": dict(sorted(kept.items(), key=_place))}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _place(table: tuple[str, object]) -> tuple[bool, int]:
    name, _ = table
    return name == PLANTED, 0 if name == PLANTED else int(name)


def planted(count: int = 100, seeds: int = 12) -> list[dict[str, object]]:
    """How often effects of one size are found, and reversals of it, for two claims."""
    rows: list[dict[str, object]] = []
    for name in ("dissimilar-pairs-train-better", "chosen-falls-least"):
        claims = [c for c in all_claims() if c.family == _claim(name).family and random_parts(c)]
        for size in (-2.0, -1.0, 1.0, 2.0):
            rng = np.random.default_rng([SEED, int(10 * size) + 100])
            plan = {_claim(name).arms[0].key: size}
            words = [
                next(o.verdict for o in judged(claims, seeds, rng, planted=plan)
                     if o.claim.name == name)
                for _ in range(count)
            ]  # fmt: skip
            shares = {word: words.count(word) / count for word in sorted(set(words))}
            rows.append({"claim": name, "seeds": seeds, "size": size, "verdicts": shares})
    return rows


def _claim(name: str) -> Claim:
    return next(c for c in all_claims() if c.name == name)


if __name__ == "__main__":
    write(sys.argv[1:] or [*map(str, range(len(NULLS))), PLANTED])
