"""What a model says to a few prompts, beside its reference: how far it moved, whether it babbles.

Margins and log-probs are of answers that others wrote, and a judge of refusals takes babble for
help. So the model's own greedy answers are read: by rules, and by the reference it started from.
Whether the model still answers is the question that comes before all others.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch

from trueline.diagnostics.question import Asked, question
from trueline.errors import UserError
from trueline.evaluation.generation import generate, model_input
from trueline.evaluation.judges.base import Verdict
from trueline.evaluation.labels import COMPLIANCE, NO_ANSWER
from trueline.evaluation.sorting import sort_answer, unseen, words
from trueline.prompts import Renderer
from trueline.records import Text
from trueline.results import Finding, Metric
from trueline.runs.record import Key
from trueline.stats import mean_metric, rate

Reference: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Opens the model that is measured from: one of its own, or the policy with its adapter off."""


@dataclass(frozen=True)
class Yardstick:
    """What the reference says to the same prompts, and how that looks to itself.

    Args:
        own: mean nats a token of its own greedy answers; None where none has two words.
        shuffled: the same with each answer's words in random order: what babble looks like.
        vocabulary: the words it says, and those of the prompts.
        kinds: what its answers are by the rules of :mod:`trueline.evaluation.sorting`.
    """

    own: float | None
    shuffled: float | None
    vocabulary: frozenset[str]
    kinds: tuple[str, ...] = ()

    @property
    def babble(self) -> float | None:
        """Nats a token from which on answers look more like shuffled words than like answers."""
        if self.own is None or self.shuffled is None:
            return None
        return (self.own + self.shuffled) / 2


@dataclass(frozen=True)
class Reading:
    """One answer of the model, read.

    Args:
        prompt, answer: the texts.
        kind: what it is by the rules of :mod:`trueline.evaluation.sorting`.
        kl: mean over its tokens of KL(policy || reference) of the next token, nats; None for an
            answer without tokens, as is the next.
        nll: mean negative log-prob of its tokens under the reference, nats.
        unseen: share of its words that the reference does not say; None without words.
    """

    prompt: str
    answer: str
    kind: str
    kl: float | None
    nll: float | None
    unseen: float | None

    @property
    def none(self) -> bool:
        """Whether it is no answer."""
        return self.kind in NO_ANSWER


def read_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Text],
    reference: Reference,
    yardstick: Yardstick,
    *,
    tokens: int,
) -> list[Reading]:
    """The model's greedy answers to ``prompts``, of at most ``tokens`` tokens, each read.

    It generates ``len(prompts) * tokens`` tokens and reads them twice; random states, training
    modes and weights are as before.
    """
    found = []
    with _same_stream(model):
        answers = generate(model, tokenizer, prompts, max_new_tokens=tokens)
        for prompt, answer in zip(prompts, answers, strict=True):
            kl, nll = distance(model, tokenizer, prompt, answer.ids, reference)
            news = unseen(answer.text, set(yardstick.vocabulary))
            kind = kind_of(plain(prompt), answer.text)
            found.append(Reading(plain(prompt), answer.text, kind, kl, nll, news))
    return found


def kind_of(asked: str, answer: str) -> str:
    """What an answer is by the rules alone: no answer of some kind, or else taken for one."""
    taken = Verdict("", complied=True, kind=COMPLIANCE)
    return sort_answer(taken, asked, answer, truncated=False).kind


def roomy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Text],
    *,
    count: int,
    tokens: int,
    seed: int,
    max_length: int | None = None,
) -> list[Text]:
    """Up to ``count`` different prompts, drawn by the seed, that leave room for an answer."""
    limits = [max_length, getattr(model.config, "max_position_embeddings", None)]
    room = min([limit for limit in limits if limit] or [2**31]) - tokens
    renderer = Renderer(tokenizer)
    distinct = list({str(prompt): prompt for prompt in prompts}.values())
    found: list[Text] = []
    for place in np.random.default_rng(seed).permutation(len(distinct)):
        if len(found) < count and len(model_input(renderer, distinct[place]).ids) <= room:
            found.append(distinct[place])
    return found


def yardstick_of(
    reference: Reference, tokenizer: Any, prompts: Sequence[Text], *, tokens: int, seed: int = 0
) -> Yardstick:
    """What the reference says to the prompts, and how its words look to it shuffled."""
    own: list[float] = []
    mixed: list[float] = []
    vocabulary = {word for prompt in prompts for word in words(plain(prompt))}
    kinds = []
    shuffle = random.Random(seed)
    with reference() as model, _same_stream(model):
        answers = generate(model, tokenizer, prompts, max_new_tokens=tokens)
        for prompt, answer in zip(prompts, answers, strict=True):
            vocabulary |= set(words(answer.text))
            kinds.append(kind_of(plain(prompt), answer.text))
            said = answer.text.split()
            if len(said) < 2:
                continue
            shuffle.shuffle(said)
            ids = tokenizer(" ".join(said), add_special_tokens=False).input_ids
            for kept, these in ((own, answer.ids), (mixed, ids)):
                kept.append(nll_of(model, tokenizer, prompt, these))
    mean = [sum(part) / len(part) if part else None for part in (own, mixed)]
    return Yardstick(mean[0], mean[1], frozenset(vocabulary), tuple(kinds))


