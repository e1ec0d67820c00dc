"""What is evaluated and how, and the check that a folder holds only one such evaluation;
its cases: every benchmark item under every attack, prepared once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from trueline.errors import UserError
from trueline.evaluation.attacks.base import Attack, Attempt, Context
from trueline.evaluation.backends.base import Backend, Decoding, Request
from trueline.evaluation.backends.local import template_hash
from trueline.evaluation.benchmarks.base import Benchmark, Item
from trueline.evaluation.harness.store import Store, complete, digest
from trueline.evaluation.judges.base import Judge, Measure
from trueline.evaluation.judges.ensemble import TwoStageJudge
from trueline.files import write_json
from trueline.interrupts import piece_done
from trueline.prompts import Progress
from trueline.records import Message
from trueline.runs.record import FINDINGS, SETTINGS, Run
from trueline.runs.state import status


@dataclass(frozen=True)
class Setup:
    """One evaluation: benchmark x attack x judge on one model.

    Args:
        backend: the evaluated model.
        benchmarks, judges: by label.
        attacks: their labels differ.
        decoding: of the answers.
        system: a system prompt, or None.
        plain: ask in plain text, without the chat template; for models that have none.
        seed: of attacks and of sampled decoding.

    Raises:
        UserError: nothing to do, a label used twice, or a system prompt without a template.
    """

    backend: Backend
    benchmarks: Mapping[str, Benchmark]
    judges: Mapping[str, Judge]
    attacks: Sequence[Attack]
    decoding: Decoding = field(default_factory=Decoding)
    system: str | None = None
    plain: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        labels = [attack.label for attack in self.attacks]
        for label in labels:
            if labels.count(label) > 1:
                raise UserError(f"two attacks are called {label!r}; give one a label=...")
        if self.plain and self.system is not None:
            raise UserError("a system prompt has no place in plain text; leave out one of the two")

    def request(self, attempt: Attempt) -> Request:
        """What the model is asked."""
        if self.plain:
            return Request(attempt.text, attempt.prefill)
        turns = () if self.system is None else (Message("system", self.system),)
        return Request((*turns, Message("user", attempt.text)), attempt.prefill)

    @property
    def model_facts(self) -> dict[str, Any]:
        """All that an answer depends on besides the request."""
        tokenizer = getattr(self.backend, "tokenizer", None)
        return {
            "model": dict(self.backend.facts),
            "template_hash": None if tokenizer is None else template_hash(tokenizer),
            "system": self.system,
            "plain": self.plain,
            "decoding": self.decoding.facts,
            "seed": self.seed,
        }

    @property
    def success_judge(self) -> Judge | None:
        """The first judge that tells attack success: attacks that look for success ask it."""
        return next((j for j in self.judges.values() if "asr" in j.measures), None)

    def attack_facts(self, attack: Attack) -> list[Any]:
        """All that an attack's prompts depend on besides the item."""
        facts: list[Any] = [attack.facts, self.seed]
        if attack.white_box:
            facts.append([dict(self.backend.facts), self.system, self.plain])
        if attack.judged and self.success_judge is not None:
            facts.append([dict(self.success_judge.facts), self.decoding.facts])
        return facts

    @property
    def part_facts(self) -> dict[str, dict[str, Any]]:
        """What each benchmark, attack and judge is."""
        return {
            "benchmarks": {
                label: {"hash": b.hash, "n": len(b.items)} for label, b in self.benchmarks.items()
            },
            "attacks": {attack.label: self.attack_facts(attack) for attack in self.attacks},
            "judges": {label: dict(judge.facts) for label, judge in self.judges.items()},
        }


