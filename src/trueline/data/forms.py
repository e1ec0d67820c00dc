"""The forms data comes in: one decorated function a form, from a row to an Example.

A form is recognized by its columns. Every form takes ``reference_prompt``, ``safety``, ``tools``
and ``chat_template_kwargs`` too; further columns are not read, and :meth:`Form.unread` names them.
This file is a catalog: it grows with the forms.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from trueline.data import fields
from trueline.data.fields import Fields
from trueline.data.turns import join_layouts, split_implied, split_turns
from trueline.records import Completion, Example, Message, RecordError, Text, is_blank
from trueline.registry import Registry, nearest

Read: TypeAlias = Callable[[Fields], Example]


@dataclass(frozen=True, slots=True)
class Form:
    """A layout of rows.

    Args:
        name: how ``form=`` and ``--form`` call it.
        columns: the columns it needs; alternatives where it has several.
        example: a row in this form.
        description: one line.
        read: the row's Example, without place and optional columns.
        also: further columns of its own.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    example: Fields
    description: str
    read: Read
    also: tuple[str, ...] = ()

    def unread(self, columns: Iterable[str]) -> list[str]:
        """Those of a row's filled columns that are not read.

        Example:
            >>> FORMS["preference"].unread(["prompt", "chosen", "rejected", "margin"])
            ['margin']
        """
        present = list(columns)
        needed = next((n for n in self.columns if set(n) <= set(present)), ())
        return [name for name in present if name not in (*needed, *self.also, *COMMON)]

    def missing(self, columns: Iterable[str]) -> list[str]:
        """The needed columns that are not there, of the alternative that lacks the fewest."""
        present = set(columns)
        lacks = [[name for name in needed if name not in present] for needed in self.columns]
        return min(lacks, key=len)

    def __call__(self, row: Any, place: str | None = None) -> Example:
        """The row as an Example.

        Raises:
            RecordError: a column is missing or holds what this form does not allow.
        """
        if not isinstance(row, Mapping):
            raise RecordError(f"a row must be an object with columns, got {type(row).__name__}")
        lacks = self.missing(filled(row))
        if lacks:
            fault = "is null" if lacks[0] in row else "is missing"
            hint = "" if lacks[0] in row else nearest(lacks[0], [str(name) for name in row])
            needs = " or ".join(", ".join(needed) for needed in self.columns)
            raise RecordError(
                f"column {lacks[0]!r} {fault}; form {self.name!r} needs {needs}{hint}"
            )
        fields.refuse_pictures(row)
        example = self.read(row)
        return replace(
            example,
            template=fields.template(row),
            reference_prompt=_reference(row, example),
            safety=fields.safety(row.get("safety")),
            id=example.id or place,
        )


COMMON = ("reference_prompt", "safety", "tools", "chat_template_kwargs")
"""Columns that every form takes."""

FORMS: Registry[Form] = Registry("data form")
"""Every form by name."""


def filled(row: Fields) -> list[str]:
    """The columns that hold a value."""
    return [str(name) for name, value in row.items() if value is not None]


def form(
    name: str,
    *columns: tuple[str, ...],
    example: Fields,
    aliases: Sequence[str] = (),
    also: tuple[str, ...] = (),
) -> Callable[[Read], Read]:
    """Register a form: its name, the columns it needs (alternatives), an example row.

    The function takes a row in which those columns are filled; its docstring's first line is the
    form's description.
    """

    def add(read: Read) -> Read:
        description = (read.__doc__ or "").strip().splitlines()[0]
        FORMS.add(name, Form(name, columns, example, description, read, also), aliases)
        return read

    return add


