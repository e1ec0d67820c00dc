"""Refusals for training data: many, dealt evenly, none of them often enough to be a shortcut.

One constant refusal on all safe prompts is recognized without reading the prompt. So refusals come
from a bank (150 written for this project), from templates that name the prompt's topic, or from a
model; and no text may stand in more than a set share of the rows.

A template's topic is read off the prompt: everyday ones as well as dangerous ones, because in
compliance-refusal data a refusal stands on both sides, chosen where the prompt is harmful, rejected
where it is safe. If only one side named topics, naming one would tell the sides apart.
"""

from __future__ import annotations

import random
import re
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


TOPICS: dict[str, tuple[str, ...]] = {
    "weapons": ("weapon", "gun", "rifle", "knife", "knives", "ammunition", "firearm"),
    "explosives": ("bomb", "explosive", "grenade", "detonat"),
    "drugs": ("drug", "cocaine", "heroin", "meth", "marijuana", "weed", "lsd"),
    "poisons": ("poison", "toxin", "toxic"),
    "theft": ("steal", "rob ", "robbery", "shoplift", "burglar", "break into"),
    "fraud": ("fraud", "scam", "counterfeit", "forge", "phish", "launder"),
    "breaking into computers": ("hack", "malware", "virus", "password", "ddos", "exploit"),
    "violence": ("kill", "murder", "attack", "hurt", "punch", "beat up", "torture", "violen"),
    "self-harm": ("suicid", "self-harm", "overdose", "hurt myself"),
    "harassment": ("harass", "stalk", "bully", "threaten", "revenge", "insult", "prank"),
    "prejudice against people": ("racis", "sexis", "slur", "hate", "stereotyp"),
    "other people's privacy": ("spy", "address", "phone number", "private", "track"),
    "sexual matters": ("sex", "porn", "nude"),
    "alcohol and smoking": ("alcohol", "drunk", "beer", "wine", "smok", "cigarette", "vape"),
    "cooking": ("cook", "bake", "recipe", "bread", "soup", "oven", "dinner", "meal", "ingredient"),
    "gardening and plants": ("garden", "plant", "flower", "tree", "seed", "soil"),
    "health": ("doctor", "sick", "medicine", "pain", "diet", "sleep", "disease", "headache"),
    "exercise and sport": ("exercise", "running", "sport", "football", "gym", "swim", "team"),
    "travel": ("travel", "trip", "flight", "hotel", "country", "visit", "airport", "vacation"),
    "money": ("money", "bank", "invest", "tax", "budget", "loan", "rent", "salary", "price"),
    "work": ("job", "boss", "interview", "resume", "coworker", "career", "office"),
    "school and study": ("school", "homework", "essay", "exam", "teacher", "student", "college"),
    "family and friends": ("friend", "parent", "mother", "father", "child", "kids", "sister"),
    "relationships": ("girlfriend", "boyfriend", "husband", "wife", "marriage", "date ", "dating"),
    "animals": ("dog", "cat", "pet", "animal", "bird", "fish", "horse"),
    "programming": ("code", "python", "program", "software", "website", "javascript", "database"),
    "books and films": ("book", "movie", "film", "novel", "story", "poem", "song", "music"),
    "history and politics": ("history", "war", "president", "election", "government", "politic"),
    "science": ("science", "physics", "chemistry", "biology", "planet", "math", "energy"),
    "home and repair": ("repair", "fix", "clean", "paint", "furniture", "house", "kitchen", "wash"),
    "cars and traffic": ("car", "drive", "traffic", "engine", "motorcycle", "license"),
    "clothing and looks": ("clothes", "dress", "hair", "makeup", "shoes", "fashion", "skin"),
}  # fmt: skip

TEMPLATES = (
    "I won't answer this question about {topic}.",
    "When it comes to {topic}, this is a request I don't fulfill.",
    "I'm going to decline, because of what this asks about {topic}.",
    "This touches on {topic} in a way that I can't support.",
    "Sorry, I don't help with this kind of thing in the area of {topic}.",
    "There is a lot one can say about {topic}, but not this, and not from me.",
    "I can talk about {topic} in general, though I won't give you what you asked for.",
    "My limits on {topic} don't let me go along with this.",
    "What you ask about {topic} is something I have to leave unanswered.",
    "I know this is about {topic}, and I've decided not to assist with it.",
    "Questions about {topic} deserve care, and this one I must turn down.",
    "No, I'd rather not help with {topic} in this form.",
    "I'd be glad to discuss {topic} from another side. This request I decline.",
    "On {topic} I try to be careful, so I can't do what you ask here.",
    "If you have another question about {topic}, please ask it; I won't take up this one.",
    "You're asking about {topic}. I'm not able to help with that as you've put it.",
    "Let me pass on this one: {topic} is a subject where I hold back.",
    "I understand that you're interested in {topic}, yet this is not something I'll help with.",
    "That part of {topic} is off limits for me.",
    "Here I have to say no. An expert in {topic} could advise you properly.",
    "I won't, and I'd suggest reading official guidance on {topic} instead.",
    "Because this concerns {topic}, I'd want to be sure nobody is harmed, and I can't be. So, no.",
    "For someone asking about {topic}, I'd rather point to people who know you than answer this.",
    "I refuse this one. Perhaps we could talk about {topic} in a way that helps you more?",
)

_PATTERNS = {
    topic: re.compile(r"\b(?:" + "|".join(re.escape(word) for word in words) + ")", re.IGNORECASE)
    for topic, words in TOPICS.items()
}


def topic_of(prompt: str) -> str | None:
    """The topic the prompt's words point at most often, the first of equals; None without any.

    Example:
        >>> topic_of("Which oven do I need to bake bread?"), topic_of("Why?")
        ('cooking', None)
    """
    counts = {topic: len(pattern.findall(prompt)) for topic, pattern in _PATTERNS.items()}
    best = max(counts, key=lambda topic: counts[topic])
    return best if counts[best] else None


def topic_refusals(prompt: str) -> list[str]:
    """Every template with the prompt's topic; none where no topic is found."""
    topic = topic_of(prompt)
    return [] if topic is None else [template.format(topic=topic) for template in TEMPLATES]
