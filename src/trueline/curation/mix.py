"""Several sources mixed into one by weight, with a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from trueline.curation.jobs.job import Curated, Job, Progress
from trueline.data.load import Examples
from trueline.data.mapped import Exhausted, as_chat, check_weights, draw, one_layout
from trueline.errors import UserError
from trueline.records import Example
from trueline.results import Finding
from trueline.stats.resampling import share


def mix(
    sources: Sequence[Examples],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    exhausted: Exhausted = "stop",
    count: int | None = None,
    chat: bool = False,
    seed: int = 0,
    form: str = "example",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Curated | None:
    """Draw the next row from source i with probability proportional to its weight.

    Each source keeps its own order.

    Args:
        sources: two or more.
        output: the file to write.
        weights: one positive number a source; None for equal ones.
        exhausted: at the end of a source: ``"stop"`` (no row twice, the weights hold),
            ``"repeat"`` it until each source has been read to its end once, or ``"drop"`` it and
            go on with the others (each row once).
        count: stop after this many rows; with ``"repeat"`` go on until there are as many.
        chat: turn plain text into conversations, where sources differ in layout.
        seed: another seed, another order.
        form, overwrite, progress: see :class:`Job`.

    Returns:
        What was made, on rank 0; None on other ranks.

    Raises:
        UserError: fewer than two sources, weights that do not fit, layouts that differ.
    """
    if len(sources) < 2:
        raise UserError(f"mixing takes two sources or more, got {len(sources)}")
    weights = list(weights) if weights is not None else [1.0] * len(sources)
    check_weights(weights, len(sources))
    if exhausted not in get_args(Exhausted):
        raise UserError(f"exhausted must be stop, repeat or drop, got {exhausted!r}")
    if count is not None and count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    options = {
        "weights": weights, "exhausted": exhausted, "count": count, "chat": chat, "seed": seed,
        "form": form,
    }  # fmt: skip
    names = _names(sources)
    also = dict(zip(names[1:], sources[1:], strict=True))
    job = Job("mix", sources[0], Path(output), options, form, overwrite, progress, also)
    if not job.leader:
        return None
    drawn: Counter[str] = Counter()
    ends: Counter[str] = Counter()

    def rows() -> Iterator[Example]:
        stream = draw(dict(zip(names, sources, strict=True)), weights, exhausted, count, seed, ends)
        for number, (name, row) in enumerate(stream, start=1):
            drawn[name] += 1
            if progress is not None:
                progress("mixing", number)
            yield as_chat(row) if chat else row

    total = job.write(one_layout(rows()))
    wanted = sum(weights)
    metrics = [share(f"share of {name}", drawn[name], total) for name in names]
    parts = ", ".join(
        f"{drawn[name]:,} of {name} (weight {weight / wanted:.0%})"
        for name, weight in zip(names, weights, strict=True)
    )
    counts = {"rows": total, **{f"rows of {name}": drawn[name] for name in names}}
    counts |= {f"times {name} was read to its end": ends[name] for name in names}
    return job.finish(Finding("mix", f"{total:,} rows: {parts}.", metrics), counts)


def _names(sources: Sequence[Examples]) -> list[str]:
    """A name for each source: its path, numbered where it comes twice."""
    names: list[str] = []
    for number, source in enumerate(sources, start=1):
        name = source.source or f"source {number}"
        names.append(name if name not in names else f"{name} ({number})")
    return names
