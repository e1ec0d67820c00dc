"""A conversation that is too long: whole turns from the oldest, then the beginning of its last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from trueline.prompts import Options, Renderer
from trueline.records import Message


def shortened(
    renderer: Renderer, messages: tuple[Message, ...], options: Options, limit: int
) -> tuple[Message, ...]:
    """The conversation in at most ``limit`` tokens, as far as the template's own words allow it.

    Turns are left out from the oldest, up to the next user's turn, so that what remains begins as
    conversations begin. A system message goes after all others but the last. Where the last turn
    alone is too long, its own words lose their beginning.
    """

    def tokens(turns: tuple[Message, ...]) -> int:
        return len(renderer.prompt_ids(turns, options=options))

    last = messages[-1:]
    for turns in _later(messages):
        last = turns
        if tokens(turns) <= limit:
            return turns
    words = renderer.control.encode(renderer.control.mark(last[-1].content))
    excess = tokens(last) - limit
    while words and excess > 0:
        words = words[excess:]
        rest = renderer.decode(words).lstrip("\ufffd")  # of a letter cut in two
        last = (*last[:-1], replace(last[-1], content=rest))
        excess = tokens(last) - limit
    return last


def _later(messages: tuple[Message, ...]) -> Iterator[tuple[Message, ...]]:
    """The conversation from each later user's turn on, with its system message and then without."""
    head = messages[:1] if messages[0].role == "system" else ()
    starts = [i for i in range(1, len(messages)) if messages[i].role == "user"]
    for start in starts or [len(messages) - 1]:
        if start > len(head):
            yield (*head, *messages[start:])
    if head and len(messages) > 1:
        yield messages[(starts or [len(messages) - 1])[-1] :]
