"""Judging again: other judges on the answers that an evaluation kept, without its model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.attacks.base import Attempt
from trueline.evaluation.benchmarks.base import Item
from trueline.evaluation.generation import Generation
from trueline.evaluation.harness.judging import judge_answers
from trueline.evaluation.harness.log import Judgement, read_judgements, read_log
from trueline.evaluation.harness.run import Evaluation, append_rows, rows_of
from trueline.evaluation.harness.setup import Case, Watch
from trueline.evaluation.harness.store import Store
from trueline.evaluation.judges.base import Judge
from trueline.evaluation.judges.ensemble import TwoStageJudge
from trueline.evaluation.labels import FAILED
from trueline.files import write_json
from trueline.runs.record import JUDGEMENTS, SETTINGS

Answered = tuple[Case, Generation]


def judge_again(
    folder: Path, judges: Mapping[str, Judge], watch: Watch | None = None
) -> Evaluation:
    """Judge the answers of an evaluation's log with further judges, and add to the log.

    What a judge is asked and how an answer is sorted is the same as in the evaluation itself; a
    judge that is in the log already is not asked again.

    Args:
        folder: of the evaluation.
        judges: by label.
        watch: told of the progress of each judge.

    Raises:
        UserError: no log; a label that stood for another judge; a judge that needs answers of its
            own, or that tells nothing of these.
    """
    watch = watch or (lambda title: lambda done, total: None)
    log = read_log(folder)
    settings = _claimed(folder, log.settings, judges)
    answers = _answers(log.judgements, settings, _prefills(folder))
    notes = []
    for label, judge in judges.items():
        wanted = [a for a in answers if judge.measures & set(a[0].measures)]
        if not wanted:
            told = ", ".join(sorted(judge.measures))
            raise UserError(f"judge {label} tells {told}, and nothing in {folder} is judged by it")
        if len(wanted) < len(answers):
            notes.append(f"{label} does not tell of {len(answers) - len(wanted)} answers here.")
        stores = {name: Store(folder, name) for name in ("replies", "verdicts")}
        cases, said = [case for case, _ in wanted], [answer for _, answer in wanted]
        judged = judge_answers(label, judge, cases, said, stores, watch)
        rows = [row for one in judged for row in rows_of(label, judge, one)]
        append_rows(folder / JUDGEMENTS, rows)
    write_json(folder / SETTINGS, settings)
    return Evaluation(read_judgements(folder / JUDGEMENTS)[0], {}, notes)


def _claimed(
    folder: Path, settings: Mapping[str, Any], judges: Mapping[str, Judge]
) -> dict[str, Any]:
    """The evaluation's settings with the new judges in them."""
    known = dict(settings.get("judges", {}))
    for label, judge in judges.items():
        if isinstance(judge, TwoStageJudge):
            raise UserError(
                f"judge {label} has answers generated for it; give it to `trueline evaluate`"
            )
        facts = json.loads(json.dumps(dict(judge.facts), default=str))
        if known.setdefault(label, facts) != facts:
            raise UserError(
                f"{folder}: judge {label!r} was another one before; give it a label=... of its own"
            )
    return {**settings, "judges": known}


def _prefills(folder: Path) -> dict[str, list[str]]:
    """What was put into the model's mouth, by what it was asked: older logs do not say it."""
    store = Store(folder, "prompts")
    found: dict[str, list[str]] = {}
    for attempt in (row["attempt"] for row in store.rows()):
        if attempt is not None and attempt["prefill"]:
            found.setdefault(attempt["text"], []).append(attempt["prefill"])
    return found


def _answers(
    rows: tuple[Judgement, ...], settings: Mapping[str, Any], prefills: Mapping[str, Sequence[str]]
) -> list[Answered]:
    """Every answer once, as the judges of the evaluation saw it; not those that a judge had
    generated for itself."""
    own = {
        label for label, facts in settings.get("judges", {}).items() if facts.get("judge") == "kldo"
    }
    found: dict[tuple[str, str, str], Answered] = {}
    for row in rows:
        if row.judge not in own:
            by_attack = "prefill" in json.dumps(settings.get("attacks", {}).get(row.attack))
            known = prefills.get(str(row.details.get("asked", row.prompt)), ())
            fit = [text for text in known if by_attack and row.answer.startswith(text)]
            prefill = str(row.details.get("prefill", max(fit, key=len, default="")))
            found.setdefault((row.benchmark, row.id, row.attack), _answered(row, prefill))
    if not found:
        raise UserError(
            "every answer here was generated for the judge that judged it; give the other judge to "
            "`trueline evaluate`"
        )
    return list(found.values())


def _answered(row: Judgement, prefill: str) -> Answered:
    told = row.details
    context = str(told.get("context", ""))
    item = Item(
        row.id, row.prompt, row.harmful, str(told.get("category", "")), context=context,
        group=row.group,
    )  # fmt: skip
    attempt = Attempt(str(told.get("asked", row.prompt)), prefill, told.get("attack_facts", {}))
    text = row.answer.removeprefix(prefill)
    failed = row.why if row.label == FAILED else ""
    answer = Generation(text, 0, not row.truncated, prefill, row.answer, failed=failed)
    return Case(row.benchmark, row.attack, item, attempt), answer
