"""One example as the model reads it, token by token, for people to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trueline.batching.encode import Encoder
from trueline.records import Example


@dataclass(frozen=True, slots=True)
class Token:
    """A token: its id, what it adds to the text, and whether it is scored."""

    id: int
    text: str
    scored: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A prompt's or a completion's tokens, and how an objective sees it (chosen, rejected, ...)."""

    role: str
    tokens: tuple[Token, ...]


def parts(encoder: Encoder, example: Example) -> list[Part]:
    """The example's prompt and each of its completions behind it, as training encodes them."""
    tree = encoder(example)
    prompt = tree.prompt.tolist()
    shown = [Part("prompt", tuple(_tokens(encoder, [], prompt, [False] * len(prompt))))]
    for role, branch in zip(roles(example), tree.branches, strict=True):
        tokens = _tokens(encoder, prompt, branch.ids.tolist(), branch.mask.tolist())
        shown.append(Part(role, tuple(tokens)))
    return shown


def roles(example: Example) -> list[str]:
    """What each completion is to an objective."""
    labels = {True: "desirable", False: "undesirable", None: "completion"}
    found = [labels[completion.desirable] for completion in example.completions]
    for chosen, rejected in example.pairs:
        found[chosen], found[rejected] = "chosen", "rejected"
    return found


def _tokens(
    encoder: Encoder, before: Sequence[int], ids: Sequence[int], scored: Sequence[bool]
) -> Iterator[Token]:
    """Each token with what it adds to the text before it; half a letter adds a sign for it."""
    so_far = list(before)
    text = encoder.renderer.decode(so_far)
    for token, counts in zip(ids, scored, strict=True):
        so_far.append(token)
        longer = encoder.renderer.decode(so_far)
        same = text.rstrip("\ufffd")
        added = longer[len(same) :] if longer.startswith(same) else encoder.renderer.decode([token])
        text = longer
        yield Token(token, added, counts)
