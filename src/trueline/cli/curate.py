"""`trueline data`, the curating half: build, choose, label, split and mix alignment data.

One function a verb; each reads its options, opens what they name and hands over to
:mod:`trueline.curation`. ``add_to`` puts them into the ``data`` group. The file is long because
every verb's options stand beside it, and holds nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trueline.cli.common import Json
from trueline.cli.curate_page import present
from trueline.cli.data import Form, Limit, Name, SkipBad, Source, Split
from trueline.runs import curate_open as opened
from trueline.terminal import counting

if TYPE_CHECKING:
    from trueline.curation.job import Progress

Output = Annotated[Path, typer.Argument(help="File to write; its ending says the type.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Html = Annotated[bool, typer.Option(help="Write an HTML report beside the output.")]
To = Annotated[str, typer.Option(help="Form to write: preference, kldo, example, ...")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn.")]
LabelBy = Annotated[
    str,
    typer.Option(
        help="Who labels prompts that have no label: given (nobody), keywords (a weak baseline), "
        "or a judging model (a folder, a hub id, or a server's name with --judge-url)."
    ),
]
Threshold = Annotated[
    float | None, typer.Option(help="Harmful from this score of 1 to 10 on (default 6).")
]
Relabel = Annotated[bool, typer.Option("--relabel", help="Let it overrule labels in the data.")]
JudgeUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible server of --label-by.")]
RefusalJudge = Annotated[
    str | None,
    typer.Option(help="Judge that tells which answers refuse, such as phrases; see JUDGES."),
]
From = Annotated[
    str, typer.Option(help="Refusals: bank, topics (they name the topic), or a model's folder.")
]
Bank = Annotated[Path | None, typer.Option(help="Bank of your own, one refusal a line.")]
MaxShare = Annotated[float, typer.Option(help="Largest share of rows for one refusal.")]
Against = Annotated[
    list[str] | None, typer.Option(help="Evaluation data whose prompts must not leak (repeat).")
]
LeakNear = Annotated[float | None, typer.Option(help="Similarity of a near-leak (default 0.8).")]
DropLeaks = Annotated[bool, typer.Option("--drop-leaks", help="Leave leaking rows out.")]


def compliance_refusal(
    source: Source,
    output: Output,
    label_by: LabelBy = "given",
    threshold: Threshold = None,
    relabel: Relabel = False,
    judge_url: JudgeUrl = None,
    refusals: From = "bank",
    bank: Bank = None,
    max_share: MaxShare = 0.02,
    harmful_chosen: Annotated[
        Literal["given", "refusal"],
        typer.Option(help="Pairs on harmful prompts: keep the chosen answer, or replace it."),
    ] = "given",
    refusal_judge: RefusalJudge = None,
    against: Against = None,
    leak_near: LeakNear = None,
    drop_leaks: DropLeaks = False,
    seed: Seed = 0,
    to: To = "preference",
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    overwrite: Overwrite = False,
    html: Html = True,
    json: Json = False,
) -> None:
    """Answers against refusals: chosen on safe prompts, rejected on harmful ones."""
    from trueline.curation import compliance_refusal as build

    examples = opened.examples(source, split, name, form, skip_bad, limit)
    is_refusal = opened.refusal_judge(refusal_judge)
    with _progress() as progress:
        made = build(
            examples,
            output,
            labels=opened.labels(label_by, threshold, relabel, judge_url),
            refusals=opened.refusals(refusals, bank, max_share, seed),
            harmful_chosen=harmful_chosen,
            is_refusal=is_refusal,
            judge_name=refusal_judge or "",
            leakage=opened.leakage(against, leak_near, drop_leaks),
            drop_leaks=drop_leaks,
            form=to,
            overwrite=overwrite,
            progress=progress,
        )
    present(made, as_json=json, html=html)


def preference(
    source: Source,
    second: Annotated[str, typer.Argument(help="The weaker model, or a file of its answers.")],
    output: Output,
    first: Annotated[
        str | None, typer.Option(help="The other model, or a file; else the source's answers.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of answers by models.")] = 256,
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
    to: To = "preference",
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    overwrite: Overwrite = False,
    html: Html = True,
    json: Json = False,
) -> None:
    """Two models' answers as preference pairs; refusals are chosen on harmful prompts."""
    from trueline.curation import preference_from_two

    examples = opened.examples(source, split, name, form, skip_bad, limit)
    with _progress() as progress:
        made = preference_from_two(
            examples,
            output,
            opened.answers(second, max_new_tokens, skip_bad),
            first=None if first is None else opened.answers(first, max_new_tokens, skip_bad),
            writers=f"{first or 'source'} and {second}, {max_new_tokens} tokens",
            labels=opened.labels(label_by, threshold, relabel, judge_url),
            refusals=opened.refusals(refusals, bank, max_share, seed),
            is_refusal=opened.refusal_judge(refusal_judge),
            judge_name=refusal_judge or "",
            leakage=opened.leakage(against, leak_near, drop_leaks),
            drop_leaks=drop_leaks,
            form=to,
            overwrite=overwrite,
            progress=progress,
        )
    present(made, as_json=json, html=html)


