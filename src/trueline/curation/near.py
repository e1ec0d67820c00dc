"""Texts that are nearly the same: MinHash proposes, the exact Jaccard similarity decides.

    J(a, b) = |A & B| / |A | B|,   A, B the sets of all runs of five characters (lower case, white
                                   space collapsed)

MinHash signatures are cut into bands; texts that share a band are candidates. Bands are chosen so
that a pair at exactly the threshold is missed with a probability below 1%; what is proposed wrongly
is found out, because shingles are compared in full. The index is on disk.

Source: Broder (1997), "On the resemblance and containment of documents"; datasketch's MinHash.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from trueline.curation.jobs.disk import connect, digest
from trueline.errors import UserError

Shingles: TypeAlias = np.ndarray[Any, np.dtype[np.uint32]]

RUN = 5  # characters of a shingle
PERMUTATIONS = 128
MISS = 0.01


class Match(NamedTuple):
    """A text of the index: its number, and how alike it is; 1 may still be another wording of
    white space or case unless ``exact``."""

    number: int
    similarity: float
    exact: bool


@lru_cache(maxsize=8)
def shingles(text: str) -> Shingles:
    """The sorted distinct 32-bit hashes of the text's runs of five characters.

    Example:
        >>> len(shingles("abcdefg")), len(shingles("  ABcdefg ")), len(shingles("ab"))
        (3, 3, 1)
    """
    normal = " ".join(text.lower().split())
    points = np.frombuffer(normal.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    if len(points) < RUN:
        points = np.pad(points, (0, RUN - len(points) if len(points) else 0))
    if not len(points):
        return np.zeros(0, dtype=np.uint32)
    wide = points.astype(np.uint64)
    count = len(wide) - RUN + 1
    mixed = _mixed([wide[start : start + count] for start in range(RUN)])
    found: Shingles = np.unique((mixed >> np.uint64(32)).astype(np.uint32))
    return found


def _mixed(columns: Iterable[Any]) -> Any:
    """Columns of 64-bit numbers hashed together, row by row."""
    mixed = np.uint64(0)
    for column in columns:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def jaccard(a: Shingles, b: Shingles) -> float:
    """|A & B| / |A | B|, 0 where both are empty.

    Example:
        >>> jaccard(shingles("abcdef"), shingles("abcdeg"))  # {abcde, bcdef}, {abcde, bcdeg}
        0.3333333333333333
    """
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 0.0


def banding(threshold: float) -> tuple[int, int]:
    """(bands, rows of each): the widest bands that miss a pair at the threshold in under 1%.

        P(missed) = (1 - J^rows)^bands

    Example:
        >>> banding(0.8)
        (21, 6)
    """
    if not 0.3 <= threshold <= 1:
        raise UserError(f"near-duplicates need a similarity of 0.3 to 1, got {threshold}")
    rows = 1
    while rows < PERMUTATIONS:
        wider = rows + 1
        if (1 - threshold**wider) ** (PERMUTATIONS // wider) > MISS:
            break
        rows = wider
    return PERMUTATIONS // rows, rows


def band_keys(texts: Sequence[str], threshold: float) -> list[list[int]]:
    """Each text's bands as 63-bit numbers; texts without a shingle have none."""
    from datasketch import MinHash

    bands, rows = banding(threshold)
    sets = [shingles(text) for text in texts]
    signatures = MinHash.bulk(
        [one.tolist() for one in sets], num_perm=PERMUTATIONS, seed=1, hashfunc=int
    )
    values = np.array([signature.hashvalues[: bands * rows] for signature in signatures])
    numbers = np.broadcast_to(np.arange(bands, dtype=np.uint64), (len(sets), bands))
    columns = values.astype(np.uint64).reshape(len(sets), bands, rows).transpose(2, 0, 1)
    keys = (_mixed([numbers, *columns]) >> np.uint64(1)).tolist()
    return [own if len(one) else [] for one, own in zip(sets, keys, strict=True)]


class NearIndex:
    """Texts on disk, found again by those that equal or nearly equal them.

    Args:
        threshold: from which Jaccard similarity on two texts are near-duplicates.

    Example:
        >>> index = NearIndex(0.6)
        >>> first, second = "how do i bake good bread?", "how do i bake good bread"
        >>> index.add(0, first, *band_keys([first], 0.6))
        >>> [match.number for match in index.matches(second, *band_keys([second], 0.6))]
        [0]
    """

    def __init__(self, threshold: float) -> None:
        banding(threshold)
        self.threshold = threshold
        self.database = connect(None)
        self.database.executescript(
            "CREATE TABLE texts (number INTEGER PRIMARY KEY, content BLOB, shingles BLOB);"
            "CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number))"
            " WITHOUT ROWID;"
        )

    def add(self, number: int, text: str, bands: Sequence[int]) -> None:
        """Remember a text under a number of its own."""
        row = (number, digest(text), shingles(text).tobytes())
        self.database.execute("INSERT INTO texts VALUES (?, ?, ?)", row)
        self.database.executemany(
            "INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, number) for band in bands]
        )

    def matches(self, text: str, bands: Sequence[int]) -> list[Match]:
        """Every near-duplicate that shares a band, the most alike first, then the earliest."""
        own, content = shingles(text), digest(text)
        # J can reach the threshold only where the smaller set is that share of the larger one.
        sizes = (4 * len(own) * self.threshold, 4 * len(own) / self.threshold)
        marks = ",".join("?" * len(bands))
        rows = self.database.execute(
            "SELECT number, content, shingles FROM texts WHERE length(shingles) BETWEEN ? AND ? "
            f"AND number IN (SELECT DISTINCT number FROM bands WHERE band IN ({marks}))",
            [*sizes, *bands],
        ).fetchall()
        found = [
            Match(
                number, jaccard(own, np.frombuffer(theirs, dtype=np.uint32)), content == theirs_is
            )
            for number, theirs_is, theirs in rows
        ]
        near = [match for match in found if match.exact or match.similarity >= self.threshold]
        return sorted(near, key=lambda match: (-match.exact, -match.similarity, match.number))
