"""MT-Bench: 80 two-turn questions in eight categories, each answer graded 1..10 by a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueline.data.readers import DataError
from trueline.evaluation.backends import Backend, Decoding, Request, open_backend
from trueline.evaluation.benchmarks.base import expect_count, read_rows
from trueline.evaluation.generation import Generation
from trueline.evaluation.judges.asking import NOTE, asked, delimited, fill, prompt_hash
from trueline.evaluation.judges.language import read_rating
from trueline.evaluation.utility.base import Measurement, UtilityContext, utility, write_log
from trueline.records import Message
from trueline.results import Finding, Metric
from trueline.stats import mean_metric, rate

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""By category; all others are answered greedily."""

GRADE = f"""\
You grade how well an assistant answers a user: helpful, relevant, correct, deep enough and clear. \
Length alone is no merit. {NOTE}

{{conversation}}

{{reference}}Grade the assistant's last answer. Say in a sentence or two why, then end with the \
grade from 1 to 10 in double brackets, like [[5]]."""


@dataclass(frozen=True, slots=True)
class Question:
    """Two turns, and reference answers where the benchmark has them."""

    id: str
    category: str
    turns: tuple[str, str]
    reference: tuple[str, ...] = ()


def read_questions(source: str, *, partial: bool = False) -> list[Question]:
    """MT-Bench's question file.

    Raises:
        DataError: other columns, not two turns, or not 80 questions in 8 categories.
    """
    rows = read_rows(source, ("category",))
    found = [_question(place, row, i) for i, (place, row) in enumerate(rows)]
    if not partial:
        expect_count(source, len(found), (80,), "questions")
        expect_count(source, len({q.category for q in found}), (8,), "categories")
    return found


def _question(place: str, row: Mapping[str, Any], index: int) -> Question:
    turns = row.get("turns", row.get("prompt"))
    if not isinstance(turns, list | tuple) or len(turns) != 2:
        raise DataError(place, "expected two turns in a list, in a column turns (or prompt)")
    reference = row.get("reference") or ()
    return Question(
        str(row.get("question_id", row.get("prompt_id", index))),
        str(row["category"]),
        (str(turns[0]), str(turns[1])),
        tuple(map(str, reference)) if isinstance(reference, list | tuple) else (str(reference),),
    )


@utility("mt-bench", "mt_bench")
def mt_bench(
    source: str,
    *,
    judge: str | Backend,
    base_url: str | None = None,
    max_new_tokens: int = 1024,
    partial: bool = False,
) -> Measurement:
    """MT-Bench: the mean grade of two-turn answers, by turn and by category.

    Answers are sampled at the temperature of their category (.7 writing and roleplay, .1 STEM and
    humanities, else greedy). Each turn's answer is graded by itself; a question's two grades are
    one observation.

    Args:
        source: the question file, or a hub id.
        judge: a server's name for the judging model, or a folder or hub id to load here.
        base_url: of an OpenAI-compatible server.
        max_new_tokens: of an answer.
        partial: accept another number of questions.

    Source: Zheng et al. (2023), arXiv 2306.05685; the grading words are ours, so grades compare
    with one another and not with published ones.
    """
    questions = read_questions(source, partial=partial)
    grader = open_backend(judge, base_url=base_url)

    def measure(context: UtilityContext) -> Finding:
        answers = _answers(context, questions, max_new_tokens)
        grades = _grades(context, grader, questions, answers)
        write_log(context.folder, "mt-bench", _rows(questions, answers, grades))
        return _finding(questions, answers, [[read_rating(g.answer) for g in t] for t in grades])

    return measure


Turns = list[list[Generation]]
"""For each turn, one answer a question."""


def _answers(context: UtilityContext, questions: Sequence[Question], limit: int) -> Turns:
    turns: Turns = []
    for turn in range(2):
        found: dict[int, Generation] = {}
        for temperature in sorted({_temperature(q) for q in questions}):
            at = [i for i, q in enumerate(questions) if _temperature(q) == temperature]
            requests = []
            for i in at:
                history = [Message("user", questions[i].turns[0])]
                if turn:
                    history.append(Message("assistant", turns[0][i].answer))
                    history.append(Message("user", questions[i].turns[1]))
                requests.append(context.request(history))
            decoding = Decoding(limit, temperature, context.setup.seed)
            title = f"MT-Bench, turn {turn + 1}"
            said = context.ask(context.setup.backend, requests, decoding, title)
            found.update(zip(at, said, strict=True))
        turns.append([found[i] for i in range(len(questions))])
    return turns


def _temperature(question: Question) -> float:
    return TEMPERATURES.get(question.category.lower(), 0.0)


def _grades(
    context: UtilityContext, grader: Backend, questions: Sequence[Question], answers: Turns
) -> Turns:
    grades = []
    for turn in range(2):
        requests = [
            _grading(grader, q, [answers[t][i].answer for t in range(turn + 1)])
            for i, q in enumerate(questions)
        ]
        title = f"MT-Bench, grades of turn {turn + 1}"
        grades.append(context.ask(grader, requests, Decoding(512), title))
    return grades


def _grading(grader: Backend, question: Question, said: Sequence[str]) -> Request:
    parts = []
    for turn, answer in enumerate(said):
        parts.append(delimited(f"user-{turn + 1}", question.turns[turn], grader.marks))
        parts.append(delimited(f"assistant-{turn + 1}", answer, grader.marks))
    given = question.reference[len(said) - 1 : len(said)]
    reference = "".join(
        f"A correct answer, for comparison:\n{delimited('reference', text, grader.marks)}\n\n"
        for text in given
    )
    slots = {"{conversation}": "\n\n".join(parts), "{reference}": reference}
    return asked(grader, fill(GRADE, slots))


def _finding(
    questions: Sequence[Question], answers: Turns, ratings: list[list[float | None]]
) -> Finding:
    both = [[r for r in pair if r is not None] for pair in zip(ratings[0], ratings[1], strict=True)]
    means = [sum(pair) / len(pair) if pair else None for pair in both]
    overall = _mean("grade", means)
    metrics: list[Metric] = [
        overall,
        _mean("grade, turn 1", ratings[0]),
        _mean("grade, turn 2", ratings[1]),
    ]
    for category in dict.fromkeys(q.category for q in questions):
        own = [m for q, m in zip(questions, means, strict=True) if q.category == category]
        metrics.append(_mean(f"grade, {category}", own))
    said = [answer for turn in answers for answer in turn]
    metrics += [
        rate("truncated answers", [not a.finished for a in said]),
        rate("empty answers", [not a.text.strip() for a in said]),
        rate("unparsable grades", [r is None for turn in ratings for r in turn]),
    ]
    summary = f"MT-Bench grade {overall} of 10, over {overall.n} questions of two turns."
    return Finding("MT-Bench", summary, metrics)


def _mean(name: str, values: Sequence[float | None]) -> Metric:
    return mean_metric(name, [v for v in values if v is not None])


def _rows(questions: Sequence[Question], answers: Turns, grades: Turns) -> list[dict[str, Any]]:
    return [
        {
            "id": question.id,
            "category": question.category,
            "turn": turn + 1,
            "prompt": question.turns[turn],
            "answer": answers[turn][i].answer,
            "grade": read_rating(grades[turn][i].answer),
            "reply": grades[turn][i].answer,
            "prompt_hash": prompt_hash(GRADE),
        }
        for i, question in enumerate(questions)
        for turn in range(2)
    ]
