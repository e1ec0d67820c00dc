"""Files as rows, one at a time: JSON lines, JSON arrays, CSV (each also gzipped) and Parquet.

A row that cannot be read (a broken line) is yielded with its error, so that the rest of the file
can still be used. Damage after which nothing can be trusted (a cut-off gzip, an array that breaks)
raises :class:`DataError`: how many rows it takes along is not known, so it is never skipped.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trueline.errors import UserError
from trueline.records import RecordError

CHUNK = 1 << 16  # characters of a JSON array read at a time
BATCH = 1024  # rows of a Parquet row group decoded at a time


class DataError(UserError):
    """Data that cannot be used; the message begins with the place, ``file:line``."""

    def __init__(self, place: object, message: object) -> None:
        words = " ".join(str(message).split())
        line = "".join(char if char.isprintable() else "�" for char in words)
        super().__init__(f"{place}: {line if len(line) <= 400 else line[:399] + '…'}")


@dataclass(frozen=True, slots=True)
class Row:
    """What a source holds at one place: a mapping, an Example, or why it could not be read."""

    place: str
    value: Any


@contextmanager
def _open(path: Path, newline: str) -> Iterator[IO[str]]:
    """UTF-8 text, a byte-order mark skipped. Bad bytes pass as surrogates and fail in their row."""
    opener: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    try:
        text = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": newline}
        with opener(path, "rt", **text) as file:
            yield file
    except EOFError:
        raise DataError(path.name, "the gzip file is cut off; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(path.name, f"not a sound gzip file ({error}); make it anew") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from None


def _parse(line: str) -> Any:
    """One JSON value, or the :class:`RecordError` that says why there is none."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        if not line.isascii() and any("\udc80" <= character <= "\udcff" for character in line):
            return RecordError("not valid UTF-8; save the file as UTF-8")
        return RecordError(f"not valid JSON: {error.msg} at column {error.colno}; mend the line")
    except (ValueError, RecursionError) as error:
        return RecordError(f"not valid JSON: {error}; mend the line")


def read_jsonl(path: Path) -> Iterator[Row]:
    """One row a line, named ``file.jsonl:17``; blank lines are no rows."""
    with _open(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Row(f"{path.name}:{number}", _parse(line))


def read_json(path: Path) -> Iterator[Row]:
    """The objects of a JSON array (or of JSON lines in a ``.json`` file), decoded one by one.

    The text is read in chunks and each object decoded as soon as it is whole, so memory holds the
    largest object, never the array.
    """
    number = 0
    with _open(path, newline="\n") as file:
        cursor = _Cursor(file, path.name)
        array = cursor.take("[")
        while not (array and cursor.take("]")):
            if not array and cursor.at_end():
                return
            if number and array and not cursor.take(","):
                cursor.fail(number, "a comma or the closing bracket is missing")
            number += 1
            yield Row(f"{path.name}:row {number}", cursor.object(number))
        if not cursor.at_end():
            cursor.fail(number, "there is text after the closing bracket")


class _Cursor:
    """A position in JSON text that is read as far as needed and forgotten behind."""

    def __init__(self, file: IO[str], name: str) -> None:
        self.file, self.name = file, name
        self.text, self.at = "", 0
        self.decode = json.JSONDecoder().raw_decode

    def at_end(self) -> bool:
        """Skip white space; whether nothing follows."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return False
            if not self._more(CHUNK):
                return True

    def take(self, symbol: str) -> bool:
        """Step over ``symbol`` where it comes next."""
        if self.at_end() or self.text[self.at] != symbol:
            return False
        self.at += 1
        return True

    def object(self, number: int) -> Any:
        """The next object, reading on while it is incomplete."""
        if self.at_end():
            self.fail(number, "the array is cut off")
        if self.text[self.at] != "{":
            self.fail(number, "expected an object {...} for each row of a JSON array")
        step = CHUNK
        while True:
            try:
                value, self.at = self.decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                # An error at the very end, or an open string, may only be the chunk's end.
                near_end = error.pos > len(self.text) - 16
                if not near_end and not error.msg.startswith("Unterminated string"):
                    self.fail(number, error.msg)
                if not self._more(step):
                    self.fail(number, f"{error.msg} (cut off?)")
                step *= 2  # a long object is decoded a few times only
            except (ValueError, RecursionError) as error:
                self.fail(number, str(error))

    def fail(self, number: int, message: str) -> None:
        """Stop: behind a break in an array no row can be trusted."""
        raise DataError(
            f"{self.name}:row {number}",
            f"not valid JSON: {message}; mend it, or use JSON lines, where a bad row stands alone",
        )

    def _more(self, size: int) -> bool:
        chunk = self.file.read(size)
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)


def read_csv(path: Path) -> Iterator[Row]:
    """One row a record, named by its first line; a cell with JSON messages becomes messages."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long completion
    with _open(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path.name}:1", f"a column name comes twice in {header}; rename one")
        while True:
            place = f"{path.name}:{reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):
                    raise DataError(place, "a quote is opened here and never closed") from None
                yield Row(place, RecordError(f"not valid CSV: {error}; mend the line"))
                continue
            if len(fields) == len(header):
                yield Row(place, dict(zip(header, map(_cell, fields), strict=True)))
            elif fields:
                problem = f"got {len(fields)} fields for {len(header)} columns; quote the commas"
                yield Row(place, RecordError(f"wrong number of fields: {problem}"))


def _cell(text: str) -> Any:
    if not text.startswith("[{"):
        return text
    value = _parse(text)
    messages = isinstance(value, list) and all(
        isinstance(item, dict) and "role" in item for item in value
    )
    return value if messages else text


def read_parquet(path: Path) -> Iterator[Row]:
    """One row at a time, ``BATCH`` decoded together; memory holds a row group at most."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}:row {number}", value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"not a sound Parquet file: {error}; write it anew"
        raise DataError(f"{path.name}:row {number + 1}", message) from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".json.gz": read_json,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".parquet": read_parquet,
}
"""File endings and what reads them."""


def ending(path: Path) -> str | None:
    """The file's ending among those that can be read and written, else None.

    Example:
        >>> ending(Path("v1.2/train.jsonl.gz")), ending(Path("notes.txt"))
        ('.jsonl.gz', None)
    """
    name = path.name.lower()
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


def read_file(path: Path) -> Iterator[Row]:
    """The rows of one file, by its ending.

    Raises:
        DataError: the ending is unknown, the file is missing, damaged or holds no row.
    """
    suffix = ending(path)
    if suffix is None:
        known = ", ".join(READERS)
        raise DataError(path, f"cannot tell the file's type; its name must end in one of {known}")
    empty = True
    for row in READERS[suffix](path):
        empty = False
        yield row
    if empty:
        raise DataError(path.name, "no rows: the file is empty; check how it was written")
