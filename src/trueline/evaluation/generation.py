"""Answers: greedy generation for a list of prompts, the same whatever the batch.

Only the tokens of a prompt decide its answer. Batches are padded on the left under an attention
mask, sorted by length, and results come back in the order of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trueline.diagnostics.hidden import evaluating
from trueline.errors import UserError
from trueline.evaluation.statistics import rate
from trueline.prompts import Progress, batches_by_length, encode, pad, render
from trueline.records import Text
from trueline.results import Metric

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
    """

    text: str
    tokens: int
    finished: bool
    prefill: str = ""
    answer: str = ""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    *,
    max_new_tokens: int = 64,
    prefill: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Generation]:
    """The model's most likely answer, token by token, to each prompt.

    Decoding is greedy whatever the model's own generation settings say: no sampling, no beams,
    no repetition penalty. An answer ends at the tokenizer's EOS or at any end token of the
    model's generation settings (such as the end of a turn).

    Args:
        model: a causal language model, with or without adapters; its training mode is restored.
        tokenizer: its tokenizer; messages need a chat template.
        prompts: plain text, or messages, which get the generation prompt.
        max_new_tokens: the limit for each answer, in tokens.
        prefill: the first words of each answer (a response-prefill attack, or a format), one for
            each prompt; they follow the generation prompt directly.
        batch_size: prompts in a batch; longest first.
        progress: called with (done, all) after each batch.

    Returns:
        One :class:`Generation` for each prompt, in the order of the prompts.

    Raises:
        UserError: a count of prefills that differs, messages without a chat template, a prompt
            without tokens, or a limit below one token.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    starts = [""] * len(prompts) if prefill is None else list(prefill)
    if len(starts) != len(prompts):
        raise UserError(f"expected one prefill a prompt, got {len(starts)} for {len(prompts)}")
    inputs = [
        _input(tokenizer, i, *both) for i, both in enumerate(zip(prompts, starts, strict=True))
    ]
    ends = _end_tokens(model, tokenizer)
    found: list[Generation | None] = [None] * len(prompts)
    done = 0
    with evaluating(model):
        for batch in batches_by_length([len(ids) for ids, _ in inputs], batch_size):
            rows = [inputs[i][0] for i in batch]
            for i, new in zip(batch, _greedy(model, rows, max_new_tokens, ends), strict=True):
                found[i] = _generation(tokenizer, starts[i], inputs[i][1], new, ends)
            done += len(batch)
            if progress is not None:
                progress(done, len(prompts))
    return [generation for generation in found if generation is not None]


def truncated_rate(generations: Sequence[Generation], *, level: float = 0.95) -> Metric:
    """The share of answers cut at the limit; a judge may have missed how those end.

    Example:
        >>> print(truncated_rate([Generation("Yes", 64, False), Generation("No", 2, True)]))
        50.0% [9.5%, 90.5%]
    """
    return rate("truncated", [not g.finished for g in generations], level=level)


def _input(
    tokenizer: PreTrainedTokenizerBase, index: int, prompt: Text, prefill: str
) -> tuple[list[int], list[int]]:
    """(the ids the model starts from, those among them that belong to the prefill).

    Prompt and prefill are tokenized as one text. Where the tokenizer would merge across their
    boundary they are encoded apart, so the prompt's tokens never depend on the prefill.
    """
    text = render(tokenizer, prompt, open_turn=True)
    ids = encode(tokenizer, text)
    if not prefill:
        if not ids:
            raise UserError(f"prompt {index} has no tokens")
        return ids, []
    whole = encode(tokenizer, text + prefill)
    if len(whole) > len(ids) and whole[: len(ids)] == ids:
        return whole, whole[len(ids) :]
    start = list(tokenizer(prefill, add_special_tokens=False)["input_ids"])
    return ids + start, start


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    settings = getattr(model, "generation_config", None)
    given = getattr(settings, "eos_token_id", None)
    ends = set(given if isinstance(given, list | tuple) else [given])
    return sorted(int(end) for end in {*ends, tokenizer.eos_token_id} if end is not None)


def _greedy(
    model: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, ends: Sequence[int]
) -> list[list[int]]:
    """Each row's new tokens up to and with its end token.

    transformers fills every setting left open from the model's own; so what would change a greedy
    choice is set, not left open.
    """
    from transformers import GenerationConfig

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
    )
    stop = torch.tensor(list(ends), dtype=torch.long)
    return [_until(new, stop) for new in output[:, input_ids.shape[1] :].cpu()]


def _until(new: torch.Tensor, stop: torch.Tensor) -> list[int]:
    """A row up to and with the first end token; what follows is padding."""
    hits = torch.isin(new, stop).nonzero()
    ids: list[int] = (new if not len(hits) else new[: int(hits[0]) + 1]).tolist()
    return ids


def _generation(
    tokenizer: PreTrainedTokenizerBase,
    prefill: str,
    prefill_ids: list[int],
    new: list[int],
    ends: Sequence[int],
) -> Generation:
    finished = bool(new) and new[-1] in ends
    text = _decode(tokenizer, new)
    answer = _decode(tokenizer, prefill_ids + new) if prefill else text
    return Generation(text, len(new), finished, prefill, answer)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
