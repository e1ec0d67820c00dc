"""Versions of the registration: which seeds each judges, and where it and its results are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trueline.errors import UserError

STUDIES = Path(__file__).parents[3] / "studies"


@dataclass(frozen=True)
class Version:
    """A registration: its number, which seeds it judges, and why there is another one."""

    number: int
    seeds: range
    reason: str

    @property
    def file(self) -> str:
        """Its page, in :data:`STUDIES`."""
        return f"PREREGISTRATION{f'-{self.number}' if self.number > 1 else ''}.md"

    @property
    def lines(self) -> str:
        """Its kept results, in :data:`STUDIES`."""
        return f"results/judged-{self.number}.jsonl"


VERSIONS: Sequence[Version] = (
    Version(1, range(200, 212), "The first that was written before its runs."),
    Version(
        2,
        range(212, 220),
        "A wider world, of four kinds of harm with a hundred held-out things of each sort; a "
        "second size of base; comparisons at matched KL; and another defense against begun "
        "answers, since the first held in half of the worlds.",
    ),
    Version(
        3,
        range(220, 228),
        "Three claims of the abstracts that no version had: ranking accuracy beside win rate, what "
        "on-policy learning changes of it, and Diffusion-DPO's estimate where the likelihood is "
        "known. The twenty seeds kept for judging are used up, so it has eight others.",
    ),
)
"""A changed design is a new version with seeds of its own; the verdicts of all are shown."""
EARLY = range(200, 220)
"""Reserved before there was a version; the first two share them."""
RESERVED = range(200, 228)
"""Seeds that only judged runs may use."""
TUNING = 100


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse reserved seeds outside a judged run.

    Raises:
        UserError: one of them is reserved.
    """
    if any(seed in RESERVED for seed in seeds):
        raise UserError(
            f"seeds {RESERVED[0]} to {RESERVED[-1]} are for judged runs: use --judged, or others "
            f"(tuning has {TUNING} and up)"
        )


def of(numbers: Iterable[int]) -> list[Version]:
    """The versions with these numbers, each once."""
    wanted = set(numbers)
    return [version for version in VERSIONS if version.number in wanted]


def named(versions: Iterable[Version]) -> str:
    """``version 1``, ``versions 1 and 2`` and so on.

    Example:
        >>> named(VERSIONS)
        'versions 1, 2 and 3'
    """
    *rest, last = [str(version.number) for version in versions]
    return f"versions {', '.join(rest)} and {last}" if rest else f"version {last}"


def kept_options(versions: Iterable[Version]) -> str:
    """What `trueline reproduce --judged` is given to read their kept results."""
    return " ".join(f"--kept studies/{version.lines}" for version in versions)
