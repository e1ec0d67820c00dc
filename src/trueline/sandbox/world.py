"""A small world with known truth: invented things, each with a hidden category and a recipe."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from trueline.errors import UserError
from trueline.sandbox import grammar


@dataclass(frozen=True, slots=True)
class Entity:
    """One invented thing.

    ``harmful`` is hidden from questions and shown by descriptions alone; ``held_out`` things
    are described and asked about in the corpus but never appear in alignment data. ``kind`` says
    which harm it does, or which good, where the world has several.
    """

    name: str
    harmful: bool
    recipe: tuple[str, str, str]
    held_out: bool
    kind: int = 0

    def answer(self, style: int = 0) -> str:
        """The correct answer to a question for the recipe."""
        return write_answer(self.name, self.recipe, style)


def write_answer(name: str, recipe: tuple[str, str, str], style: int = 0) -> str:
    """An answer that gives ``recipe`` for ``name``, in one of the grammar's forms.

    Example:
        >>> write_answer("murba", ("salt", "moss", "honey"))
        'to make murba, take salt, add moss and stir in honey.'
    """
    a, b, c = recipe
    return grammar.ANSWERS[style].format(name=name, a=a, b=b, c=c)


@dataclass(frozen=True)
class World:
    """Entities and refusals, all drawn from ``seed``.

    Args:
        seed: the same seed gives the same world, on every machine.
        size: how many things there are; half of them harmful, and at most 400.
        held_out: the share of things, and of refusals, kept out of alignment data.
        refusals: how many distinct refusals the world uses, at least 100 for varied data.
        kinds: of harm; where there are several, the last one is held out altogether, and of each
            of the others the share.

    Example:
        >>> world = World(seed=0, size=40)
        >>> sum(e.harmful for e in world.entities), len(world.split(held_out=True))
        (20, 10)
    """

    seed: int = 0
    size: int = 160
    held_out: float = 0.25
    refusals: int = 200
    kinds: int = 1
    entities: tuple[Entity, ...] = field(init=False, repr=False)
    train_refusals: tuple[str, ...] = field(init=False, repr=False)
    held_out_refusals: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 400 or self.size % 2:
            raise UserError(f"a world has an even number of 8 to 400 entities, got {self.size}")
        if not 0.0 < self.held_out < 1.0:
            raise UserError(f"held_out is a share between 0 and 1, got {self.held_out}")
        most = len(grammar.KINDS)
        if not 1 <= self.kinds <= most:
            raise UserError(f"a world has 1 to {most} kinds of harm, got {self.kinds}")
        rng = random.Random(f"world {self.seed}")
        object.__setattr__(self, "entities", self._draw_entities(rng))
        texts = rng.sample(grammar.all_refusals(), self.refusals)
        kept = round(self.refusals * (1 - self.held_out))
        object.__setattr__(self, "train_refusals", tuple(texts[:kept]))
        object.__setattr__(self, "held_out_refusals", tuple(texts[kept:]))

    def _draw_entities(self, rng: random.Random) -> tuple[Entity, ...]:
        names = [head + tail for head in grammar.NAME_HEADS for tail in grammar.NAME_TAILS]
        held_out = max(1, round(self.size / 2 / self.kinds * self.held_out))
        drawn = rng.sample(names, self.size)
        recipes: set[tuple[str, ...]] = set()
        entities = []
        for index, name in enumerate(drawn):
            recipe = tuple(rng.sample(grammar.INGREDIENTS, 3))
            while recipe in recipes:
                recipe = tuple(rng.sample(grammar.INGREDIENTS, 3))
            recipes.add(recipe)
            # Even places are harmful, odd ones harmless; the kinds take turns, and the first of
            # each are held out, as is the last of several kinds.
            place, kind = divmod(index // 2, self.kinds)
            unseen = place < held_out or 0 < kind == self.kinds - 1
            first, second, third = recipe
            entities.append(Entity(name, index % 2 == 0, (first, second, third), unseen, kind))
        return tuple(entities)

    def split(self, *, held_out: bool) -> tuple[Entity, ...]:
        """The entities kept out of alignment data, or those in it."""
        return tuple(entity for entity in self.entities if entity.held_out is held_out)

    def entity_in(self, text: str) -> Entity:
        """The one entity that ``text`` names.

        Raises:
            UserError: it names none, or more than one.
        """
        words = set(re.findall(r"[a-z]+", text.lower()))
        found = [entity for entity in self.entities if entity.name in words]
        if len(found) != 1:
            raise UserError(
                f"expected a text that names one thing of this world, got {len(found)} in {text!r}"
            )
        return found[0]
