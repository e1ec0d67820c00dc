"""Preference data on images: Pick-a-Pic's columns, folders with a JSONL, Hugging Face data sets.

| form | columns |
|---|---|
| Pick-a-Pic | caption, jpg_0, jpg_1, label_0 (1: the first is better, 0: the second, .5: a tie) |
| pairs | caption (or prompt), chosen, rejected |
| labeled | caption (or prompt), image, label (true: desirable) |

An image is a file's bytes, a mapping with ``bytes`` or ``path`` (as data sets store images), a
path, relative to the file that names it, or a PIL image. Images are read when they are needed.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trueline.data.readers import read_jsonl
from trueline.diffusion.data.images import CorruptImageError
from trueline.errors import UserError, cause
from trueline.records import RecordError

CAPTIONS = ("caption", "prompt", "text")
FORMS: tuple[tuple[str, ...], ...] = (
    ("jpg_0", "jpg_1", "label_0"),
    ("chosen", "rejected"),
    ("image", "label"),
)
SHOWN = 5


@dataclass(frozen=True)
class ImageSource:
    """An image that is read when it is needed.

    Args:
        read: gives the file's bytes.
        name: what to call it in errors.
    """

    read: Callable[[], bytes]
    name: str


@dataclass(frozen=True)
class ImageExample:
    """A caption with one labeled image, or a pair: the chosen one first.

    Args:
        caption: what the images are of.
        images: one or two.
        desirable: a label for each.
    """

    caption: str
    images: tuple[ImageSource, ...]
    desirable: tuple[bool, ...]

    @property
    def paired(self) -> bool:
        return self.desirable == (True, False)


@dataclass
class ImageData:
    """Examples, and how many rows were dropped, why, and the first few of them."""

    examples: list[ImageExample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, place: str) -> None:
        """Count a row that is left out."""
        self.dropped[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < SHOWN:
            places.append(place)

    def notes(self) -> list[str]:
        """What was dropped, in words."""
        return [
            f"dropped {count} rows, {reason}: {', '.join(self.places[reason])}"
            f"{' ...' if count > SHOWN else ''}"
            for reason, count in self.dropped.items()
        ]


class BadRowError(UserError):
    """A row that cannot be used; the message says why."""


def load_image_examples(
    source: Any,
    *,
    split: str = "train",
    name: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
) -> ImageData:
    """Read preference data on images.

    Args:
        source: a JSONL file, a folder with one JSONL or with Parquet files or saved by
            ``datasets``, a Parquet file, a hub id, a ``datasets.Dataset`` or a list of rows.
        split: of a hub data set, or of a folder that ``datasets`` saved.
        name: a hub data set's configuration.
        skip_bad: drop rows that cannot be read and count them, rather than stop. Ties are dropped
            and counted always.
        limit: only the first so many rows; of a hub data set no more are downloaded.

    Raises:
        UserError: nothing to read, unknown columns, a bad row.
    """
    rows, folder, origin = _open(source, split, name, limit)
    if not len(rows):
        raise UserError(f"{origin} holds no rows")
    columns = _columns(rows)
    form = next((f for f in FORMS if set(f) <= set(columns)), None)
    caption = next((c for c in CAPTIONS if c in columns), None)
    if form is None or caption is None:
        known = "; ".join(f"caption, {', '.join(f)}" for f in FORMS)
        raise UserError(f"{origin} has columns {', '.join(columns)}; expected one of: {known}")
    data = ImageData()
    images = [c for c in form if not c.startswith("label")]
    light = _without(rows, images)
    for index in range(len(rows) if limit is None else min(limit, len(rows))):
        place = f"{origin}: row {index + 1}"
        try:
            example = _example(rows, light[index], index, form, caption, folder, place)
        except BadRowError as error:
            if not skip_bad:
                raise UserError(f"{place}: {error}; skip_bad: true leaves such rows out") from None
            data.drop(str(error), place)
            continue
        if example is None:
            data.drop("a tie", place)
        else:
            data.examples.append(example)
    if not data.examples:
        raise UserError(f"{origin} leaves no example: {'; '.join(data.notes())}")
    return data


def _example(
    rows: Any,
    row: Mapping[str, Any],
    index: int,
    form: tuple[str, ...],
    caption: str,
    folder: Path,
    place: str,
) -> ImageExample | None:
    """The example of a row; None for a tie."""
    if not isinstance(row, Mapping):
        raise BadRowError(str(row) if isinstance(row, RecordError) else f"{row!r} is no row")
    words = row.get(caption)
    if not isinstance(words, str):
        raise BadRowError(f"{caption} is no text")

    def image(column: str) -> ImageSource:
        name = f"{place}, {column}"
        return ImageSource(lambda: _bytes(rows[index].get(column), folder, name), name)

    if form == ("image", "label"):
        return ImageExample(words, (image("image"),), (_truth(row.get("label")),))
    if form == ("chosen", "rejected"):
        order = form
    else:
        label = row.get("label_0")
        if isinstance(label, bool) or label not in (0, 0.5, 1):
            raise BadRowError("label_0 is not 0, 0.5 or 1")
        if label == 0.5:
            return None
        order = ("jpg_0", "jpg_1") if label == 1 else ("jpg_1", "jpg_0")
    return ImageExample(words, tuple(map(image, order)), (True, False))


def _truth(value: Any) -> bool:
    if value in (0, 1, -1) and value is not None:
        return value == 1
    raise BadRowError("label is not true or false (1, 0 or -1)")


def _bytes(value: Any, folder: Path, name: str) -> bytes:
    """The file's bytes behind whatever a column holds."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str | Path):
        try:
            return (folder / value).read_bytes()
        except (OSError, ValueError) as error:
            raise CorruptImageError(f"{name} cannot be read: {error}") from None
    if hasattr(value, "save"):  # a PIL image
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return buffer.getvalue()
    raise CorruptImageError(f"{name} holds no image, but {type(value).__name__}")


