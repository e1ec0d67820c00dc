"""One candidate pair a prompt, and which of all are taken: columns on disk, exact cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueline.curation.jobs.chunks import Chunk, Note, Notes
from trueline.curation.jobs.disk import Cut, Keys, Seen, digest, float_keys, random_key, smallest
from trueline.curation.near import flat
from trueline.curation.selection.embed import Array, Vectors
from trueline.curation.selection.similarity import STRATEGIES, Bools, cosines
from trueline.data.tally import size
from trueline.errors import UserError
from trueline.records import Example

COLUMNS = np.dtype(
    [
        ("cosine", "<f4"), ("draw", "<u4"), ("first", "<u2"), ("second", "<u2"),
        ("length", "u1"), ("usable", "?"), ("groups", "u1"),
    ]
)  # fmt: skip
BLOCK = 1 << 16
SELECTED, RANDOM, MATCHED, ALL = "selected", "random", "length-matched", "all"
GROUPS = {SELECTED: 1, RANDOM: 2, MATCHED: 4}


@dataclass(frozen=True, slots=True)
class Size:
    """How many candidates to take: one of a share, a count, or a limit on the cosine."""

    fraction: float | None = None
    count: int | None = None
    threshold: float | None = None


def candidate_notes(
    chunk: Chunk, vectors: Vectors, strategy: str, seed: int, max_cosine: float | None
) -> list[Note]:
    """For each example of the chunk its pair with the cosine, or why it has none."""
    found: list[Note] = [None] * len(chunk.examples)
    by_count: dict[int, list[int]] = {}
    arrays = vectors(chunk)
    for i, (example, array) in enumerate(zip(chunk.examples, arrays, strict=True)):
        reason = _unusable(example, array)
        if reason:
            found[i] = {"drop": reason}
        else:
            by_count.setdefault(len(array), []).append(i)
    for indices in by_count.values():
        examples = [chunk.examples[i] for i in indices]
        gram = cosines(np.stack([arrays[i] for i in indices]))
        eligible = np.stack([_eligible(example) for example in examples])
        if max_cosine is not None:
            eligible &= gram <= max_cosine
        draws = np.array([random_key(seed, e.prompt, e.completions) for e in examples])
        pairs = STRATEGIES[strategy](gram, eligible, draws)
        for row, (i, example) in enumerate(zip(indices, examples, strict=True)):
            first, second = (int(k) for k in pairs[row])
            if not eligible[row, first, second]:
                found[i] = {"drop": _why_not(example, strategy, eligible[row])}
                continue
            texts = [example.completions[k].content for k in (first, second)]
            found[i] = {
                "pair": [first, second],
                "cosine": float(gram[row, first, second]),
                # Not the draw that chose the pair: which prompts are sampled must not depend on it.
                "draw": random_key(seed, "prompts", example.prompt, texts),
                "length": _length_bin(abs(size(texts[0]) - size(texts[1]))),
                "key": digest(example.prompt, sorted(map(repr, texts))).hex(),
            }
    return found


def _unusable(example: Example, array: Array) -> str | None:
    if len(example.completions) < 2:
        return "fewer than two responses"
    if not np.isfinite(array).all() or not np.abs(array).max(axis=1).all():
        return "a response's vector is zero or not finite"
    return None


def _eligible(example: Example) -> Bools:
    """(n, n) which pairs may be chosen: the texts differ, and where there are labels, they tell
    the two apart."""
    n = len(example.completions)
    texts = _plain(example)
    allowed = np.array([[a != b for b in texts] for a in texts])
    scores = [c.score for c in example.completions]
    if any(score is not None for score in scores):
        return allowed & np.array([[None not in (a, b) and a != b for b in scores] for a in scores])
    if example.pairs:
        labeled = np.zeros((n, n), dtype=bool)
        for chosen, rejected in example.pairs:
            labeled[chosen, rejected] = labeled[rejected, chosen] = True
        return allowed & labeled
    return allowed


def _why_not(example: Example, strategy: str, eligible: Bools) -> str:
    if eligible.any():
        return f"the {strategy} pair has no label, or is a copy"
    if len(set(_plain(example))) < 2:
        return "all responses are the same"
    return "no pair left: equal scores, copies, or more alike than max_cosine"


def _plain(example: Example) -> list[str]:
    """The responses but for white space."""
    return [" ".join(flat(completion.content).split()) for completion in example.completions]


def _length_bin(difference: int) -> int:
    """Quarter octaves of a difference in characters: 0..1, ..., about 19% wide each."""
    return min(int(4 * np.log2(1 + difference)), 255)


class Candidates:
    """The candidates' numbers in a file of 15 bytes a prompt; nothing else grows with the data.

    Args:
        path: where the file goes.
        notes: each prompt's candidate or drop.
        total: how many notes.
        repeats: keep a pair that stands in the data before.
    """

    def __init__(self, path: Path, notes: Notes, total: int, *, repeats: bool) -> None:
        self.table: Any = np.lib.format.open_memmap(path, "w+", COLUMNS, (total,))
        seen = Seen()
        row = 0
        for chunk in notes.chunks():
            for note in chunk:
                if "drop" not in note and (repeats or seen.add(bytes.fromhex(note["key"]))):
                    cosine, draw, length = note["cosine"], note["draw"], note["length"]
                    self.table[row] = (cosine, draw, *note["pair"], length, True, 0)
                row += 1

    def blocks(self) -> Iterator[Any]:
        """The columns, some rows at a time."""
        for start in range(0, len(self.table), BLOCK):
            yield self.table[start : start + BLOCK]

    def __len__(self) -> int:
        return sum(int(block["usable"].sum()) for block in self.blocks())

    def select(self, strategy: str, how: Size) -> int:
        """Mark the selection; how many that is."""

        def keys(block: Any) -> Keys:
            if strategy in ("random", "centroid"):
                return np.asarray(block["draw"])
            return float_keys(block["cosine"], descending=strategy == "hard")

        if how.threshold is not None:
            limit = float_keys([how.threshold], descending=strategy == "hard")[0]
            self._mark(SELECTED, keys, lambda k: k <= limit)
            return self.count(SELECTED)
        total = len(self)
        k = total if how.fraction is None else int(how.fraction * total)
        k = k if how.count is None else how.count
        if not 0 < k <= total:
            raise UserError(f"cannot select {k} of {total} candidate pairs; ask for 1 to {total}")
        self._mark(SELECTED, keys, self._cut(keys, k).take)
        return k

    def controls(self) -> None:
        """Mark random samples of the selection's size: of all, and with its length differences."""
        k = self.count(SELECTED)
        self._mark(RANDOM, lambda block: block["draw"], self._cut(lambda b: b["draw"], k).take)
        wanted = np.zeros(256, dtype=np.int64)
        for block in self.blocks():
            chosen = block[self.within(block, SELECTED)]
            wanted += np.bincount(chosen["length"], minlength=256)
        for bin_, number in enumerate(wanted):
            if number:
                keep = _in_bin(bin_)
                cut = self._cut(lambda b: b["draw"], int(number), keep)
                self._mark(MATCHED, lambda block: block["draw"], cut.take, keep)

    def count(self, group: str) -> int:
        """How many are marked."""
        return sum(int(self.within(block, group).sum()) for block in self.blocks())

    @staticmethod
    def within(block: Any, group: str) -> Bools:
        """Which rows of a block are marked."""
        if group == ALL:
            return np.asarray(block["usable"])
        return np.asarray(block["groups"] & GROUPS[group] > 0)

    def _cut(
        self, keys: Callable[[Any], Keys], k: int, keep: Callable[[Any], Bools] | None = None
    ) -> Cut:
        def stream() -> Iterator[Keys]:
            for block in self.blocks():
                yield keys(block)[_usable(block, keep)]

        return smallest(stream, k)

    def _mark(
        self,
        group: str,
        keys: Callable[[Any], Keys],
        take: Callable[[Keys], Bools],
        keep: Callable[[Any], Bools] | None = None,
    ) -> None:
        for block in self.blocks():
            usable = _usable(block, keep)
            taken = np.flatnonzero(usable)[take(keys(block)[usable])]
            block["groups"][taken] |= GROUPS[group]


def _usable(block: Any, keep: Callable[[Any], Bools] | None) -> Bools:
    return np.asarray(block["usable"] if keep is None else block["usable"] & keep(block))


def _in_bin(bin_: int) -> Callable[[Any], Bools]:
    return lambda block: block["length"] == bin_


def groups_of(row: Any) -> list[str]:
    """The names of the groups that a row of the table is in."""
    return [name for name, bit in GROUPS.items() if row["groups"] & bit]
