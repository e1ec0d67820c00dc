"""Compliance-refusal data: the response type flips with the prompt's safety, so it can be learned.

    safe prompt:     chosen = the answer,    rejected = a refusal
    harmful prompt:  chosen = a refusal,     rejected = the answer

Preference data contrasts two answers on safe prompts instead, and says little about safety there.

Source: "LLM Safety Alignment is Divergence Estimation in Disguise", arXiv 2502.00657, sections on
compliance-refusal and preference data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Literal, TypeAlias

from trueline.curation.jobs.job import Curated, Job, Progress
from trueline.curation.near import Leakage
from trueline.curation.refusals.rows import (
    Plan,
    Planned,
    Refusals,
    Row,
    build,
    check_refusals,
    written_refusals,
)
from trueline.curation.refusals.writers import ResponseLabeler
from trueline.curation.safety import Labels, no_label
from trueline.data.load import Examples
from trueline.errors import UserError
from trueline.records import Example, Safety, is_blank

Chosen: TypeAlias = Literal["given", "refusal"]


def compliance_refusal(
    source: Examples,
    output: str | Path,
    *,
    labels: Labels | None = None,
    refusals: Refusals | None = None,
    harmful_chosen: Chosen = "given",
    is_refusal: ResponseLabeler | None = None,
    judge_name: str = "",
    leakage: Leakage | None = None,
    drop_leaks: bool = False,
    form: str = "preference",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Curated | None:
    """Write compliance-refusal data, one row a pair.

    From prompts with answers: the answer against a refusal. From preference pairs: a safe prompt
    keeps its chosen answer and its negative becomes a refusal; a harmful prompt keeps its pair.

    Args:
        source: examples, each with answers or preference pairs.
        output: the file to write.
        labels: where safety labels come from; the data's own unless said.
        refusals: where refusals come from; the bank unless said.
        harmful_chosen: in preference pairs on harmful prompts, keep the chosen answer as
            ``"given"`` or put a ``"refusal"`` in its place.
        is_refusal: tells which responses refuse; with it, an answer that refuses where it ought
            to comply (and the other way around) is dropped and counted.
        judge_name: identifies ``is_refusal``, so that an interrupted run can reuse its verdicts.
        leakage: evaluation prompts to look for.
        drop_leaks: leave their rows out, instead of counting them alone.
        form, overwrite, progress: see :class:`Job`.

    Returns:
        What was made, on rank 0; None on other ranks.

    Raises:
        UserError: too few refusals for the rows, an option without effect, or no row left.
    """
    labels, refusals = labels or Labels(), refusals or Refusals()
    if harmful_chosen not in ("given", "refusal"):
        raise UserError(f"harmful_chosen must be given or refusal, got {harmful_chosen!r}")
    if drop_leaks and leakage is None:
        raise UserError("drop_leaks has no effect without evaluation prompts to look for")
    options = {
        "labels": labels.options, "refusals": refusals.options, "harmful_chosen": harmful_chosen,
        "is_refusal": judge_name, "near": leakage.threshold if leakage else None,
        "drop_leaks": drop_leaks, "form": form,
    }  # fmt: skip
    job = Job("compliance-refusal", source, Path(output), options, form, overwrite, progress)
    notes = labels.notes(job)
    refused = None if is_refusal is None else check_refusals(job, is_refusal, judge_name)
    written = written_refusals(job, refusals, is_refusal, judge_name)

    def plans() -> Iterator[Planned]:
        stream = zip(
            job.examples("building"), notes, refused or repeat(None), written or repeat(None),
            strict=False,
        )  # fmt: skip
        for example, note, told, text in stream:
            rows = plan(example, note["safety"], told, harmful_chosen)
            yield Planned(example, note, rows, text)

    return build(job, plans, refusals, leakage, drop_leaks=drop_leaks)


def plan(
    example: Example, safety: Safety | None, refused: list[bool | None] | None, chosen: Chosen
) -> Plan:
    """An example's rows by its label, or why it has none.

    Example:
        >>> from trueline.records import Completion
        >>> answer = Completion("Mix and bake.")
        >>> plan(Example("Bread?", (answer,)), "safe", None, "given")[0].rejected is None
        True
    """
    if safety is None or is_blank(example.prompt):
        return no_label(example)
    told = refused or [None] * len(example.completions)
    if not example.pairs:
        return _from_answers(example, safety, told)
    rows: list[Row] = []
    fault = ""
    for good, bad in dict.fromkeys((g, 0 if safety == "safe" else b) for g, b in example.pairs):
        if safety == "safe":
            if told[good]:
                fault = "the chosen answer to a safe prompt refuses"
                continue
            rows.append(Row(example.completions[good], None))
        elif told[bad]:
            fault = "the rejected answer to a harmful prompt refuses"
        elif chosen == "given" and told[good] is False:
            fault = "the chosen answer to a harmful prompt complies"
        else:
            first = example.completions[good] if chosen == "given" else None
            rows.append(Row(first, example.completions[bad]))
    return rows or fault


def _from_answers(example: Example, safety: Safety, told: Sequence[bool | None]) -> Plan:
    """Every answer that complies: unlabeled, or labeled as a compliance would be."""
    complies = safety == "safe"  # what the label of a compliance is
    answers = [
        completion
        for completion, refuses in zip(example.completions, told, strict=True)
        if completion.desirable in (None, complies) and not refuses
    ]
    if not answers:
        return "no answer that complies: it refuses, or its label says so"
    if safety == "safe":
        return [Row(answer, None) for answer in answers]
    return [Row(None, answer) for answer in answers]
