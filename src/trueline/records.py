"""What a row of data becomes: messages, completions and examples, checked once at the door.

An :class:`Example` is one prompt with one or more completions. Preference pairs are index pairs
into the completions; desirability and scores sit on the completions themselves, so that paired
and unpaired training data are two views of the same record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from trueline.errors import UserError

Safety: TypeAlias = Literal["harmful", "safe"]


class RecordError(UserError):
    """A row that cannot become an :class:`Example`; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True, repr=False)
class Message:
    """One turn of a conversation, in the field's usual form ``{"role": ..., "content": ...}``.

    Args:
        role: who speaks.
        content: the words; empty where a turn has none and only calls tools.
        more: the turn's other keys (``tool_calls``, ``name``, ...) as JSON text, or ``""``.

    Example:
        >>> Message.from_dict({"role": "tool", "name": "clock", "content": "noon"})
        Message(role='tool', content='noon', more='{"name": "clock"}')
    """

    role: str
    content: str
    more: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or not self.role:
            raise RecordError(f"a message's role must be a non-empty string, got {self.role!r}")
        if not isinstance(self.content, str):
            raise RecordError(
                f"a message's content must be a string, got {type(self.content).__name__}"
            )

    def __repr__(self) -> str:
        more = f", more={self.more!r}" if self.more else ""
        return f"Message(role={self.role!r}, content={self.content!r}{more})"

    @property
    def says(self) -> bool:
        """Whether there is anything in it but white space: words, or calls of tools."""
        return bool(self.content.strip()) or '"tool_calls"' in self.more

    def to_dict(self) -> dict[str, Any]:
        """The message as ``{"role": ..., "content": ...}``, the form chat templates take."""
        turn = {"role": self.role, "content": self.content}
        return {**turn, **json.loads(self.more)} if self.more else turn

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Message:
        """Read ``{"role": ..., "content": ...}``; raises :class:`RecordError` on any other form."""
        if not isinstance(value, Mapping) or "role" not in value:
            raise RecordError(f"a message must be {{'role': ..., 'content': ...}}, got {value!r}")
        more = {
            str(key): entry
            for key, entry in value.items()
            if key not in ("role", "content") and entry is not None
        }
        content = value.get("content")
        if content is None:
            if "content" not in value and not more:
                raise RecordError(
                    f"a message must be {{'role': ..., 'content': ...}}, got {value!r}"
                )
            content = ""
            more["content"] = None  # as it was: a template may ask for it
        if not isinstance(content, str):
            content = _joined(content)
        return cls(value["role"], content, json.dumps(more, ensure_ascii=False) if more else "")


def _joined(parts: Any) -> str:
    """The text of a content in parts, ``[{"type": "text", "text": ...}, ...]``."""
    if not isinstance(parts, list | tuple) or not all(isinstance(p, Mapping) for p in parts):
        raise RecordError(f"a message's content must be a string, got {type(parts).__name__}")
    for part in parts:
        kind = str(part.get("type", "text"))
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RecordError(
                f"a message holds a part of type {kind!r}; this trainer reads text alone"
            )
    return "".join(part["text"] for part in parts)


Text: TypeAlias = str | tuple[Message, ...]
"""Plain text (the standard layout) or a conversation (the conversational layout)."""


def is_blank(text: Text) -> bool:
    """Whether there is nothing in it but white space: nothing to score, nothing to learn."""
    if isinstance(text, str):
        return not text.strip()
    return not any(message.says for message in text)


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a prompt.

    ``desirable`` is the label of unpaired data and None where there is none; ``score`` is a
    rater's or judge's score, higher is better, and None where it was not scored.
    """

    content: Text
    desirable: bool | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.content, str | tuple):
            raise RecordError(
                f"a completion must be text or messages, got {type(self.content).__name__}"
            )
        if is_blank(self.content):
            raise RecordError("empty completion: it has no tokens to score")
        if self.desirable is not None and not isinstance(self.desirable, bool):
            raise RecordError(f"label must be true or false, got {self.desirable!r}")


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with its completions: the one record every part of Trueline works on.

    Args:
        prompt: text, or the messages before the completion. Text may be empty (unconditional).
        completions: at least one, all in the prompt's layout (text with text, messages with
            messages).
        pairs: preferences as ``(chosen, rejected)`` indices into ``completions``.
        reference_prompt: what the reference model alone is conditioned on (E-RLHF); None means
            the prompt itself.
        safety: ``"harmful"`` or ``"safe"`` where the prompt is labeled, else None.
        id: where the row came from, ``file:line``; errors name it.
        template: what else a chat template reads for this row: ``tools``, and variables of its own
            such as ``enable_thinking``.

    Example:
        >>> e = Example("Sky?", (Completion("Blue."), Completion("Green.")), pairs=((0, 1),))
        >>> e.completions[e.pairs[0][0]].content
        'Blue.'
    """

    prompt: Text
    completions: tuple[Completion, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    reference_prompt: Text | None = None
    safety: Safety | None = None
    id: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str | tuple):
            raise RecordError(f"prompt must be text or messages, got {type(self.prompt).__name__}")
        if not self.completions:
            raise RecordError("no completion: an example needs at least one")
        conversational = isinstance(self.prompt, tuple)
        if conversational and not self.prompt:
            raise RecordError("the prompt has no messages")
        for completion in self.completions:
            if isinstance(completion.content, tuple) != conversational:
                raise RecordError(
                    "prompt and completions must both be text or both be messages, got a "
                    f"{'conversational' if conversational else 'text'} prompt and a "
                    f"{'text' if conversational else 'conversational'} completion"
                )
        if self.reference_prompt is not None and (
            isinstance(self.reference_prompt, tuple) != conversational
        ):
            raise RecordError("reference_prompt must have the prompt's layout (text or messages)")
        for chosen, rejected in self.pairs:
            if chosen == rejected or not (
                0 <= chosen < len(self.completions) and 0 <= rejected < len(self.completions)
            ):
                raise RecordError(
                    f"pair ({chosen}, {rejected}) does not name two of the "
                    f"{len(self.completions)} completions"
                )
        if self.safety not in (None, "harmful", "safe"):
            raise RecordError(f"safety must be 'harmful', 'safe' or None, got {self.safety!r}")

    @property
    def conversational(self) -> bool:
        """Whether prompt and completions are messages rather than plain text."""
        return isinstance(self.prompt, tuple)
