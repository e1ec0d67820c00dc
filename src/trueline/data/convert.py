"""Examples written in another form and file type, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from trueline.data.readers import DataError, ending
from trueline.data.writers import WRITERS, Cells, Schema
from trueline.records import Example, Message, RecordError
from trueline.registry import Registry, UnknownNameError

Rows: TypeAlias = Callable[[Example], Iterator[Cells]]


@dataclass(frozen=True, slots=True)
class Target:
    """A form to write: its columns with their kinds, and what gives an example's rows."""

    columns: Mapping[str, str]
    rows: Rows


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What was written: rows, from how many examples.

    ``left_out`` counts the completions that have no place in the form, say rejected ones in
    ``sft``.
    """

    rows: int
    examples: int
    left_out: int


FOR_TEMPLATES = {"tools": "string", "chat_template_kwargs": "string"}
"""Columns for what a chat template reads beside the messages, as JSON text."""

TARGETS: Registry[Target] = Registry("target form")
"""The forms that can be written, by name."""


def target(name: str, **columns: str) -> Callable[[Rows], Rows]:
    """Register a form to write.

    The function gives the form's own columns; ``prompt``, ``reference_prompt`` and ``safety`` are
    filled in for every form.
    """
    columns |= {"reference_prompt": "text", "safety": "string"}

    def add(rows: Rows) -> Rows:
        TARGETS.add(name, Target(columns, rows))
        return rows

    return add


@target("preference", prompt="text", chosen="text", rejected="text")
def preference(example: Example) -> Iterator[Cells]:
    """One row a pair."""
    if not example.pairs:
        raise RecordError("no preference pair; unpaired data cannot become preferences")
    for chosen, rejected in example.pairs:
        yield {
            "chosen": example.completions[chosen].content,
            "rejected": example.completions[rejected].content,
        }


@target("unpaired", prompt="text", completion="text", label="bool")
def unpaired(example: Example) -> Iterator[Cells]:
    """One row a labeled completion; a pair labels its two."""
    labels = _labels(example)
    if not labels:
        raise RecordError("no label and no preference pair; nothing says which answer is desirable")
    for index, desirable in labels:
        yield {"completion": example.completions[index].content, "label": desirable}


@target("sft", prompt="text", completion="text")
def sft(example: Example) -> Iterator[Cells]:
    """One row a completion to imitate: chosen, desirable, or every one where none is labeled."""
    labels = _labels(example)
    unlabeled = [(index, True) for index in range(len(example.completions))]
    for index, desirable in labels or unlabeled:
        if desirable:
            yield {"completion": example.completions[index].content}


@target("kldo", prompt="text", acc_responses="texts", rej_responses="texts")
def kldo(example: Example) -> Iterator[Cells]:
    """One row a pair; the aligned answer is the refusal where the prompt is harmful."""
    if example.safety is None or not example.pairs:
        raise RecordError("form 'kldo' needs a safety label and a preference pair")
    for pair in example.pairs:
        good, bad = ([example.completions[index].content] for index in pair)
        safe = example.safety == "safe"
        yield {"acc_responses": good if safe else bad, "rej_responses": bad if safe else good}


@target("example", prompt="text", completions="completions", pairs="pairs", id="string")
def own(example: Example) -> Iterator[Cells]:
    """One row an example, with everything it holds."""
    completions = [
        {"content": c.content, "desirable": c.desirable, "score": c.score}
        for c in example.completions
    ]
    yield {"completions": completions, "pairs": example.pairs, "id": example.id}


def _labels(example: Example) -> list[tuple[int, bool]]:
    """Completions with their labels, as an unpaired objective would see them."""
    labels = {
        (index, completion.desirable)
        for index, completion in enumerate(example.completions)
        if completion.desirable is not None
    }
    for chosen, rejected in example.pairs:
        labels |= {(chosen, True), (rejected, False)}
    return sorted(labels, key=lambda label: (label[0], not label[1]))


class _Counted:
    """The rows of all examples in a form, counted as they pass."""

    def __init__(self, examples: Iterable[Example], form: str, suffix: str) -> None:
        self.source, self.form, self.suffix = examples, form, suffix
        self.target = TARGETS[form]
        self.columns = dict(self.target.columns)
        if suffix in (".jsonl", ".json"):
            self.columns |= FOR_TEMPLATES
        self.rows = self.examples = self.left_out = 0

    def __iter__(self) -> Iterator[Cells]:
        for example in self.source:
            self.examples += 1
            self._see_template(example)
            try:
                rows = list(self.target.rows(example))
            except RecordError as error:
                place = example.id or f"example {self.examples}"
                raise DataError(place, f"{error} (writing {self.form!r})") from None
            written = [content for row in rows for content in _contents(row)]
            self.left_out += sum(c.content not in written for c in example.completions)
            for row in rows:
                self.rows += 1
                yield self._complete(example, row)

    def _see_template(self, example: Example) -> None:
        """A table's columns are known from its first row on, and its messages are role and
        content."""
        if self.examples == 1 and example.template:
            self.columns |= FOR_TEMPLATES
        place = example.id or f"example {self.examples}"
        if example.template and "tools" not in self.columns:
            raise DataError(
                place, "has tools or chat_template_kwargs, and the first row has none; write .jsonl"
            )
        texts = [example.prompt, *(completion.content for completion in example.completions)]
        turns = [turn for text in texts if not isinstance(text, str) for turn in text]
        if self.suffix == ".parquet" and any(turn.more for turn in turns):
            raise DataError(
                place, "a turn has more than role and content (tool_calls, ...); write .jsonl"
            )

    def _complete(self, example: Example, row: Cells) -> Cells:
        shared = {
            "prompt": example.prompt,
            "reference_prompt": example.reference_prompt,
            "safety": example.safety,
            "tools": _as_json(example.template.get("tools")),
            "chat_template_kwargs": _as_json(
                {key: value for key, value in example.template.items() if key != "tools"}
            ),
        }
        return {name: _plain({**shared, **row}[name]) for name in self.columns}


def _as_json(value: Any) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None


def _contents(row: Cells) -> Iterator[Any]:
    for value in row.values():
        yield value
        if isinstance(value, list):
            yield from (item["content"] if isinstance(item, dict) else item for item in value)


def _plain(value: Any) -> Any:
    """Messages and tuples, at any depth, as JSON has them."""
    if isinstance(value, Message):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def write_examples(
    examples: Iterable[Example],
    path: str | os.PathLike[str],
    form: str = "example",
    *,
    overwrite: bool = False,
) -> WriteReport:
    """Write examples to .jsonl, .json, .csv (each also .gz) or .parquet, as a stream.

    The file appears whole or not at all: it is written beside its place and then moved there.
    Only form ``example`` keeps everything; the report counts the completions another left out.

    Args:
        examples: what to write.
        path: the file; its ending says the type.
        form: one of ``TARGETS``: preference, unpaired, sft, kldo, example.
        overwrite: replace a file that is there.

    Raises:
        DataError: the form or ending is unknown, the file exists, nothing is to be written, or an
            example cannot be expressed in the form; the message names the example's place.
    """
    path = Path(path)
    suffix = check_output(path, form, overwrite=overwrite)
    counted = _Counted(examples, form, suffix)
    rows = iter(counted)
    first = next(rows, None)
    if first is None:
        raise DataError(path, f"no row to write in form {form!r}")
    schema = Schema(counted.columns, isinstance(first["prompt"], list))
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[suffix](chain([first], rows), part, schema)
        os.replace(part, path)
    except OSError as error:
        raise DataError(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return WriteReport(counted.rows, counted.examples, counted.left_out)


def check_output(path: Path, form: str, *, overwrite: bool = False) -> str:
    """The ending without .gz, once form, ending and place are known to be right.

    Raises:
        DataError: the form or ending is unknown, or the file exists and is not to be overwritten.
    """
    try:
        TARGETS[form]
    except UnknownNameError as error:
        raise DataError("form", error) from None
    suffix = ending(path)
    if suffix is None:
        raise DataError(path, f"cannot tell the file type; end it in one of {', '.join(WRITERS)}")
    if path.exists() and not overwrite:
        raise DataError(path, "the file exists; choose another name or overwrite it (--overwrite)")
    return suffix.removesuffix(".gz")
