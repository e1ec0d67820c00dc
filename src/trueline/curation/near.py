"""Texts that are nearly the same: MinHash proposes, the exact Jaccard similarity decides.

What training and evaluation data share, word for word or nearly, is a leak, and is measured.

    J(a, b) = |A & B| / |A | B|,   A, B the sets of all runs of five characters (lower case, white
                                   space collapsed)

MinHash signatures are cut into bands; texts that share a band are candidates. Bands are chosen so
that a pair at exactly the threshold is missed with a probability below 1%; what is proposed wrongly
is found out, because shingles are compared in full. The index is on disk.

Source: Broder (1997), "On the resemblance and containment of documents"; datasketch's MinHash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from trueline.curation.jobs.chunks import Notes
from trueline.curation.jobs.disk import batched, connect, digest
from trueline.curation.jobs.job import Job
from trueline.data.fields import as_text
from trueline.data.load import load_examples
from trueline.data.readers import DataError
from trueline.data.sources import data_files, open_source
from trueline.errors import UserError
from trueline.records import Completion, Message, RecordError, Text

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


NEAR = 0.8
KINDS = ("copy of an evaluation prompt", "near-duplicate of an evaluation prompt")


COLUMNS = ("prompt", "goal", "question", "instruction", "behavior", "request", "turns")
"""Columns, whatever their case, in which benchmarks keep their prompts."""


def evaluation_prompts(source: str) -> Iterator[Text]:
    """The prompts of evaluation data: of rows with a column of ``COLUMNS``, else of examples.

    Args:
        source: a file, a folder or a hub id; of the latter two the test split.

    Raises:
        DataError: it cannot be read, or a row's prompt is no text.
    """
    split = "train" if [str(path) for path in data_files(source)] == [source] else "test"
    columns: dict[str, str] | None = None
    for row in open_source(source, split=split)():
        if isinstance(row.value, RecordError):
            raise DataError(row.place, row.value)
        if columns is None and isinstance(row.value, Mapping):
            columns = {str(name).lower(): str(name) for name in row.value}
        found = [columns[name] for name in COLUMNS if columns and name in columns]
        if not found:
            break
        try:
            yield as_text(row.value[found[0]], found[0])
        except (RecordError, KeyError) as error:
            raise DataError(row.place, error) from None
    else:
        return
    yield from (example.prompt for example in load_examples(source, split=split))


class Leakage:
    """Prompts that must not be trained on.

    Args:
        evaluation: the prompts that are to stay unseen; :func:`evaluation_prompts` reads a file.
        threshold: near-duplicates from this Jaccard similarity of five-character runs on.

    Example:
        >>> check = Leakage(["How do I bake sourdough bread?"])
        >>> check("how do i bake  sourdough bread?"), check("What is the sky?")
        ('near-duplicate of an evaluation prompt', None)
    """

    def __init__(self, evaluation: Iterable[Text], threshold: float = NEAR) -> None:
        self.index = NearIndex(threshold)
        self.threshold = threshold
        self.content = hashlib.blake2b(digest_size=8)
        number = 0
        for batch in batched(evaluation, 512):
            texts = [flat(prompt) for prompt in batch]
            for text, keys in zip(texts, band_keys(texts, threshold), strict=True):
                self.index.add(number, text, keys)
                self.content.update(digest(text))
                number += 1
        if not number:
            raise UserError("no evaluation prompt to look for")

    def __call__(self, prompt: Text) -> str | None:
        """Why the prompt leaks, or None."""
        text = flat(prompt)
        found = self.index.matches(text, band_keys([text], self.threshold)[0])
        return KINDS[0 if found[0].exact else 1] if found else None

    def notes(self, job: Job) -> Notes:
        """Why each example of the job leaks, or None."""
        return job.map(
            "looking for leaks",
            lambda chunk: [self(example.prompt) for example in chunk.examples],
            key=[self.threshold, self.content.hexdigest()],
            size=1024,
        )


def flat(text: Text) -> str:
    """What a judge or an embedding reads: text as it stands, one message's content, or a dialogue.

    Example:
        >>> flat((Message("user", "Sky?"),))
        'Sky?'
        >>> flat((Message("user", "Sky?"), Message("assistant", "Blue.")))
        'user: Sky?\\nassistant: Blue.'
    """
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in text)


def answer_like(words: str, answer: Text) -> Completion:
    """A completion of ``words`` in the layout of ``answer``: a message or text, with the same white
    space in front, so that the layout does not tell the two apart.

    Example:
        >>> answer_like("No.", " Blue.").content
        ' No.'
    """
    text = answer if isinstance(answer, str) else answer[0].content
    like = text[: len(text) - len(text.lstrip())] + words
    return Completion(like if isinstance(answer, str) else (Message("assistant", like),))
