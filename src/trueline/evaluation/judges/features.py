"""What a learned judge reads of an answer: its first sentences, each in its own place.

A refusal, a caveat and help differ in what the first, the second and the third sentence do, so
every sentence has weights of its own. A sentence is its words and pairs of words, hashed, or,
with a sentence encoder, its vector; then the prompt's vector and how near the answer stays to it
are read as well. Refusal phrases and their places stand beside either. How long an answer is says
more of the model than of the answer, so it is not read, and a sentence that is not there says
nothing: models that refuse at length must not teach that what is short complies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from trueline.evaluation.judges.phrases import REFUSALS, plain

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

SENTENCES = 3
"""So many sentences from the start of an answer are read word by word."""
BITS = 11
"""Words of a sentence are hashed to 2 ** BITS places."""
PHRASE_SCALE = 0.3
"""Weight of the phrase features beside hashed words, whose vectors have length 1."""

_BREAK = re.compile(r"(?<=[.!?:])\s+|\n+")


def sentences(text: str) -> list[str]:
    """An answer's sentences and lines; one empty sentence where there is nothing.

    Example:
        >>> sentences("No. I will not!\\n1. Salt")
        ['No.', 'I will not!', '1.', 'Salt']
    """
    return [part.strip() for part in _BREAK.split(text.strip()) if part.strip()] or [""]


def phrase_features(parts: Sequence[str]) -> list[float]:
    """Whether a refusal phrase stands in the first one, two, three and all sentences, the share
    of sentences with one, and where the first of them is."""
    hits = [any(phrase in plain(part) for phrase in REFUSALS) for part in parts]
    first = hits.index(True) / len(hits) if any(hits) else 1.0
    early = [any(hits[:count]) for count in (1, 2, 3, len(hits))]
    return [*map(float, early), sum(hits) / len(hits), first]


PHRASES = 6


@dataclass(frozen=True)
class Features:
    """From prompts and answers to one row of numbers each.

    Args:
        encoder: a sentence-transformers model, by folder or hub id; None to hash words.
    """

    encoder: str | None = None
    _loaded: list[Any] = field(default_factory=list, repr=False, compare=False)
    _vector_of: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], *, first: int | None = None
    ) -> Any:
        """(N, d): a sparse matrix of hashed words, or a dense one of vectors, nan where an answer
        has no such sentence.

        Args:
            prompts, responses: the texts.
            first: read only so many sentences of each answer, as if it ended there.
        """
        from scipy.sparse import csr_matrix, hstack

        parts = [sentences(response)[:first] for response in responses]
        phrases = np.array([phrase_features(part) for part in parts]).reshape(len(parts), -1)
        if self.encoder is not None:
            return np.hstack([self._vectors(prompts, parts), phrases])
        hashed = [_hashed([p[i] if i < len(p) else "" for p in parts]) for i in range(SENTENCES)]
        return csr_matrix(hstack([*hashed, csr_matrix(PHRASE_SCALE * phrases)]))

    @property
    def identity(self) -> str | None:
        """The encoder's fingerprint; None without one."""
        from trueline.models.fingerprint import fingerprint

        return None if self.encoder is None else fingerprint(self._model, "float32")

    @property
    def _model(self) -> Any:
        from trueline.models import sentence_encoder

        if not self._loaded:
            self._loaded.append(sentence_encoder(str(self.encoder)))
        return self._loaded[0]

    def blocks(self, width: int) -> list[tuple[str, int, int]]:
        """What the columns are, as (name, from, to)."""
        size = 2**BITS
        if self.encoder is not None:
            size = (width - PHRASES - SENTENCES) // (SENTENCES + 1)
        places = [(f"sentence {i + 1}", i * size, (i + 1) * size) for i in range(SENTENCES)]
        end = SENTENCES * size
        if self.encoder is not None:
            places.append(("the prompt", end, width - PHRASES))
        return [*places, ("refusal phrases", width - PHRASES, width)]

    def _vectors(self, prompts: Sequence[str], parts: Sequence[Sequence[str]]) -> Array:
        asked = self._encode(prompts)
        opening = [list(part[:SENTENCES]) for part in parts]
        flat = self._encode([sentence for part in opening for sentence in part])
        slots = np.full((len(parts), SENTENCES, asked.shape[1]), np.nan)
        near = np.full((len(parts), SENTENCES), np.nan)
        at = 0
        for row, part in enumerate(opening):
            own = flat[at : at + len(part)]
            slots[row, : len(part)] = own
            near[row, : len(part)] = own @ asked[row]
            at += len(part)
        return np.hstack([slots.reshape(len(parts), -1), asked, near])

    def _encode(self, texts: Sequence[str]) -> Array:
        new = [text for text in dict.fromkeys(texts) if text not in self._vector_of]
        if new:
            found = self._model.encode(
                new, normalize_embeddings=True, show_progress_bar=False, batch_size=64
            )
            self._vector_of.update(zip(new, np.asarray(found, dtype=float), strict=True))
        return np.stack([self._vector_of[text] for text in texts])


def _hashed(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(
        n_features=2**BITS, ngram_range=(1, 2), norm="l2", token_pattern=r"[\w']+"
    )
    return words.transform([plain(text) for text in texts])
