"""Difficulty written back to the data it was measured on, for curation to select by."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline.data import load_examples
from trueline.data.readers import DataError, Row
from trueline.data.sources import open_source
from trueline.diagnostics.ranking.finding import Difficulties
from trueline.records import RecordError


@dataclass(frozen=True, slots=True)
class Written:
    """What :func:`write_difficulty` wrote.

    Args:
        rows: rows written, with or without a difficulty.
        scored: those with one.
        unreadable: lines that hold no row and could not be written again.
    """

    rows: int
    scored: int
    unreadable: int


def write_difficulty(
    source: str | os.PathLike[str],
    found: Difficulties,
    output: str | os.PathLike[str],
    *,
    column: str = "difficulty",
    form: str | None = None,
    split: str = "train",
    name: str | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Written:
    """Copy the data's rows to JSON lines with the difficulty of their pairs in a new column.

    Every row keeps its own columns as they are. The new one holds c in nats: a number, or a list
    where a row has several pairs. Rows that were not measured (dropped as bad, without a pair,
    beyond a limit) are copied without it. The file appears whole or not at all.

    Args:
        source, form, split, name, skip_bad: what the examples were loaded with.
        found: their difficulties, in the order they were loaded in.
        output: the file, ending in .jsonl or .jsonl.gz.
        column: the new column's name.
        overwrite: replace a file that is there.

    Raises:
        DataError: the file exists or has another ending, or the data has such a column already.
    """
    output = check_output(output, overwrite=overwrite)
    of_example: dict[int, list[float]] = {}
    for index, value in zip(found.example.tolist(), found.value.tolist(), strict=True):
        of_example.setdefault(index, []).append(value)
    rows = open_source(source, split=split, name=name)()
    examples = load_examples(source, split=split, name=name, form=form, skip_bad=skip_bad)
    counts = {"rows": 0, "scored": 0, "unreadable": 0}
    part = output.with_name(f".{os.getpid()}.{output.name}")
    opener: Any = gzip.open if output.suffix == ".gz" else open
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with opener(part, "wt", encoding="utf-8", newline="\n") as file:
            for value in _annotated(rows, examples.form, of_example, column, counts):
                file.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
        os.replace(part, output)
    except OSError as error:
        raise DataError(output, f"cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return Written(**counts)


def check_output(output: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The path, once it is known that difficulties may be written there.

    Raises:
        DataError: the file exists or has another ending than .jsonl and .jsonl.gz.
    """
    output = Path(output)
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(output, "difficulties are written as JSON lines; end it in .jsonl")
    if output.exists() and not overwrite:
        raise DataError(
            output, "the file exists; choose another name or overwrite it (--overwrite)"
        )
    return output


def _annotated(
    rows: Iterator[Row],
    form: Any,
    of_example: Mapping[int, list[float]],
    column: str,
    counts: dict[str, int],
) -> Iterator[Any]:
    """Each row's own columns and, where it was measured, the new one."""
    index = 0
    for row in rows:
        if not isinstance(row.value, Mapping):
            counts["unreadable"] += 1
            continue
        if column in row.value:
            raise DataError(row.place, f"there is a column {column!r} already; name another")
        value = dict(row.value)
        try:
            form(value, row.place)
        except RecordError:
            pass  # it was dropped when the examples were loaded, too
        else:
            measured = of_example.get(index)
            index += 1
            if measured:
                value[column] = measured[0] if len(measured) == 1 else measured
                counts["scored"] += 1
        counts["rows"] += 1
        yield value