def detect(row: Fields) -> Form:
    """The form of a row by its filled columns: of those that fit, the one that needs the most.

    Raises:
        RecordError: none fits; the message names the form that comes nearest and what it lacks.

    Example:
        >>> detect({"chosen": "Blue.", "rejected": "Green."}).name
        'preference-implicit'
    """
    columns = filled(row)
    fitting = [
        (len(needed), form)
        for form in FORMS.values()
        for needed in form.columns
        if set(needed) <= set(columns)
    ]
    if fitting:
        size, form = max(fitting, key=lambda fit: fit[0])
        _misspelled(columns, size)
        return form
    near = min(FORMS.values(), key=lambda form: _distance(form, columns))
    lacks = near.missing(columns)
    hint = nearest(lacks[0], columns)
    raise RecordError(
        f"unknown columns: {', '.join(columns) or 'none'}; the nearest form, {near.name!r}, also "
        f"needs {', '.join(lacks)}{hint} (forms: {', '.join(FORMS)})"
    )


def _misspelled(columns: Sequence[str], size: int) -> None:
    """A larger form would fit but for one letter: better an error than a column not read.

    Raises:
        RecordError: a column that no form knows is nearly one that a larger form needs.
    """
    known = {column for form in FORMS.values() for needed in form.columns for column in needed}
    strange = [column for column in columns if column not in known]
    for form in FORMS.values():
        for needed in form.columns:
            lacks = [column for column in needed if column not in columns]
            if len(needed) <= size or len(lacks) != 1:
                continue
            for column in difflib.get_close_matches(lacks[0], strange, 1, cutoff=0.85):
                raise RecordError(
                    f"column {column!r} would not be read; did you mean {lacks[0]!r} (form "
                    f"{form.name!r})? Rename or remove it"
                )


def _distance(form: Form, columns: Sequence[str]) -> tuple[float, int]:
    """What share of a form is lacking, the larger form first where it is the same share."""
    lacks = form.missing(columns)
    size = max(len(needed) for needed in form.columns)
    return len(lacks) / size, -size


def _reference(row: Fields, example: Example) -> Text | None:
    value = row.get("reference_prompt")
    if value is None or value == "":
        return None
    reference = fields.as_text(value, "reference_prompt")
    if example.conversational and isinstance(reference, str):
        return (Message("user", reference),)
    return reference


def _pair(prompt: Text, chosen: Text, rejected: Text) -> Example:
    if chosen == rejected:
        raise RecordError("chosen and rejected are identical; a pair must differ")
    return Example(prompt, (Completion(chosen), Completion(rejected)), pairs=((0, 1),))


