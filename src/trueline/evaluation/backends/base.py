"""What a backend is: requests in, one answer each out, and facts that name what answered; and
one that says what it is told to, for tests, and to try a judge without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from trueline.errors import UserError
from trueline.evaluation.generation import Generation, OnAnswer
from trueline.evaluation.harness.store import Store, complete, digest
from trueline.interrupts import piece_done
from trueline.prompts import Progress
from trueline.records import Text


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to answer: a prompt, and words that are put into the model's mouth."""

    prompt: Text
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are decoded: greedily, or with a temperature and a seed.

    Raises:
        UserError: a limit below one token, or a negative temperature.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise UserError(f"temperature must be at least 0, got {self.temperature}")

    @property
    def facts(self) -> dict[str, Any]:
        """What an answer depends on: a seed counts only where something is drawn."""
        facts = asdict(self)
        if self.temperature == 0:
            del facts["seed"]
        return facts


class Backend(Protocol):
    """Something that answers.

    ``facts`` is JSON-ready and names the backend's kind and the model by its content; answers of
    backends with equal facts are interchangeable. ``marks`` are strings that it would read as
    control tokens, wherever they stand. ``local`` is the (model, tokenizer) pair in memory, which
    white-box attacks and local proxies need, or None.
    """

    @property
    def facts(self) -> Mapping[str, Any]: ...

    @property
    def marks(self) -> Sequence[str]: ...

    @property
    def local(self) -> tuple[Any, Any] | None: ...

    def key(self, request: Request) -> Any:
        """What the model reads, JSON-ready: token ids, or a server's messages."""

    def __call__(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        *,
        progress: Progress | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[Generation]: ...


def ask(
    backend: Backend,
    requests: Sequence[Request],
    decoding: Decoding,
    store: Store,
    *,
    progress: Progress | None = None,
) -> list[Generation]:
    """An answer to every request: those in ``store`` are read, the rest generated and kept.

    An answer's key is the backend's facts, what the model reads (its token ids) and the decoding
    settings, and nothing else. A request that failed is kept with its reason; one that may pass
    is asked again the next time.

    Raises:
        UserError: the backend gave another number of answers than it was asked for.
        Interrupted: a signal came; the batch it came in is kept.
    """
    facts, how = dict(backend.facts), decoding.facts
    keys = [digest([facts, how, backend.key(request)]) for request in requests]

    store.forget(lambda row: bool(row.get("retry")))

    def work(indices: list[int], keep: Any) -> None:
        def on_answer(position: int, answer: Generation) -> None:
            keep(indices[position], _row(answer))

        def told(done: int, total: int) -> None:  # after a batch, all of it kept
            if progress is not None:
                progress(done, total)
            piece_done()

        asked = [requests[i] for i in indices]
        answers = backend(asked, decoding, progress=told, on_answer=on_answer)
        if len(answers) != len(asked):
            raise UserError(
                f"the backend gave {len(answers)} answers to {len(asked)} requests; "
                "answers can no longer be told apart"
            )

    complete(store, keys, work)
    return [Generation(**store[key]) for key in keys]


def _row(answer: Generation) -> dict[str, Any]:
    row = asdict(answer)
    del row["ids"]
    if not answer.failed:
        del row["failed"], row["retry"]
    return row


class ScriptedBackend:
    """Answers ``script(request)``, cut after ``max_new_tokens`` words.

    Args:
        script: from a request to the words that follow its prefill.
        name: part of its identity; scripts of one name are taken to be the same.

    Example:
        >>> backend = ScriptedBackend(lambda request: "no.")
        >>> [a.answer for a in backend([Request("hi", "well, ")], Decoding())]
        ['well, no.']
    """

    local = None
    marks = ()

    def __init__(self, script: Callable[[Request], str], name: str = "script") -> None:
        self.script = script
        self.facts = {"backend": "scripted", "model": name}
        self.asked: list[Request] = []

    def key(self, request: Request) -> list[str]:
        return [repr(request.prompt), request.prefill]

    def __call__(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        *,
        progress: Progress | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[Generation]:
        answers = []
        for index, request in enumerate(requests):
            self.asked.append(request)
            words = self.script(request).split(" ")
            text = " ".join(words[: decoding.max_new_tokens])
            finished = len(words) <= decoding.max_new_tokens
            kept = min(len(words), decoding.max_new_tokens)
            answers.append(
                Generation(text, kept, finished, request.prefill, request.prefill + text)
            )
            if on_answer is not None:
                on_answer(index, answers[-1])
            if progress is not None:
                progress(index + 1, len(requests))
        return answers
