"""Cheap local proxies of utility: perplexity on given answers, the KL from a
reference, and babble: what the model before alignment thinks of the answers, and of their words."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueline.batching import Branch, Encoder, TokenTree, view
from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.errors import UserError
from trueline.evaluation.answers import kind_of, nll_of
from trueline.evaluation.backends.base import Request
from trueline.evaluation.backends.local import TransformersBackend, load_local
from trueline.evaluation.benchmarks.base import read_rows
from trueline.evaluation.generation import generate, model_input
from trueline.evaluation.harness.summarize import BROKEN, NO_LONGER
from trueline.evaluation.labels import NO_ANSWER
from trueline.evaluation.sorting import echo, repetition, unseen, words
from trueline.evaluation.utility.base import Measurement, UtilityContext, utility
from trueline.prompts import Progress, Renderer
from trueline.records import Example, Message
from trueline.results import Finding, Metric
from trueline.scoring import score_trees
from trueline.stats import Clusters, mean_metric, rate


@utility("perplexity")
def perplexity(
    source: str,
    *,
    chat: bool = True,
    split: str = "train",
    max_length: int = 1024,
    limit: int | None = None,
    skip_bad: bool = False,
) -> Measurement:
    """Perplexity per token on answers that the model should find likely.

        exp(-sum log pi(answer token) / number of answer tokens)

    Preference data count with their chosen answers.

    Args:
        source: a file, a folder or a hub id of any form that training takes.
        chat: put plain-text prompts through the chat template, where the model has one.
        split: of a hub data set or a folder.
        max_length: tokens of prompt and answer; longer ones are cut.
        limit: only the first so many rows.
        skip_bad: leave out rows that cannot be used, and count them.
    """
    loaded = load_examples(source, split=split, limit=limit, skip_bad=skip_bad)
    examples = list(loaded)
    dropped = loaded.report.rows - loaded.report.examples

    def measure(context: UtilityContext) -> Finding:
        model, tokenizer = _local(context, "perplexity")
        encoder = Encoder(tokenizer, max_length=max_length)
        trees = _trees(encoder, examples, chat=chat and tokenizer.chat_template is not None)
        told = context.watch("perplexity")
        sums, tokens = _scored(model, trees, told)
        clusters = Clusters(-sums, tokens)
        found = clusters.interval()
        low, high = (None, None) if found is None else (math.exp(found.low), math.exp(found.high))
        metric = Metric("perplexity", math.exp(clusters.mean), low, high, len(trees))
        cut = encoder.counts["completions_truncated"] + encoder.counts["prompts_truncated"]
        summary = f"Perplexity {metric} per token on {len(trees)} prompts' answers."
        return Finding(
            "perplexity",
            summary,
            [
                metric,
                Metric("tokens", float(tokens.sum())),
                Metric("cut to fit", float(cut)),
                Metric("rows left out", float(dropped)),
            ],
        )

    return measure


def _trees(encoder: Encoder, examples: Sequence[Example], *, chat: bool) -> list[TokenTree]:
    shown = [as_chat(example) for example in examples] if chat else examples
    return [tree for example in shown for tree in view(example, encoder(example), "completion")]


def _local(context: UtilityContext, who: str) -> tuple[Any, Any]:
    local = context.setup.backend.local
    if local is None:
        raise UserError(f"{who} needs log-probs of a local model: use the transformers backend")
    return local


def _scored(
    model: Any, trees: Sequence[TokenTree], told: Progress | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """For each tree the summed log-prob of its scored tokens, and their number."""
    sums, tokens = [], []
    for log_probs, counts in score_trees(model, trees):
        sums.append(float(log_probs.sum()))
        tokens.append(float(counts.sum()))
        if told is not None:
            told(len(sums), len(trees))
    return np.asarray(sums), np.asarray(tokens)


@utility("kl")
def kl(
    reference: str | TransformersBackend,
    *,
    prompts: str | None = None,
    column: str = "prompt",
    max_new_tokens: int = 64,
    samples: int = 1,
    dtype: str | None = None,
) -> Measurement:
    """KL(model || reference) over answers to the same prompts, in nats an answer.

        E_{y ~ pi} [log pi(y|x) - log pi_ref(y|x)], y sampled at temperature 1

    How far alignment has moved the model on prompts it should answer as before. An answer cut at
    the limit counts with the tokens it has: by the chain rule that is the KL of so many tokens.

    Args:
        reference: the model before alignment, a folder or hub id.
        prompts: a file or hub id; None takes the safe prompts of the benchmarks.
        column: its column of prompts.
        max_new_tokens: of a sampled answer.
        samples: answers a prompt; a prompt is one observation.
        dtype: of the reference's weights.
    """
    if samples < 1:
        raise UserError(f"kl: samples must be at least 1, got {samples}")
    given = None if prompts is None else [str(r[column]) for _, r in read_rows(prompts, (column,))]

    def measure(context: UtilityContext) -> Finding:
        model, tokenizer = _local(context, "kl")
        other = load_local(reference, dtype=dtype or "auto") if isinstance(reference, str) else (
            reference
        )  # fmt: skip
        if other.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise UserError("kl: model and reference have different vocabularies")
        requests = [context.request([Message("user", t)]) for t in given or safe_prompts(context)]
        trees, finished = [], []
        for n in range(samples):
            found = _sampled(context, requests, max_new_tokens, context.setup.seed + n)
            trees += [tree for tree, _ in found]
            finished += [done for _, done in found]
        own, tokens = _scored(model, trees, context.watch("log-probs under the model"))
        ref, _ = _scored(other.model, trees, context.watch("log-probs under the reference"))
        ratio = (own - ref).reshape(samples, -1)
        metric = mean_metric("kl", ratio.mean(0).tolist(), unit="nats")
        per_token = Metric("kl per token", float(ratio.sum() / tokens.sum()), unit="nats")
        cut = rate("truncated answers", [not done for done in finished])
        summary = (
            f"The model is {metric} nats an answer away from its reference, over {metric.n} "
            f"prompts and up to {max_new_tokens} tokens."
        )
        return Finding("KL from the reference", summary, [metric, per_token, cut])

    return measure


def safe_prompts(context: UtilityContext) -> list[str]:
    """The safe prompts of the benchmarks, which an aligned model should answer as before."""
    found = [i.text for b in context.setup.benchmarks.values() for i in b.items if not i.harmful]
    if not found:
        raise UserError("give prompts=FILE: the benchmarks here have no safe prompts")
    return found


def _sampled(
    context: UtilityContext, requests: Sequence[Request], limit: int, seed: int
) -> list[tuple[TokenTree, bool]]:
    """Each prompt's tokens with a sampled answer's, and whether it ended by itself."""
    model, tokenizer = _local(context, "kl")
    answers = generate(
        model,
        tokenizer,
        [request.prompt for request in requests],
        max_new_tokens=limit,
        temperature=1.0,
        seed=seed,
        progress=context.watch("sampled answers"),
    )
    found, renderer = [], Renderer(tokenizer)
    for request, answer in zip(requests, answers, strict=True):
        prompt = np.asarray(model_input(renderer, request.prompt).ids, dtype=np.int32)
        ids = np.asarray(answer.ids, dtype=np.int32)
        branch = Branch(ids, np.ones(len(ids), dtype=np.bool_))
        found.append((TokenTree(prompt, (branch,), (True,)), answer.finished))
    return found


@utility("babble")
def babble(
    reference: str | TransformersBackend,
    *,
    prompts: str | None = None,
    column: str = "prompt",
    count: int = 64,
    dtype: str | None = None,
) -> Measurement:
    """Whether the answers are babble to the model before alignment, and how new their words are.

    An answer looks like babble where the reference gives its tokens less than it gives, on
    average, halfway between its own answers to the same prompts and those with their words
    shuffled. Answers that the evaluation has are not generated again.

    Args:
        reference: the model before alignment, a folder or hub id.
        prompts: a file or hub id; None takes the safe prompts of the benchmarks.
        column: its column of prompts.
        count: so many of them, drawn by the seed.
        dtype: of the reference's weights.

    Raises:
        UserError: a count below 1, or no prompts.
    """
    if count < 1:
        raise UserError(f"babble: count must be at least 1, got {count}")
    given = None if prompts is None else [str(r[column]) for _, r in read_rows(prompts, (column,))]

    def measure(context: UtilityContext) -> Finding:
        base = reference
        if isinstance(base, str):
            base = load_local(base, dtype=dtype or "auto")
        asked = _drawn(given or safe_prompts(context), count, context.setup.seed)
        requests = [context.request([Message("user", text)]) for text in asked]
        decoding = context.setup.decoding
        said = context.ask(context.setup.backend, requests, decoding, "answers")
        own = context.ask(base, requests, decoding, "the reference's answers")
        return _finding(base, requests, asked, [a.text for a in said], [a.text for a in own])

    return measure


def _drawn(texts: Sequence[str], count: int, seed: int) -> list[str]:
    distinct = list(dict.fromkeys(texts))
    return [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))[:count]]


def _finding(
    base: TransformersBackend,
    requests: Sequence[Request],
    asked: Sequence[str],
    said: Sequence[str],
    own: Sequence[str],
) -> Finding:
    shuffle = random.Random(0)
    mixed = [" ".join(shuffle.sample(parts, len(parts))) for parts in map(str.split, own)]
    theirs, ours, shuffled = (_nats(base, requests, texts) for texts in (said, own, mixed))
    known = {word for text in (*own, *asked) for word in words(text)}
    news = [share for text in said if (share := unseen(text, known)) is not None]
    numbers = [
        mean_metric("nats a token, answers", theirs, unit="nats"),
        mean_metric("nats a token, reference's answers", ours, unit="nats"),
        mean_metric("nats a token, those shuffled", shuffled, unit="nats"),
        mean_metric("unseen words", news, unit="rate"),
        mean_metric("repeated fours", [repetition(text) for text in said], unit="rate"),
        mean_metric("echo", list(map(echo, asked, said)), unit="rate"),
    ]
    none = rate("none", [kind_of(*pair) in NO_ANSWER for pair in zip(asked, said, strict=True)])
    like = Metric("looks like babble", None, n=0, unit="rate")
    if ours and shuffled:
        bound = (sum(ours) / len(ours) + sum(shuffled) / len(shuffled)) / 2
        like = rate("looks like babble", [nats > bound for nats in theirs])
    text = (
        f"{like} of the answers to {len(asked)} prompts look like babble to the reference and "
        f"{none} are none: {numbers[0]} nats a token, its own answers {numbers[1]}, shuffled "
        f"{numbers[2]}; {numbers[3]} of their words are none that it says."
    )
    if max(like.value or 0.0, none.value or 0.0) >= BROKEN:
        text = f"This model no longer answers: {text}"
        advice = "Read some answers; its rates of attack success and over-refusal say nothing."
        return Finding(f"{NO_LONGER} (babble)", text, [like, none, *numbers], advice)
    return Finding("babble", text, [like, none, *numbers])


def _nats(
    base: TransformersBackend, requests: Sequence[Request], texts: Sequence[str]
) -> list[float]:
    """What the reference gives each answer's tokens, negative, on average; none for no tokens."""
    found = []
    for request, text in zip(requests, texts, strict=True):
        ids = base.tokenizer(text, add_special_tokens=False).input_ids
        if ids:
            found.append(nll_of(base.model, base.tokenizer, request.prompt, ids))
    return found
