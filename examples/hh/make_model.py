"""Make a small Llama-like model and tokenizer from the text of HH-RLHF, and train it briefly.

    python examples/hh/make_model.py

Afterwards `trueline align --config examples/hh/dpo.yaml` (or kldo.yaml) aligns it. The model is far
too small to be of use; it is there so that the whole way can be walked on real data in minutes.
"""

from __future__ import annotations

import argparse

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from trueline import AlignmentConfig, AlignmentTrainer, load_examples
from trueline.data.mapped import split_by_prompt
from trueline.records import Completion, Example

DATA = "../shared/data/hh-rlhf-harmless-base-test.jsonl.gz"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}"
    "{% else %}Human: {{ message['content'] }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def transcript(example: Example, index: int) -> str:
    """One conversation as plain text."""
    names = {"user": "Human", "assistant": "Assistant"}
    content = example.completions[index].content
    assert not isinstance(example.prompt, str)
    assert not isinstance(content, str)
    turns = [f"{names.get(m.role, m.role)}: {m.content}" for m in (*example.prompt, *content)]
    return "\n\n".join(turns)


def make_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the given texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", default=DATA, help="HH-RLHF, a file or a hub id")
    parser.add_argument("--output", default="runs/hh/base")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--limit", type=int, default=None)
    arguments = parser.parse_args()

    set_seed(0)
    rows = load_examples(arguments.data, skip_bad=True, limit=arguments.limit)
    train, _ = split_by_prompt(rows, 0.15, seed=42)  # as the recipes do: no test prompt is seen
    texts = [transcript(example, i) for example in train for i in (0, 1)]
    tokenizer = make_tokenizer(texts, arguments.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(arguments.hidden // 48, 1),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    trainer = AlignmentTrainer(
        LlamaForCausalLM(config),
        args=AlignmentConfig(
            output_dir=arguments.output,
            loss_type="sft",
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            per_device_train_batch_size=16,
            num_train_epochs=arguments.epochs,
            max_length=512,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=20,
        ),
        train_dataset=[
            Example("", (Completion(text),), id=f"text {i}") for i, text in enumerate(texts[::2])
        ],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    print(f"model and tokenizer: {arguments.output}")


if __name__ == "__main__":
    main()
