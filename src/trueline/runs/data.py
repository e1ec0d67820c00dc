"""What `trueline data inspect` and `trueline data convert` do."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from trueline.batching import Encoder
from trueline.batching.show import Part, parts, roles
from trueline.config import ModelArguments
from trueline.data import (
    DataSummary,
    Examples,
    WriteReport,
    inspect_examples,
    load_examples,
    write_examples,
)
from trueline.data.tally import Encoded
from trueline.errors import UserError
from trueline.models import load_tokenizer
from trueline.records import Example
from trueline.terminal import polled


@dataclass(frozen=True)
class Looked:
    """What is in data, one of its rows where it was asked for, and that row's tokens."""

    summary: DataSummary
    example: Example | None = None
    tokens: Sequence[Part] | None = None

    @property
    def completions(self) -> list[tuple[str, Any]]:
        """The row's completions, each with what it is to an objective."""
        if self.example is None:
            return []
        contents = (completion.content for completion in self.example.completions)
        return list(zip(roles(self.example), contents, strict=True))


@dataclass(frozen=True)
class Converted(WriteReport):
    """What was written, and ``read``, what was read: rows, and why some were dropped."""

    read: dict[str, Any]


def inspect(source: Any, *, model: str | None = None, **reading: Any) -> DataSummary:
    """What is in data and what to mend: lengths, duplicates, balance, bias, bad rows.

    Args:
        source: a file, a directory, a hub id, or rows.
        model: also count tokens, with this model's tokenizer.
        reading: split, name, form, skip_bad, limit.
    """
    return look(source, model=model, quiet=True, **reading).summary


def look(
    source: Any,
    *,
    model: str | None = None,
    row: int | None = None,
    quiet: bool = False,
    **reading: Any,
) -> Looked:
    """:func:`inspect`, and the row of this number, counted from 1.

    Raises:
        UserError: there are fewer rows that can be used.
    """
    encoder: Encoder | None = None
    if model is not None:  # the training's own encoder, uncut
        tokenizer = load_tokenizer(ModelArguments(model_name_or_path=model))
        encoder = Encoder(tokenizer, max_length=None)
    encode: Callable[[Example], Encoded] | None = encoder
    examples = load_examples(source, **reading)
    with _progress(examples, quiet):
        summary = inspect_examples(examples, encode=encode)
        example = None if row is None else next(islice(examples, row - 1, None), None)
    if row is not None and example is None:
        raise UserError(f"--row {row}: there are {summary.examples} rows that can be used")
    if encoder is None or example is None:
        return Looked(summary, example)
    return Looked(summary, example, parts(encoder, example))


def convert(
    source: Any,
    output: str | os.PathLike[str],
    to: str,
    *,
    overwrite: bool = False,
    quiet: bool = True,
    **reading: Any,
) -> Converted:
    """Write data in another form or file type.

    Args:
        source: a file, a directory, a hub id, or rows.
        output: the file to write; its ending says the type.
        to: preference, unpaired, sft, kldo or example.
        overwrite: replace a file that exists.
        quiet: keep progress back.
        reading: split, name, form, skip_bad, limit.
    """
    examples = load_examples(source, **reading)
    with _progress(examples, quiet):
        made = write_examples(examples, output, to, overwrite=overwrite)
    return Converted(**asdict(made), read=examples.report.to_dict())


def _progress(examples: Examples, quiet: bool) -> AbstractContextManager[None]:
    """On stderr, how many rows were read, while it lasts."""
    return polled("reading rows", lambda: examples.report.rows, quiet=quiet)
