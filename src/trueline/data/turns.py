"""Where a prompt ends and the answers begin: at a turn, never inside a word or a reply.

An answer given together with its prompt is split at the boundary of whole messages. Cutting at
the first differing character instead moves the answers' common first words ("I'm sorry, ...")
into the prompt, where they are not scored: in safety data, the refusal itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from trueline.records import Message, RecordError, Text, is_blank

Turns: TypeAlias = tuple[Message, ...]

_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class Split(NamedTuple):
    """A prompt and its answers, all text or all messages."""

    prompt: Text
    answers: tuple[Text, ...]


def parse_transcript(text: str) -> Turns | None:
    """The turns of an HH transcript (blank line, ``Human:`` or ``Assistant:``), or None.

    Only a marker after a blank line opens a turn; "Human:" within a line is part of what was
    said. White space around a turn is the transcript's, not the speaker's.

    Example:
        >>> parse_transcript("\\n\\nHuman: Sky?\\n\\nAssistant: Blue.")[1]
        Message(role='assistant', content='Blue.')
        >>> parse_transcript("Blue.") is None
        True
    """
    pieces = _MARKER.split(text)
    if pieces[0] or pieces[1:2] != ["Human"] or "Assistant" not in pieces[3::2]:
        return None
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return tuple(Message(_ROLES[marker], content.strip()) for marker, content in turns)


def split_implied(chosen: Text, rejected: Text) -> Split:
    """The prompt that two answers share, taken off both.

    - Messages and HH transcripts: the common turns, up to the last one that is not the
      assistant's. All turns after it belong to the answer.
    - Plain text: the common lines. Without a common line the prompt is empty.

    Raises:
        RecordError: the two are identical, share no turn, or one is empty after the prompt.

    Example:
        >>> split_implied("Capital?\\nParis ", "Capital?\\nLondon").answers
        ('Paris ', 'London')
        >>> split_implied("Paris ", "London").prompt
        ''
    """
    if chosen == rejected:
        raise RecordError("chosen and rejected are identical; a pair must differ")
    layouts = [
        (parse_transcript(text) or text) if isinstance(text, str) else text
        for text in (chosen, rejected)
    ]
    if all(isinstance(text, tuple) for text in layouts):
        return split_turns([turns for turns in layouts if isinstance(turns, tuple)])
    if isinstance(chosen, str) and isinstance(rejected, str) and layouts == [chosen, rejected]:
        return _split_lines(chosen, rejected)
    raise RecordError(
        "chosen and rejected differ in layout: one is a conversation, the other plain text"
    )


def split_turns(conversations: Sequence[Turns]) -> Split:
    """Whole conversations with one prompt, or one conversation: prompt turns and answer turns."""
    common = 0
    for turns in zip(*conversations, strict=False):
        if any(turn != turns[0] for turn in turns):
            break
        common += 1
    prompt = conversations[0][:common]
    while prompt and prompt[-1].role == "assistant":
        prompt = prompt[:-1]
    if not prompt:
        raise RecordError("no common prompt: the conversations share no turn before the answer")
    answers = tuple(turns[len(prompt) :] for turns in conversations)
    for answer in answers:
        _check_answer(answer)
    return Split(prompt, answers)


def _split_lines(chosen: str, rejected: str) -> Split:
    lines, others = chosen.split("\n"), rejected.split("\n")
    common = 0
    while common < min(len(lines), len(others)) - 1 and lines[common] == others[common]:
        common += 1
    while common and (is_blank("".join(lines[common:])) or is_blank("".join(others[common:]))):
        common -= 1
    cut = sum(len(line) + 1 for line in lines[:common])
    return Split(chosen[:cut], (chosen[cut:], rejected[cut:]))


def join_layouts(prompt: Text, answers: Sequence[Text]) -> Split:
    """Prompt and answers in one layout: all text, or all messages where any of them is.

    A string prompt becomes a user message, a string answer an assistant message. Answers that
    repeat the prompt's messages (a common layout of published data) give them up.

    Example:
        >>> join_layouts((Message("user", "Sky?"),), ["Blue."]).answers
        ((Message(role='assistant', content='Blue.'),),)
    """
    if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
        return Split(prompt, tuple(answers))
    if isinstance(prompt, str):
        whole = [turns for turns in answers if isinstance(turns, tuple)]
        if len(whole) == len(answers) and all(turns[0].role != "assistant" for turns in whole):
            return _check_prompt(prompt, split_turns(whole))
        if is_blank(prompt):
            raise RecordError("the prompt is empty; messages need one before the answer")
        prompt = (Message("user", prompt),)
    turns = [
        (Message("assistant", answer),) if isinstance(answer, str) else answer for answer in answers
    ]
    if all(answer[: len(prompt)] == prompt for answer in turns):
        turns = [answer[len(prompt) :] for answer in turns]
    for answer in turns:
        _check_answer(answer)
    return Split(prompt, tuple(turns))


def _check_prompt(prompt: str, split: Split) -> Split:
    """The split, if a string prompt beside whole conversations says what their last turn says."""
    last = split.prompt[-1]
    if isinstance(last, Message) and prompt.strip() not in ("", last.content.strip()):
        raise RecordError("prompt is not the last user turn before its completions; drop either")
    return split


def _check_answer(turns: Turns) -> None:
    if not turns or turns[-1].role != "assistant":
        raise RecordError("no answer: the conversation does not end with an assistant turn")
    if not turns[-1].says:
        raise RecordError("empty completion: its last assistant turn has no text")
    if turns[0].role != "assistant":
        raise RecordError(
            f"the completion begins with a {turns[0].role!r} turn; turns before the answer "
            "belong to the prompt, the same for all completions"
        )
