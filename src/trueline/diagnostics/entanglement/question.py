"""The question of entanglement: the reference is loaded where the objective reads one."""

from __future__ import annotations

from typing import Annotated

from trueline.diagnostics.entanglement.finding import entanglement as measured
from trueline.diagnostics.question import (
    Asked,
    TrainedWith,
    note_plain_text,
    question,
    trained_with,
)
from trueline.diagnostics.ranking.scores import PairIndex
from trueline.objectives import bind
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
    loader, options = asked.loader, trained.options(asked)
    tokenizer = loader.tokenizer(asked.model)
    note_plain_text(tokenizer, asked.examples[0])
    PairIndex.of(asked.examples)
    reference = None
    if asked.reference is not None and bind(trained.objective, options).spec.reference:
        reference = loader.model(asked.reference, tokenizer)
    policy = loader.model(asked.model)
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        for name, parameter in policy.named_parameters():  # an adapter is loaded frozen
            parameter.requires_grad_(".lora_" in name)
    with loader.bar("entanglement") as report:
        return measured(
            policy, tokenizer, asked.examples, objective=trained.objective, options=options,
            reference=reference, max_pairs=max_pairs, batch_size=batch_size, heat_maps=heat_maps,
            max_length=max_length, seed=asked.seed, progress=report,
        )  # fmt: skip
