"""Pairs by difficulty: which the reference ranks wrong, by how much, and which stay wrong.

    c = l_ref(rejected) - l_ref(chosen)

c > 0 means that the reference holds the rejected completion more likely. DPO ranks the pair right
exactly where its margin over the reference reaches c, and even the ideal optimum at beta does not
where c >= logit(alpha) / beta, alpha being the share of raters who prefer the chosen completion.

Source: "Preference Learning Algorithms Do Not Learn Preference Rankings", arXiv 2405.19534.
"""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from trueline.curation.jobs.chunks import Chunk, Note, beside, sha256
from trueline.curation.jobs.job import Curated, Job, Progress
from trueline.data.load import Examples
from trueline.diagnostics.ranking import difficulty_of
from trueline.diagnostics.ranking.measure import histogram
from trueline.diagnostics.ranking.theory import dpo_threshold, idealized
from trueline.errors import UserError
from trueline.records import Example
from trueline.results import Finding, Metric
from trueline.stats.resampling import share

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Order: TypeAlias = Literal["data", "easy-first", "hard-first"]

HELD = 1 << 16  # examples held at a time while they are put in order
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Keep:
    """Which pairs stay: those between two quantiles of c, both included.

    Args:
        low, high: quantiles in [0, 1]; 0 is the easiest pair, 1 the hardest.
        flippable: only pairs that DPO's ideal optimum ranks right at every beta asked about.
    """

    low: float = 0.0
    high: float = 1.0
    flippable: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise UserError(
                f"quantiles must be 0 <= low < high <= 1, got {self.low} and {self.high}"
            )