def select(
    source: Source,
    output: Output,
    strategy: Annotated[str, typer.Option(help="easy, hard, centroid or random.")] = "easy",
    policy: Annotated[
        str | None, typer.Option(help="Embed with this model's last hidden layer.")
    ] = None,
    sentence_model: Annotated[
        str | None, typer.Option(help="Embed with this sentence-embedding model (extra embed).")
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="A .npy file with one row for each response.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a response, with --policy (default 512).")
    ] = None,
    context: Annotated[
        bool, typer.Option("--context", help="With --policy: the response sees its prompt.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(help="Responses in a forward pass.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps vectors.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Share of prompts to take.")] = None,
    count: Annotated[int | None, typer.Option(help="Number of prompts to take.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="easy: cosines up to it; hard: from it on.")
    ] = None,
    max_cosine: Annotated[
        float | None, typer.Option(help="Pairs more alike than this are not chosen.")
    ] = None,
    keep_repeats: Annotated[
        bool, typer.Option("--keep-repeats", help="Keep pairs that were there before.")
    ] = False,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Also write a control of this size: random, length-matched (repeat)."),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Second opinion on labels, and labels where there are none.")
    ] = None,
    second_labels: Annotated[
        str | None, typer.Option(help="The same pairs labeled by another rater.")
    ] = None,
    seed: Seed = 0,
    to: To = "example",
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    overwrite: Overwrite = False,
    html: Html = True,
    json: Json = False,
) -> None:
    """REAL: pairs chosen by how alike their responses are, with controls and label errors."""
    from trueline.curation import select_pairs
    from trueline.data import load_examples

    examples = opened.examples(source, split, name, form, skip_bad, limit)
    second = None
    if second_labels is not None:
        second = load_examples(second_labels, skip_bad=skip_bad)
    embed = opened.vectors(policy, sentence_model, vectors, max_length, context, batch_size, cache)
    with _progress() as progress:
        made = select_pairs(
            examples,
            output,
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
            form=to,
            overwrite=overwrite,
            progress=progress,
        )
    present(made, as_json=json, html=html)


def safe_prompts(
    source: Source,
    output: Output,
    prefix: Annotated[
        str | None,
        typer.Option(help="responsible, safety, legality or guidelines (the default)."),
    ] = None,
    custom_prefix: Annotated[str | None, typer.Option(help="A prefix of your own.")] = None,
    rewriter: Annotated[
        str | None, typer.Option(help="A model that rewrites the prompt, in place of a prefix.")
    ] = None,
    placement: Annotated[
        Literal["last", "first", "every", "system"],
        typer.Option(help="In a conversation: before which user turn, or as the system."),
    ] = "last",
    which: Annotated[
        Literal["harmful", "all"], typer.Option(help="Which prompts (all is for comparison).")
    ] = "harmful",
    label_by: LabelBy = "given",
    threshold: Threshold = None,
    relabel: Relabel = False,
    judge_url: JudgeUrl = None,
    replace_existing: Annotated[
        bool, typer.Option("--replace-existing", help="Replace reference prompts in the data.")
    ] = False,
    to: To = "example",
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    overwrite: Overwrite = False,
    html: Html = True,
    json: Json = False,
) -> None:
    """E-RLHF: the reference sees harmful prompts with a safe prefix."""
    from trueline.curation import safe_prompts as build

    examples = opened.examples(source, split, name, form, skip_bad, limit)
    with _progress() as progress:
        made = build(
            examples,
            output,
            labels=opened.labels(label_by, threshold, relabel, judge_url),
            prefix=opened.prefix(prefix, custom_prefix),
            rewriter=opened.rewriter(rewriter),
            rewriter_name=rewriter or "",
            placement=placement,
            which=which,
            replace_existing=replace_existing,
            form=to,
            overwrite=overwrite,
            progress=progress,
        )
    present(made, as_json=json, html=html)


