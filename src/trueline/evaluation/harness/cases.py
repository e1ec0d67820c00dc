"""The cases of an evaluation: every benchmark item under every attack, prepared once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from trueline.evaluation.attacks.base import Attack, Attempt, Context
from trueline.evaluation.backends.base import Decoding
from trueline.evaluation.benchmarks.base import Item
from trueline.evaluation.harness.setup import Setup
from trueline.evaluation.harness.store import Store, complete, digest
from trueline.evaluation.judges.base import Measure
from trueline.evaluation.judges.kldo import TwoStageJudge
from trueline.interrupts import piece_done
from trueline.prompts import Progress

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
