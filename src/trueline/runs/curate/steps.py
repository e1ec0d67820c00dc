"""The curation steps: build, choose, label, split and mix alignment data.

One function a step; it opens what its options name and hands over to :mod:`trueline.curation`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from trueline import curation
from trueline.curation import Curated, Keep, Labels, Leakage, Refusals, Size
from trueline.curation.jobs.step import Work, curates
from trueline.curation.selection.embed import Vectors
from trueline.data import load_examples
from trueline.runs.curate import opened
from trueline.runs.curate.opened import DropLeaks, Seed

ByWhom = Annotated[Labels, opened.labels]
FromWhere = Annotated[Refusals, opened.refusals]
Unseen = Annotated[Leakage | None, opened.leakage]
RefusalJudge = Annotated[
    str | None, "Judge that tells which answers refuse, such as phrases; see JUDGES."
]


@curates("compliance-refusal", to="preference")
def compliance_refusal(
    work: Work,
    *,
    labels: ByWhom,
    refusals: FromWhere,
    harmful_chosen: Annotated[
        Literal["given", "refusal"],
        "Pairs on harmful prompts: keep the chosen answer, or replace it.",
    ] = "given",
    begun: Annotated[
        float, "Share of answers that stand in one more row, begun in its prompt, cut at any word."
    ] = 0.0,
    refusal_judge: RefusalJudge = None,
    leakage: Unseen,
    drop_leaks: DropLeaks = False,
) -> Curated | None:
    """Answers against refusals: chosen on safe prompts, rejected on harmful ones."""
    return curation.compliance_refusal(
        work.examples,
        work.output,
        labels=labels,
        refusals=refusals,
        harmful_chosen=harmful_chosen,
        begun=begun,
        is_refusal=opened.refusal_judge(refusal_judge),
        judge_name=refusal_judge or "",
        leakage=leakage,
        drop_leaks=drop_leaks,
        **work.writing,
    )


@curates("preference", to="preference")
def preference(
    work: Work,
    second: Annotated[str, "The weaker model, or a file of its answers."],
    *,
    first: Annotated[str | None, "The other model, or a file; else the source's answers."] = None,
    max_new_tokens: Annotated[int, "Length of answers by models."] = 256,
    labels: ByWhom,
    refusals: FromWhere,
    refusal_judge: RefusalJudge = None,
    leakage: Unseen,
    drop_leaks: DropLeaks = False,
) -> Curated | None:
    """Two models' answers as preference pairs; refusals are chosen on harmful prompts."""
    return curation.preference_from_two(
        work.examples,
        work.output,
        opened.answers(second, max_new_tokens, work.skip_bad),
        first=None if first is None else opened.answers(first, max_new_tokens, work.skip_bad),
        writers=f"{first or 'source'} and {second}, {max_new_tokens} tokens",
        labels=labels,
        refusals=refusals,
        is_refusal=opened.refusal_judge(refusal_judge),
        judge_name=refusal_judge or "",
        leakage=leakage,
        drop_leaks=drop_leaks,
        **work.writing,
    )


@curates("select")
def select(
    work: Work,
    *,
    strategy: Annotated[str, "easy, hard, centroid or random."] = "easy",
    vectors: Annotated[Vectors, opened.vectors],
    size: Annotated[Size | None, opened.size],
    max_cosine: Annotated[float | None, "Pairs more alike than this are not chosen."] = None,
    keep_repeats: Annotated[bool, "Keep pairs that were there before."] = False,
    control: Annotated[
        list[str] | None,
        "Also write a control of this size: random, length-matched (repeat).",
    ] = None,
    judge: Annotated[
        str | None, "Second opinion on labels, and labels where there are none."
    ] = None,
    second_labels: Annotated[str | None, "The same pairs labeled by another rater."] = None,
    seed: Seed = 0,
) -> Curated | None:
    """REAL: pairs chosen by how alike their responses are, with controls and label errors."""
    second = None
    if second_labels is not None:
        second = load_examples(second_labels, skip_bad=work.skip_bad)
    return curation.select_pairs(
        work.examples,
        work.output,
        vectors,
        strategy=strategy,
        size=size,
        seed=seed,
        max_cosine=max_cosine,
        keep_repeats=keep_repeats,
        controls=control or (),
        judge=opened.response_judge(judge),
        judge_name=judge or "",
        second=second,
        **work.writing,
    )


