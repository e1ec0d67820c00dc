"""Refusals for training data: many, dealt evenly, none of them often enough to be a shortcut.

One constant refusal on all safe prompts is recognized without reading the prompt. So refusals come
from a bank (150 written for this project), from templates that name the prompt's topic, or from a
model; and no text may stand in more than a set share of the rows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from trueline.errors import UserError

MAX_SHARE = 0.02


@cache
def bank() -> tuple[str, ...]:
    """The project's own refusals; they vary in tone, length, reason and redirection.

    Example:
        >>> len(bank()) >= 100, len(set(bank())) == len(bank())
        (True, True)
    """
    text = (Path(__file__).parent / "bank.txt").read_text("utf-8")
    return tuple(line for line in text.splitlines() if line)


class Dealer:
    """Deals refusals, each as often as any other of its kind and none above the allowed share.

    Harmful and safe prompts are dealt from shuffled rounds of their own, so that every text of the
    bank is about as often chosen as rejected and says nothing by itself.

    Args:
        rows: how many rows there will be.
        seed: of the shuffling.
        texts: the bank; None for the project's own.
        max_share: the most rows that one text may stand in, as a share (a single row is always
            allowed).

    Raises:
        UserError: too few texts for so many rows.

    Example:
        >>> dealer = Dealer(4, seed=0, texts=["No.", "Sorry, no."], max_share=0.5)
        >>> sorted(dealer.deal("safe") for _ in range(4))
        ['No.', 'No.', 'Sorry, no.', 'Sorry, no.']
    """

    def __init__(
        self,
        rows: int,
        *,
        seed: int,
        texts: Sequence[str] | None = None,
        max_share: float = MAX_SHARE,
    ) -> None:
        if not 0 < max_share <= 1:
            raise UserError(f"the largest share of one refusal lies in (0, 1], got {max_share}")
        self.texts = tuple(dict.fromkeys(text.strip() for text in (texts or bank())))
        if "" in self.texts:
            raise UserError("the refusal bank holds an empty text; take it out")
        self.rows = rows
        self.cap = max(1, int(max_share * rows))
        if self.cap * len(self.texts) < rows:
            raise UserError(
                f"{len(self.texts)} refusals cannot serve {rows} rows with none in more than "
                f"{max_share:.1%} of them; give {-(-rows // self.cap)} or more"
            )
        self.used: Counter[str] = Counter()
        self.offered: Counter[str] = Counter()
        self._random = random.Random(f"refusals {seed}")
        self._rounds: dict[str, list[str]] = {}

    def deal(self, kind: str, offers: Iterable[str] = ()) -> str:
        """The next refusal for a prompt of this kind.

        ``offers`` are preferred to the bank: the least used of them, as long as it may be used.
        """
        allowed = [text for text in offers if self.used[text] < self.cap]
        if allowed:
            least = min(self.used[text] for text in allowed)
            text = self._random.choice([text for text in allowed if self.used[text] == least])
            self.offered[kind] += 1
        else:
            text = self._next(kind)
        self.used[text] += 1
        return text

    def _next(self, kind: str) -> str:
        while True:
            if not self._rounds.get(kind):
                fresh = [text for text in self.texts if self.used[text] < self.cap]
                self._random.shuffle(fresh)
                self._rounds[kind] = fresh
            text = self._rounds[kind].pop()
            if self.used[text] < self.cap:
                return text

    @property
    def most(self) -> int:
        """In how many rows the most frequent refusal stands."""
        return max(self.used.values(), default=0)
