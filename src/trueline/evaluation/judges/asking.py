"""A judge that asks a model: a prompt for each answer, and what its reply means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trueline.evaluation.backends import Backend, Decoding, Request
from trueline.evaluation.generation import Generation
from trueline.evaluation.judges.base import Measure, Verdict, unparsable
from trueline.records import Message


@dataclass(frozen=True)
class AskingJudge:
    """Asks ``backend`` about each answer and reads its reply.

    Args:
        kind: the judge's name.
        backend: the judging model.
        ask: from (prompt, response, marks) to a request; marks are what the backend reads as
            control tokens, to be broken up in the data.
        read: from a reply to a verdict.
        hash: of the judge's prompt.
        decoding: greedy, and as many tokens as a reply takes.
        measures: what it can tell.
        whole: whether a reply counts only if the model ended it: one that reasons before it
            speaks has said nothing where it was cut.
    """

    kind: str
    backend: Backend
    ask: Callable[[str, str, Sequence[str]], Request]
    read: Callable[[str], Verdict]
    hash: str
    decoding: Decoding
    measures: frozenset[Measure]
    whole: bool = False

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "judge": self.kind,
            "prompt_hash": self.hash,
            "decoding": self.decoding.facts,
            **self.backend.facts,
        }

    def requests(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Request]:
        """What the judging model is asked about each answer."""
        return [
            self.ask(prompt, response, self.backend.marks)
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        replies = self.backend(self.requests(prompts, responses), self.decoding)
        return [self.verdict(reply) for reply in replies]

    def verdict(self, reply: Generation) -> Verdict:
        """What a reply means; unread where it had to be whole and was cut off."""
        if reply.failed:
            return replace(unparsable(""), why=f"the judge was not reached: {reply.failed}")
        if self.whole and not reply.finished:
            return unparsable(reply.answer)
        return self.read(reply.answer)


def asked(backend: Backend, text: str, *, raw: bool = False) -> Request:
    """The judge's prompt as a user's turn; as it stands where it is ``raw`` (it brings its own
    frame along) or the local judge has no chat template."""
    tokenizer = getattr(backend, "tokenizer", None)
    if tokenizer is not None and (raw or tokenizer.chat_template is None):
        return Request(text)
    return Request((Message("user", text),))
