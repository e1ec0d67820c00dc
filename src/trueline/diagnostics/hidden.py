"""One hidden vector for each prompt: where in its space the model puts what it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from trueline.errors import UserError
from trueline.prompts import Progress, batches_by_length, encode, pad, render
from trueline.records import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Position: TypeAlias = Literal["last_prompt_token", "generation_prompt", "mean"]


def hidden_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    *,
    layer: int = -1,
    position: Position = "last_prompt_token",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Tensor:
    """The hidden vector of each prompt, read at one layer and one position.

    Dropout is off and no gradient is kept; the model's training mode is restored. One vector a
    prompt stays in memory. The language-model head never runs.

    Args:
        model: a causal language model, with or without adapters.
        tokenizer: its tokenizer; messages need a chat template.
        prompts: N prompts, plain text or messages.
        layer: index into the model's hidden states: 0 the embeddings, k the output of layer k,
            -1 the last. For most models of transformers the last is taken *after* the final norm.
        position: ``"last_prompt_token"``, the last token of the user's turn, closed as the
            template closes it and without the generation prompt; ``"generation_prompt"``, the
            token right before the answer; ``"mean"``, over the tokens of the prompt except BOS,
            whose activation is an outlier in most models (an attention sink).
        batch_size: prompts in a forward pass; they are sorted by length first.
        progress: called with (done, all) after each batch.

    Returns:
        (N, d) float32 on the CPU, in the order of the prompts.

    Raises:
        UserError: no prompts, an unknown position or layer, messages without a chat template,
            a prompt without tokens, or ``"generation_prompt"`` for plain text (it has none).

    Source: "LLM Safety Alignment is Divergence Estimation in Disguise", section 5, for the last
    layer and the last prompt token.
    """
    if position not in ("last_prompt_token", "generation_prompt", "mean"):
        raise UserError(
            f"position must be last_prompt_token, generation_prompt or mean, got {position!r}"
        )
    if position == "generation_prompt" and any(isinstance(prompt, str) for prompt in prompts):
        raise UserError(
            "position='generation_prompt' needs conversations; plain text has no generation "
            "prompt, use 'last_prompt_token'"
        )
    sequences = _encoded(tokenizer, prompts, open_turn=position == "generation_prompt")
    bos = tokenizer.bos_token_id
    found: list[Tensor | None] = [None] * len(sequences)
    done = 0
    with evaluating(model):
        for batch in batches_by_length([len(ids) for ids in sequences], batch_size):
            rows = [sequences[i] for i in batch]
            input_ids, mask = pad(rows, fill=0, left=False)
            states = _layer(model, input_ids.to(model.device), mask.to(model.device), layer)
            vectors = _at(states, input_ids, mask, position, bos).float().cpu()
            for i, vector in zip(batch, vectors, strict=True):
                found[i] = vector.clone()
            done += len(batch)
            if progress is not None:
                progress(done, len(sequences))
    return torch.stack([vector for vector in found if vector is not None])


def _encoded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text], *, open_turn: bool
) -> list[list[int]]:
    if not len(prompts):
        raise UserError("no prompts were given")
    sequences = [encode(tokenizer, render(tokenizer, p, open_turn=open_turn)) for p in prompts]
    for index, ids in enumerate(sequences):
        if not ids:
            raise UserError(f"prompt {index} has no tokens")
    return sequences


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off and no gradients inside; every module's training mode as before outside."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _layer(model: Any, input_ids: Tensor, mask: Tensor, layer: int) -> Tensor:
    """(B, T, d): the hidden states of one layer, without running the language-model head."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(causal, "base_model", causal)
    every = layer != -1
    output = body(
        input_ids=input_ids, attention_mask=mask, use_cache=False, output_hidden_states=every
    )
    if not every:
        last: Tensor = output.last_hidden_state
        return last
    states = output.hidden_states
    if not -len(states) <= layer < len(states):
        raise UserError(
            f"layer must be between {-len(states)} and {len(states) - 1} (0 is the embeddings), "
            f"got {layer}"
        )
    picked: Tensor = states[layer]
    return picked


def _at(
    states: Tensor, input_ids: Tensor, mask: Tensor, position: Position, bos: int | None
) -> Tensor:
    """(B, d): each row's vector at the position; the mask says where a row ends."""
    mask, input_ids = mask.to(states.device), input_ids.to(states.device)
    length = mask.sum(dim=1)
    if position != "mean":
        return states[torch.arange(len(states), device=states.device), length - 1]
    weight = mask.clone()
    if bos is not None:
        weight[:, 0] = torch.where((input_ids[:, 0] == bos) & (length > 1), 0, weight[:, 0])
    total = (states.float() * weight[:, :, None]).sum(dim=1)
    return total / weight.sum(dim=1, keepdim=True)