def difficulty(
    source: Source,
    output: Output,
    model: Annotated[str, typer.Option(help="The reference model.")],
    low: Annotated[float, typer.Option(help="Keep pairs from this quantile of c on.")] = 0.0,
    high: Annotated[float, typer.Option(help="Keep pairs up to this quantile of c.")] = 1.0,
    flippable: Annotated[
        bool, typer.Option("--flippable", help="Keep only pairs DPO's optimum ranks right.")
    ] = False,
    order: Annotated[
        Literal["data", "easy-first", "hard-first"], typer.Option(help="Order of the output.")
    ] = "data",
    stages: Annotated[int, typer.Option(help="Write so many stages, the easiest first.")] = 0,
    beta: Annotated[list[float] | None, typer.Option(help="DPO's beta (repeat).")] = None,
    alpha: Annotated[float, typer.Option(help="Share of raters who prefer the chosen.")] = 1.0,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and completion.")] = 1024,
    details: Annotated[
        bool, typer.Option("--details", help="Also write NAME.difficulty.tsv, one line a pair.")
    ] = False,
    to: To = "preference",
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    overwrite: Overwrite = False,
    html: Html = True,
    json: Json = False,
) -> None:
    """Pairs by how wrong the reference ranks them: filter, order, and see what DPO cannot flip."""
    from trueline.curation import Keep
    from trueline.curation import difficulty as build

    examples = opened.examples(source, split, name, form, skip_bad, limit)
    reference, tokenizer = opened.model(model)
    with _progress() as progress:
        made = build(
            examples,
            output,
            reference,
            tokenizer,
            keep=Keep(low, high, flippable),
            order=order,
            stages=stages,
            betas=beta or (0.1,),
            alpha=alpha,
            max_length=max_length,
            details=details,
            form=to,
            overwrite=overwrite,
            progress=progress,
        )
    present(made, as_json=json, html=html)


def split_(
    source: Source,
    output: Annotated[Path, typer.Argument(help="Folder for train, test and validation.")],
    test_size: Annotated[float, typer.Option(help="Expected share of prompts.")] = 0.1,
    validation_size: Annotated[float, typer.Option(help="Expected share of prompts.")] = 0.0,
    near: Annotated[
        float | None, typer.Option(help="Keep prompts this alike (0.3 to 1) on one side.")
    ] = None,
    suffix: Annotated[str, typer.Option(help="Ending of the files.")] = ".jsonl",
    seed: Seed = 0,
    to: To = "example",
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    overwrite: Overwrite = False,
    html: Html = True,
    json: Json = False,
) -> None:
    """Train and test files that share no prompt."""
    from trueline.curation import split as build

    examples = opened.examples(source, split, name, form, skip_bad, limit)
    with _progress() as progress:
        made = build(
            examples,
            output,
            test_size=test_size,
            validation_size=validation_size,
            near=near,
            suffix=suffix,
            seed=seed,
            form=to,
            overwrite=overwrite,
            progress=progress,
        )
    present(made, as_json=json, html=html)


def dedup(
    source: Source,
    output: Output,
    by: Annotated[Literal["row", "prompt"], typer.Option(help="What must not repeat.")] = "row",
    near: Annotated[
        float | None, typer.Option(help="Also drop what is this alike (0.3 to 1).")
    ] = None,
    against: Against = None,
    leak_near: LeakNear = None,
    to: To = "example",
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    overwrite: Overwrite = False,
    html: Html = True,
    json: Json = False,
) -> None:
    """Leave out repeats, and prompts of evaluation data (--against)."""
    from trueline.curation import dedup as build

    examples = opened.examples(source, split, name, form, skip_bad, limit)
    with _progress() as progress:
        made = build(
            examples,
            output,
            by=by,
            near=near,
            leakage=opened.leakage(against, leak_near, drop=False),
            form=to,
            overwrite=overwrite,
            progress=progress,
        )
    present(made, as_json=json, html=html)


def mix(
    output: Output,
    source: Annotated[
        list[str], typer.Option(help="A file, a directory, or a hub id (repeat, two or more).")
    ],
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each source, in their order.")
    ] = None,
    exhausted: Annotated[
        Literal["stop", "repeat", "drop"],
        typer.Option(help="At the end of a source: stop, repeat it, or go on without it."),
    ] = "stop",
    count: Annotated[int | None, typer.Option(help="Rows to write at most.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Plain text becomes conversations.")] = False,
    seed: Seed = 0,
    to: To = "example",
    split: Split = "train",
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    html: Html = True,
    json: Json = False,
) -> None:
    """Several sources in one, by weight."""
    from trueline.curation import mix as build

    sources = [opened.examples(one, split, None, None, skip_bad, None) for one in source]
    with _progress() as progress:
        made = build(
            sources,
            output,
            weights=weight,
            exhausted=exhausted,
            count=count,
            chat=chat,
            seed=seed,
            form=to,
            overwrite=overwrite,
            progress=progress,
        )
    present(made, as_json=json, html=html)


VERBS: dict[str, Callable[..., None]] = {
    "compliance-refusal": compliance_refusal,
    "preference": preference,
    "select": select,
    "safe-prompts": safe_prompts,
    "difficulty": difficulty,
    "split": split_,
    "dedup": dedup,
    "mix": mix,
}


def add_to(app: typer.Typer) -> None:
    """Register every verb."""
    for verb, function in VERBS.items():
        app.command(verb)(function)


def _progress() -> AbstractContextManager[Progress]:
    """On stderr, what is being done and how many examples are."""
    return counting("opening")