def _open(source: Any, split: str, name: str | None, limit: int | None) -> tuple[Any, Path, str]:
    """Rows, the folder that relative paths start from, and what to call it all."""
    if not isinstance(source, str | Path):
        return _undecoded(source), Path(), "data"
    path = Path(source)
    if path.is_file() and path.suffix in (".jsonl", ".ndjson"):
        return _jsonl(path), path.parent, str(path)
    if path.is_file() and path.suffix == ".parquet":
        return _parquet([path]), path.parent, str(path)
    if path.is_dir():
        return _folder(path, split)
    if path.exists():
        raise UserError(f"{path} is no .jsonl or .parquet file")
    import datasets

    with _readable(f"{source} is no local path, and not to be had"):
        if limit is not None:  # as a stream, which fetches what is taken of it
            stream = datasets.load_dataset(str(source), name, split=split, streaming=True)
            rows = list(_undecoded(stream).take(limit))
        else:
            rows = _undecoded(datasets.load_dataset(str(source), name, split=split))
        return rows, Path(), str(source)


@contextlib.contextmanager
def _readable(otherwise: str) -> Iterator[None]:
    """Around ``datasets`` and the hub's client, which raise a dozen unrelated kinds of errors."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{otherwise}: {cause(error)}") from error


def _folder(path: Path, split: str) -> tuple[Any, Path, str]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        import datasets

        with _readable(f"{path} is no sound data set"):
            loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, Mapping):
            if split not in loaded:
                raise UserError(f"{path} has no split {split!r}; it has {', '.join(loaded)}")
            loaded = loaded[split]
        return _undecoded(loaded), path, str(path)
    tables = sorted(path.glob("*.jsonl"))
    if len(tables) == 1:
        return _jsonl(tables[0]), path, str(tables[0])
    if tables:
        names = ", ".join(table.name for table in tables)
        raise UserError(f"{path} holds several JSONL files ({names}); name one of them")
    parquet = sorted(path.glob("**/*.parquet"))
    if parquet:
        return _parquet(parquet), path, str(path)
    raise UserError(f"{path} holds no .jsonl and no .parquet file")


def _jsonl(path: Path) -> list[Any]:
    """A value for each row; where a line cannot be read, why."""
    return [row.value for row in read_jsonl(path)]


def _parquet(paths: Sequence[Path]) -> Any:
    import datasets

    files = [str(path) for path in paths]
    with _readable(f"{paths[0]} is no sound Parquet file"):
        return _undecoded(datasets.load_dataset("parquet", data_files=files, split="train"))


def _undecoded(rows: Any) -> Any:
    """A data set's images as bytes: they are decoded once, where they are used."""
    if not hasattr(rows, "features"):
        return list(rows)
    import datasets

    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _columns(rows: Any) -> list[str]:
    """The columns that any row has."""
    if hasattr(rows, "column_names"):
        return list(rows.column_names)
    return list(dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row))


def _without(rows: Any, images: Sequence[str]) -> Any:
    """The rows without their images' bytes, to look at every label without reading them."""
    return rows.remove_columns(list(images)) if hasattr(rows, "remove_columns") else rows
