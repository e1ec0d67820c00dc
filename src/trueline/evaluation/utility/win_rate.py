"""Pairwise win rate against given answers: both orders, ties half, and adjusted for length."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from trueline.evaluation.backends import Backend, Decoding, Request, open_backend
from trueline.evaluation.benchmarks.base import Rows, expect_count, read_rows
from trueline.evaluation.judges.asking import NOTE, asked, delimited, fill, prompt_hash
from trueline.evaluation.utility.base import Measurement, UtilityContext, utility, write_log
from trueline.records import Message
from trueline.results import Finding, Metric
from trueline.stats import mean_metric, rate

COMPARE = f"""\
You compare two answers to one request and choose the one that serves the user better: correct, \
helpful, relevant, clear. The order in which they stand and their length are no merit. {NOTE}

{{request}}

{{first}}

{{second}}

Say in a sentence or two why, then end with your choice in double brackets: [[A]] for answer-a, \
[[B]] for answer-b, [[C]] for a tie."""


@utility("win-rate", "win_rate")
def win_rate(
    source: str,
    *,
    judge: str | Backend,
    base_url: str | None = None,
    prompt: str = "prompt",
    reference: str = "reference",
    max_new_tokens: int = 1024,
    seed: int = 0,
) -> Measurement:
    """The share of prompts on which a judge prefers the model's answer to a given one.

    Every pair is judged in both orders. A prompt's score is the mean of both, a tie is half; so a
    judge that goes by position gives half to everyone. The length-adjusted rate is what the
    preference would be if both answers were equally long
    (:func:`~trueline.evaluation.utility.win_rate.length_adjusted`).

    Args:
        source: a file or hub id with prompts and the answers to beat.
        judge: a server's name for the judging model, or a folder or hub id to load here.
        base_url: of an OpenAI-compatible server.
        prompt, reference: its columns.
        max_new_tokens: of the model's answer.
        seed: of the length-adjusted rate's bootstrap.
    """
    rows = read_rows(source, (prompt, reference))
    return _measurement("win rate", rows, prompt, reference, judge, base_url, max_new_tokens, seed)


@utility("alpaca-eval", "alpaca_eval")
def alpaca_eval(
    source: str,
    *,
    judge: str | Backend,
    base_url: str | None = None,
    max_new_tokens: int = 2048,
    seed: int = 0,
    partial: bool = False,
) -> Measurement:
    """AlpacaEval: the win rate on 805 instructions against a file of reference outputs.

    Args:
        source: the reference outputs (JSON with instruction and output), or a hub id.
        judge: a server's name for the judging model, or a folder or hub id to load here.
        base_url: of an OpenAI-compatible server.
        max_new_tokens: of the model's answer.
        seed: of the length-adjusted rate's bootstrap.
        partial: accept another number of rows.

    Source: Dubois et al. (2024), arXiv 2404.04475; the judge's words are ours, so rates compare
    with one another and not with the leaderboard's.
    """
    rows = read_rows(source, ("instruction", "output"))
    if not partial:
        expect_count(source, len(rows), (805,))
    return _measurement(
        "AlpacaEval", rows, "instruction", "output", judge, base_url, max_new_tokens, seed
    )


def _measurement(
    name: str,
    rows: Rows,
    prompt: str,
    reference: str,
    judge: str | Backend,
    base_url: str | None,
    limit: int,
    seed: int,
) -> Measurement:
    pairs = [(str(row[prompt]), str(row[reference])) for _, row in rows]
    grader = open_backend(judge, base_url=base_url)

    def measure(context: UtilityContext) -> Finding:
        requests = [context.request([Message("user", asked_for)]) for asked_for, _ in pairs]
        decoding = Decoding(limit, seed=context.setup.seed)
        answers = context.ask(context.setup.backend, requests, decoding, f"{name}, answers")
        duels = [Duel(p, a.answer, r) for (p, r), a in zip(pairs, answers, strict=True)]
        verdicts = []
        for model_first in (True, False):
            comparisons = [duel.request(grader, model_first=model_first) for duel in duels]
            said = context.ask(grader, comparisons, Decoding(512), f"{name}, comparisons")
            verdicts.append([read_choice(s.answer, model_first=model_first) for s in said])
        write_log(context.folder, name.lower().replace(" ", "-"), _log_rows(duels, verdicts))
        quality = [
            rate("truncated answers", [not a.finished for a in answers]),
            rate("empty answers", [not a.text.strip() for a in answers]),
        ]
        return _finding(name, duels, verdicts, quality, seed)

    return measure


@dataclass(frozen=True, slots=True)
class Duel:
    """One prompt with the model's answer and the one it has to beat."""

    prompt: str
    model: str
    reference: str

    def request(self, grader: Backend, *, model_first: bool) -> Request:
        """What the judge is asked, in one order."""
        first, second = (self.model, self.reference)[:: 1 if model_first else -1]
        slots = {
            "{request}": delimited("request", self.prompt, grader.marks),
            "{first}": delimited("answer-a", first, grader.marks),
            "{second}": delimited("answer-b", second, grader.marks),
        }
        return asked(grader, fill(COMPARE, slots))

    @property
    def longer(self) -> int:
        """Characters that the model's answer is longer by."""
        return len(self.model) - len(self.reference)


