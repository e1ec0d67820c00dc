"""Answers: generation for a list of prompts, the same whatever the batch.

Only the tokens of a prompt (and, with a temperature, the seed) decide its answer. Rows are padded
on the left under an attention mask, the longest first; one that has ended leaves the batch, and
another takes its place (:mod:`trueline.evaluation.decoding`). Results come back in the order of the
prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from trueline.diagnostics.separation.hidden import evaluating
from trueline.errors import UserError
from trueline.evaluation.decoding import GumbelNoise, can_leave, decode
from trueline.prompts import Progress, Renderer, batches_by_length, pad
from trueline.records import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer.

    Args:
        text: what the model wrote, without special tokens and without the prefill.
        tokens: new tokens, the one that ends the answer among them.
        finished: whether the model ended the answer itself; False means cut at the limit.
        prefill: the words that were put into the model's mouth, or ``""``.
        answer: prefill and text as one string, as a reader or a judge sees it.
        ids: the new tokens' ids where the backend knows them; the text may not encode back to
            them. They are no part of what makes two answers equal.
        failed: why there is no answer (a server refused the request, or did not answer); ``""``
            where there is one.
        retry: whether what failed may pass when it is asked again.
    """

    text: str
    tokens: int
    finished: bool
    prefill: str = ""
    answer: str = ""
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    failed: str = ""
    retry: bool = False


OnAnswer: TypeAlias = Callable[[int, Generation], None]
"""Called with a prompt's index and its answer, as soon as there is one."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    *,
    max_new_tokens: int = 64,
    prefill: Sequence[str] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
    on_answer: OnAnswer | None = None,
) -> list[Generation]:
    """The model's answer to each prompt: the most likely one, token by token, or a sampled one.

    The model's own generation settings change nothing: no beams, no repetition penalty, no
    truncated sampling. An answer ends at the tokenizer's EOS or at any end token of the model's
    generation settings (such as the end of a turn).

    With a temperature T, each token is drawn from softmax(logits / T), as the argmax of
    logits / T + Gumbel noise whose stream is seeded with ``seed`` and the prompt's tokens; so a
    sampled answer, too, depends on nothing that stands beside it in the batch.

    Args:
        model: a causal language model, with or without adapters; its training mode is restored.
        tokenizer: its tokenizer; messages need a chat template.
        prompts: plain text, or messages, which get the generation prompt.
        max_new_tokens: the limit for each answer, in tokens.
        prefill: the first words of each answer (a response-prefill attack, or a format), one for
            each prompt; they follow the generation prompt directly.
        temperature: 0 for greedy decoding.
        seed: of the sampling; without effect where the temperature is 0.
        batch_size: prompts under way at once; longest first.
        progress: called with (done, all) after each answer.
        on_answer: called with each answer as soon as it is there, so that a caller can keep it.

    Returns:
        One :class:`Generation` for each prompt, in the order of the prompts.

    Raises:
        UserError: a count of prefills that differs, messages without a chat template, a prompt
            without tokens, a limit below one token, a negative temperature.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature < 0:
        raise UserError(f"temperature must be at least 0, got {temperature}")
    starts = [""] * len(prompts) if prefill is None else list(prefill)
    if len(starts) != len(prompts):
        raise UserError(f"expected one prefill a prompt, got {len(starts)} for {len(prompts)}")
    renderer = Renderer(tokenizer)
    inputs = [
        model_input(renderer, prompt, start, f"prompt {i}")
        for i, (prompt, start) in enumerate(zip(prompts, starts, strict=True))
    ]
    ends = end_tokens(model, tokenizer)
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    found: dict[int, Generation] = {}
    noise = GumbelNoise([given.ids for given in inputs], temperature, seed) if temperature else None
    with evaluating(model):
        way = decode if can_leave(model) else _in_batches
        rows = [given.ids for given in inputs]
        for i, new in way(model, rows, max_new_tokens, ends, size=batch_size, noise=noise):
            found[i] = answer = generation(tokenizer, inputs[i], new, ends)
            if on_answer is not None:
                on_answer(i, answer)
            if progress is not None:
                progress(len(found), len(prompts))
    return [found[i] for i in range(len(prompts))]


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What the model reads: all its token ids, and those among them that are the prefill."""

    ids: list[int]
    prefill_ids: list[int]
    prefill: str = ""


def model_input(
    renderer: Renderer, prompt: Text, prefill: str = "", what: str = "the prompt"
) -> ModelInput:
    """Prompt and prefill as token ids: as training reads them, open for the answer.

    The prompt's tokens never depend on the prefill, and no text of either makes a control token.

    Raises:
        UserError: messages without a chat template, or no tokens.
    """
    text = renderer.text(prompt)
    ids = renderer.control.encode(text)
    start = renderer.continuation(text, ids, renderer.control.mark(prefill)).ids
    both = renderer.begin(prompt, [*ids, *start])
    if not both:
        raise UserError(f"{what} has no tokens")
    return ModelInput(both, start, prefill)


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's EOS and those of the model's settings."""
    settings = getattr(model, "generation_config", None)
    given = getattr(settings, "eos_token_id", None)
    ends = set(given if isinstance(given, list | tuple) else [given])
    return sorted(int(end) for end in {*ends, tokenizer.eos_token_id} if end is not None)


def _in_batches(
    model: Any,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Sequence[int],
    *,
    size: int,
    noise: GumbelNoise | None,
) -> Iterator[tuple[int, list[int]]]:
    """Each row's number and new tokens, batch by batch of like length."""
    for batch in batches_by_length([len(row) for row in rows], size):
        some = [rows[i] for i in batch]
        draws = [] if noise is None else [functools.partial(_with_noise, noise, batch)]
        yield from zip(batch, _generated(model, some, max_new_tokens, ends, draws), strict=True)


def _with_noise(noise: GumbelNoise, batch: list[int], _: Any, scores: torch.Tensor) -> torch.Tensor:
    return noise(batch, scores)


def _generated(
    model: Any,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Sequence[int],
    noise: Sequence[Any],
) -> list[list[int]]:
    """Each row's new tokens up to and with its end token: the argmax at every step.

    transformers fills every setting left open from the model's own; so what would change a greedy
    choice is set, not left open.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    input_ids, mask = pad(rows, fill=ends[0] if ends else 0, left=True)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=0,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        encoder_repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_return_sequences=1,
        use_cache=True,
        return_dict_in_generate=False,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )
    output = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=settings,
        logits_processor=LogitsProcessorList(noise),
    )
    stop = torch.tensor(list(ends), dtype=torch.long)
    return [_until(new, stop) for new in output[:, input_ids.shape[1] :].cpu()]


def _until(new: torch.Tensor, stop: torch.Tensor) -> list[int]:
    """A row up to and with the first end token; what follows is padding."""
    hits = torch.isin(new, stop).nonzero()
    ids: list[int] = (new if not len(hits) else new[: int(hits[0]) + 1]).tolist()
    return ids


def generation(
    tokenizer: PreTrainedTokenizerBase, given: ModelInput, new: Sequence[int], ends: Sequence[int]
) -> Generation:
    """The answer that the ids ``new`` are, after what the model was given."""
    finished = bool(new) and new[-1] in ends
    text = _text(tokenizer, list(new))
    answer = _text(tokenizer, given.prefill_ids + list(new)) if given.prefill else text
    return Generation(text, len(new), finished, given.prefill, answer, tuple(new))


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
