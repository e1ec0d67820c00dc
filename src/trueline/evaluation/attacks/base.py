"""What an attack is: a step that rewrites how a request is asked, and steps joined with ``+``."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from trueline.errors import UserError
from trueline.evaluation.backends.base import Backend, Request
from trueline.evaluation.benchmarks.base import Item
from trueline.evaluation.harness.store import digest
from trueline.evaluation.plugins import Plugin, parse_spec, register, split_unless_escaped
from trueline.prompts import Progress
from trueline.registry import Registry


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way of asking.

    Args:
        text: the user's turn.
        prefill: the first words of the answer, put into the model's mouth.
        facts: what the attack found out on the way (losses, steps), JSON-ready.
    """

    text: str
    prefill: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a step may look at besides the attempt.

    Args:
        item: the benchmark's request.
        seed: of all randomness; :attr:`rng` mixes the item into it.
        backend: the attacked model; white-box steps need its ``local`` pair.
        request: from an attempt to what the model is asked, system prompt and all.
        succeeds: whether an attempt works, by generating and judging; None where nobody judges.
        progress: called with (done, all) by long steps.
    """

    item: Item
    seed: int
    backend: Backend
    request: Callable[[Attempt], Request]
    succeeds: Callable[[Attempt], bool] | None = None
    progress: Progress | None = None

    @property
    def rng(self) -> random.Random:
        """A fresh stream that depends on the seed and the item alone."""
        return random.Random(digest([self.seed, self.item.id, self.item.text]))


Run: TypeAlias = Callable[[Attempt, Context], Attempt | None]


@dataclass(frozen=True)
class Step:
    """One step of an attack.

    Args:
        run: from an attempt to the next; None where it has nothing for this item, which is
            counted and reported.
        facts: all that the result depends on besides attempt and context: options, a file's
            content. JSON-ready.
        white_box: whether it looks into the attacked model, so that its result belongs to it.
        judged: whether it asks the first judge, so that its result belongs to that one, too.
        workers: how many items it may work on at once.
    """

    run: Run
    facts: Mapping[str, Any] = field(default_factory=dict)
    white_box: bool = False
    judged: bool = False
    workers: int = 1


ATTACKS: Registry[Plugin[Step]] = Registry("attack")
"""Attacks by name; each entry makes a step from its options: ``ATTACKS["prefill"]()``."""

Maker: TypeAlias = Callable[..., Step]


def attack(name: str, *aliases: str) -> Callable[[Maker], Maker]:
    """Register a function that makes a step.

    Example::

        @attack("polite")
        def polite(*, word: str = "please") -> Step:
            return Step(lambda attempt, context: replace(attempt, text=f"{word} {attempt.text}"),
                        {"word": word})
    """
    return register(ATTACKS, name, *aliases)


@dataclass(frozen=True)
class Attack:
    """Steps in order, under one label."""

    label: str
    steps: Sequence[tuple[str, Step]]

    @property
    def facts(self) -> list[Any]:
        return [[name, dict(step.facts)] for name, step in self.steps]

    @property
    def white_box(self) -> bool:
        return any(step.white_box for _, step in self.steps)

    @property
    def judged(self) -> bool:
        return any(step.judged for _, step in self.steps)

    @property
    def workers(self) -> int:
        return min(step.workers for _, step in self.steps)

    def __call__(self, context: Context) -> Attempt | None:
        """How the context's item is asked; None where a step has nothing for it."""
        attempt: Attempt | None = Attempt(context.item.text)
        for _, step in self.steps:
            if attempt is None:
                return None
            attempt = step.run(attempt, context)
        return attempt


def open_attack(value: str | Mapping[str, Any] | Sequence[Any]) -> Attack:
    """An attack from ``a``, ``a,option=1`` or ``a+b``: what a has made, b goes on with.

    Args:
        value: text, a mapping ``{name: ..., ...}``, or a list of those for several steps.

    Raises:
        UserError: an unknown attack or option.

    Example:
        >>> from trueline.evaluation import attacks
        >>> open_attack("noise,rate=0.1+prefill").label
        'noise+prefill'
    """
    parts = split_unless_escaped(value, "+") if isinstance(value, str) else value
    specs = [parse_spec(part) for part in ([parts] if isinstance(parts, Mapping) else parts)]
    if not specs:
        raise UserError("an attack needs at least one step")
    steps = [(spec.name, ATTACKS[spec.name].of(spec)) for spec in specs]
    return Attack("+".join(spec.label for spec in specs), steps)
