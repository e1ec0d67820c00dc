"""An answer's text behind its prompt: the assistant's turns as the chat template makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trueline.errors import UserError
from trueline.prompts.control import PLACE
from trueline.prompts.render import NO_OPTIONS, Options, Renderer, Turn
from trueline.records import Message


class Piece(NamedTuple):
    """A part of an answer's text, and whether it is the assistant's own."""

    text: str
    scored: bool


def answer(
    renderer: Renderer,
    prompt: Sequence[Turn],
    opened: str,
    completion: Sequence[Message],
    options: Options = NO_OPTIONS,
) -> list[Piece]:
    """The text behind an opened prompt, in pieces: what the assistant says, and between its turns
    what others say.

    Where the whole conversation begins with ``opened``, the text is the rest of it. Where it does
    not (a template that writes ``<think>`` only before what is to be generated, or takes earlier
    thinking out), each turn is found in the whole by its place: where the template puts a
    placeholder in its stead.

    Args:
        renderer: reads the messages.
        prompt: the turns before, as the renderer marked them.
        opened: the prompt's text with its generation prompt, as the renderer gave it.
        completion: the answer; it begins with an assistant's turn.
        options: what else the template reads.

    Raises:
        UserError: a turn has no place in what the template makes of the conversation; the message
            shows where prompt and conversation part.
    """
    turns = [*prompt, *renderer.turns(completion)]
    first = len(prompt)
    if prompt[-1]["role"] == completion[0].role == "assistant":  # the answer goes on with it
        words = f"{turns[first - 1]['content']}{turns[first]['content']}"
        turns[first - 1 : first + 1] = [{**turns[first], "content": words}]
        first -= 1
    whole = Whole(renderer, turns, options)
    if len(turns) == first + 1:
        return [Piece(whole.text[whole.start(first, opened) :], True)]
    pieces: list[Piece] = []
    end = 0
    for index in range(first, len(turns)):
        if turns[index]["role"] != "assistant":
            continue
        if index > first:
            opened = renderer.template(turns[:index], options, add_generation_prompt=True)
        start = whole.start(index, opened)
        if pieces and start > end:
            pieces.append(Piece(whole.text[end:start], False))
        end = whole.end(index)
        pieces.append(Piece(whole.text[start:end], True))
    return pieces


class Whole:
    """A conversation as the template writes it, and where its turns are."""

    def __init__(self, renderer: Renderer, turns: Sequence[Turn], options: Options) -> None:
        self.renderer, self.turns, self.options = renderer, turns, options
        self.text: str = renderer.template(turns, options)

    def start(self, index: int, opened: str) -> int:
        """Where a turn's words begin that are to be generated after ``opened``."""
        if self.text.startswith(opened):
            return len(opened)
        before, _ = self._around(self.turns, index)
        if before is None or not self.text.startswith(before):
            raise UserError(self._difference(opened))
        start = len(before)
        again = opened[len(before) :].strip() if opened.startswith(before) else ""
        if again and self.text.startswith(
            again, start
        ):  # "<think>", of the prompt's end and its own
            start += len(again)
        return start

    def end(self, index: int) -> int:
        """Where a turn ends, what closes it included."""
        if index == len(self.turns) - 1:
            return len(self.text)
        closed = self.renderer.template(self.turns[: index + 1], self.options)
        if self.text.startswith(closed):
            return len(closed)
        _, after = self._around(self.turns, index)
        _, closing = self._around(self.turns[: index + 1], index)
        if after is None or closing is None or not self.text.endswith(after):
            raise UserError(self._difference(closed))
        return len(self.text) - len(after) + _common(closing, after)

    def _around(self, turns: Sequence[Turn], index: int) -> tuple[str, str] | tuple[None, None]:
        """What the template writes before and after a turn's words, or None where they vanish."""
        turns = [{**turn, "content": PLACE} if i == index else turn for i, turn in enumerate(turns)]
        before, place, after = self.renderer.template(turns, self.options).partition(PLACE)
        return (before, after) if place else (None, None)

    def _difference(self, opened: str) -> str:
        at = _common(opened, self.text)
        show = self.renderer.control.restore
        return (
            "the chat template writes the prompt differently once it is answered, and the answer "
            f"cannot be found in what it writes: {show(opened[at : at + 40])!r} before, "
            f"{show(self.text[at : at + 40])!r} then, after {show(opened[max(0, at - 40) : at])!r}"
        )


def _common(a: str, b: str) -> int:
    """How many characters two texts share at their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)))  # fmt: skip
