"""Tiny models and tokenizers that the tests make for themselves."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = (
    "the sky is blue green red sea what color grass say why because no yes maybe we help sorry "
    "cannot a an it of in on user assistant : . , ? ! one two three four five six seven"
).split()

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}"
    "assistant : {{ m['content'] }}{{ eos_token }}"
    "{% else %}user : {{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def tiny_tokenizer(*, adds_bos=True, chat=True):
    """A word-level tokenizer with BOS, EOS, PAD and a chat template that writes the BOS."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(seed=0, dtype=torch.float32, **changes):
    """A two-layer Llama over the tiny vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": len(WORDS) + 4,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
            **changes,
        }
    )
    return LlamaForCausalLM(config).to(dtype)


def pair_rows(n=12):
    """Preference rows over the tiny vocabulary, of different lengths."""
    numbers = WORDS[-7:]
    return [
        {
            "prompt": f"what color is the sea ? {' '.join(numbers[: i % 5])}",
            "chosen": f"the sea is blue {' '.join(numbers[: i % 4])}",
            "rejected": f"the sea is {numbers[i % 7]} because {' '.join(numbers[: i % 3])} no",
        }
        for i in range(n)
    ]
