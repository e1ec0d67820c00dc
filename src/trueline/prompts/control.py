"""Control tokens: the template's own stay, and what a row's text spells is read as text.

Before a row's text meets a template, each control token that it spells is written as a *mark*, a
number between two noncharacters of Unicode. So in what comes out every control token is the
template's own, whatever the template did with the text, and strings can be joined, cut and
compared as usual. Only encoding looks at marks: a text without any is tokenized as it stands, and
another by a twin of the tokenizer in which the control tokens go by names that no text can spell.
Thus a mark's text gets the very ids that it would have if it were no control token.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from trueline.errors import UserError
from trueline.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "\ufdd0", "\ufdd1"
PLACE = "\ufdd2"
"""Stands in a template's output where a message's text would stand."""
_TWINS: WeakKeyDictionary[Any, tuple[tuple[str, ...], Any]] = WeakKeyDictionary()
"""Each tokenizer's twin, with the control tokens it was made for: it takes a second to make."""
_MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The strings that the tokenizer reads as special tokens, the longest first.

    Added tokens that are not special (``<think>`` in most models that have it) are words of the
    model like any other: rows may write them.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {str(token) for token in added.values() if getattr(token, "special", True)}
    special |= set(tokenizer.all_special_tokens)
    return tuple(sorted(special, key=lambda token: (-len(token), token)))


