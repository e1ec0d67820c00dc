"""What the options of the curating verbs name, opened: data, models, judges, refusals.

A function here whose arguments are keyword-only opens an argument of a step, and its options are
the step's (:func:`trueline.options.opening`).
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from trueline.curation import (
    PREFIXES,
    Answering,
    Cached,
    Instructed,
    Labels,
    Leakage,
    PolicyEmbedder,
    Precomputed,
    Recorded,
    Refusals,
    SentenceEmbedder,
    Size,
    keyword_scores,
)
from trueline.curation.near import NEAR, evaluation_prompts
from trueline.curation.refusals.writers import DECLINE, REWRITE, ResponseLabeler, Writer
from trueline.curation.safety import THRESHOLD, ResponseScorer
from trueline.curation.selection.embed import Vectors
from trueline.data import load_examples
from trueline.errors import UserError
from trueline.evaluation.backends import Decoding, open_backend
from trueline.evaluation.backends.local import load_local
from trueline.evaluation.judges import JUDGES
from trueline.evaluation.judges.base import Judge
from trueline.evaluation.judges.language import harm_scores
from trueline.evaluation.plugins import parse_spec

Seed = Annotated[int, "Seed of everything drawn."]
Against = Annotated[list[str] | None, "Evaluation data whose prompts must not leak (repeat)."]
LeakNear = Annotated[float | None, "Similarity of a near-leak (default 0.8)."]
DropLeaks = Annotated[bool, "Leave leaking rows out."]


def labels(
    *,
    label_by: Annotated[
        str,
        "Who labels prompts that have no label: given (nobody), keywords (a weak baseline), "
        "or a judging model (a folder, a hub id, or a server's name with --judge-url).",
    ] = "given",
    threshold: Annotated[float | None, "Harmful from this score of 1 to 10 on (default 6)."] = None,
    relabel: Annotated[bool, "Let it overrule labels in the data."] = False,
    judge_url: Annotated[str | None, "OpenAI-compatible server of --label-by."] = None,
) -> Labels:
    """Who labels prompts."""
    limit = THRESHOLD if threshold is None else threshold
    if label_by in ("given", "keywords"):
        if judge_url is not None:
            raise UserError(f"--judge-url has no effect with --label-by {label_by}")
        if label_by == "given":
            return Labels(threshold=limit, relabel=relabel)
        return Labels(keyword_scores, "keywords (weak baseline)", limit, relabel)
    backend = open_backend(label_by, base_url=judge_url)
    return Labels(harm_scores(backend), label_by, limit, relabel, dict(backend.facts))


def refusals(
    *,
    refusals: Annotated[
        str, "Refusals: bank, topics (they name the topic), or a model's folder."
    ] = "bank",
    bank: Annotated[Path | None, "Bank of your own, one refusal a line."] = None,
    max_share: Annotated[float, "Largest share of rows for one refusal."] = 0.02,
    seed: Seed = 0,
) -> Refusals:
    """Where refusals come from."""
    texts = None
    if bank is not None:
        try:
            texts = [line.strip() for line in bank.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{bank} cannot be read: {error}") from None
        if not texts:
            raise UserError(f"{bank} holds no refusal; write one a line")
    if refusals in ("bank", "topics"):
        kind = "bank" if refusals == "bank" else "topics"
        return Refusals(kind, None, texts, max_share, seed)  # type: ignore[arg-type]
    decoding = Decoding(max_new_tokens=96, temperature=1.0, seed=seed)
    writer = Instructed(open_backend(refusals), DECLINE, decoding)
    return Refusals("model", writer, texts, max_share, seed)


def refusal_judge(name: str | None) -> ResponseLabeler | None:
    """A judge of evaluation as one that tells refusals."""
    if name is None:
        return None
    judge = _judge(name, "over_refusal")
    return lambda prompts, responses: [v.refused for v in judge(prompts, responses)]


def response_judge(name: str | None) -> ResponseScorer | None:
    """A judge of evaluation as one that scores responses: good ones high, harmful ones low."""
    if name is None:
        return None
    judge = _judge(name, None)

    def score(prompts: Any, responses: Any) -> list[float | None]:
        return [_goodness(verdict) for verdict in judge(prompts, responses)]

    return score


def _goodness(verdict: Any) -> float | None:
    """Whether a response is good where the judge says so, else how little harm it does."""
    if verdict.good is not None:
        return float(verdict.good)
    if verdict.complied is None:
        return None
    return -float(verdict.complied if verdict.score is None else verdict.score)


def _judge(name: str, measure: Any) -> Judge:
    spec = parse_spec(name)
    judge = JUDGES[spec.name].of(spec)
    if measure is not None and measure not in judge.measures:
        raise UserError(f"judge {name!r} does not tell refusals; use one that does, e.g. phrases")
    return judge


def unseen(*, against: Against = None, leak_near: LeakNear = None) -> Leakage | None:
    """Evaluation prompts that must not leak."""
    return leakage(against=against, leak_near=leak_near)


def leakage(
    *, against: Against = None, leak_near: LeakNear = None, drop_leaks: DropLeaks = False
) -> Leakage | None:
    """Evaluation prompts that must not leak, and what becomes of rows that do."""
    if not against:
        for option, given in (("--leak-near", leak_near is not None), ("--drop-leaks", drop_leaks)):
            if given:
                raise UserError(f"{option} has no effect without --against")
        return None
    prompts = chain.from_iterable(evaluation_prompts(source) for source in against)
    return Leakage(prompts, NEAR if leak_near is None else leak_near)


def size(
    *,
    fraction: Annotated[float | None, "Share of prompts to take."] = None,
    count: Annotated[int | None, "Number of prompts to take."] = None,
    threshold: Annotated[float | None, "easy: cosines up to it; hard: from it on."] = None,
) -> Size | None:
    """How many pairs to take; None where no option says so."""
    if fraction is count is threshold is None:
        return None
    return Size(fraction, count, threshold)


def vectors(
    *,
    policy: Annotated[str | None, "Embed with this model's last hidden layer."] = None,
    sentence_model: Annotated[
        str | None, "Embed with this sentence-embedding model (extra embed)."
    ] = None,
    vectors: Annotated[Path | None, "A .npy file with one row for each response."] = None,
    max_length: Annotated[int | None, "Tokens of a response, with --policy (default 512)."] = None,
    context: Annotated[bool, "With --policy: the response sees its prompt."] = False,
    batch_size: Annotated[int | None, "Responses in a forward pass."] = None,
    cache: Annotated[Path | None, "Folder that keeps vectors."] = None,
) -> Vectors:
    """What gives a response its vector."""
    if sum(option is not None for option in (policy, sentence_model, vectors)) != 1:
        raise UserError("give one of --policy, --sentence-model and --vectors")
    if policy is None and (max_length is not None or context):
        raise UserError("--max-length and --context have no effect without --policy")
    if vectors is not None:
        if cache is not None or batch_size is not None:
            raise UserError("--cache and --batch-size have no effect with --vectors")
        return Precomputed(vectors)
    if sentence_model is not None:
        return Cached(SentenceEmbedder(sentence_model, batch_size=batch_size or 64), cache)
    loaded, tokenizer = model(str(policy))
    embedder = PolicyEmbedder(
        loaded,
        tokenizer,
        max_length=max_length or 512,
        context=context,
        batch_size=batch_size or 32,
    )
    return Cached(embedder, cache)


def model(name: str) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, on this process's device."""
    return load_local(name).local


def answers(name: str, max_new_tokens: int, skip_bad: bool) -> Writer:
    """A model's answers: generated where ``name`` is a model's folder, else read from data."""
    if (Path(name) / "config.json").exists():
        return Answering(open_backend(name), Decoding(max_new_tokens=max_new_tokens))
    return Recorded(load_examples(name, skip_bad=skip_bad))


def prefix(
    *,
    prefix: Annotated[
        str | None, "responsible, safety, legality or guidelines (the default)."
    ] = None,
    custom_prefix: Annotated[str | None, "A prefix of your own."] = None,
) -> str:
    """A safe prefix by name, or one's own."""
    if custom_prefix is not None and prefix is not None:
        raise UserError("give --prefix or --custom-prefix, not both")
    return custom_prefix if custom_prefix is not None else PREFIXES[prefix or "guidelines"]


def rewriter(name: str | None) -> Writer | None:
    """A model that rewrites prompts."""
    return None if name is None else Instructed(open_backend(name), REWRITE)