@curates("safe-prompts")
def safe_prompts(
    work: Work,
    *,
    prefix: Annotated[str, opened.prefix],
    rewriter: Annotated[
        str | None, "A model that rewrites the prompt, in place of a prefix."
    ] = None,
    placement: Annotated[
        Literal["last", "first", "every", "system"],
        "In a conversation: before which user turn, or as the system.",
    ] = "last",
    which: Annotated[
        Literal["harmful", "all"], "Which prompts (all is for comparison)."
    ] = "harmful",
    labels: ByWhom,
    replace_existing: Annotated[bool, "Replace reference prompts in the data."] = False,
) -> Curated | None:
    """E-RLHF: the reference sees harmful prompts with a safe prefix."""
    return curation.safe_prompts(
        work.examples,
        work.output,
        labels=labels,
        prefix=prefix,
        rewriter=opened.rewriter(rewriter),
        rewriter_name=rewriter or "",
        placement=placement,
        which=which,
        replace_existing=replace_existing,
        **work.writing,
    )


@curates("difficulty", to="preference")
def difficulty(
    work: Work,
    *,
    model: Annotated[str, "The reference model."],
    low: Annotated[float, "Keep pairs from this quantile of c on."] = 0.0,
    high: Annotated[float, "Keep pairs up to this quantile of c."] = 1.0,
    flippable: Annotated[bool, "Keep only pairs DPO's optimum ranks right."] = False,
    order: Annotated[Literal["data", "easy-first", "hard-first"], "Order of the output."] = "data",
    stages: Annotated[int, "Write so many stages, the easiest first."] = 0,
    beta: Annotated[list[float] | None, "DPO's beta (repeat)."] = None,
    alpha: Annotated[float, "Share of raters who prefer the chosen."] = 1.0,
    max_length: Annotated[int, "Tokens of prompt and completion."] = 1024,
    details: Annotated[bool, "Also write NAME.difficulty.tsv, one line a pair."] = False,
) -> Curated | None:
    """Pairs by how wrong the reference ranks them: filter, order, and see what DPO cannot flip."""
    reference, tokenizer = opened.model(model)
    return curation.difficulty(
        work.examples,
        work.output,
        reference,
        tokenizer,
        keep=Keep(low, high, flippable),
        order=order,
        stages=stages,
        betas=beta or (0.1,),
        alpha=alpha,
        max_length=max_length,
        details=details,
        **work.writing,
    )


@curates("split")
def split_(
    work: Work,
    *,
    test_size: Annotated[float, "Expected share of prompts."] = 0.1,
    validation_size: Annotated[float, "Expected share of prompts."] = 0.0,
    near: Annotated[float | None, "Keep prompts this alike (0.3 to 1) on one side."] = None,
    suffix: Annotated[str, "Ending of the files."] = ".jsonl",
    seed: Seed = 0,
) -> Curated | None:
    """Train and test files that share no prompt."""
    return curation.split(
        work.examples,
        work.output,
        test_size=test_size,
        validation_size=validation_size,
        near=near,
        suffix=suffix,
        seed=seed,
        **work.writing,
    )


@curates("dedup")
def dedup(
    work: Work,
    *,
    by: Annotated[Literal["row", "prompt"], "What must not repeat."] = "row",
    near: Annotated[float | None, "Also drop what is this alike (0.3 to 1)."] = None,
    leakage: Annotated[Leakage | None, opened.unseen],
) -> Curated | None:
    """Leave out repeats, and prompts of evaluation data (--against)."""
    return curation.dedup(
        work.examples, work.output, by=by, near=near, leakage=leakage, **work.writing
    )


@curates("mix", reads=False)
def mix(
    work: Work,
    *,
    source: Annotated[list[str], "A file, a directory, or a hub id (repeat, two or more)."],
    weight: Annotated[list[float] | None, "One for each source, in their order."] = None,
    exhausted: Annotated[
        Literal["stop", "repeat", "drop"],
        "At the end of a source: stop, repeat it, or go on without it.",
    ] = "stop",
    count: Annotated[int | None, "Rows to write at most."] = None,
    chat: Annotated[bool, "Plain text becomes conversations."] = False,
    seed: Seed = 0,
) -> Curated | None:
    """Several sources in one, by weight."""
    return curation.mix(
        [load_examples(one, split=work.split, skip_bad=work.skip_bad) for one in source],
        work.output,
        weights=weight,
        exhausted=exhausted,
        count=count,
        chat=chat,
        seed=seed,
        **work.writing,
    )
