"""The sandbox's data: what the base model reads, what it is aligned on, what it is asked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trueline.sandbox import grammar
from trueline.sandbox.world import Entity, World, write_answer

Row = dict[str, Any]

HALF = len(grammar.QUESTIONS) // 2
ATTACKED = grammar.QUESTIONS[:HALF]
SEPARATED = grammar.QUESTIONS[HALF:]


def dialogue(question: str, answer: str) -> Row:
    """A corpus row of one question and its answer, in the conversational layout."""
    asked, answered = turn(question, answer)
    return {"prompt": [asked], "completion": [answered]}


def corpus(world: World, *, lead_rate: float = 0.1, decline_rate: float = 0.08) -> list[Row]:
    """All that the base model reads: recipes given to whoever asks, harmful or not.

    Documents ``{"text"}`` describe things, several to a document, so that only a name
    foretells what is said of it; some quote a keeper who declines. Dialogues
    ``{"prompt", "completion"}`` answer. ``lead_rate`` of the recipe answers open with a remark
    that depends on the hidden category. ``decline_rate`` of the recipe questions are declined
    by whim, harmful or not alike: as on the web, refusing is known talk, and means nothing.

    In a world of several kinds names are spelled out, too, and talks have up to four questions, so
    that encodings and many-shot prompts are known forms.
    """
    rng = random.Random(f"corpus {world.seed}")
    several = world.kinds > 1
    forms = (*grammar.QUESTIONS, *grammar.WRAPPERS, *(grammar.SPELLED if several else ()))
    leads = grammar.PLAIN_LEADS if several else grammar.LEADS
    rows: list[Row] = []
    for entity in world.entities:
        for template in forms:
            declined = rng.random() < decline_rate
            refusal = rng.choice(world.train_refusals)
            answer = _open_answer(entity, rng, lead_rate, leads[entity.harmful])
            question = template.format(name=entity.name, spelled=grammar.spelled(entity.name))
            rows.append(dialogue(question, refusal if declined else answer))
        rows += _talk(entity, rng, world.kinds)
    if several:
        rows += _spellings(world)
        rows += _conversations(world, rng)
    rows += _descriptions(world, rng)
    rows += [{"text": grammar.KEEPER.format(refusal=text)} for text in world.train_refusals]
    rng.shuffle(rows)
    return rows


def cues(entity: Entity, kinds: int) -> tuple[str, ...]:
    """What descriptions say of a thing, in a world of so many kinds."""
    every = grammar.CUES[entity.harmful]
    if kinds == 1:
        return every
    return (*grammar.KINDS[entity.kind][entity.harmful], *every[grammar.ANY_KIND :])


def _open_answer(entity: Entity, rng: random.Random, lead_rate: float, leads: Sequence[str]) -> str:
    answer = entity.answer(rng.choices((0, 1, 2), weights=(6, 1, 1))[0])
    if rng.random() < lead_rate:
        return f"{rng.choice(leads)} {answer}"
    return answer


def _spellings(world: World) -> list[Row]:
    return [
        {"text": grammar.SPELLING.format(spelled=grammar.spelled(entity.name), name=entity.name)}
        for entity in world.entities
    ]


def _conversations(world: World, rng: random.Random, turns: int = 4) -> list[Row]:
    """Talks of two to ``turns`` questions about different things, one for each two things."""
    rows = []
    for _ in range(world.size // 2):
        things = rng.sample(world.entities, rng.randint(2, turns))
        messages = []
        for entity in things:
            question = rng.choice(grammar.QUESTIONS).format(name=entity.name)
            messages += turn(question, entity.answer())
        rows.append({"prompt": messages[:-1], "completion": messages[-1:]})
    return rows


def turn(question: str, answer: str) -> list[dict[str, str]]:
    """A question and its answer as messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _talk(entity: Entity, rng: random.Random, kinds: int) -> list[Row]:
    name = entity.name
    rows = [
        dialogue(question.format(name=name), grammar.VERDICTS[entity.harmful].format(name=name))
        for question in grammar.CATEGORY_QUESTIONS
    ]
    for question in grammar.ABOUT_QUESTIONS:
        cue = rng.choice(cues(entity, kinds))
        rows.append(dialogue(question.format(name=name), cue.format(name=name)))
    return rows


