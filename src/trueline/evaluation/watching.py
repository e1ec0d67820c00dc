"""While a model trains: how far what it says is from the reference, and whether it still answers.

Every metric of training can look like success while the model falls to babble: margins and
log-probs are of answers that others wrote. So a few prompts that training does not see are
answered every so many steps, and the answers are read.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from trueline.errors import UserError
from trueline.evaluation.generation import generate, model_input
from trueline.evaluation.harness.broken import BROKEN
from trueline.evaluation.judges.base import Verdict
from trueline.evaluation.labels import COMPLIANCE, NO_ANSWER
from trueline.evaluation.sorting import sort_answer
from trueline.prompts import Renderer
from trueline.records import Text


@dataclass(frozen=True)
class Distance:
    """What a reference says of an answer.

    Args:
        kl: mean over its tokens of KL(policy || reference) of the next token, nats.
        nll: mean negative log-prob of its tokens under the reference, nats.
    """

    kl: float
    nll: float


class AnswersCallback(TrainerCallback):
    """Answers a few held-out prompts every so many steps and logs what they show, as ``answers/*``.

    ``answers/kl``: mean KL(policy || reference) of the next token along the model's own greedy
    answers, nats a token. ``answers/reference_nll``: what the reference thinks of them, nats a
    token. ``answers/none``: the share that loops, repeats the request or is empty.
    ``answers/seconds``: what the measurement cost; it generates ``len(prompts) * tokens`` tokens
    and reads them twice.

    The alarm, a warning in words: half of the answers are none; or the reference finds them nearer
    to its own answers with the words shuffled than to its own answers; or the KL is above a bound
    of yours.

    Args:
        trainer: that trains; its ``log`` keeps the numbers.
        prompts: a few that training does not see.
        steps: between two measurements.
        reference: the model to measure the distance from; None for the model's own base where an
            adapter is trained.
        tokens: of an answer, at most.
        most_kl: alarm above so many nats a token; None for no such bound.
        stop: end the training at the first alarm, at the end of the step.

    Raises:
        UserError: no prompts, a count below 1, or no reference to measure from.

    Example:
        >>> trainer.add_callback(                                       # doctest: +SKIP
        ...     AnswersCallback(trainer, prompts, steps=50, stop=True))
    """

    def __init__(
        self,
        trainer: Any,
        prompts: Sequence[Text],
        *,
        steps: int,
        reference: Any | None = None,
        tokens: int = 48,
        most_kl: float | None = None,
        stop: bool = False,
    ) -> None:
        if not prompts or steps < 1 or tokens < 1:
            raise UserError(
                "watching the answers needs a prompt, steps >= 1 and tokens >= 1, got "
                f"{len(prompts)} prompts, steps {steps}, tokens {tokens}"
            )
        if reference is None and not hasattr(trainer.model, "disable_adapter"):
            raise UserError(
                "watching the answers measures from a reference: give reference=MODEL, or train "
                "an adapter"
            )
        self.trainer, self.prompts, self.reference = trainer, list(prompts), reference
        self.steps, self.tokens, self.most_kl, self.stop = steps, tokens, most_kl, stop
        self._own: tuple[float, float] | None = None
        self.alarms: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, log and, where it is time to, sound the alarm."""
        if state.global_step % self.steps:
            return
        found = self.measure()
        self.trainer.log(found)
        said = self.alarm(found)
        if said is None:
            return
        self.alarms.append(f"step {state.global_step}: {said}")
        if self.stop:
            control.should_training_stop = True
            said += " Training stops here, as asked."
        warnings.warn(f"step {state.global_step}: {said}", stacklevel=2)

    def measure(self) -> dict[str, float]:
        """The metrics of the present weights."""
        began = time.perf_counter()
        model, tokenizer = self.trainer.model, self.trainer.processing_class
        answers = generate(model, tokenizer, self.prompts, max_new_tokens=self.tokens)
        said = [
            sort_answer(
                Verdict("", complied=True, kind=COMPLIANCE), _plain(prompt), answer.text,
                truncated=False,
            ).kind
            for prompt, answer in zip(self.prompts, answers, strict=True)
        ]  # fmt: skip
        distances = [
            self._distance(prompt, list(answer.ids))
            for prompt, answer in zip(self.prompts, answers, strict=True)
            if answer.ids
        ]
        found = {"answers/none": sum(kind in NO_ANSWER for kind in said) / len(said)}
        if distances:
            found["answers/kl"] = sum(d.kl for d in distances) / len(distances)
            found["answers/reference_nll"] = sum(d.nll for d in distances) / len(distances)
        return {**found, "answers/seconds": time.perf_counter() - began}

    def alarm(self, found: dict[str, float]) -> str | None:
        """What is wrong with the answers, in words; None where nothing is."""
        if found["answers/none"] >= BROKEN:
            return (
                f"{found['answers/none']:.0%} of the model's answers to held-out prompts are none: "
                "they loop, repeat the request or are empty. It no longer answers."
            )
        kl, nll = found.get("answers/kl"), found.get("answers/reference_nll")
        if nll is not None:
            own, shuffled = self._of_reference()
            if nll > (own + shuffled) / 2:
                return (
                    f"the model's answers look like babble to the reference: {nll:.2f} nats a "
                    f"token, where its own answers have {own:.2f} and the same with their words "
                    f"shuffled {shuffled:.2f}."
                )
        if kl is not None and self.most_kl is not None and kl > self.most_kl:
            return f"the model is {kl:.2f} nats a token from the reference, above {self.most_kl:g}."
        return None

    def _of_reference(self) -> tuple[float, float]:
        """What the reference thinks of its own answers, and of their words shuffled."""
        if self._own is None:
            tokenizer = self.trainer.processing_class
            with self._as_reference() as model:
                own = generate(model, tokenizer, self.prompts, max_new_tokens=self.tokens)
            both: list[list[float]] = [[], []]
            shuffle = random.Random(0)
            for prompt, answer in zip(self.prompts, own, strict=True):
                said = answer.text.split()
                if len(said) < 2:
                    continue
                shuffle.shuffle(said)
                ids = tokenizer(" ".join(said), add_special_tokens=False).input_ids
                both[0].append(self._distance(prompt, list(answer.ids)).nll)
                both[1].append(self._distance(prompt, ids).nll)
            means = [sum(part) / len(part) if part else float("inf") for part in both]
            self._own = (means[0], means[1])
        return self._own

    def _distance(self, prompt: Text, answer: list[int]) -> Distance:
        """The policy's distance from the reference along an answer."""
        given = model_input(Renderer(self.trainer.processing_class), prompt).ids
        ids = torch.tensor([[*given, *answer]], device=self.trainer.model.device)
        policy = _log_probs(self.trainer.model, ids, len(given))
        with self._as_reference() as model:
            reference = _log_probs(model, ids.to(model.device), len(given)).to(policy.device)
        kl = (policy.exp() * (policy - reference)).sum(dim=-1).mean()
        told = reference.gather(-1, ids[0, len(given) :, None].to(policy.device))
        return Distance(float(kl), -float(told.mean()))

    def _as_reference(self) -> AbstractContextManager[Any]:
        if self.reference is not None:
            return nullcontext(self.reference)
        return _WithoutAdapter(self.trainer.model)


class _WithoutAdapter:
    """The model with its adapter off, for as long as it is looked at."""

    def __init__(self, model: Any) -> None:
        self.model, self.off = model, model.disable_adapter()

    def __enter__(self) -> Any:
        self.off.__enter__()
        return self.model

    def __exit__(self, *raised: Any) -> None:
        self.off.__exit__(*raised)


def _log_probs(model: Any, ids: torch.Tensor, start: int) -> torch.Tensor:
    """(T, vocabulary) log-probs of the tokens from ``start`` on, dropout off."""
    from trueline.scoring import evaluating

    with torch.inference_mode(), evaluating(model):
        logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)


def _plain(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1].content