def distance(
    model: Any, tokenizer: Any, prompt: Text, answer: Sequence[int], reference: Reference
) -> tuple[float | None, float | None]:
    """KL(model || reference) of the next token and the reference's negative log-prob of it, means
    along an answer's tokens, nats."""
    if not answer:
        return None, None
    own = _log_probs(model, tokenizer, prompt, answer)
    with reference() as other:
        theirs = _log_probs(other, tokenizer, prompt, answer).to(own.device)
    kl = (own.exp() * (own - theirs)).sum(dim=-1).mean()
    ids = torch.tensor(list(answer), device=own.device)[:, None]
    return float(kl), -float(theirs.gather(-1, ids).mean())


def plain(prompt: Text) -> str:
    """What was asked, without the turns before it."""
    return prompt if isinstance(prompt, str) else prompt[-1].content


def nll_of(model: Any, tokenizer: Any, prompt: Text, answer: Sequence[int]) -> float:
    """Mean negative log-prob of an answer's tokens, nats."""
    found = _log_probs(model, tokenizer, prompt, answer)
    ids = torch.tensor(list(answer), device=found.device)[:, None]
    return -float(found.gather(-1, ids).mean())


def _log_probs(model: Any, tokenizer: Any, prompt: Text, answer: Sequence[int]) -> torch.Tensor:
    """(T, vocabulary) float32 log-probs at the places of an answer's T tokens, dropout off."""
    from trueline.scoring import evaluating

    ids = [*model_input(Renderer(tokenizer), prompt).ids, *answer]
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    named = inspect.signature(type(core).forward).parameters
    few = {"logits_to_keep": len(answer) + 1} if "logits_to_keep" in named else {}
    with torch.inference_mode(), evaluating(model):
        given = torch.tensor([ids], device=model.device)
        logits = model(input_ids=given, use_cache=False, **few).logits
    return torch.log_softmax(logits[0, -len(answer) - 1 : -1].float(), dim=-1)


def _same_stream(model: Any) -> AbstractContextManager[None]:
    """Random streams are inside and afterwards what they were."""
    cuda = [model.device] if model.device.type == "cuda" else []
    return torch.random.fork_rng(devices=cuda)


@question(Key.ANSWERS, needs="examples")
def answers(
    asked: Asked,
    *,
    count: Annotated[int, "So many prompts."] = 16,
    tokens: Annotated[int, "Of an answer, at most."] = 48,
) -> Finding:
    """Whether the model still answers, and how far its own answers are from its start's.

    The model and its reference answer a few prompts greedily; the reference reads both.
    """
    if count < 1 or tokens < 1:
        raise UserError(f"count and tokens must be at least 1, got {count} and {tokens}")
    model, tokenizer = asked.loader.model(asked.model), asked.loader.tokenizer(asked.model)
    context = getattr(model.config, "max_position_embeddings", None)
    tokens = min(tokens, context // 2 if context else tokens)
    prompts = roomy(
        model, tokenizer, [example.prompt for example in asked.examples],
        count=count, tokens=tokens, seed=asked.seed,
    )  # fmt: skip
    if not prompts:
        raise UserError(f"no prompt leaves room for an answer of {tokens} tokens")
    if asked.reference is None:
        kinds = yardstick_of(lambda: nullcontext(model), tokenizer, prompts, tokens=tokens).kinds
        none = rate("answers/none", [kind in NO_ANSWER for kind in kinds])
        return Finding(Key.ANSWERS, f"Of {len(kinds)} answers, {none} are none.", [none])
    start = asked.loader.model(asked.reference, tokenizer)

    def reference() -> nullcontext[object]:
        return nullcontext(start)

    yardstick = yardstick_of(reference, tokenizer, prompts, tokens=tokens)
    readings = read_answers(model, tokenizer, prompts, reference, yardstick, tokens=tokens)
    return _finding(readings, yardstick)


def _finding(readings: list[Reading], yardstick: Yardstick) -> Finding:
    none = rate("answers/none", [reading.none for reading in readings])
    before = rate("answers/none, before", [kind in NO_ANSWER for kind in yardstick.kinds])
    known = [reading.nll for reading in readings if reading.nll is not None]
    bound = yardstick.babble
    babble = rate("answers/babble", [] if bound is None else [nll > bound for nll in known])
    kl = mean_metric("answers/kl", [r.kl for r in readings if r.kl is not None], unit="nats")
    news = mean_metric(
        "answers/unseen_words", [r.unseen for r in readings if r.unseen is not None], unit="rate"
    )
    numbers = [none, before, babble, kl, mean_metric("answers/reference_nll", known, unit="nats")]
    if yardstick.own is not None and bound is not None:
        numbers.append(Metric("answers/reference_nll, before", yardstick.own, unit="nats"))
        numbers.append(Metric("answers/babble_from", bound, unit="nats"))
    said = (
        f"Of {len(readings)} answers, {none} are none ({before} before training) and {babble} look "
        f"like babble to the model it started from; {kl} nats a token away from it."
    )
    return Finding(Key.ANSWERS, said, [*numbers, news])