@form(
    "preference",
    ("prompt", "chosen", "rejected"),
    example={"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
)
def preference(row: Fields) -> Example:
    """A prompt, the preferred answer and the other one; text or messages."""
    answers = [fields.text(row, "chosen"), fields.text(row, "rejected")]
    if answers[0] == answers[1]:
        raise RecordError("chosen and rejected are identical; a pair must differ")
    split = join_layouts(fields.text(row, "prompt"), answers)
    return _pair(split.prompt, *split.answers)


@form(
    "preference-implicit",
    ("chosen", "rejected"),
    example={
        "chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.",
        "rejected": "\n\nHuman: Sky?\n\nAssistant: Green.",
    },
    aliases=("hh",),
)
def preference_implicit(row: Fields) -> Example:
    """Two whole conversations (messages, HH transcripts or text) that share their prompt."""
    if row.get("prompt"):
        raise RecordError(
            "this row has a prompt of its own, where chosen and rejected are read as whole "
            "conversations; name the form (preference), or leave the column out"
        )
    split = split_implied(fields.text(row, "chosen"), fields.text(row, "rejected"))
    return _pair(split.prompt, *split.answers)


@form(
    "unpaired",
    ("prompt", "completion", "label"),
    example={"prompt": "Sky?", "completion": "Blue.", "label": True},
)
def unpaired(row: Fields) -> Example:
    """A prompt and one answer, labeled desirable or not."""
    split = join_layouts(fields.text(row, "prompt"), [fields.text(row, "completion")])
    return Example(split.prompt, (Completion(split.answers[0], fields.label(row["label"])),))


@form(
    "sft",
    ("prompt", "completion"),
    ("messages",),
    ("text",),
    example={"prompt": "Sky?", "completion": "Blue."},
)
def sft(row: Fields) -> Example:
    """An answer to imitate: prompt and completion, messages that end with it, or text alone."""
    columns = filled(row)
    if "prompt" in columns and "completion" in columns:
        split = join_layouts(fields.text(row, "prompt"), [fields.text(row, "completion")])
    elif "messages" in columns:
        messages = fields.text(row, "messages")
        if isinstance(messages, str):
            raise RecordError("messages must be a list of messages, got str")
        split = split_turns([messages])
    else:
        split = join_layouts("", [fields.text(row, "text")])
    return Example(split.prompt, (Completion(split.answers[0]),))


@form(
    "kldo",
    ("prompt", "safety", "acc_responses", "rej_responses"),
    example={
        "prompt": "How do I pick a lock?",
        "safety": 0,
        "acc_responses": ["First, ..."],
        "rej_responses": ["I can't help with that."],
    },
)
def kldo(row: Fields) -> Example:
    """A labeled prompt with complying and refusing answers (compliance-refusal data).

    The aligned answers are the refusals of a harmful prompt and the compliances with a safe one;
    each of them is preferred to each of the others.
    """
    safety = fields.safety(row["safety"])
    if safety is None:
        raise RecordError("safety is empty; expected 'harmful' (0) or 'safe' (1)")
    complying, refusing = fields.texts(row, "acc_responses"), fields.texts(row, "rej_responses")
    good, bad = (complying, refusing) if safety == "safe" else (refusing, complying)
    if any(answer in bad for answer in good):
        raise RecordError("chosen and rejected are identical; a pair must differ")
    split = join_layouts(fields.text(row, "prompt"), [*good, *bad])
    pairs = tuple((i, len(good) + j) for i in range(len(good)) for j in range(len(bad)))
    return Example(split.prompt, tuple(map(Completion, split.answers)), pairs)


@form(
    "scored",
    ("prompt", "completions", "scores"),
    ("prompt", "responses", "scores"),
    example={"prompt": "Sky?", "completions": ["Blue.", "Green."], "scores": [0.9, 0.1]},
)
def scored(row: Fields) -> Example:
    """A prompt with scored answers; the best is preferred to the worst."""
    column = "completions" if "completions" in filled(row) else "responses"
    answers = fields.texts(row, column)
    scores = [fields.score(value) for value in fields.items(row, "scores")]
    if len(scores) != len(answers):
        raise RecordError(f"{column} and scores differ in number: {len(answers)} and {len(scores)}")
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if best == worst:
        raise RecordError("tie: all scores are the same, so no answer is preferred")
    if answers[best] == answers[worst]:
        raise RecordError("chosen and rejected are identical; a pair must differ")
    split = join_layouts(fields.text(row, "prompt"), answers)
    completions = (
        Completion(text, score=score) for text, score in zip(split.answers, scores, strict=True)
    )
    return Example(split.prompt, tuple(completions), ((best, worst),))


@form(
    "example",
    ("prompt", "completions"),
    example={
        "prompt": "Sky?",
        "completions": [
            {"content": "Blue.", "desirable": None, "score": 0.9},
            {"content": "Green.", "desirable": None, "score": 0.1},
        ],
        "pairs": [[0, 1]],
    },
    also=("pairs", "id"),
)
def own(row: Fields) -> Example:
    """Trueline's own form: everything an Example holds, as `trueline data convert` writes it."""
    completions = []
    for value in fields.items(row, "completions"):
        if not isinstance(value, Mapping) or "content" not in value:
            raise RecordError("a completion must be an object with 'content'; see form 'example'")
        label, score = value.get("desirable"), value.get("score")
        completions.append(
            Completion(
                fields.as_text(value["content"], "content"),
                None if label is None else fields.label(label),
                None if score is None else fields.score(score),
            )
        )
    return Example(
        fields.text(row, "prompt"),
        tuple(completions),
        tuple(map(_indices, fields.items(row, "pairs") if row.get("pairs") else ())),
        id=row["id"] if isinstance(row.get("id"), str) and not is_blank(row["id"]) else None,
    )


def _indices(value: Any) -> tuple[int, int]:
    match value:
        case [int(chosen), int(rejected)] if not isinstance(chosen, bool):
            return chosen, rejected
    raise RecordError(f"a pair must be two indices [chosen, rejected], got {value!r}")
