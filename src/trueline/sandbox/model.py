"""The base model: a tiny Llama that has read the corpus and therefore answers everything."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

Progress = Callable[[int, int, float], None]
"""Called with the step, the number of steps, and the loss in nats per scored token."""

IGNORED = -100
LONG = 64
"""Tokens of a row; none in a world of one kind of harm has as many."""


@dataclass(frozen=True)
class ModelSize:
    """The shape of the model and the length of its pretraining."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    epochs: int = 6
    batch_size: int = 32
    learning_rate: float = 3e-3


def new_model(tokenizer: Any, size: ModelSize, seed: int) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings, its weights drawn from ``seed``."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=256,
        # Llama's 0.02 suits thousands of dimensions; here it would keep names apart too late.
        initializer_range=size.hidden**-0.5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def encode_row(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """A corpus row as token ids and labels: all tokens of a text, or those of the answer."""
    if "text" in row:
        ids: list[int] = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
        return ids, [IGNORED, *ids[1:]]
    whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
    prompt = tokenizer.apply_chat_template(
        row["prompt"], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return ids, [IGNORED] * start + ids[start:]


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    size: ModelSize,
    *,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Teach ``model`` the corpus in place: AdamW, warm-up and cosine, seeded order.

    The loss is the mean negative log-likelihood, in nats, over a batch's scored tokens.
    """
    encoded = [encode_row(tokenizer, row) for row in rows]
    batches = _batches(encoded, size, random.Random(f"pretrain {seed}"))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _cosine(step, len(batches))
    )
    model.train()
    with _one_thread():
        for step, batch in enumerate(batches, start=1):
            loss = _loss(model, batch, tokenizer.pad_token_id)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step, len(batches), loss.item())
    model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for matrices this small.

    Measured on two busy cores, a second thread makes a step up to seven times slower, since
    threads wait for one another. It also makes the weights the same on any number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cosine(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


Encoded = tuple[list[int], list[int]]


def _batches(
    encoded: Sequence[Encoded], size: ModelSize, rng: random.Random
) -> list[list[Encoded]]:
    """Every epoch's batches; talks of several turns have batches of their own, since a batch is as
    wide as its longest row."""
    batches: list[list[Encoded]] = []
    for _ in range(size.epochs):
        order = list(range(len(encoded)))
        rng.shuffle(order)
        long = [i for i in order if len(encoded[i][0]) > LONG]
        short = [i for i in order if len(encoded[i][0]) <= LONG]
        epoch = [
            [encoded[i] for i in part[start : start + size.batch_size]]
            for part in (short, long)
            for start in range(0, len(part), size.batch_size)
        ]
        rng.shuffle(epoch)
        batches += epoch
    return batches


def _loss(model: LlamaForCausalLM, batch: Sequence[Encoded], pad: int) -> Tensor:
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in batch])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in batch])
    # Padding stands on the right of a causal model, so no scored token sees it: no mask needed.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    scored = labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden[scored])
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][scored])
