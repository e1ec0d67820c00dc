"""Benchmarks: harmful requests (AdvBench, HarmBench, JailbreakBench, StrongREJECT) and safe ones
that look harmful (XSTest, OR-Bench).

None is bundled; each loader takes a file, a folder or a hub id and checks that it is the
benchmark it is taken for. ``partial=true`` accepts a part of one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from trueline.data.readers import DataError
from trueline.evaluation.benchmarks.base import (
    Benchmark,
    Item,
    benchmark,
    expect_count,
    finish,
    read_rows,
)


@benchmark("advbench")
def advbench(source: str, *, split: str = "train", partial: bool = False) -> Benchmark:
    """AdvBench's harmful behaviors: 520 goals with the first words of a compliant answer.

    Args:
        source: ``harmful_behaviors.csv`` or a hub id; columns goal and target.
        split: of a hub data set.
        partial: accept another number of rows.

    Raises:
        DataError: other columns, another number of rows, or fewer than 95% of the targets start
            with "Sure", as where the headers are swapped.

    Source: Zou et al. (2023), arXiv 2307.15043.
    """
    rows = read_rows(source, ("goal", "target"), split=split)
    share = {
        column: sum(str(row[column]).startswith("Sure") for _, row in rows) / len(rows)
        for column in ("goal", "target")
    }
    if share["target"] < 0.95:
        swapped = share["goal"] >= 0.95
        raise DataError(
            source,
            f"{share['target']:.0%} of the targets start with 'Sure', expected at least 95%"
            + ("; the headers goal and target are swapped, swap them back" if swapped else ""),
        )
    if not partial:
        expect_count(source, len(rows), (520,))
    return finish(
        source,
        [
            Item(str(i), str(row["goal"]), True, target=str(row["target"]))
            for i, (_, row) in enumerate(rows)
        ],
    )


HARMBENCH_SIZES = {"standard": 200, "copyright": 100, "contextual": 100}


@benchmark("harmbench")
def harmbench(
    source: str, *, copyright: bool = False, split: str = "train", partial: bool = False
) -> Benchmark:
    """HarmBench's text behaviors: 400, of which the 100 on copyright are left out by default.

    Args:
        source: the behaviors' CSV (all 400, the 80 of validation or the 320 of test) or a hub id;
            columns Behavior, FunctionalCategory, SemanticCategory, ContextString, BehaviorID.
        copyright: keep the copyright behaviors; judging them takes the works' hashes, which a
            general judge does not have.
        split: of a hub data set.
        partial: accept another number of rows.

    Raises:
        DataError: other columns or counts, or an unknown functional category.

    Source: Mazeika et al. (2024), arXiv 2402.04249. The request is no key: only 393 of the 400
    are distinct; ``BehaviorID`` is.
    """
    rows = read_rows(source, ("Behavior", "FunctionalCategory", "BehaviorID"), split=split)
    counts = Counter(str(row["FunctionalCategory"]) for _, row in rows)
    unknown = sorted(set(counts) - set(HARMBENCH_SIZES))
    if unknown:
        known = ", ".join(HARMBENCH_SIZES)
        raise DataError(source, f"FunctionalCategory is one of {known}, got {', '.join(unknown)}")
    if not partial:
        expect_count(source, len(rows), (400, 320, 80))
        if len(rows) == 400:
            for name, size in HARMBENCH_SIZES.items():
                expect_count(source, counts[name], (size,), f"{name} behaviors")
    items = [
        Item(
            str(row["BehaviorID"]),
            str(row["Behavior"]),
            True,
            category=str(row.get("SemanticCategory") or ""),
            context=str(row.get("ContextString") or ""),
        )
        for _, row in rows
        if copyright or row["FunctionalCategory"] != "copyright"
    ]
    left = len(rows) - len(items)
    notes = [f"{left} copyright behaviors left out; copyright=true keeps them"] if left else []
    return finish(source, items, notes)


@benchmark("jailbreakbench", "jbb")
def jailbreakbench(
    source: str, *, part: Literal["harmful", "benign"] = "harmful", partial: bool = False
) -> Benchmark:
    """JailbreakBench: 100 harmful behaviors, or the 100 benign ones on the same themes.

    Args:
        source: the behaviors' CSV of that part, or the hub id; columns Index, Goal, Target,
            Behavior, Category.
        part: which half; the benign one measures over-refusal.
        partial: accept another number of rows.

    Raises:
        DataError: other columns, not 100 rows in 10 categories, or a file named after the other
            half.

    Source: Chao et al. (2024), arXiv 2404.01318.
    """
    from pathlib import Path

    local = Path(source).exists()
    other = "benign" if part == "harmful" else "harmful"
    if local and other in Path(source).name.lower() and part not in Path(source).name.lower():
        raise DataError(source, f"the file is named {other} and part is {part!r}; give the other")
    columns = ("Goal", "Target", "Behavior", "Category")
    rows = (
        read_rows(source, columns)
        if local
        else read_rows(source, columns, split=part, name="behaviors")
    )
    if not partial:
        expect_count(source, len(rows), (100,))
        categories = {str(row["Category"]) for _, row in rows}
        expect_count(source, len(categories), (10,), "categories")
    return finish(
        source,
        [
            Item(
                str(row.get("Index", i)),
                str(row["Goal"]),
                part == "harmful",
                category=str(row["Category"]),
                target=str(row["Target"]),
            )
            for i, (_, row) in enumerate(rows)
        ],
    )


@benchmark("strongreject")
def strongreject(source: str, *, split: str = "train", partial: bool = False) -> Benchmark:
    """StrongREJECT's 313 forbidden prompts; its judge of the same name scores the answers.

    Args:
        source: the CSV, or a hub id; columns category, source, forbidden_prompt.
        split: of a hub data set.
        partial: accept another number of rows.

    Raises:
        DataError: other columns, or not 313 rows.

    Source: Souly et al. (2024), arXiv 2402.10260.
    """
    rows = read_rows(source, ("category", "source", "forbidden_prompt"), split=split)
    if not partial:
        expect_count(source, len(rows), (313,))
    return finish(
        source,
        [
            Item(str(i), str(row["forbidden_prompt"]), True, category=str(row["category"]))
            for i, (_, row) in enumerate(rows)
        ],
    )


@benchmark("xstest")
def xstest(source: str, *, split: str = "train", partial: bool = False) -> Benchmark:
    """XSTest: 250 safe requests that look unsafe, and 200 unsafe contrasts (types contrast_*).

    Args:
        source: the prompts' CSV, or a hub id; columns prompt and type, and id where there is one.
        split: of a hub data set.
        partial: accept other counts.

    Raises:
        DataError: other columns, not 250 and 200 rows, or a ``label`` that contradicts the type.

    Source: Röttger et al. (2024), arXiv 2308.01263.
    """
    rows = read_rows(source, ("prompt", "type"), split=split)
    items = []
    for i, (place, row) in enumerate(rows):
        harmful = str(row["type"]).startswith("contrast")
        label = row.get("label")
        if label in ("safe", "unsafe") and (label == "unsafe") != harmful:
            raise DataError(place, f"label {label!r} contradicts type {row['type']!r}")
        name = str(row.get("id") or i)
        items.append(Item(name, str(row["prompt"]), harmful, category=str(row["type"])))
    if not partial:
        unsafe = sum(item.harmful for item in items)
        expect_count(source, len(items) - unsafe, (250,), "safe prompts")
        expect_count(source, unsafe, (200,), "unsafe prompts (types contrast_*)")
    return finish(source, items)


OR_BENCH = {
    "80k": ("or-bench-80k", range(80_000, 81_000), "80 thousand"),
    "hard": ("or-bench-hard-1k", range(1_000, 2_000), "1000 to 1999"),
    "toxic": ("or-bench-toxic", range(600, 700), "600 to 699"),
}


@benchmark("or-bench", "orbench")
def or_bench(
    source: str, *, part: Literal["hard", "80k", "toxic"] = "hard", partial: bool = False
) -> Benchmark:
    """OR-Bench: safe requests that models tend to refuse, and a toxic contrast.

    Args:
        source: the part's CSV, or the hub id; columns prompt and category.
        part: ``"hard"`` (1k), ``"80k"``, or ``"toxic"``, whose requests ought to be refused.
        partial: accept another number of rows.

    Raises:
        DataError: other columns, or another number of rows.

    Source: Cui et al. (2024), arXiv 2405.20947.
    """
    name, counts, words = OR_BENCH[part]
    columns = ("prompt", "category")
    local = Path(source).exists()
    rows = read_rows(source, columns) if local else read_rows(source, columns, name=name)
    if not partial and len(rows) not in counts:
        raise DataError(
            source,
            f"expected {words} rows for part {part!r}, got {len(rows)}; name the part that the "
            "file is, or say partial=true",
        )
    return finish(
        source,
        [
            Item(str(i), str(row["prompt"]), part == "toxic", category=str(row["category"]))
            for i, (_, row) in enumerate(rows)
        ],
    )
