"""Train and test files in which no prompt, and none nearly like it, is on two sides."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trueline.curation.jobs.job import Curated, Job, Progress
from trueline.curation.near import NearIndex, band_keys, flat
from trueline.data.load import Examples
from trueline.data.mapped import position
from trueline.data.readers import READERS
from trueline.errors import UserError
from trueline.records import Example
from trueline.results import Finding
from trueline.stats.resampling import share


def split(
    source: Examples,
    output: str | Path,
    *,
    test_size: float = 0.1,
    validation_size: float = 0.0,
    near: float | None = None,
    suffix: str = ".jsonl",
    seed: int = 0,
    form: str = "example",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Curated | None:
    """Write ``train``, ``test`` and, where asked for, ``validation`` into a folder.

    A prompt falls to a side by a hash of itself and the seed, whatever else is in the data: adding
    rows moves none of the others. With ``near``, prompts that are alike (and those alike to them,
    and so on) form a group, which falls to the side of its first prompt.

    Args:
        source: any examples.
        output: the folder; ``load_examples(folder, split="test")`` reads a side.
        test_size, validation_size: the expected shares of prompts (or groups).
        near: the similarity from which on prompts belong to one group; None for equal ones alone.
        suffix: the files' ending.
        seed: another seed, another split.
        form, overwrite, progress: see :class:`Job`.

    Returns:
        What was made, on rank 0; None on other ranks.

    Raises:
        UserError: shares that leave no room, an unknown ending, or a side that stays empty.
    """
    for name, size in (("test_size", test_size), ("validation_size", validation_size)):
        if not 0 <= size < 1:
            raise UserError(f"{name} must lie in [0, 1), got {size}")
    if not 0 < test_size + validation_size < 1:
        raise UserError("test_size and validation_size together must lie between 0 and 1")
    if suffix not in READERS:
        raise UserError(f"suffix must be one of {', '.join(READERS)}, got {suffix!r}")
    options = {
        "test_size": test_size, "validation_size": validation_size, "near": near, "seed": seed,
        "suffix": suffix, "form": form,
    }  # fmt: skip
    job = Job("split", source, Path(output), options, form, overwrite, progress)
    sides = {"test": test_size, "validation": validation_size}
    sides["train"] = 1 - test_size - validation_size
    sides = {side: size for side, size in sides.items() if size}
    paths = {side: job.output / f"{side}{suffix}" for side in sides}
    job.check(*paths.values())
    groups = None if near is None else Groups(job, near, seed)
    if not job.leader:
        return None
    safety: Counter[tuple[str, str]] = Counter()

    def rows(side: str) -> Iterator[Example]:
        for number, example in enumerate(job.examples(f"writing {side}")):
            where = position(example.prompt, seed) if groups is None else groups.place(number)
            if _side(where, sides) == side:
                safety[side, example.safety or "unlabeled"] += 1
                yield example

    counts = {side: job.write(rows(side), path) for side, path in paths.items()}
    total = sum(counts.values())
    metrics = [share(side, count, total) for side, count in counts.items()]
    if any(label != "unlabeled" for _, label in safety):
        for side in counts:
            labeled = safety[side, "harmful"] + safety[side, "safe"]
            metrics.append(share(f"harmful, {side}", safety[side, "harmful"], labeled))
    parts = ", ".join(f"{count:,} {side}" for side, count in counts.items())
    if groups is not None:
        counts["prompts joined to an earlier one"] = groups.joined
    return job.finish(Finding("split", f"{total:,} examples: {parts}.", metrics), counts)


def _side(where: float, sides: dict[str, float]) -> str:
    """The side whose stretch of [0, 1) holds a prompt's position."""
    end = 0.0
    for side, size in sides.items():
        end += size
        if where < end:
            return side
    return next(reversed(sides))


class Groups:
    """Near-duplicate prompts joined into groups; 16 bytes an example stay in memory."""

    def __init__(self, job: Job, threshold: float, seed: int) -> None:
        bands = job.map(
            "signatures",
            lambda chunk: band_keys([flat(e.prompt) for e in chunk.examples], threshold),
            key=threshold,
            size=1024,
        )
        self.parent, self.places = array("q"), array("d")
        self.joined = 0
        if not job.leader:
            return
        index = NearIndex(threshold)
        for number, (example, keys) in enumerate(zip(job.examples("grouping"), bands, strict=True)):
            text = flat(example.prompt)
            self.parent.append(number)
            self.places.append(position(example.prompt, seed))
            matches = index.matches(text, keys)
            for match in matches:
                self._join(match.number, number)
            if not (matches and matches[0].exact):
                index.add(number, text, keys)
            self.joined += bool(matches)

    def place(self, number: int) -> float:
        """The position of the group's first prompt."""
        return self.places[self._find(number)]

    def _find(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def _join(self, a: int, b: int) -> None:
        """The earlier head is the head of both."""
        first, second = sorted((self._find(a), self._find(b)))
        self.parent[second] = first