class ControlTokens:
    """A tokenizer's control tokens, and how rows' text is kept from making any.

    Args:
        tokenizer: any Hugging Face tokenizer.
        allow: read what a row's text spells as control tokens after all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, allow: bool = False) -> None:
        self.tokenizer = tokenizer
        self.names = (*control_tokens(tokenizer), OPEN, CLOSE, PLACE)
        self._number = {name: number for number, name in enumerate(self.names)}
        spelled = (OPEN, CLOSE, PLACE) if allow else self.names
        self._spelled = re.compile("|".join(map(re.escape, spelled)))
        self.marks = 0
        """How many marks were made so far."""
        self._known: dict[str, list[int]] = {}

    def mark(self, text: str) -> str:
        """The text with each control token that it spells written as a mark."""
        return self._spelled.sub(self._mark, text)

    def _mark(self, found: re.Match[str]) -> str:
        self.marks += 1
        return f"{OPEN}{self._number[found[0]]}{CLOSE}"

    def mark_all(self, value: Any) -> Any:
        """Every string within lists and dictionaries marked, keys too."""
        if isinstance(value, str):
            return self.mark(value)
        if isinstance(value, Mapping):
            return {self.mark_all(key): self.mark_all(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark_all(entry) for entry in value]
        return value

    def spelled(self, value: Any) -> Counter[str]:
        """How often each control token is spelled by the strings within a value: text, messages,
        lists, dictionaries."""
        found: Counter[str] = Counter()
        for text in _strings(value):
            found.update(self._own.findall(text))
        return found

    def restore(self, text: str) -> str:
        """The text as it was before it was marked."""
        return _MARK.sub(lambda found: self.names[int(found[1])], text) if OPEN in text else text

    def encode(self, text: str) -> list[int]:
        """The ids of a marked text, without anything that the tokenizer adds of itself."""
        if text in self._known:
            return self._known[text]
        if OPEN not in text:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids
        if self._twin is None:
            return self._piecewise(text)
        renamed = self._own.sub(lambda found: _alias(self._number[found[0]]), text)
        twin_ids: list[int] = self._twin.encode(self.restore(renamed), add_special_tokens=False).ids
        return twin_ids

    @contextmanager
    def ahead(self, rows: Iterable[Iterable[str]]) -> Iterator[None]:
        """Within it :meth:`encode` knows these rows' texts: the tokenizer is asked once for all of
        them, which is several times faster than for each by itself.

        Args:
            rows: each row's texts, the prompt first, which is encoded once: not again before each
                answer, but for what follows its last :meth:`seam`.
        """
        cut = {text: parts for texts in rows for text, parts in self._parts(texts)}
        every = list(dict.fromkeys(part for parts in cut.values() for part in parts))
        if every:
            found = self.tokenizer(every, add_special_tokens=False)["input_ids"]
            ids = dict(zip(every, found, strict=True))
            self._known = {
                text: list(chain.from_iterable(ids[part] for part in parts))
                for text, parts in cut.items()
            }
        try:
            yield
        finally:
            self._known = {}

    def _parts(self, texts: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each text that has no marks, and parts whose ids make up its own."""
        head: str | None = None
        for text in texts:
            if OPEN in text:
                continue
            if head is None:
                head = text[: self.seam(text)]
            shared = head and text.startswith(head)
            yield text, (head, text[len(head) :]) if shared else (text,)

    def seam(self, text: str) -> int:
        """Where the last control token begins whose ids, with all that follows, do not depend on
        what stands before; 0 where there is none."""
        return max([0, *(text.rfind(name) for name in self._seams)])

    @cached_property
    def _seams(self) -> list[str]:
        """The template's tokens at which the tokenizer begins anew: it looks for added tokens
        first, and what stands between them it encodes apart. Not those that take in white space
        before them or are told from their surroundings, and none within which another may end."""
        written = str(self.tokenizer.chat_template or "")
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            return []
        added = [t for t in self.tokenizer.added_tokens_decoder.values() if not t.normalized]
        named = {token.content for token in added}
        uneven = [token.content for token in added if token.lstrip or token.single_word]
        ends = (self.tokenizer.bos_token, self.tokenizer.eos_token)
        return [
            name
            for name in self.names[:-3]
            if name in named
            and (name in written or (written and name in ends))
            and not name[0].isspace()
            and not any(other.startswith(name) for other in uneven)
            and not any(_ends_within(other, name) for other in named)
        ]

    @cached_property
    def _own(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.names[:-3])) or "(?!)")

    @cached_property
    def _twin(self) -> Any | None:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        names, twin = _TWINS.get(self.tokenizer, ((), None))
        if names == self.names:
            return twin
        aliases = {name: _alias(number) for number, name in enumerate(self.names[:-3])}
        twin = _renamed(backend, aliases)
        for name, alias in aliases.items():
            if twin.token_to_id(alias) != backend.token_to_id(name):
                raise UserError(
                    f"a row spells control tokens and this tokenizer cannot read {name!r} as text; "
                    "take it out of the data, or set allow_control_tokens"
                )
        _TWINS[self.tokenizer] = (self.names, twin)
        return twin

    def _piecewise(self, text: str) -> list[int]:
        """For tokenizers written in Python, which leave control tokens alone where they are told:
        what stands between the template's own is encoded by itself."""
        ids: list[int] = []
        start = 0
        for found in [*self._own.finditer(text), None]:
            piece = self.restore(text[start : found.start() if found else None])
            if piece:
                ids += self.tokenizer.encode(
                    piece, add_special_tokens=False, split_special_tokens=True
                )
            if found:
                ids.append(self.tokenizer.convert_tokens_to_ids(found[0]))
                start = found.end()
        return ids


def _ends_within(other: str, name: str) -> bool:
    """Whether one token can begin before another and reach into it."""
    return any(
        other[k:].startswith(name) or name.startswith(other[k:]) for k in range(1, len(other))
    )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Message):
        yield from (value.content, value.role, value.more)
    elif isinstance(value, Mapping):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _strings(entry)


def _alias(number: int) -> str:
    return f"{PLACE}{number}{PLACE}"


def _renamed(backend: Any, aliases: dict[str, str]) -> Any:
    """A copy of a tokenizer in which tokens go by other names; ids and all else stay."""
    from tokenizers import Tokenizer

    data = json.loads(backend.to_str())
    data |= {"post_processor": None, "truncation": None, "padding": None}
    for token in data["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {aliases.get(name, name): i for name, i in model["vocab"].items()}
    else:  # of a unigram model: pieces with their scores
        model["vocab"] = [[aliases.get(name, name), score] for name, score in model["vocab"]]
    if model.get("unk_token") in aliases:
        model["unk_token"] = aliases[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _touches(pair, aliases)]
    return Tokenizer.from_str(json.dumps(data))


def _touches(pair: Any, names: dict[str, str]) -> bool:
    left, right = pair if isinstance(pair, list) else pair.split(" ", 1)
    return left in names or right in names or left + right in names
