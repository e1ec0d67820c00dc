"""Repeated rows and prompts: exact, nearly the same, or also in data that must stay unseen."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from trueline.curation.jobs.disk import Seen, digest
from trueline.curation.jobs.job import Curated, Job, Progress
from trueline.curation.near import KINDS, Leakage, NearIndex, band_keys, flat
from trueline.data.load import Examples
from trueline.errors import UserError
from trueline.records import Example
from trueline.results import Finding
from trueline.stats.resampling import share

By: TypeAlias = Literal["row", "prompt"]


def dedup(
    source: Examples,
    output: str | Path,
    *,
    by: By = "row",
    near: float | None = None,
    leakage: Leakage | None = None,
    form: str = "example",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Curated | None:
    """Keep the first of every group of repeats.

    Args:
        source: any examples.
        output: the file to write.
        by: what must not repeat: a ``"row"`` (prompt, completions and what is said of them) or a
            ``"prompt"``.
        near: also drop what is this alike, by the Jaccard similarity of five-character runs.
        leakage: evaluation prompts; a row whose prompt is one of them is dropped, too.
        form, overwrite, progress: see :class:`Job`.

    Returns:
        What was made, on rank 0; None on other ranks.

    Raises:
        UserError: an unknown ``by``, or a similarity out of range.
    """
    if by not in get_args(By):
        raise UserError(f"by must be row or prompt, got {by!r}")
    options = {
        "by": by, "near": near, "form": form, "leaks": leakage.threshold if leakage else None,
    }  # fmt: skip
    job = Job("dedup", source, Path(output), options, form, overwrite, progress)
    bands = None
    if near is not None:
        index = NearIndex(near)
        bands = job.map(
            "signatures",
            lambda chunk: band_keys([_text(example, by) for example in chunk.examples], near),
            key=[by, near],
            size=1024,
        )
    leaks = None if leakage is None else leakage.notes(job)
    if not job.leader:
        return None
    exact, close = f"repeats an earlier {by}", f"nearly repeats an earlier {by}"

    def kept() -> Iterator[Example]:
        seen = Seen()
        stream = zip(
            job.examples("writing"), bands or repeat(None), leaks or repeat(None), strict=False
        )
        for number, (example, keys, leak) in enumerate(stream):
            if leak is not None:
                job.drop(example, leak)
                continue
            if not seen.add(_key(example, by)):
                job.drop(example, exact)
                continue
            if keys is not None:
                text = _text(example, by)
                if index.matches(text, keys):
                    job.drop(example, close)
                    continue
                index.add(number, text, keys)
            yield example

    rows = job.write(kept())
    total = source.report.examples
    dropped = {reason: drop.count for reason, drop in job.dropped.dropped.items()}
    reasons = [exact, *([close] if near is not None else []), *(KINDS if leakage else ())]
    metrics = [share(reason, dropped.get(reason, 0), total) for reason in reasons]
    summary = f"{rows:,} of {total:,} examples kept; {total - rows:,} dropped."
    return job.finish(Finding("dedup", summary, metrics), {"examples": total, "kept": rows})


def _key(example: Example, by: By) -> bytes:
    if by == "prompt":
        return digest(flat(example.prompt))
    return digest(example.prompt, example.completions, example.pairs, example.reference_prompt)


def _text(example: Example, by: By) -> str:
    """What is compared: the prompt, or all that a row says."""
    if by == "prompt":
        return flat(example.prompt)
    return "\n".join([flat(example.prompt), *(flat(c.content) for c in example.completions)])
