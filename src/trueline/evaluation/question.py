"""The question that comes before all others: does the model still answer?"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

from trueline.diagnostics.question import Asked, question
from trueline.errors import UserError
from trueline.evaluation.answers import Reading, Yardstick, read_answers, roomy, yardstick_of
from trueline.evaluation.labels import NO_ANSWER
from trueline.results import Finding, Metric
from trueline.runs.record import Key
from trueline.stats import mean_metric, rate


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
