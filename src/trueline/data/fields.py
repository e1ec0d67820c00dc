"""The values of a row's columns, checked: text or messages, lists, labels, scores, safety.

Each reader returns the value or raises :class:`~trueline.records.RecordError`. By convention a
message's head, up to the first ``": "``, ``"; "`` or ``", got "``, is the *reason* that reports
count, so it names the fault and not the row's own content.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from trueline.records import Message, RecordError, Safety, Text

Fields: TypeAlias = Mapping[str, Any]

_PICTURES = ("image", "images", "video", "videos", "audio", "audios")
_KINDS: dict[type[Any], str] = {dict: "an object", list: "a list"}
_LABELS = {"true": True, "false": False, "1": True, "0": False}
_SAFETY: dict[str, Safety] = {"0": "harmful", "1": "safe", "harmful": "harmful", "safe": "safe"}


def reason(error: Exception) -> str:
    """The countable part of an error's message.

    Example:
        >>> reason(RecordError("label must be true or false, got 'maybe'"))
        'label must be true or false'
    """
    head = re.split(r"(?<!'): |; |, got ", str(error), maxsplit=1)[0]
    return head if len(head) <= 120 else head[:119] + "…"


def text(row: Fields, column: str) -> Text:
    """A column's text, or its messages."""
    return as_text(row[column], column)


def as_text(value: Any, what: str) -> Text:
    """A string as it stands, or a list of ``{"role", "content"}`` as messages.

    Raises:
        RecordError: it is neither, it is no valid Unicode, or a message holds more than text.

    Example:
        >>> as_text([{"role": "user", "content": "Sky?"}], "prompt")
        (Message(role='user', content='Sky?'),)
    """
    if isinstance(value, str):
        _check_unicode(value, what)
        return value
    if not isinstance(value, list | tuple):
        kind = "null" if value is None else type(value).__name__
        raise RecordError(f"{what} must be text or a list of messages, got {kind}")
    if not value:
        raise RecordError(f"{what} is an empty list; expected messages")
    messages = tuple(
        item if isinstance(item, Message) else Message.from_dict(item) for item in value
    )
    for message in messages:
        _check_unicode(message.content, what)
        _check_unicode(message.more, what)
    return messages


def _check_unicode(value: str, what: str) -> None:
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError(
            f"{what} is not valid UTF-8: broken bytes or half a surrogate pair; "
            "save the file as UTF-8"
        ) from None


def items(row: Fields, column: str) -> list[Any]:
    """A column's list, or the list its JSON text holds (in CSV there are no lists)."""
    value = row[column]
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RecordError(f"{column} must be a list; its text is no valid JSON") from None
    if not isinstance(value, list | tuple):
        raise RecordError(f"{column} must be a list, got {type(value).__name__}")
    return list(value)


def template(row: Fields) -> dict[str, Any]:
    """What the chat template reads beside the messages: ``tools`` and ``chat_template_kwargs``.

    Example:
        >>> template({"tools": "[]", "chat_template_kwargs": {"enable_thinking": False}})
        {'enable_thinking': False}
    """
    given = _json(row.get("chat_template_kwargs"), "chat_template_kwargs", dict)
    tools = _json(row.get("tools"), "tools", list)
    if not all(isinstance(tool, Mapping) for tool in tools or ()):
        raise RecordError("tools must be a list of JSON schemas, one object a tool")
    found = {str(key): value for key, value in (given or {}).items() if value is not None}
    return {**found, "tools": tools} if tools else found


def _json(value: Any, column: str, kind: type[Any]) -> Any:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RecordError(
                f"{column} must be {_KINDS[kind]}; its text is no valid JSON"
            ) from None
    if value is not None and not isinstance(value, kind):
        raise RecordError(f"{column} must be {_KINDS[kind]}, got {type(value).__name__}")
    return value


def refuse_pictures(row: Fields) -> None:
    """A text trainer reads no pictures, films or sound.

    Raises:
        RecordError: the row has some.
    """
    for column in _PICTURES:
        if row.get(column):
            raise RecordError(
                f"column {column!r} is not text, and only text can be trained on; drop the column "
                "if the text stands without it"
            )


def texts(row: Fields, column: str) -> list[Text]:
    """A column's list of texts (or conversations), one at least."""
    values = items(row, column)
    if not values:
        raise RecordError(f"{column} is an empty list; give one answer at least")
    return [as_text(value, f"each of {column}") for value in values]


def label(value: Any) -> bool:
    """True or false, also written 1/0 or "true"/"false" as CSV has it.

    Example:
        >>> label("False"), label(1)
        (False, True)
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str | int) and str(value).strip().lower() in _LABELS:
        return _LABELS[str(value).strip().lower()]
    raise RecordError(f"label must be true or false (or 1 or 0), got {value!r}")


def score(value: Any) -> float:
    """A finite number; NaN and Infinity are no scores."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"score must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecordError(f"score must be finite, got {number!r}")
    return number


def safety(value: Any) -> Safety | None:
    """``"harmful"`` or ``"safe"``, also written 0 and 1; None where there is no label.

    Example:
        >>> safety(0), safety("safe"), safety(None)
        ('harmful', 'safe', None)
    """
    if value is None or value == "":
        return None
    key = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    key = str(int(value)) if isinstance(value, float) and value in (0.0, 1.0) else key
    if isinstance(value, bool) or key not in _SAFETY:
        raise RecordError(f"safety must be 'harmful' (0) or 'safe' (1), got {value!r}")
    return _SAFETY[key]
