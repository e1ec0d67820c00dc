"""Rows as files: JSON lines, JSON arrays, CSV (each also gzipped) and Parquet, as a stream."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

from trueline.data.readers import DataError

BATCH = 1024  # rows of a Parquet row group

Cells: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Schema:
    """A table's columns with their kinds, and whether its texts are conversations."""

    columns: Mapping[str, str]
    conversational: bool


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "wt", encoding="utf-8", newline="")
    return open(path, "w", encoding="utf-8", newline="")


def write_json(rows: Iterator[Cells], path: Path, _: Schema) -> None:
    """JSON lines, or an array where the ending says so; a column without value is left out."""
    lines = ".jsonl" in path.suffixes
    before, between, after = ("", "\n", "\n") if lines else ("[\n", ",\n", "\n]\n")
    with _open(path) as file:
        for row in rows:
            present = {name: value for name, value in row.items() if value is not None}
            file.write(before + json.dumps(present, ensure_ascii=False))
            before = between
        file.write(after)


def write_csv(rows: Iterator[Cells], path: Path, schema: Schema) -> None:
    """One record a row; what is no text is written as JSON, nothing as an empty cell."""
    with _open(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(schema.columns)
        writer.writerows([_cell(value) for value in row.values()] for row in rows)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def write_parquet(rows: Iterator[Cells], path: Path, schema: Schema) -> None:
    """A typed table; its texts are all strings or all messages."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = _arrow_schema(schema)
    with pq.ParquetWriter(path, arrow) as writer:
        while batch := list(islice(rows, BATCH)):
            try:
                table = pa.Table.from_pylist(batch, schema=arrow)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                problem = "a Parquet column holds either text or messages, and the rows have both"
                raise DataError(path.name, f"{problem} ({error}); write .jsonl") from None
            writer.write_table(table)


def _arrow_schema(schema: Schema) -> Any:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    text = pa.list_(message) if schema.conversational else pa.string()
    completion = [("content", text), ("desirable", pa.bool_()), ("score", pa.float64())]
    kinds = {
        "text": text,
        "texts": pa.list_(text),
        "bool": pa.bool_(),
        "string": pa.string(),
        "pairs": pa.list_(pa.list_(pa.int64())),
        "completions": pa.list_(pa.struct(completion)),
    }
    return pa.schema([(name, kinds[kind]) for name, kind in schema.columns.items()])


WRITERS: dict[str, Callable[[Iterator[Cells], Path, Schema], None]] = {
    ".jsonl": write_json,
    ".json": write_json,
    ".csv": write_csv,
    ".parquet": write_parquet,
}
"""File endings (without .gz) and what writes them."""