def read_choice(reply: str, *, model_first: bool) -> float | None:
    """1 where the model's answer is preferred, 1/2 for a tie, 0 else; None without a choice.

    Example:
        >>> read_choice("Better: [[B]]", model_first=False), read_choice("[[C]]", model_first=True)
        (1.0, 0.5)
    """
    found = re.findall(r"\[\[\s*([ABC])\s*\]\]", reply)
    if not found:
        return None
    if found[-1] == "C":
        return 0.5
    return float((found[-1] == "A") == model_first)


def _finding(
    name: str,
    duels: Sequence[Duel],
    verdicts: Sequence[Sequence[float | None]],
    quality: Sequence[Metric],
    seed: int,
) -> Finding:
    both = list(zip(*verdicts, strict=True))
    scored = [
        (d, (a + b) / 2, a + b == 1 and a != 0.5)
        for d, (a, b) in zip(duels, both, strict=True)
        if a is not None and b is not None
    ]
    wins = [score for _, score, _ in scored]
    raw = mean_metric("win rate", wins, unit="rate")
    adjusted = length_adjusted(wins, [d.longer for d, _, _ in scored], seed=seed)
    longer = mean_metric("longer by", [d.longer for d, _, _ in scored], unit="characters")
    unsure = rate("choice by position", [flip for _, _, flip in scored])
    unparsable = rate("unparsable choices", [v is None for pair in both for v in pair])
    summary = f"{name}: the model wins {raw} of {raw.n} prompts, {adjusted} at equal length."
    return Finding(name, summary, [raw, adjusted, longer, unsure, *quality, unparsable])


def _log_rows(
    duels: Sequence[Duel], verdicts: Sequence[Sequence[float | None]]
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": duel.prompt,
            "answer": duel.model,
            "reference": duel.reference,
            "model_first": first,
            "reference_first": second,
            "prompt_hash": prompt_hash(COMPARE),
        }
        for duel, first, second in zip(duels, *verdicts, strict=True)
    ]


Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def length_adjusted(
    wins: Sequence[float], longer: Sequence[float], *, seed: int, n_resamples: int = 1000
) -> Metric:
    """The win rate at equal length, from a logistic regression on the difference in length.

        P(win_i) = sigmoid(theta + phi * tanh(longer_i / sd(longer))),  adjusted = sigmoid(theta)

    with weak normal priors (theta: sd 10, phi: sd 1), so that the fit exists also where one side
    wins everything. The interval is the percentiles of refits on resampled prompts.

    Args:
        wins: 0..1 for each prompt, a tie is 1/2.
        longer: how much longer the model's answer is.
        seed: of the resamples.
        n_resamples: how many.

    Example:
        >>> same = length_adjusted([1, 1, 0, 1] * 25, [0] * 100, seed=0)
        >>> round(same.value, 2)
        0.75

    Source: Dubois et al. (2024), arXiv 2404.04475, without the term of the instruction's
    difficulty, which takes many models' results.
    """
    name = "win rate, length-adjusted"
    y, x = np.asarray(wins, dtype=float), np.asarray(longer, dtype=float)
    if len(y) == 0:
        return Metric(name, None, n=0, unit="rate")
    spread = float(x.std())
    z = np.tanh(x / spread) if spread > 0 else np.zeros_like(x)
    value = _sigmoid(float(_fit(y, z, np.ones((1, len(y))))[0]))
    if len(y) < 2:
        return Metric(name, value, n=len(y), unit="rate")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=n_resamples)
    refits = _fit(y, z, counts.astype(float))
    low, high = (_sigmoid(float(q)) for q in np.quantile(refits, (0.025, 0.975)))
    return Metric(name, value, low, high, len(y), unit="rate")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _fit(y: Array, z: Array, weights: Array, steps: int = 30) -> Array:
    """(R,) theta of weighted logistic fits, one for each row of ``weights``, by Newton's method."""
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(theta[:, None] + phi[:, None] * z, -30, 30)))
        error, curve = weights * (y - p), weights * p * (1 - p)
        g0, g1 = error.sum(1) - theta / 100, (error * z).sum(1) - phi
        h00, h01 = curve.sum(1) + 1 / 100, (curve * z).sum(1)
        h11 = (curve * z * z).sum(1) + 1
        det = h00 * h11 - h01**2
        theta = theta + np.clip((h11 * g0 - h01 * g1) / det, -2, 2)
        phi = phi + np.clip((h00 * g1 - h01 * g0) / det, -2, 2)
    return theta
