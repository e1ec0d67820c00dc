"""Which rows of two runs belong together, and which have no counterpart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from trueline.evaluation.harness.log import Judgement, Key

NAMED = 5
"""So many unpaired items are named; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The rows that pair up, and counts of those that do not.

    Args:
        paired: rows in both runs.
        scored: those of them that both judges told of; the others are ``unscored``.
        only_before, only_after: rows of one run alone.
        other_prompt: pairs whose prompts differ under one id.
        groups: near-duplicate groups among the pairs.
        named: the first few unpaired items, as ``benchmark / id / attack``.
        rows: the pairs themselves; not part of the JSON.
    """

    paired: int
    scored: int
    only_before: int
    only_after: int
    other_prompt: int
    groups: int
    named: tuple[str, ...] = ()
    rows: tuple[tuple[Judgement, Judgement], ...] = field(default=(), repr=False, compare=False)

    @property
    def complete(self) -> list[tuple[Judgement, Judgement]]:
        """The pairs that both judges told of."""
        return [(a, b) for a, b in self.rows if _scored(a) and _scored(b)]

    @property
    def unscored(self) -> int:
        """Pairs without a verdict in one run or both."""
        return self.paired - self.scored

    def to_dict(self) -> dict[str, object]:
        """The counts, JSON-ready."""
        names = ("paired", "scored", "unscored", "only_before", "only_after", "other_prompt")
        return {**{name: getattr(self, name) for name in names}, "groups": self.groups,
                "unpaired_examples": list(self.named)}  # fmt: skip

    def notes(self, run: str, what: str) -> list[str]:
        """What a reader must know of the pairs: sentences, none where all is well."""
        said = []
        if self.only_before or self.only_after:
            examples = f" ({', '.join(self.named)}, ...)" if self.named else ""
            said.append(
                f"{run}, {what}: {self.only_before} items of the baseline and {self.only_after} of "
                f"this run have no counterpart and are in no difference{examples}."
            )
        if self.unscored:
            said.append(f"{run}, {what}: {self.unscored} pairs lack a verdict and are left out.")
        if self.other_prompt:
            said.append(
                f"{run}, {what}: {self.other_prompt} pairs have one id but different prompts; "
                "check that both runs used the same benchmark file."
            )
        if self.scored and self.groups < 20:
            said.append(
                f"{run}, {what}: only {self.groups} groups of prompts; intervals from so few are "
                "rough."
            )
        return said


def pair(before: Iterable[Judgement], after: Iterable[Judgement]) -> Pairing:
    """Pair rows by benchmark, prompt id, attack, judge and measure.

    Example:
        >>> a = Judgement(id="1", benchmark="b", attack="direct", judge="j", prompt="p",
        ...               answer="a", success=True, harmful=True)
        >>> found = pair([a], [])
        >>> found.paired, found.only_before, found.named
        (0, 1, ('b / 1 / direct',))
    """
    first: dict[Key, Judgement] = {row.key: row for row in before}
    second: dict[Key, Judgement] = {row.key: row for row in after}
    rows = tuple((first[key], second[key]) for key in first if key in second)
    alone = [key for key in first if key not in second], [key for key in second if key not in first]
    named = [" / ".join(key[:3]) for key in (*alone[0], *alone[1])]
    return Pairing(
        paired=len(rows),
        scored=sum(_scored(a) and _scored(b) for a, b in rows),
        only_before=len(alone[0]),
        only_after=len(alone[1]),
        other_prompt=sum(a.prompt != b.prompt for a, b in rows),
        groups=len({a.cluster for a, _ in rows}),
        named=tuple(named[:NAMED]),
        rows=rows,
    )


def _scored(row: Judgement) -> bool:
    return row.success is not None or row.score is not None
