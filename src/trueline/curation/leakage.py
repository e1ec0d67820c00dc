"""Prompts that training and evaluation data share, word for word or nearly: a leak, measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from trueline.curation.jobs.chunks import Notes
from trueline.curation.jobs.disk import batched, digest
from trueline.curation.jobs.job import Job
from trueline.curation.near import NearIndex, band_keys
from trueline.curation.texts import flat
from trueline.data.fields import as_text
from trueline.data.load import load_examples
from trueline.data.readers import DataError
from trueline.data.sources import data_files, open_source
from trueline.errors import UserError
from trueline.records import RecordError, Text

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
