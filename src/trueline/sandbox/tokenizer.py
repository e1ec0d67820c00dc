"""The sandbox's tokenizer: words and names whole, and any other word letter by letter.

It behaves as a Llama tokenizer does: plain text gets one BOS by its post-processor, and the chat
template writes its own BOS, so that encoding a rendered chat with special tokens on would give
two. Code that gets this wrong is found here as it would be on a real model.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trueline.sandbox import grammar

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- '<|assistant|>' }}
{%- generation %}
{{- message['content'] + eos_token }}
{%- endgeneration %}
{%- elif message['role'] in ['user', 'system'] %}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}
{%- else %}
{{- raise_exception('unknown role ' + message['role']) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}"""


def vocabulary(names: Iterable[str], kinds: int = 1) -> list[str]:
    """The tokens, special ones first: words, the given names, then single characters."""
    words = {
        word
        for sentence in grammar.sentences(kinds)
        for word in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", sentence))
    }
    characters = string.ascii_lowercase + string.digits + string.punctuation
    letters = [form for character in characters for form in (character, f"##{character}")]
    tokens = [*SPECIAL, *sorted(words), *names, *letters]
    return list(dict.fromkeys(tokens))


def build_tokenizer(names: Iterable[str], kinds: int = 1) -> PreTrainedTokenizerFast:
    """A tokenizer that reads and writes the grammar's sentences about ``names`` exactly, in a world
    of so many kinds.

    Text is lower-cased and white space is one blank; within that, decoding what was encoded
    gives the same text.
    """
    tokens = {token: index for index, token in enumerate(vocabulary(names, kinds))}
    core = Tokenizer(models.WordPiece(tokens, unk_token="<unk>", max_input_chars_per_word=100))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A $B",
        special_tokens=[("<bos>", tokens["<bos>"])],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[4:]),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
