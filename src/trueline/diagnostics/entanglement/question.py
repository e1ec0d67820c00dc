"""The question of entanglement: the reference is loaded where the objective reads one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from trueline.diagnostics.entanglement.finding import entanglement as measured
from trueline.diagnostics.question import (
    Asked,
    Loader,
    TrainedWith,
    note_plain_text,
    question,
    trained_with,
)
from trueline.diagnostics.ranking.scores import PairIndex
from trueline.models import check_vocabulary
from trueline.objectives import bind
from trueline.records import Example
from trueline.results import Finding
from trueline.runs.record import Key


@question(Key.ENTANGLEMENT, needs="pairs")
def entanglement(
    asked: Asked,
    *,
    trained: Annotated[TrainedWith, trained_with],
    max_pairs: Annotated[int, "Measure so many pairs, drawn at random."] = 64,
    batch_size: Annotated[int, "Pairs in a step and in a forward pass."] = 8,
    heat_maps: Annotated[int, "Pairs to compare token with token."] = 2,
    max_length: Annotated[int | None, "Tokens of prompt and completion, as in training."] = 1024,
) -> Finding:
    """Whether a step on preference pairs drags chosen and rejected along together."""
    return measure(
        asked.loader,
        asked.model,
        asked.reference,
        asked.examples,
        objective=trained.objective,
        options=trained.options(asked),
        max_pairs=max_pairs,
        batch_size=batch_size,
        heat_maps=heat_maps,
        max_length=max_length,
        seed=asked.seed,
    )


def measure(
    loader: Loader,
    model: str,
    reference: str | None,
    examples: Sequence[Example],
    *,
    objective: str | Sequence[str],
    options: Mapping[str, Any],
    **how: Any,
) -> Finding:
    """Entanglement; the reference is loaded where the objective reads one."""
    tokenizer = loader.tokenizer(model)
    note_plain_text(tokenizer, examples[0])
    PairIndex.of(examples)
    other = None
    if reference is not None and bind(objective, options).spec.reference:
        other = loader.model(reference)
        check_vocabulary(other, tokenizer, reference)
    policy = loader.model(model)
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        for name, parameter in policy.named_parameters():  # an adapter is loaded frozen
            parameter.requires_grad_(".lora_" in name)
    with loader.bar("entanglement") as report:
        return measured(
            policy,
            tokenizer,
            examples,
            objective=objective,
            options=options,
            reference=other,
            progress=report,
            **how,
        )
