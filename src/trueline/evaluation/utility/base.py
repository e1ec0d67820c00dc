"""What a utility measure is: a function of the evaluated model that returns a finding."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from trueline.errors import UserError
from trueline.evaluation.backends.base import Backend, Decoding, Request, ask
from trueline.evaluation.generation import Generation
from trueline.evaluation.harness.setup import Setup, Watch
from trueline.evaluation.harness.store import Store
from trueline.evaluation.plugins import Plugin, register
from trueline.processes import rank
from trueline.records import Message
from trueline.registry import Registry
from trueline.results import Finding


@dataclass(frozen=True)
class UtilityContext:
    """The evaluated model, and where what it says is kept.

    Args:
        setup: the model, its system prompt and seed.
        folder: of the evaluation.
        cache: where answers are kept.
        watch: told of the progress of each stage.
    """

    setup: Setup
    folder: Path
    cache: Path
    watch: Watch

    def request(self, turns: Sequence[Message]) -> Request:
        """What the model is asked: the turns after the system prompt, if any.

        Raises:
            UserError: several turns in plain text.
        """
        if self.setup.plain:
            if len(turns) > 1:
                raise UserError("a question of several turns needs the chat template, not --plain")
            return Request(turns[0].content)
        system = self.setup.system
        return Request((*(() if system is None else (Message("system", system),)), *turns))

    def ask(
        self, backend: Backend, requests: Sequence[Request], decoding: Decoding, title: str
    ) -> list[Generation]:
        """Answers of the model or of a judge, kept as they come.

        Raises:
            UserError: a request got no answer: a mean over the others would be of other questions.
        """
        store = Store(self.cache, "answers", rank())
        answers = ask(backend, requests, decoding, store, progress=self.watch(title))
        failed = [answer.failed for answer in answers if answer.failed]
        if failed:
            raise UserError(
                f"{title}: {len(failed)} of {len(answers)} requests got no answer ({failed[0]}); "
                "answers so far are kept, and the same command asks again what may pass"
            )
        return answers


Measurement: TypeAlias = Callable[[UtilityContext], Finding]
UTILITIES: Registry[Plugin[Measurement]] = Registry("utility")
"""Utility measures by name; each entry makes one from its options."""

Maker: TypeAlias = Callable[..., Measurement]


def utility(name: str, *aliases: str) -> Callable[[Maker], Maker]:
    """Register a function that makes a utility measure."""
    return register(UTILITIES, name, *aliases)


def write_log(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what was said and judged as ``name.jsonl`` in the evaluation's folder."""
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
