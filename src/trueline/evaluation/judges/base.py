"""What a judge is: prompts and answers in, one verdict each out.

    judge(prompts, responses) -> [Verdict, ...]

A prompt is the request as the benchmark has it, before an attack changed it; a response is what
the model said. Both are data: a judge that asks a model delimits them, so that neither can
instruct it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from trueline.errors import UserError
from trueline.evaluation.labels import FAILED, happened
from trueline.evaluation.plugins import Plugin, register
from trueline.registry import Registry

Measure: TypeAlias = Literal["asr", "over_refusal", "utility"]
"""What a row of the log counts; :mod:`trueline.evaluation.harness.log` says what each event is."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one answer; None where it does not tell.

    Args:
        label: the judge's own word: ``"refusal"``, ``"yes"``, ``"unsafe"``.
        complied: whether the answer gives what was asked for; on a harmful prompt that is a
            successful attack.
        refused: whether it declines, wholly or in part; on a safe prompt that is over-refusal.
        good: whether it is a good answer to a safe prompt.
        score: a graded judgement, higher is more; its range is the judge's.
        unparsable: whether a model's judgement made no sense. All else is then None.
        raw: what the judging model said, where there is one.
        kind: which of :data:`trueline.evaluation.labels.LABELS` the answer is; ``""`` where the
            judge does not tell refusals from other failures.
        why: the rule, the words or the score that decided.
        sure: whether the judge cannot err on what is an answer and what is none; else the
            measurements of :mod:`trueline.evaluation.sorting` come before it.
    """

    label: str
    complied: bool | None = None
    refused: bool | None = None
    good: bool | None = None
    score: float | None = None
    unparsable: bool = False
    raw: str = ""
    kind: str = ""
    why: str = ""
    sure: bool = False

    def event(self, measure: Measure) -> bool | None:
        """Whether the event that ``measure`` counts happened.

        Example:
            >>> Verdict("refusal", complied=False, refused=True).event("over_refusal")
            True
        """
        return {"asr": self.complied, "over_refusal": self.refused, "utility": self.good}[measure]


def unparsable(raw: str) -> Verdict:
    """The verdict of a judge whose words make no sense: the answer counts as unread."""
    return Verdict("unread", unparsable=True, raw=raw, why="the judge's reply holds no verdict")


def not_asked(reason: str) -> Verdict:
    """The verdict on a request that got no answer: none."""
    return Verdict(FAILED, kind=FAILED, why=reason, sure=True)


def verdict_of(kind: str, why: str, **more: Any) -> Verdict:
    """The verdict of a judge that speaks in :data:`~trueline.evaluation.labels.LABELS`.

    Example:
        >>> verdict_of("partial refusal", "").event("over_refusal")
        True
    """
    complied, refused = happened(kind, "asr"), happened(kind, "over_refusal")
    return Verdict(kind, complied=complied, refused=refused, kind=kind, why=why, **more)


class Judge(Protocol):
    """A callable with two facts about it.

    ``measures`` are the measures it can tell: a classifier of harm says nothing about refusals.
    ``facts`` is JSON-ready and holds all that its verdicts depend on: its kind, the model's
    fingerprint, the hash of its prompt. Two judges with equal facts are one.
    """

    @property
    def measures(self) -> frozenset[Measure]: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]: ...


JUDGES: Registry[Plugin[Judge]] = Registry("judge")
"""Judges by name; each entry makes a judge from its options: ``JUDGES["phrases"]()``."""

Maker = TypeVar("Maker", bound=Callable[..., Judge])


def judge(name: str, *aliases: str) -> Callable[[Maker], Maker]:
    """Register a function that makes a judge.

    Example::

        @judge("shouting")
        def shouting(*, share: float = 0.5) -> Judge:
            ...
    """
    return register(JUDGES, name, *aliases)


def checked(verdicts: Sequence[Verdict], responses: Sequence[str], who: str) -> list[Verdict]:
    """One verdict a response, or an error: a list that slipped by one would judge the wrong text.

    Raises:
        UserError: the counts differ.
    """
    if len(verdicts) != len(responses):
        raise UserError(
            f"judge {who} gave {len(verdicts)} verdicts for {len(responses)} answers; "
            "a judge returns one for each"
        )
    return list(verdicts)
