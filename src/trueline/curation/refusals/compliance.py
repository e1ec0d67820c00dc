"""Compliance-refusal data: the response type flips with the prompt's safety, so it can be learned.

    safe prompt:     chosen = the answer,    rejected = a refusal
    harmful prompt:  chosen = a refusal,     rejected = the answer

Preference data contrasts two answers on safe prompts instead, and says little about safety there.

An answer can also be begun in the prompt already, cut after any word: refused from there on a
harmful prompt, gone on with on a safe one. It is meant against attacks that begin the answer for
the model.

Source: "LLM Safety Alignment is Divergence Estimation in Disguise", arXiv 2502.00657, sections on
compliance-refusal and preference data.
"""

from __future__ import annotations

import random
import re
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
from trueline.records import Completion, Example, Message, Safety, is_blank

Chosen: TypeAlias = Literal["given", "refusal"]


def compliance_refusal(
    source: Examples,
    output: str | Path,
    *,
    labels: Labels | None = None,
    refusals: Refusals | None = None,
    harmful_chosen: Chosen = "given",
    begun: float = 0.0,
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
        begun: the share of answers that stand in one further row, begun in its prompt; they need
            two words.
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
    if not 0 <= begun <= 1:
        raise UserError(f"begun is a share between 0 and 1, got {begun}")
    if drop_leaks and leakage is None:
        raise UserError("drop_leaks has no effect without evaluation prompts to look for")
    options = {
        "labels": labels.options, "refusals": refusals.options, "harmful_chosen": harmful_chosen,
        "begun": begun, "is_refusal": judge_name, "near": leakage.threshold if leakage else None,
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
        rng = random.Random(f"begun {refusals.seed}")
        for example, note, told, text in stream:
            rows = plan(example, note["safety"], told, harmful_chosen)
            if not isinstance(rows, str):
                rows = [*rows, *also_begun(rows, note["safety"], begun, rng)]
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


def also_begun(
    rows: Sequence[Row], safety: Safety | None, part: float, rng: random.Random
) -> Iterator[Row]:
    """For a part of the rows, another whose answer is begun in the prompt, up to a word at random.

    Example:
        >>> from trueline.records import Completion
        >>> rows = [Row(Completion(" Mix and bake."), None)]
        >>> [row] = also_begun(rows, "safe", 1.0, random.Random(4))
        >>> row.begun + "|" + row.chosen.content
        ' Mix| and bake.'
    """
    for row in rows:
        if rng.random() >= part:
            continue
        answer = row.chosen if safety == "safe" else row.rejected
        content = () if answer is None else answer.content
        text = content if isinstance(content, str) else _one_text(content)
        words = list(re.finditer(r"\S+", text))
        if len(words) < 2:
            continue
        cut = words[rng.randrange(len(words) - 1)].end()
        begun, rest = text[:cut], text[cut:]
        left = Completion(rest if isinstance(content, str) else (Message("assistant", rest),))
        yield Row(left, None, begun) if safety == "safe" else Row(None, left, begun)


def _one_text(messages: Sequence[Message]) -> str:
    """What an answer of one plain message says; nothing of others, which calls or turns follow."""
    plain = len(messages) == 1 and messages[0] == Message("assistant", messages[0].content)
    return messages[0].content if plain else ""


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
