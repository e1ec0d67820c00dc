"""Rows become examples: read as a stream, checked one by one, every drop counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import chain, islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from trueline.data import forms
from trueline.data.fields import reason
from trueline.data.readers import DataError, Row
from trueline.data.sources import Open, Source, data_files, open_source
from trueline.files import checksum
from trueline.records import Example, RecordError
from trueline.registry import UnknownNameError

PLACES = 5  # how many places a report names for each reason
LOOK_AHEAD = 100  # rows by which skip_bad tells the form


@dataclass(slots=True)
class Drop:
    """Rows dropped for one reason: how many, and where the first few are."""

    count: int = 0
    places: list[str] = field(default_factory=list)


@dataclass(slots=True)
class LoadReport:
    """What became of the rows: ``rows == examples + dropped rows``, reason by reason.

    ``unread`` counts for each column that is not read the rows in which it holds something.
    """

    rows: int = 0
    examples: int = 0
    dropped: dict[str, Drop] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)

    def drop(self, place: str, error: Exception) -> None:
        """Count a row that could not be used."""
        entry = self.dropped.setdefault(reason(error), Drop())
        entry.count += 1
        if len(entry.places) < PLACES:
            entry.places.append(place)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {**asdict(self), "unread": dict(self.unread)}  # asdict makes pairs of a Counter


class Examples:
    """A stream of :class:`~trueline.records.Example`; each iteration reads the source anew.

    ``report`` tells of the latest iteration so far, ``source`` names the path or hub id (None for
    rows in memory), ``files`` the local files it reads. An iterator as source can be read once.
    """

    def __init__(
        self,
        rows: Open,
        *,
        form: forms.Form | None = None,
        skip_bad: bool = False,
        limit: int | None = None,
        source: str | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        self.report: LoadReport = LoadReport()
        self.source: str | None = source
        self.files = tuple(files)
        self._open = rows
        self._form = form
        self._skip_bad = skip_bad
        self._limit = limit
        self._begun: Iterator[Row] | None = None
        self._known: dict[tuple[str, ...], list[str]] = {}

    @property
    def name(self) -> Any:
        """JSON-ready data that stands for the examples, whole and in order: the files' checksums
        and how they are read. None where only the rows themselves can tell."""
        if not self.files:
            return None
        form = None if self._form is None else self._form.name
        how = {"form": form, "skip_bad": self._skip_bad, "limit": self._limit}
        return [*([path.name, checksum(path)] for path in self.files), how, code()]

    @property
    def form(self) -> forms.Form:
        """The rows' form: the one asked for, or the one that the first row's columns tell. Where
        bad rows are left out the first may be one: then the form of most of the first rows."""
        if self._form is None:
            self._form = self._detect()
        return self._form

    def _unread(self, form: forms.Form, columns: tuple[str, ...]) -> list[str]:
        """Rows have the same columns again and again; the answer for each set is kept."""
        if columns not in self._known:
            self._known[columns] = form.unread(columns)
        return self._known[columns]

    def _detect(self) -> forms.Form:
        rows, seen = self._open(), []
        found: Counter[str] = Counter()
        first_fault: DataError | None = None
        for row in islice(rows, LOOK_AHEAD if self._skip_bad else 1):
            seen.append(row)
            try:
                found[_form_of(row.value).name] += 1
            except RecordError as error:
                first_fault = first_fault or DataError(row.place, error)
        if found:
            self._begun = chain(seen, rows)  # an iterator's rows cannot be read again
            return forms.FORMS[found.most_common(1)[0][0]]
        raise first_fault or DataError("source", "no rows; nothing can be learned from nothing")

    def __iter__(self) -> Iterator[Example]:
        report = self.report = LoadReport()
        form = self.form
        rows, self._begun = self._begun or self._open(), None
        for row in rows:
            report.rows += 1
            try:
                example = _read(form, row)
            except RecordError as error:
                if not self._skip_bad:
                    raise DataError(row.place, error) from None
                report.drop(row.place, error)
                continue
            report.examples += 1
            if isinstance(row.value, Mapping):
                report.unread.update(self._unread(form, tuple(forms.filled(row.value))))
            yield example
            if report.examples == self._limit:
                return
        if not report.examples:
            raise _none_left(report)


@cache
def code() -> str:
    """A digest of the modules that read rows: what another release, or an edit, reads anew."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _form_of(value: Any) -> forms.Form:
    if isinstance(value, RecordError):
        raise value
    if isinstance(value, Example):
        return forms.FORMS["example"]
    if not isinstance(value, Mapping):
        raise RecordError(f"a row must be an object with columns, got {type(value).__name__}")
    return forms.detect(value)


def _read(form: forms.Form, row: Row) -> Example:
    if isinstance(row.value, RecordError):
        raise row.value
    if isinstance(row.value, Example):
        return row.value if row.value.id else replace(row.value, id=row.place)
    return form(row.value, row.place)


def _none_left(report: LoadReport) -> DataError:
    if not report.dropped:
        return DataError("source", "no rows; nothing can be learned from nothing")
    why, drop = max(report.dropped.items(), key=lambda item: item[1].count)
    return DataError(drop.places[0], f"none of {report.rows} rows can be used; most often: {why}")


def load_examples(
    source: Source,
    *,
    split: str = "train",
    name: str | None = None,
    skip_bad: bool = False,
    form: str | None = None,
    limit: int | None = None,
) -> Examples:
    """Examples from a file, a directory, the hub, or rows in memory, as a stream.

    Memory does not grow with the data. Each example's ``id`` is its place, ``file.jsonl:17``.

    Args:
        source: a .jsonl, .json, .csv (each also .gz) or .parquet file; a directory of such files;
            a hub id ``org/name``; a data set or any iterable of mappings or Examples.
        split: which split of a hub data set, or of a directory whose file names tell splits.
        name: which configuration of a hub data set.
        skip_bad: leave bad rows out and count them in ``.report``, instead of stopping.
        form: one of ``FORMS``, where the columns alone do not tell it.
        limit: stop after this many examples.

    Raises:
        DataError: the source cannot be read, or (without ``skip_bad``) a row cannot be used; the
            message names file and line, what is wrong, and what to do. Row errors come up while
            iterating.

    Example:
        >>> examples = load_examples([{"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}])
        >>> examples.form.name, next(iter(examples)).prompt
        ('preference', 'Sky?')
    """
    if limit is not None and limit < 1:
        raise DataError("limit", f"expected 1 or more, got {limit}")
    try:
        chosen = None if form is None else forms.FORMS[form]
    except UnknownNameError as error:
        raise DataError("form", error) from None
    rows = open_source(source, split=split, name=name)
    named = fspath(source) if isinstance(source, str | PathLike) else None
    files = () if named is None else data_files(named, split)
    return Examples(rows, form=chosen, skip_bad=skip_bad, limit=limit, source=named, files=files)
