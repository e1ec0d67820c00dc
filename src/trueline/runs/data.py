"""What `trueline data inspect` and `trueline data convert` do."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from trueline.batching import Encoder
from trueline.config import ModelArguments
from trueline.data import DataSummary, WriteReport, inspect_examples, load_examples, write_examples
from trueline.data.tally import Encoded
from trueline.models import load_tokenizer
from trueline.records import Example


def inspect(source: Any, *, model: str | None = None, **reading: Any) -> DataSummary:
    """What is in data and what to mend: lengths, duplicates, balance, bias, bad rows.

    Args:
        source: a file, a directory, a hub id, or rows.
        model: also count tokens, with this model's tokenizer.
        reading: split, name, form, skip_bad, limit.
    """
    encode: Callable[[Example], Encoded] | None = None
    if model is not None:
        tokenizer = load_tokenizer(ModelArguments(model_name_or_path=model))
        encode = Encoder(tokenizer, max_length=None)
    return inspect_examples(load_examples(source, **reading), encode=encode)


def convert(
    source: Any,
    output: str | os.PathLike[str],
    to: str,
    *,
    overwrite: bool = False,
    **reading: Any,
) -> WriteReport:
    """Write data in another form or file type.

    Args:
        source: a file, a directory, a hub id, or rows.
        output: the file to write; its ending says the type.
        to: preference, unpaired, sft, kldo or example.
        overwrite: replace a file that exists.
        reading: split, name, form, skip_bad, limit.
    """
    return write_examples(load_examples(source, **reading), output, to, overwrite=overwrite)
