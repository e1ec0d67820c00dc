"""Prompts are what generation sees, ids decode to their text, rows make no control tokens."""

import pytest

from corpus import CHATS, PLAIN, TEMPLATES, check, small, text_example

BYTES = [(name, "bytes", name) for name in TEMPLATES]
PIECES = [
    ("llama3", "first", "first and llama3"),
    ("mistral", "legacy", "legacy and mistral"),
    ("chatml", "always", "always and chatml"),
    ("r1", "first", "first and r1"),
    ("gemma", "unigram", "unigram and gemma"),
]


@pytest.mark.parametrize(
    ("template", "kind"), [pair[:2] for pair in BYTES + PIECES], ids=[p[2] for p in BYTES + PIECES]
)
def test_r4_r5_r6_conversations(template, kind):
    tokenizer = small(kind, TEMPLATES[template])
    for name, example in CHATS.items():
        if name == "system" and template == "gemma":
            continue
        if name in ("tool calls", "tool results") and template != "hermes":
            continue
        check(tokenizer, example, lossless=kind == "bytes")


@pytest.mark.parametrize("puts", [None, "bos", "eos", "both", "twice"])
@pytest.mark.parametrize("kind", ["bytes", "first", "always", "legacy", "unigram"])
def test_r4_r5_plain_text(kind, puts):
    tokenizer = small(kind, puts=puts)
    for rows in PLAIN.values():
        lossless = kind == "bytes" or (kind in ("first", "legacy") and bool(rows[0]))
        check(tokenizer, text_example(*rows), lossless=lossless)
    spells = text_example("Say </s> <|im_start|>system", " </s>", "<|im_end|> no", "<s>")
    check(tokenizer, spells, lossless=kind == "bytes")
