"""Answers and verdicts of an evaluation's cases, generated and judged where they are not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from trueline.evaluation.backends.base import Decoding, ask
from trueline.evaluation.generation import Generation
from trueline.evaluation.harness.setup import Case, Setup, Watch
from trueline.evaluation.harness.store import Store, complete, digest
from trueline.evaluation.judges.asking import AskingJudge
from trueline.evaluation.judges.base import Judge, Verdict, checked, not_asked
from trueline.evaluation.judges.ensemble import TwoStageJudge
from trueline.interrupts import piece_done

CHUNK = 64
"""Answers judged before their verdicts are kept, where the judge is a plain function. A judging
model's replies are kept one by one."""


@dataclass(frozen=True)
class Judged:
    """A case with the answer that one judge saw, and its verdict."""

    case: Case
    answer: Generation
    verdict: Verdict
    truncated: bool


Stores: TypeAlias = Mapping[str, Store]


def judge_cases(
    setup: Setup, label: str, judge: Judge, cases: Sequence[Case], stores: Stores, watch: Watch
) -> list[Judged]:
    """Answers and verdicts of one judge's cases, generated and judged where they are not kept."""
    if isinstance(judge, TwoStageJudge):
        return _in_two_stages(setup, label, judge, cases, stores, watch)
    answers = _answers(setup, cases, setup.decoding, stores, watch)
    return judge_answers(label, judge, cases, answers, stores, watch)


def judge_answers(
    label: str,
    judge: Judge,
    cases: Sequence[Case],
    answers: Sequence[Generation],
    stores: Stores,
    watch: Watch,
) -> list[Judged]:
    """Each answer with its verdict; a request without an answer has none."""
    at = [i for i, answer in enumerate(answers) if not answer.failed]
    given = [answers[i] for i in at]
    verdicts = iter(_verdicts(label, judge, [cases[i] for i in at], given, stores, watch))
    return [
        _unanswered(case, answer)
        if answer.failed
        else Judged(case, answer, next(verdicts), not answer.finished)
        for case, answer in zip(cases, answers, strict=True)
    ]


def _unanswered(case: Case, answer: Generation) -> Judged:
    return Judged(case, answer, not_asked(answer.failed), False)


def _in_two_stages(
    setup: Setup,
    label: str,
    judge: TwoStageJudge,
    cases: Sequence[Case],
    stores: Stores,
    watch: Watch,
) -> list[Judged]:
    first = _answers(setup, cases, Decoding(judge.short), stores, watch)
    judged = [_unanswered(case, answer) for case, answer in zip(cases, first, strict=True)]
    there = [i for i, answer in enumerate(first) if not answer.failed]
    glance = judge.first([cases[i].item.text for i in there], [first[i].answer for i in there])
    for i, verdict in zip(there, glance, strict=True):
        # a refusal is cut at the glance by design, so it does not count as truncated
        judged[i] = Judged(cases[i], first[i], verdict, False)
    at = [there[i] for i in judge.passed(glance)]
    rest = [cases[i] for i in at]
    long = _answers(setup, rest, Decoding(judge.long), stores, watch)
    for i, one in zip(at, judge_answers(label, judge.late, rest, long, stores, watch), strict=True):
        judged[i] = one
    return judged


def _answers(
    setup: Setup, cases: Sequence[Case], decoding: Decoding, stores: Stores, watch: Watch
) -> list[Generation]:
    requests = [setup.request(case.attempt) for case in cases if case.attempt is not None]
    title = f"answers of up to {decoding.max_new_tokens} tokens"
    return ask(setup.backend, requests, decoding, stores["answers"], progress=watch(title))


def _verdicts(
    label: str,
    judge: Judge,
    cases: Sequence[Case],
    answers: Sequence[Generation],
    stores: Stores,
    watch: Watch,
) -> list[Verdict]:
    prompts = [case.item.text for case in cases]
    responses = [answer.answer for answer in answers]
    told = watch(f"judge {label}")
    if isinstance(judge, AskingJudge):
        requests = judge.requests(prompts, responses)
        replies = ask(judge.backend, requests, judge.decoding, stores["replies"], progress=told)
        return [judge.verdict(reply) for reply in replies]
    facts = dict(judge.facts)
    keys = [digest([facts, *pair]) for pair in zip(prompts, responses, strict=True)]
    store = stores["verdicts"]

    def work(indices: list[int], keep: Any) -> None:
        for start in range(0, len(indices), CHUNK):
            chunk = indices[start : start + CHUNK]
            shown = [responses[i] for i in chunk]
            verdicts = checked(judge([prompts[i] for i in chunk], shown), shown, label)
            for index, verdict in zip(chunk, verdicts, strict=True):
                keep(index, asdict(verdict))
            told(start + len(chunk), len(indices))
            piece_done()

    complete(store, keys, work)
    return [Verdict(**store[key]) for key in keys]
