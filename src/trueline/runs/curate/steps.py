"""The curation steps: build, choose, label, split and mix alignment data.

One function a step; each opens what its options name and hands over to :mod:`trueline.curation`.
The file is long because every step's options stand beside it, and holds nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from trueline.curation import Curated
from trueline.curation.jobs.step import Work, curates
from trueline.runs.curate import opened

Seed = Annotated[int, "Seed of everything drawn."]
LabelBy = Annotated[
    str,
    "Who labels prompts that have no label: given (nobody), keywords (a weak baseline), "
    "or a judging model (a folder, a hub id, or a server's name with --judge-url).",
]
Threshold = Annotated[float | None, "Harmful from this score of 1 to 10 on (default 6)."]
Relabel = Annotated[bool, "Let it overrule labels in the data."]
JudgeUrl = Annotated[str | None, "OpenAI-compatible server of --label-by."]
RefusalJudge = Annotated[
    str | None,
    "Judge that tells which answers refuse, such as phrases; see JUDGES.",
]
From = Annotated[str, "Refusals: bank, topics (they name the topic), or a model's folder."]
Bank = Annotated[Path | None, "Bank of your own, one refusal a line."]
MaxShare = Annotated[float, "Largest share of rows for one refusal."]
Against = Annotated[list[str] | None, "Evaluation data whose prompts must not leak (repeat)."]
LeakNear = Annotated[float | None, "Similarity of a near-leak (default 0.8)."]
DropLeaks = Annotated[bool, "Leave leaking rows out."]


@curates("compliance-refusal", to="preference")
def compliance_refusal(
    work: Work,
    *,
    label_by: LabelBy = "given",
    threshold: Threshold = None,
    relabel: Relabel = False,
    judge_url: JudgeUrl = None,
    refusals: From = "bank",
    bank: Bank = None,
    max_share: MaxShare = 0.02,
    harmful_chosen: Annotated[
        Literal["given", "refusal"],
        "Pairs on harmful prompts: keep the chosen answer, or replace it.",
    ] = "given",
    refusal_judge: RefusalJudge = None,
    against: Against = None,
    leak_near: LeakNear = None,
    drop_leaks: DropLeaks = False,
    seed: Seed = 0,
) -> Curated | None:
    """Answers against refusals: chosen on safe prompts, rejected on harmful ones."""
    from trueline.curation import compliance_refusal as build

    is_refusal = opened.refusal_judge(refusal_judge)
    return build(
        work.examples,
        work.output,
        labels=opened.labels(label_by, threshold, relabel, judge_url),
        refusals=opened.refusals(refusals, bank, max_share, seed),
        harmful_chosen=harmful_chosen,
        is_refusal=is_refusal,
        judge_name=refusal_judge or "",
        leakage=opened.leakage(against, leak_near, drop_leaks),
        drop_leaks=drop_leaks,
        form=work.form,
        overwrite=work.overwrite,
        progress=work.progress,
    )


@curates("preference", to="preference")
def preference(
    work: Work,
    second: Annotated[str, "The weaker model, or a file of its answers."],
    *,
    first: Annotated[str | None, "The other model, or a file; else the source's answers."] = None,
    max_new_tokens: Annotated[int, "Length of answers by models."] = 256,
    label_by: LabelBy = "given",
    threshold: Threshold = None,
    relabel: Relabel = False,
    judge_url: JudgeUrl = None,
    refusals: From = "bank",
    bank: Bank = None,
    max_share: MaxShare = 0.02,
    refusal_judge: RefusalJudge = None,
    against: Against = None,
    leak_near: LeakNear = None,
    drop_leaks: DropLeaks = False,
    seed: Seed = 0,
) -> Curated | None:
    """Two models' answers as preference pairs; refusals are chosen on harmful prompts."""
    from trueline.curation import preference_from_two

    return preference_from_two(
        work.examples,
        work.output,
        opened.answers(second, max_new_tokens, work.skip_bad),
        first=None if first is None else opened.answers(first, max_new_tokens, work.skip_bad),
        writers=f"{first or 'source'} and {second}, {max_new_tokens} tokens",
        labels=opened.labels(label_by, threshold, relabel, judge_url),
        refusals=opened.refusals(refusals, bank, max_share, seed),
        is_refusal=opened.refusal_judge(refusal_judge),
        judge_name=refusal_judge or "",
        leakage=opened.leakage(against, leak_near, drop_leaks),
        drop_leaks=drop_leaks,
        form=work.form,
        overwrite=work.overwrite,
        progress=work.progress,
    )


