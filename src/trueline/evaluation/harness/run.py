"""Benchmark x attack x judge on one model: prepare, generate, judge, log.

Every piece of work is kept by its content as soon as it is done (``store``):
``prompts.jsonl`` holds what attacks made, ``answers.jsonl`` what the model said,
``replies.jsonl`` what judging models said of it, and ``verdicts.jsonl`` what other judges did. So
an evaluation that was killed goes on where it was, another judge costs no generation, and another
process takes its share. ``judgements.jsonl`` is the log that statistics read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.harness.judging import Judged, judge_cases
from trueline.evaluation.harness.log import Judgement, read_judgements
from trueline.evaluation.harness.setup import Setup, Watch, claim_folder, prepare
from trueline.evaluation.harness.store import Store
from trueline.evaluation.judges.base import Judge
from trueline.evaluation.sorting import sort_answer
from trueline.files import append, mend
from trueline.processes import rank
from trueline.runs.record import JUDGEMENTS

STORES = ("prompts", "answers", "replies", "verdicts")


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Args:
        rows: the log, of all runs into this folder.
        missing: cases for which an attack had no prompt, by (benchmark, attack).
        notes: sentences for the user.
    """

    rows: Sequence[Judgement]
    missing: Mapping[tuple[str, str], int]
    notes: Sequence[str]


def evaluate(
    setup: Setup, folder: Path, *, cache: Path | None = None, watch: Watch | None = None
) -> Evaluation:
    """Prepare, generate, judge and log; what is done already is not done again.

    Args:
        setup: what is evaluated and how.
        folder: of this evaluation, for its log.
        cache: where answers and verdicts are kept, where several evaluations share them; the
            folder itself if None.
        watch: told of the progress of each stage.

    Raises:
        UserError: the folder holds another evaluation; a prompt, a judge or a backend is at
            fault; or no judge can tell anything of a benchmark.
    """
    watch = watch or (lambda title: lambda done, total: None)
    notes = check_judges(setup)
    if rank() == 0:
        claim_folder(folder, setup)
    stores = {name: Store(cache or folder, name, rank()) for name in STORES}
    cases = prepare(setup, stores["prompts"], watch)
    missing: dict[tuple[str, str], int] = {}
    for case in cases:
        if case.attempt is None:
            key = (case.benchmark, case.attack)
            missing[key] = missing.get(key, 0) + 1
    rows: list[Judgement] = []
    for label, judge in setup.judges.items():
        wanted = [c for c in cases if c.attempt and judge.measures & set(c.measures)]
        judged = judge_cases(setup, label, judge, wanted, stores, watch)
        rows += [row for j in judged for row in rows_of(label, judge, j)]
    if rank() == 0:
        append_rows(folder / JUDGEMENTS, rows)
    kept, _ = read_judgements(folder / JUDGEMENTS) if rank() == 0 else (rows, False)
    return Evaluation(kept, missing, notes)


def check_judges(setup: Setup) -> list[str]:
    """What the judges leave unsaid.

    Raises:
        UserError: no benchmark, no attack or no judge; or a benchmark that no judge can judge.
    """
    for kind in ("benchmarks", "attacks", "judges"):
        if not getattr(setup, kind):
            raise UserError(f"an evaluation needs at least one of its {kind}")
    notes = []
    for name, benchmark in setup.benchmarks.items():
        notes += [f"{name}: {note}" for note in benchmark.notes]
        for harmful, measure in ((True, "asr"), (False, "over_refusal")):
            n = sum(item.harmful == harmful for item in benchmark.items)
            silent = [label for label, j in setup.judges.items() if measure not in j.measures]
            kind = "harmful" if harmful else "safe"
            if n and len(silent) == len(setup.judges):
                raise UserError(
                    f"{name} has {n} {kind} prompts and no judge here tells {measure}; add one "
                    "that does, such as phrases, wildguard or llm"
                )
            if n and silent:
                notes.append(f"{name}: {', '.join(silent)} does not tell {measure}: {n} {kind} "
                             "prompts are left to the other judges")  # fmt: skip
    return notes


def rows_of(label: str, judge: Judge, judged: Judged) -> Iterator[Judgement]:
    """A log row for each measure that the judge tells of this case."""
    case, attempt = judged.case, judged.case.attempt
    asked = case.item.prompt if attempt is None else attempt.text
    verdict = sort_answer(
        judged.verdict,
        asked,
        judged.answer.text,
        prefill=judged.answer.prefill,
        truncated=judged.truncated,
    )
    details: dict[str, Any] = {}
    if attempt is not None and attempt.text != case.item.prompt:
        details["asked"] = attempt.text
    if attempt is not None and attempt.facts:
        details["attack_facts"] = dict(attempt.facts)
    if judged.answer.prefill:
        details["prefill"] = judged.answer.prefill
    if case.item.context:
        details["context"] = case.item.context
    if case.item.category:
        details["category"] = case.item.category
    for measure in case.measures:
        if measure in judge.measures:
            yield Judgement(
                id=case.item.id,
                benchmark=case.benchmark,
                attack=case.attack,
                judge=label,
                measure=measure,
                prompt=case.item.prompt,
                answer=judged.answer.answer,
                verdict=verdict.label,
                success=verdict.event(measure),
                harmful=case.item.harmful,
                group=case.item.group,
                truncated=judged.truncated,
                empty=not (judged.answer.failed or judged.answer.text.strip()),
                unparsable=verdict.unparsable,
                score=verdict.score,
                label=verdict.kind,
                why=verdict.why,
                details=details,
            )


def append_rows(path: Path, rows: Sequence[Judgement]) -> None:
    """Append the rows that are not there yet."""
    mend(path)
    there = {row.key for row in read_judgements(path)[0]} if path.exists() else set()
    for row in rows:
        if row.key not in there:
            append(path, row.to_row())