def difficulty(
    source: Examples,
    output: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    keep: Keep | None = None,
    order: Order = "data",
    stages: int = 0,
    betas: Sequence[float] = (0.1,),
    alpha: float = 1.0,
    max_length: int | None = 1024,
    details: bool = False,
    form: str = "preference",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Curated | None:
    """Write the pairs with their difficulty known: filtered, ordered, one example a pair.

    Args:
        source: examples with preference pairs.
        output: the file to write.
        model: the reference, or the model that training starts from.
        tokenizer: its tokenizer.
        keep: which pairs stay; all unless said.
        order: as in the data, or a curriculum. A trainer that shuffles, such as Trueline's, undoes
            it; train on ``stages`` in turn instead.
        stages: write also ``NAME.stage1``, ``NAME.stage2``, ...: equal shares of the kept pairs by
            difficulty, the easiest first. 0 writes none.
        betas: for each, which pairs DPO cannot flip.
        alpha: share of raters who prefer the chosen completion; 1 is unanimous, odds of 1000.
        max_length: tokens of prompt and completion, as in training.
        details: write also ``NAME.difficulty.tsv`` with one line a pair: id, c, whether it was
            kept, and for each beta the DPO loss that ranks it right and whether even the ideal
            optimum does not.
        form, overwrite, progress: see :class:`Job`.

    Returns:
        What was made, on rank 0; None on other ranks.

    Raises:
        UserError: no pair in the data, or an option out of range.
    """
    from trueline.models.fingerprint import fingerprint

    keep = keep or Keep()
    if order not in ("data", "easy-first", "hard-first"):
        raise UserError(f"order must be data, easy-first or hard-first, got {order!r}")
    if not betas:
        raise UserError("betas is empty; give at least one, such as 0.1")
    if stages == 1 or stages < 0:
        raise UserError(f"a curriculum has two stages or more (0 for none), got {stages}")
    for beta in betas:
        idealized([0.0], alpha, beta)
    options = {
        "keep": asdict(keep), "order": order, "stages": stages, "betas": list(betas),
        "alpha": alpha, "max_length": max_length, "form": form,
        "model": fingerprint(model, str(model.dtype), adapters=True),
    }  # fmt: skip
    job = Job("difficulty", source, Path(output), options, form, overwrite, progress)
    paths = [beside(job.output, f"stage{number + 1}") for number in range(stages)]
    job.check(*paths)
    listing = job.output.with_name(f"{job.output.name.partition('.')[0]}.difficulty.tsv")
    if details and listing.exists() and not overwrite:
        raise UserError(f"{listing} exists; choose another name or overwrite it (--overwrite)")

    def measure(chunk: Chunk) -> list[Note]:
        paired = [i for i, example in enumerate(chunk.examples) if example.pairs]
        values: list[Note] = [[] for _ in chunk.examples]
        if paired:
            kept = [chunk.examples[i] for i in paired]
            found = difficulty_of(model, tokenizer, kept, max_length=max_length)
            for value, example in zip(found.value.tolist(), found.example.tolist(), strict=True):
                values[paired[example]].append(value)
        return values

    notes = job.map("reference log-probs", measure, key=[options["model"], max_length], size=64)
    if not job.leader:
        return None
    c = np.frombuffer(array("d", (value for values in notes for value in values)))
    if not len(c):
        raise UserError(f"{source.source or 'the data'}: no preference pair to measure")
    cannot = {beta: ~idealized(c, alpha, beta) for beta in betas}
    reasons = _reasons(c, keep, cannot)
    stays = np.flatnonzero(reasons == 0)
    easiest = stays[np.argsort(c[stays], kind="stable")]
    orders = {"data": stays, "easy-first": easiest, "hard-first": easiest[::-1]}
    if stages > len(stays):
        raise UserError(f"cannot cut {len(stays)} pairs into {stages} stages")
    counts = {"pairs": len(c), "kept": job.write(_rows(job, orders[order], reasons))}
    for number, part in enumerate(np.array_split(easiest, stages) if stages else []):
        counts[f"stage {number + 1}"] = job.write(_rows(job, np.sort(part)), paths[number])
    if details:
        _write_details(listing, job, c, reasons == 0, cannot)
    return job.finish(_finding(c, cannot, counts["kept"], order), counts)


DROPPED = ("", "outside the quantiles kept", "cannot be flipped at a beta asked about")


def _reasons(c: Floats, keep: Keep, cannot: Mapping[float, Flags]) -> np.ndarray[Any, Any]:
    """(P,) why each pair is left out, as an index into ``DROPPED``; 0 keeps it."""
    low, high = np.quantile(c, [keep.low, keep.high])
    reasons = np.where((c >= low) & (c <= high), 0, 1)
    if keep.flippable:
        reasons[(reasons == 0) & np.any(list(cannot.values()), axis=0)] = 2
    return reasons


def _rows(
    job: Job, order: np.ndarray[Any, Any], reasons: np.ndarray[Any, Any] | None = None
) -> Iterator[Example]:
    """The pairs at these places, one example each, in this order.

    Pairs in the data's own order stream by. For another order each pass over the source collects
    the next ``HELD`` examples, so memory does not grow with the data.
    """
    if np.all(np.diff(order) > 0):
        places = iter(order.tolist())
        following = next(places, None)
        for place, example in enumerate(_pairs(job)):
            _count(job, example, place, reasons)
            if place == following:
                following = next(places, None)
                yield example
        return
    for start in range(0, len(order), HELD):
        wanted = {place: i for i, place in enumerate(order[start : start + HELD].tolist())}
        held: dict[int, Example] = {}
        for place, example in enumerate(_pairs(job)):
            if start == 0:
                _count(job, example, place, reasons)
            if place in wanted:
                held[wanted[place]] = example
        yield from (held[i] for i in range(len(wanted)))


def _count(job: Job, example: Example, place: int, reasons: np.ndarray[Any, Any] | None) -> None:
    if reasons is not None and reasons[place]:
        job.drop(example, DROPPED[reasons[place]])


def _pairs(job: Job) -> Iterator[Example]:
    """Every pair of the source as an example of its own."""
    for example in job.examples("writing"):
        for chosen, rejected in example.pairs:
            both = (example.completions[chosen], example.completions[rejected])
            yield replace(example, completions=both, pairs=((0, 1),))


def _write_details(
    path: Path, job: Job, c: Floats, kept: Flags, cannot: Mapping[float, Flags]
) -> None:
    """One line a pair; the file appears whole."""
    part = job.work / path.name
    columns: dict[str, Any] = {"c": c, "kept": kept}
    for beta, flags in cannot.items():
        columns[f"loss needed at beta {beta:g}"] = dpo_threshold(c, beta)
        columns[f"stuck at beta {beta:g}"] = flags
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["id", *columns])
        for place, example in enumerate(_pairs(job)):
            values = (column[place].item() for column in columns.values())
            writer.writerow([example.id, *(int(v) if isinstance(v, bool) else v for v in values)])
    os.replace(part, path)
    job.written[path.name] = {"rows": len(c), "sha256": sha256(path)}


def _finding(c: Floats, cannot: Mapping[float, Flags], kept: int, order: Order) -> Finding:
    wrong = share("reference ranks wrong", int((c > 0).sum()), len(c))
    stuck = [
        share(f"DPO cannot flip at beta {beta:g}", int(flags.sum()), len(c))
        for beta, flags in cannot.items()
    ]
    quantiles = [
        Metric(f"c, quantile {q:g}", float(np.quantile(c, q)), n=len(c), unit="nats")
        for q in QUANTILES
    ]
    summary = (
        f"{kept:,} of {len(c):,} pairs kept. The reference ranks {wrong} of all wrong; "
        + "; ".join(f"{metric.name}: {metric}" for metric in stuck)
        + "."
    )
    advice = ""
    if order != "data":
        advice = (
            "The order is the file's. A trainer that shuffles, such as Trueline's, does not keep "
            "it; train on stages in turn."
        )
    return Finding("difficulty", summary, [wrong, *stuck, *quantiles], advice, {"c": histogram(c)})
