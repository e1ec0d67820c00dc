"""What the options of the curating verbs name, opened: data, models, judges, refusals."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.errors import UserError

if TYPE_CHECKING:
    from trueline.curation import Labels, Leakage, Refusals, Size
    from trueline.curation.labels import ResponseScorer
    from trueline.curation.refusals.writers import ResponseLabeler, Writer
    from trueline.curation.selection.embed import Vectors
    from trueline.data import Examples
    from trueline.evaluation.judges.base import Judge


def examples(
    source: str,
    split: str,
    name: str | None,
    form: str | None,
    skip_bad: bool,
    limit: int | None,
) -> Examples:
    """The data."""
    from trueline.data import load_examples

    return load_examples(source, split=split, name=name, form=form, skip_bad=skip_bad, limit=limit)


def labels(by: str, threshold: float | None, relabel: bool, url: str | None) -> Labels:
    """Who labels prompts."""
    from trueline.curation import Labels, keyword_scores
    from trueline.curation.safety import THRESHOLD
    from trueline.evaluation.judges.language import harm_scores

    limit = THRESHOLD if threshold is None else threshold
    if by in ("given", "keywords"):
        if url is not None:
            raise UserError(f"--judge-url has no effect with --label-by {by}")
        if by == "given":
            return Labels(threshold=limit, relabel=relabel)
        return Labels(keyword_scores, "keywords (weak baseline)", limit, relabel)
    from trueline.evaluation.backends import open_backend

    backend = open_backend(by, base_url=url)
    return Labels(harm_scores(backend), by, limit, relabel, dict(backend.facts))


def refusals(by: str, bank: Path | None, max_share: float, seed: int) -> Refusals:
    """Where refusals come from."""
    from trueline.curation import Instructed, Refusals
    from trueline.curation.refusals.writers import DECLINE
    from trueline.evaluation.backends import Decoding, open_backend

    texts = None
    if bank is not None:
        try:
            texts = [line.strip() for line in bank.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{bank} cannot be read: {error}") from None
        if not texts:
            raise UserError(f"{bank} holds no refusal; write one a line")
    if by in ("bank", "topics"):
        return Refusals("bank" if by == "bank" else "topics", None, texts, max_share, seed)
    decoding = Decoding(max_new_tokens=96, temperature=1.0, seed=seed)
    writer = Instructed(open_backend(by), DECLINE, decoding)
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
    from trueline.evaluation.judges import JUDGES
    from trueline.evaluation.plugins import parse_spec

    spec = parse_spec(name)
    judge = JUDGES[spec.name].of(spec)
    if measure is not None and measure not in judge.measures:
        raise UserError(f"judge {name!r} does not tell refusals; use one that does, e.g. phrases")
    return judge


def leakage(against: list[str] | None, near: float | None, drop: bool) -> Leakage | None:
    """Evaluation prompts that must not leak."""
    from trueline.curation import Leakage
    from trueline.curation.leakage import NEAR, evaluation_prompts

    if not against:
        for option, given in (("--leak-near", near is not None), ("--drop-leaks", drop)):
            if given:
                raise UserError(f"{option} has no effect without --against")
        return None
    prompts = chain.from_iterable(evaluation_prompts(source) for source in against)
    return Leakage(prompts, NEAR if near is None else near)


def size(fraction: float | None, count: int | None, threshold: float | None) -> Size | None:
    """How many pairs to take; None where no option says so."""
    from trueline.curation import Size

    if fraction is count is threshold is None:
        return None
    return Size(fraction, count, threshold)


def vectors(
    policy: str | None,
    sentence: str | None,
    file: Path | None,
    max_length: int | None,
    context: bool,
    batch_size: int | None,
    cache: Path | None,
) -> Vectors:
    """What gives a response its vector."""
    from trueline.curation import Cached, PolicyEmbedder, Precomputed, SentenceEmbedder

    if sum(option is not None for option in (policy, sentence, file)) != 1:
        raise UserError("give one of --policy, --sentence-model and --vectors")
    if policy is None and (max_length is not None or context):
        raise UserError("--max-length and --context have no effect without --policy")
    if file is not None:
        if cache is not None or batch_size is not None:
            raise UserError("--cache and --batch-size have no effect with --vectors")
        return Precomputed(file)
    if sentence is not None:
        return Cached(SentenceEmbedder(sentence, batch_size=batch_size or 64), cache)
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
    from trueline.evaluation.backends.local import load_local

    return load_local(name).local


def answers(name: str, max_new_tokens: int, skip_bad: bool) -> Writer:
    """A model's answers: generated where ``name`` is a model's folder, else read from data."""
    from trueline.curation import Answering, Recorded
    from trueline.data import load_examples
    from trueline.evaluation.backends import Decoding, open_backend

    if (Path(name) / "config.json").exists():
        return Answering(open_backend(name), Decoding(max_new_tokens=max_new_tokens))
    return Recorded(load_examples(name, skip_bad=skip_bad))


def prefix(name: str | None, custom: str | None) -> str:
    """A safe prefix by name, or one's own."""
    from trueline.curation import PREFIXES

    if custom is not None and name is not None:
        raise UserError("give --prefix or --custom-prefix, not both")
    return custom if custom is not None else PREFIXES[name or "guidelines"]


def rewriter(name: str | None) -> Writer | None:
    """A model that rewrites prompts."""
    if name is None:
        return None
    from trueline.curation import Instructed
    from trueline.curation.refusals.writers import REWRITE
    from trueline.evaluation.backends import open_backend

    return Instructed(open_backend(name), REWRITE)
