"""What the benchmarks train on: pairs of given lengths, a tokenizer of words, a Llama."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

HH = Path("../shared/data/hh-rlhf-harmless-base-test.jsonl.gz")
Rows = list[dict[str, str]]

SIZES = {
    "60m": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word: w0 w1 w2 ..."""
    words = {"<s>": 0, "</s>": 1, "<pad>": 2}
    words |= {f"w{i}": i for i in range(3, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def lengths(case: str, seed: int, source: Path = HH) -> Iterator[tuple[int, int, int]]:
    """(prompt, chosen, rejected) token counts, at most 512 together."""
    if case != "hh":
        prompt, completion = map(int, case.split("+"))
        while True:
            yield prompt, completion, completion
    from trueline import load_examples

    rows = list(load_examples(source, skip_bad=True))
    rng = np.random.default_rng(seed)
    for index in rng.permutation(len(rows)):
        example = rows[index]
        # 4.1 characters a token: a byte-level BPE of 32k trained on this text
        prompt = sum(len(m.content) + 12 for m in example.prompt) / 4.1
        sides = [sum(len(m.content) for m in c.content) / 4.1 for c in example.completions]
        chosen, rejected = (int(min(max(side, 2), 250)) for side in sides)
        yield int(min(max(prompt, 4), 508 - max(chosen, rejected))), chosen, rejected


def make_rows(case: str, count: int, vocabulary: int, seed: int, source: Path = HH) -> Rows:
    rng = np.random.default_rng(seed)

    def words(n: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(3, vocabulary, n)) + " "

    rows = []
    sizes = lengths(case, seed, source)
    for _, (prompt, chosen, rejected) in zip(range(count), sizes, strict=False):
        sides = {"chosen": words(chosen - 1), "rejected": words(rejected - 1)}
        rows.append({"prompt": words(prompt - 1), **sides})
    return rows


def make_model(size: str, vocabulary: int, device: str = "cpu") -> LlamaForCausalLM:
    """A Llama of random weights, always the same."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **SIZES[size],
    )
    return LlamaForCausalLM(config).to(device)


def load_model(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """A checkpoint's own shape and weights, in float32; it reads words of its vocabulary's size."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(device)


def counts(row: dict[str, str]) -> tuple[int, int, int]:
    """Tokens of prompt (BOS included), chosen and rejected (EOS included)."""
    prompt, chosen, rejected = (len(row[k].split()) + 1 for k in ("prompt", "chosen", "rejected"))
    return prompt, chosen, rejected


def needed_tokens(rows: Rows) -> int:
    """Each prompt once, each answer once."""
    return sum(sum(counts(row)) for row in rows)


def needed_flops(rows: Rows, model: PreTrainedModel, *, lora: bool = False) -> float:
    """6 FLOP a weight and token: body on prompt once and both answers but for their last tokens,
    head on scored tokens. Attention's products are left out, so that the utilization is on the
    low side. Where an adapter alone is trained, 4: its base gets no gradient."""
    head = model.get_output_embeddings().weight.numel()
    ends = {id(w): w.numel() for w in _end_weights(model)}  # one matrix where they are tied
    body = sum(p.numel() for p in model.parameters()) - sum(ends.values())
    each = 4 if lora else 6
    total = 0.0
    for row in rows:
        prompt, chosen, rejected = counts(row)
        read, scored = prompt + chosen + rejected - 2, chosen + rejected
        total += each * (body * read + head * scored)
    return total


def _end_weights(model: PreTrainedModel) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