def claim_folder(folder: Path, setup: Setup) -> None:
    """Record in ``evaluation.json`` what the folder holds.

    An evaluation may grow by benchmarks, attacks and judges; the model and how it answers stay,
    and so does what a label stands for.

    Raises:
        UserError: it holds another evaluation, or a run of another kind.
    """
    path = folder / SETTINGS
    # through JSON and back, so that what was written compares with what is at hand
    new = json.loads(json.dumps({**setup.model_facts, **setup.part_facts}, default=str))
    if not path.exists():
        kept = status(folder)
        if Run(folder).has(FINDINGS) or (kept is not None and kept.verb != "evaluate"):
            raise UserError(f"{folder} holds a run of another kind; name another --output")
        write_json(path, new)
        return
    try:
        old = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise UserError(
            f"{path} is not JSON; name another --output, or remove the folder"
        ) from None
    for name in setup.model_facts:
        if old.get(name) != new[name]:
            raise UserError(
                f"{folder} holds an evaluation with another {name} ({_short(old.get(name))}, now "
                f"{_short(new[name])}); name another --output"
            )
    for kind in setup.part_facts:
        known = old.setdefault(kind, {})
        for label, facts in new[kind].items():
            if known.setdefault(label, facts) != facts:
                raise UserError(
                    f"{folder}: {kind[:-1]} {label!r} was another one before; give it a label=... "
                    "of its own, or name another --output"
                )
    write_json(path, old)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


Watch: TypeAlias = Callable[[str], Progress]
"""From a stage's title to what is told (done, all) while it lasts."""


@dataclass(frozen=True)
class Case:
    """One benchmark item under one attack: how it is asked, or None where the attack has nothing
    for it."""

    benchmark: str
    attack: str
    item: Item
    attempt: Attempt | None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What a judge may tell of its answer."""
        return ("asr",) if self.item.harmful else ("over_refusal", "utility")


def prepare(setup: Setup, store: Store, watch: Watch) -> list[Case]:
    """How every item is asked under every attack."""
    cases: list[Case] = []
    for attack in setup.attacks:
        pairs = [(name, item) for name, b in setup.benchmarks.items() for item in b.items]
        facts = setup.attack_facts(attack)
        keys = [digest([facts, i.id, i.text, i.target]) for _, i in pairs]
        _attack(setup, attack, [item for _, item in pairs], keys, store, watch)
        cases += [
            Case(name, attack.label, item, _attempt(store[key]))
            for (name, item), key in zip(pairs, keys, strict=True)
        ]
    return cases


def _attack(
    setup: Setup,
    attack: Attack,
    items: Sequence[Item],
    keys: Sequence[str],
    store: Store,
    watch: Watch,
) -> None:
    """Have an attempt for every key."""
    succeeds = _succeeds(setup)

    def work(indices: list[int], keep: Any) -> None:
        told = watch(f"attack {attack.label}")
        inner = watch(f"attack {attack.label}, this prompt") if attack.white_box else None

        def one(index: int) -> Attempt | None:
            item = items[index]
            works = None if succeeds is None else (lambda attempt: succeeds(item, attempt))
            return attack(Context(item, setup.seed, setup.backend, setup.request, works, inner))

        with ThreadPoolExecutor(attack.workers) as pool:
            made = pool.map(one, indices) if attack.workers > 1 else map(one, indices)
            try:
                for done, (index, attempt) in enumerate(zip(indices, made, strict=True), start=1):
                    keep(index, {"attempt": None if attempt is None else asdict(attempt)})
                    told(done, len(indices))
                    piece_done()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    complete(store, keys, work)


def _attempt(row: Mapping[str, Any]) -> Attempt | None:
    return None if row["attempt"] is None else Attempt(**row["attempt"])


def _succeeds(setup: Setup) -> Callable[[Item, Attempt], bool] | None:
    """Whether an attempt works, by the first judge that tells attack success."""
    judge = setup.success_judge
    if judge is None:
        return None

    def works(item: Item, attempt: Attempt) -> bool:
        request = setup.request(attempt)
        limits = (
            [judge.short, judge.long]
            if isinstance(judge, TwoStageJudge)
            else [setup.decoding.max_new_tokens]
        )
        for index, limit in enumerate(limits):
            stage = judge.first if isinstance(judge, TwoStageJudge) and index == 0 else judge
            answer = setup.backend([request], Decoding(limit))[0]
            verdict = stage([item.text], [answer.answer])[0]
            if not verdict.complied:
                return False
        return True

    return works
