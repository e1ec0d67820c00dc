"""Reading a model's own answers while it trains, as ``answers_steps`` asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from trueline.errors import UserError

if TYPE_CHECKING:
    from trueline.config import RunConfig, WatchArguments
    from trueline.records import Example, Text
    from trueline.results import Finding
    from trueline.training import AlignmentTrainer

DRAWN = 4096
"""Prompts are drawn from so many held-out rows at most."""


def check_watch(watch: WatchArguments, test: Iterable[Example] | None) -> None:
    """There are held-out prompts to answer, before a model is loaded for them.

    Raises:
        UserError: there are none.
    """
    if watch.answers_steps and test is None:
        raise UserError(
            "answers_steps answers held-out prompts, and there are none; set test_size (a share of "
            "the prompts) or eval_dataset_name, or leave it out"
        )


def watch_answers(run: RunConfig, trainer: AlignmentTrainer, test: Iterable[Example]) -> None:
    """Have the trainer answer a few held-out prompts every so many steps.

    Raises:
        UserError: the weights are sharded, or no prompt leaves room for an answer.
    """
    from trueline.evaluation.watching import TOKENS, AnswersCallback
    from trueline.training.coupling import on_first_rank

    watch = run.watch
    if trainer.sharded:
        raise UserError(
            "answers_steps generates from the whole model, which FSDP and DeepSpeed spread over "
            "processes; leave it out, or train with plain data parallelism or an adapter"
        )
    tokens = watch.answers_tokens or TOKENS
    trainer.add_callback(
        AnswersCallback(
            trainer,
            _prompts(run, trainer, test, tokens),
            steps=watch.answers_steps,
            reference=_reference(trainer),
            tokens=tokens,
            most_kl=watch.answers_most_kl,
            stop=watch.answers_stop,
            once=on_first_rank,
            autocast=trainer.accelerator.autocast,
        )
    )


def watched_findings(run: RunConfig, trainer: AlignmentTrainer) -> list[Finding]:
    """What was seen, from the run's log, so that a resumed run tells the same."""
    from trueline.evaluation.watching import watched

    watch = run.watch
    if not watch.answers_steps:
        return []
    return watched(trainer.run.rows, most_kl=watch.answers_most_kl, stop=watch.answers_stop)


def _prompts(
    run: RunConfig, trainer: AlignmentTrainer, test: Iterable[Example], tokens: int
) -> list[Text]:
    """Different held-out prompts, drawn by the seed, that leave room for an answer; as many as
    were asked for, or else up to the usual number."""
    from trueline.evaluation.answers import roomy
    from trueline.evaluation.watching import PROMPTS

    asked, rows = run.watch.answers_prompts, islice(test, DRAWN)
    found = roomy(
        trainer.model, trainer.processing_class, [example.prompt for example in rows],
        count=asked or PROMPTS, tokens=tokens, seed=run.training.seed,
        max_length=run.training.max_length,
    )  # fmt: skip
    if len(found) < (asked or 1):
        raise UserError(
            f"answers_steps needs {asked or 1} different held-out prompts with room for {tokens} "
            f"tokens after them, got {len(found)}; hold out more, or lower answers_prompts or "
            "answers_tokens"
        )
    return found


def _reference(trainer: AlignmentTrainer) -> Any:
    """What the distance is measured from: the objective's reference, or else the model as it
    starts."""
    from trueline.models import REFERENCE, freeze_copy, frozen_copy, trained_adapter
    from trueline.training.distributed import kept_copy

    model = trainer.model
    if trainer.reference is not None and trainer.reference.scorer is not trainer.scorer:
        return trainer.reference.scorer.model
    if not hasattr(model, "peft_config"):
        return kept_copy(model).requires_grad_(False).eval()
    if not trained_adapter(model):
        return None  # the base under the new adapter
    if REFERENCE not in model.peft_config:
        freeze_copy(model)

    @contextmanager
    def frozen() -> Iterator[Any]:
        with frozen_copy(model):
            yield model

    return frozen
