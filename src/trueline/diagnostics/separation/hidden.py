"""One hidden vector for each prompt: where in its space the model puts what it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from trueline.errors import UserError
from trueline.prompts import Progress, Renderer, batches_by_length, pad
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
    states = layer_states(
        model,
        tokenizer,
        prompts,
        layers=[layer],
        position=position,
        batch_size=batch_size,
        progress=progress,
    )
    return states[0]


def layer_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    *,
    layers: Sequence[int] | None = None,
    position: Position = "last_prompt_token",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Tensor:
    """The hidden vector of each prompt at several layers, from one forward pass.

    Each layer gives up its vectors as it runs: the states of all tokens at all layers are never
    in memory together.

    Args:
        layers: K indices as :func:`hidden_states` takes one; None for all, embeddings first.
        model, tokenizer, prompts, position, batch_size, progress: as there.

    Returns:
        (K, N, d) float32 on the CPU.

    Raises:
        UserError: as :func:`hidden_states`; or the model's decoder layers cannot be told, and a
            layer other than the last is asked for.
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
    wanted = _wanted(model, layers)
    found: Tensor | None = None
    done = 0
    with evaluating(model):
        for batch in batches_by_length([len(ids) for ids in sequences], batch_size):
            input_ids, mask = pad([sequences[i] for i in batch], fill=0, left=False)
            input_ids, mask = input_ids.to(model.device), mask.to(model.device)
            vectors = _read(model, wanted, input_ids, mask, position, bos)
            if found is None:
                found = torch.empty(len(vectors), len(sequences), vectors.shape[-1])
            found[:, batch] = vectors
            done += len(batch)
            if progress is not None:
                progress(done, len(sequences))
    assert found is not None  # there is at least one prompt
    return found


def _encoded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text], *, open_turn: bool
) -> list[list[int]]:
    if not len(prompts):
        raise UserError("no prompts were given")
    renderer = Renderer(tokenizer)
    sequences = [renderer.prompt_ids(prompt, open_turn=open_turn) for prompt in prompts]
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


def _body(model: Any) -> Any:
    """The model without its language-model head."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(causal, "base_model", causal)


def _depth(model: Any) -> int:
    """How many decoder layers there are: hidden states go from 0, the embeddings, to that."""
    return int(model.config.get_text_config().num_hidden_layers)


def _wanted(model: Any, layers: Sequence[int] | None) -> list[int]:
    """Layers counted from the embeddings, each between 0 and the model's depth."""
    depth = _depth(model)
    if layers is None:
        return list(range(depth + 1))
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise UserError(
                f"layer must be between {-depth - 1} and {depth} (0 is the embeddings), got {layer}"
            )
    return [layer % (depth + 1) for layer in layers]


def _read(
    model: Any,
    wanted: Sequence[int],
    input_ids: Tensor,
    mask: Tensor,
    position: Position,
    bos: int | None,
) -> Tensor:
    """(K, B, d) on the CPU: what goes into layer k is hidden state k; the last comes out."""
    kept: dict[int, Tensor] = {}

    def keep(index: int, states: Tensor) -> None:
        kept[index] = _at(states, input_ids, mask, position, bos).float().cpu()

    def hook(index: int) -> Any:
        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(index, args[0] if args else kwargs["hidden_states"])

        return before

    depth = _depth(model)
    inner = sorted(set(wanted) - {depth})
    blocks = _blocks(model) if inner else []
    handles = [blocks[k].register_forward_pre_hook(hook(k), with_kwargs=True) for k in inner]
    try:
        output = _body(model)(input_ids=input_ids, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if depth in wanted:
        keep(depth, output.last_hidden_state)
    return torch.stack([kept[index] for index in wanted])


def _blocks(model: Any) -> Any:
    """The decoder layers: the first list of as many modules as the configuration counts."""
    depth = _depth(model)
    for module in _body(model).modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    raise UserError(
        f"the decoder layers of {type(model).__name__} cannot be told; only the last layer (-1) "
        "can be read"
    )


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