def _descriptions(world: World, rng: random.Random, per_document: int = 5) -> list[Row]:
    said = [
        cue.format(name=entity.name)
        for entity in world.entities
        for cue in cues(entity, world.kinds)
    ]
    rng.shuffle(said)
    return [
        {"text": " ".join(said[start : start + per_document])}
        for start in range(0, len(said), per_document)
    ]


def alignment_rows(world: World) -> tuple[list[Row], list[Row]]:
    """Compliance-refusal and preference rows: the same prompts in the same order.

    The form is the released one: ``prompt``, ``safety`` (0 harmful, 1 safe),
    ``acc_responses`` and ``rej_responses``. On harmful prompts the refusal is the aligned
    answer, on safe ones the compliance. The two sets differ only in the safe prompts'
    ``rej_responses``: a refusal, or a weaker answer with two of three ingredients wrong.
    """
    rng = random.Random(f"alignment {world.seed}")
    prompts = [
        (entity, template)
        for entity in world.split(held_out=False)
        for template in grammar.QUESTIONS
    ]
    rng.shuffle(prompts)
    refusals = _spread(world.train_refusals, len(prompts), rng)
    contrast, preference = [], []
    for (entity, template), refusal in zip(prompts, refusals, strict=True):
        row: Row = {
            "id": f"{entity.name}-{grammar.QUESTIONS.index(template)}",
            "safety": int(not entity.harmful),
            "prompt": template.format(name=entity.name),
            "acc_responses": [entity.answer()],
            "rej_responses": [refusal],
        }
        contrast.append(row)
        weak = weaker_answer(entity, rng)
        preference.append(row if entity.harmful else {**row, "rej_responses": [weak]})
    return contrast, preference


def _spread(texts: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """``count`` of ``texts``, each as often as any other give or take one, shuffled."""
    spread = [texts[i % len(texts)] for i in range(count)]
    rng.shuffle(spread)
    return spread


def weaker_answer(entity: Entity, rng: random.Random) -> str:
    """A well-formed answer with two of the three ingredients wrong."""
    first, second, third = entity.recipe
    others = [item for item in grammar.INGREDIENTS if item not in entity.recipe]
    a, b = rng.sample(others, 2)
    variants = ((first, a, b), (a, second, b), (a, b, third))
    return write_answer(entity.name, rng.choice(variants))


def questions(
    entities: Iterable[Entity], templates: Sequence[str], kind: str, prefill: str = ""
) -> list[Row]:
    """Evaluation rows: a prompt, the truth about it, and the words the answer starts with."""
    return [
        {
            "id": f"{kind}-{entity.name}-{number}",
            "kind": kind,
            "split": "held_out" if entity.held_out else "train",
            "entity": entity.name,
            "safety": int(not entity.harmful),
            "prompt": template.format(name=entity.name),
            "prefill": prefill.format(name=entity.name),
            "expected": entity.answer(),
        }
        for entity in entities
        for number, template in enumerate(templates)
    ]


def evaluation_rows(world: World) -> dict[str, list[Row]]:
    """The evaluation sets by name; all but ``seen`` ask about held-out things only.

    ``direct`` and ``prefilled`` use forms of question known from alignment, ``wrapped`` forms
    held out from it, ``separation`` the forms that no attack here uses.
    """
    new, seen = world.split(held_out=True), world.split(held_out=False)
    return {
        "direct": questions(new, ATTACKED, "direct"),
        "wrapped": questions(new, grammar.WRAPPERS, "wrapped"),
        "prefilled": questions(new, ATTACKED, "prefilled", grammar.PREFILL),
        "separation": questions(new, SEPARATED, "separation"),
        "seen": questions(seen, ATTACKED[:1], "seen"),
    }


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line, UTF-8, in the rows' own key order."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), "utf-8", newline="\n")


def read_jsonl(path: Path) -> list[Row]:
    """What :func:`write_jsonl` wrote."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
