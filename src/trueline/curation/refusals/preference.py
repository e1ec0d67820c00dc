"""Preference data from two models' answers: the counterpart of compliance-refusal data.

    safe prompt:     chosen = the first model's answer,  rejected = the second (weaker) one's
    harmful prompt:  chosen = a refusal,                 rejected = an answer that complies

It differs from compliance-refusal data in the negatives of safe prompts alone, so that training on
both tells what that difference does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trueline.curation.jobs.chunks import Chunk, Note
from trueline.curation.jobs.job import Curated, Job, Progress
from trueline.curation.near import Leakage, flat
from trueline.curation.refusals.rows import Plan, Planned, Refusals, Row, build, written_refusals
from trueline.curation.refusals.writers import ResponseLabeler, Writer, answer_of
from trueline.curation.safety import Labels, no_label
from trueline.data.load import Examples
from trueline.errors import UserError
from trueline.records import Completion, Example, Message, Safety, is_blank


def preference_from_two(
    source: Examples,
    output: str | Path,
    second: Writer,
    *,
    first: Writer | None = None,
    writers: str = "",
    labels: Labels | None = None,
    refusals: Refusals | None = None,
    is_refusal: ResponseLabeler | None = None,
    judge_name: str = "",
    leakage: Leakage | None = None,
    drop_leaks: bool = False,
    form: str = "preference",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Curated | None:
    """Write preference data from two models' answers to the same prompts.

    Args:
        source: the prompts; their own answers count as the first model's unless ``first`` is given.
        output: the file to write.
        second: the weaker model: :class:`Answering` or :class:`Recorded`, or any writer.
        first: the other model.
        writers: names both, so that an interrupted run can reuse their answers.
        labels, refusals, leakage, drop_leaks: as for compliance-refusal data.
        is_refusal: tells which answers refuse; a safe prompt whose first answer refuses, and a
            harmful one that both refuse, are dropped and counted.
        judge_name: identifies ``is_refusal``.
        form, overwrite, progress: see :class:`Job`.

    Returns:
        What was made, on rank 0; None on other ranks.
    """
    labels, refusals = labels or Labels(), refusals or Refusals()
    if drop_leaks and leakage is None:
        raise UserError("drop_leaks has no effect without evaluation prompts to look for")
    facts = [dict(getattr(writer, "facts", {})) for writer in (first, second)]
    options = {
        "writers": writers, "facts": facts, "labels": labels.options, "refusals": refusals.options,
        "is_refusal": judge_name, "near": leakage.threshold if leakage else None,
        "drop_leaks": drop_leaks, "form": form,
    }  # fmt: skip
    job = Job("preference", source, Path(output), options, form, overwrite, progress)
    notes = labels.notes(job)

    def answer(chunk: Chunk) -> list[Note]:
        prompts = [example.prompt for example in chunk.examples]
        own = [answer_of(example) for example in chunk.examples]
        both = (own if first is None else first(prompts), second(prompts))
        if any(len(texts) != len(prompts) for texts in both):
            raise UserError(f"a writer must give one text for each of {len(prompts)} prompts")
        told = [
            [None] * len(prompts) if is_refusal is None
            else is_refusal([flat(p) for p in prompts], [text or "" for text in texts])
            for texts in both
        ]  # fmt: skip
        return [list(note) for note in zip(*both, *told, strict=True)]

    answers = job.map("answering", answer, key=[writers, facts, judge_name], size=64)
    written = written_refusals(job, refusals, is_refusal, judge_name)

    def plans() -> Iterator[Planned]:
        texts = iter(written) if written is not None else None
        for example, note, told in zip(job.examples("building"), notes, answers, strict=True):
            rows = plan_two(example, note["safety"], *told)
            yield Planned(example, note, rows, None if texts is None else next(texts))

    return build(job, plans, refusals, leakage, drop_leaks=drop_leaks)


def plan_two(
    example: Example,
    safety: Safety | None,
    first: str | None,
    second: str | None,
    first_refuses: bool | None,
    second_refuses: bool | None,
) -> Plan:
    """The one row of two answers, or why there is none."""
    if safety is None or is_blank(example.prompt):
        return no_label(example)
    if not first or not second or not first.strip() or not second.strip():
        return f"no answer of the {'first' if not (first or '').strip() else 'second'} model"
    if safety == "harmful":
        if first_refuses and second_refuses:
            return "both models refuse the harmful prompt: no answer complies"
        return [Row(None, _as_answer(example, second if first_refuses else first))]
    if first_refuses:
        return "the first model refuses the safe prompt"
    if first.strip() == second.strip():
        return "both models give the same answer"
    return [Row(_as_answer(example, first), _as_answer(example, second))]


def _as_answer(example: Example, text: str) -> Completion:
    return Completion((Message("assistant", text),) if example.conversational else text)
