"""A row's texts as the model reads them, before any of them is tokenized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from trueline.errors import UserError
from trueline.prompts import Piece, Renderer, Turn, answer
from trueline.records import Example


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row's texts with marks: its opened prompt, each answer's pieces, the reference's prompt;
    and whether any mark was made."""

    opened: str
    answers: list[list[Piece]]
    reference: str | None
    marked: bool

    def texts(self) -> Iterator[str]:
        """Every text that the tokenizer is asked for, but where it merges prompt and answer."""
        yield self.opened
        for pieces in self.answers:
            before = self.opened
            for piece in pieces:
                before += piece.text
                yield before
        if self.reference is not None:
            yield self.reference


def draw(renderer: Renderer, example: Example) -> Drawn:
    """The example's texts.

    Raises:
        UserError: options of a template for plain text, or the template refuses the conversation.
    """
    prompt, options = example.prompt, example.template
    marks = renderer.control.marks
    if options and isinstance(prompt, str):
        raise UserError(
            "tools and chat_template_kwargs have no effect on plain text; as_chat makes "
            "conversations of it, or drop the columns"
        )
    turns: list[Turn] = []
    if isinstance(prompt, str):
        opened = renderer.text(prompt)
    else:
        turns = renderer.turns(prompt)
        opened = renderer.opened(turns, options)
    answers = [
        [Piece(renderer.text(completion.content), True)]
        if isinstance(completion.content, str)
        else answer(renderer, turns, opened, completion.content, options)
        for completion in example.completions
    ]
    reference = None
    if example.reference_prompt is not None:
        reference = renderer.text(example.reference_prompt, options=options)
    return Drawn(opened, answers, reference, renderer.control.marks > marks)


@contextmanager
def named(example: Example) -> Iterator[None]:
    """What is wrong with a row names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{example.id or 'example'}: {error}") from None
