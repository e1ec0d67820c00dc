"""Forms of LLaMA-Factory's and axolotl's preference files: alpaca and ShareGPT columns.

Both apply a chat template to them, so these are read as conversations.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from trueline.data import fields
from trueline.data.fields import Fields
from trueline.data.forms import filled, form
from trueline.data.turns import join_layouts, split_turns
from trueline.records import Completion, Example, Message, RecordError, Text

ASKED = ("input", "system", "history")
SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "observation": "tool"}


def _turns(value: Any, what: str) -> Text:
    """Messages as ``{"role", "content"}`` or ``{"from", "value"}``, a list or one alone, or the
    JSON of them (in CSV); or text."""
    given = value
    if isinstance(value, str) and value.startswith(("[{", "{")):
        with contextlib.suppress(ValueError, RecursionError):
            given = json.loads(value)
    listed = [given] if isinstance(given, Mapping) else given
    if not isinstance(listed, list | tuple) or (given is not value and not _messages(listed)):
        return fields.as_text(value, what)
    return fields.as_text([_message(item) for item in listed], what)


def _messages(items: Any) -> bool:
    shapes = ({"from", "value"}, {"role", "content"})
    return all(isinstance(x, Mapping) and any(s <= set(x) for s in shapes) for x in items)


def _message(item: Any) -> Any:
    if not isinstance(item, Mapping) or "from" not in item:
        return item
    speaker = item["from"]
    return {"role": SPEAKERS.get(speaker, speaker), "content": item.get("value")}


def _asked(row: Fields) -> tuple[Message, ...]:
    """An alpaca row's prompt: its system text, its history, the instruction and its input."""
    column = "question" if "question" in filled(row) else "instruction"
    asked = [row[column], *([row["input"]] if row.get("input") else [])]
    turns = [("system", row["system"])] if row.get("system") else []
    for turn in row.get("history") or ():
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise RecordError("each of history must be a pair of texts, asked and answered")
        turns += [("user", turn[0]), ("assistant", turn[1])]
    for what, value in [*turns, *((column, part) for part in asked)]:
        if not isinstance(value, str):
            raise RecordError(f"{what} must be text, got {type(value).__name__}")
        fields.as_text(value, what)
    return tuple(Message(role, text) for role, text in [*turns, ("user", "\n".join(asked))])


def _pair(prompt: Text, chosen: Text, rejected: Text) -> Example:
    if chosen == rejected:
        raise RecordError("chosen and rejected are identical; a pair must differ")
    split = join_layouts(prompt, [chosen, rejected])
    return Example(split.prompt, tuple(map(Completion, split.answers)), pairs=((0, 1),))


@form(
    "alpaca-preference",
    ("instruction", "chosen", "rejected"),
    ("question", "chosen", "rejected"),
    ("instruction", "chosen_response", "rejected_response"),
    example={"instruction": "Sky?", "input": "", "chosen": "Blue.", "rejected": "Green."},
    also=ASKED,
)
def alpaca_preference(row: Fields) -> Example:
    """An instruction with its two answers, as LLaMA-Factory (dpo) and axolotl (intel) have it."""
    suffix = "" if "chosen" in filled(row) else "_response"
    chosen, rejected = (_turns(row[side + suffix], side) for side in ("chosen", "rejected"))
    return _pair(_asked(row), chosen, rejected)


@form(
    "alpaca-unpaired",
    ("instruction", "output", "kto_tag"),
    example={"instruction": "Sky?", "output": "Blue.", "kto_tag": True},
    also=ASKED,
)
def alpaca_unpaired(row: Fields) -> Example:
    """An instruction with one answer and its label, as LLaMA-Factory (kto) has it."""
    split = join_layouts(_asked(row), [fields.text(row, "output")])
    return Example(split.prompt, (Completion(split.answers[0], fields.label(row["kto_tag"])),))


@form(
    "alpaca",
    ("instruction", "output"),
    example={"instruction": "Sky?", "output": "Blue."},
    also=ASKED,
)
def alpaca(row: Fields) -> Example:
    """An instruction with an answer to imitate."""
    split = join_layouts(_asked(row), [fields.text(row, "output")])
    return Example(split.prompt, (Completion(split.answers[0]),))


@form(
    "sharegpt-preference",
    ("conversations", "chosen", "rejected"),
    ("conversation", "chosen", "rejected"),
    ("messages", "chosen", "rejected"),
    example={
        "conversations": [{"from": "human", "value": "Sky?"}],
        "chosen": {"from": "gpt", "value": "Blue."},
        "rejected": {"from": "gpt", "value": "Green."},
    },
    also=("system",),
)
def sharegpt_preference(row: Fields) -> Example:
    """A conversation so far with its two answers, as LLaMA-Factory and axolotl have it."""
    column = next(c for c in ("conversations", "conversation", "messages") if c in filled(row))
    chosen, rejected = (_turns(row[side], side) for side in ("chosen", "rejected"))
    return _pair(_spoken(row, column), chosen, rejected)


@form(
    "sharegpt-unpaired",
    ("conversations", "kto_tag"),
    ("messages", "kto_tag"),
    example={
        "conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}],
        "kto_tag": True,
    },
    also=("system",),
)
def sharegpt_unpaired(row: Fields) -> Example:
    """A conversation that ends with an answer, and its label."""
    column = "conversations" if "conversations" in filled(row) else "messages"
    example = _conversation(row, column)
    answer = Completion(example.completions[0].content, fields.label(row["kto_tag"]))
    return Example(example.prompt, (answer,))


@form(
    "sharegpt",
    ("conversations",),
    example={
        "conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}]
    },
    also=("system",),
)
def sharegpt(row: Fields) -> Example:
    """A conversation that ends with an answer to imitate."""
    return _conversation(row, "conversations")


def _conversation(row: Fields, column: str) -> Example:
    split = split_turns([_spoken(row, column)])
    return Example(split.prompt, (Completion(split.answers[0]),))


def _spoken(row: Fields, column: str) -> tuple[Message, ...]:
    """A conversation, with the system text that stands beside it."""
    turns = _turns(row[column], column)
    if isinstance(turns, str):
        raise RecordError(f"{column} must be a list of messages, got str")
    if row.get("system") and turns[0].role != "system":
        return (Message("system", row["system"]), *turns)
    return turns