@curates("select")
def select(
    work: Work,
    *,
    strategy: Annotated[str, "easy, hard, centroid or random."] = "easy",
    policy: Annotated[str | None, "Embed with this model's last hidden layer."] = None,
    sentence_model: Annotated[
        str | None, "Embed with this sentence-embedding model (extra embed)."
    ] = None,
    vectors: Annotated[Path | None, "A .npy file with one row for each response."] = None,
    max_length: Annotated[int | None, "Tokens of a response, with --policy (default 512)."] = None,
    context: Annotated[bool, "With --policy: the response sees its prompt."] = False,
    batch_size: Annotated[int | None, "Responses in a forward pass."] = None,
    cache: Annotated[Path | None, "Folder that keeps vectors."] = None,
    fraction: Annotated[float | None, "Share of prompts to take."] = None,
    count: Annotated[int | None, "Number of prompts to take."] = None,
    threshold: Annotated[float | None, "easy: cosines up to it; hard: from it on."] = None,
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
    from trueline.curation import select_pairs
    from trueline.data import load_examples

    second = None
    if second_labels is not None:
        second = load_examples(second_labels, skip_bad=work.skip_bad)
    embed = opened.vectors(policy, sentence_model, vectors, max_length, context, batch_size, cache)
    return select_pairs(
        work.examples,
        work.output,
        embed,
        strategy=strategy,
        size=opened.size(fraction, count, threshold),
        seed=seed,
        max_cosine=max_cosine,
        keep_repeats=keep_repeats,
        controls=control or (),
        judge=opened.response_judge(judge),
        judge_name=judge or "",
        second=second,
        form=work.form,
        overwrite=work.overwrite,
        progress=work.progress,
    )


@curates("safe-prompts")
def safe_prompts(
    work: Work,
    *,
    prefix: Annotated[
        str | None,
        "responsible, safety, legality or guidelines (the default).",
    ] = None,
    custom_prefix: Annotated[str | None, "A prefix of your own."] = None,
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
    label_by: LabelBy = "given",
    threshold: Threshold = None,
    relabel: Relabel = False,
    judge_url: JudgeUrl = None,
    replace_existing: Annotated[bool, "Replace reference prompts in the data."] = False,
) -> Curated | None:
    """E-RLHF: the reference sees harmful prompts with a safe prefix."""
    from trueline.curation import safe_prompts as build

    return build(
        work.examples,
        work.output,
        labels=opened.labels(label_by, threshold, relabel, judge_url),
        prefix=opened.prefix(prefix, custom_prefix),
        rewriter=opened.rewriter(rewriter),
        rewriter_name=rewriter or "",
        placement=placement,
        which=which,
        replace_existing=replace_existing,
        form=work.form,
        overwrite=work.overwrite,
        progress=work.progress,
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
    from trueline.curation import Keep
    from trueline.curation import difficulty as build

    reference, tokenizer = opened.model(model)
    return build(
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
        form=work.form,
        overwrite=work.overwrite,
        progress=work.progress,
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
    from trueline.curation import split as build

    return build(
        work.examples,
        work.output,
        test_size=test_size,
        validation_size=validation_size,
        near=near,
        suffix=suffix,
        seed=seed,
        form=work.form,
        overwrite=work.overwrite,
        progress=work.progress,
    )


@curates("dedup")
def dedup(
    work: Work,
    *,
    by: Annotated[Literal["row", "prompt"], "What must not repeat."] = "row",
    near: Annotated[float | None, "Also drop what is this alike (0.3 to 1)."] = None,
    against: Against = None,
    leak_near: LeakNear = None,
) -> Curated | None:
    """Leave out repeats, and prompts of evaluation data (--against)."""
    from trueline.curation import dedup as build

    return build(
        work.examples,
        work.output,
        by=by,
        near=near,
        leakage=opened.leakage(against, leak_near, drop=False),
        form=work.form,
        overwrite=work.overwrite,
        progress=work.progress,
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
    from trueline.curation import mix as build

    sources = [opened.examples(one, work.split, None, None, work.skip_bad, None) for one in source]
    return build(
        sources,
        work.output,
        weights=weight,
        exhausted=exhausted,
        count=count,
        chat=chat,
        seed=seed,
        form=work.form,
        overwrite=work.overwrite,
        progress=work.progress,
    )
