"""What the language experiments share: the sandbox, its base model, and what is measured."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trueline.curation import PREFIXES, prefixed
from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.diagnostics.ranking import ranking_of_scores, score_completions
from trueline.diagnostics.ranking.scores import PairIndex, Scores
from trueline.logprobs import PairedLogProbs
from trueline.records import Example
from trueline.reproduce.laboratory import measure
from trueline.reproduce.runs import Run
from trueline.sandbox import Sandbox, build_sandbox

ATTACKS = ("direct", "wrapped", "prefilled")
PREFIX = "guidelines"
"""Of the paper's four safe prefixes, the one of its main result."""


def open_sandbox(folder: Path, run: Run) -> Sandbox:
    """The sandbox of a run's seed and size that stands in a folder."""
    return build_sandbox(folder / "sandbox", seed=run.seed, size=run.options["size"])


def load_model(folder: Path) -> Any:
    """A model of the sandbox's kind."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def load_tokenizer(sandbox: Sandbox) -> Any:
    """The sandbox's tokenizer."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(sandbox.model_dir)


def alignment_examples(sandbox: Sandbox, data: str, prefix: str | None) -> list[Example]:
    """The sandbox's alignment data as chats.

    Args:
        sandbox: whose data.
        data: ``"compliance_refusal"`` or ``"preference"``.
        prefix: whose reference prompts get E-RLHF's safe prefix: ``"harmful"``, ``"all"`` or None.
    """
    examples = [as_chat(example) for example in load_examples(getattr(sandbox, data))]
    if prefix is None:
        return examples
    return [
        replace(example, reference_prompt=prefixed(example.prompt, PREFIXES[PREFIX]))
        if prefix == "all" or example.safety == "harmful"
        else example
        for example in examples
    ]


def safety(sandbox: Sandbox, model: Any, tokenizer: Any, seed: int) -> dict[str, float | None]:
    """Attack success (each attack's, and their mean), over-refusal, utility and separation."""
    found = measure(sandbox, model, tokenizer, "model", seed=seed)
    values = {metric.name: metric.value for metric in found.safety.metrics}
    attacks = [values[f"attack success, {kind}"] for kind in ATTACKS]
    scored = [rate for rate in attacks if rate is not None]
    values["attack success"] = float(np.mean(scored)) if scored else None
    values["separation"] = found.separation["bhattacharyya_distance"].value
    return values


def pair_values(
    model: Any,
    base: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    objective: str,
    options: Mapping[str, Any],
    seed: int,
    max_length: int | None = 128,
    count: int = 256,
) -> dict[str, float | None]:
    """What alignment did to preference pairs, drawn from the given ones: how far each side's
    log-prob moved, and how they rank.

    Reference log-probs are the base's on the prompt itself, also where training showed the
    reference a safer one.
    """
    paired = [replace(example, reference_prompt=None) for example in examples if example.pairs]
    drawn = random.Random(f"pairs {seed}").sample(paired, min(count, len(paired)))
    policy, start = (
        score_completions(each, tokenizer, drawn, max_length=max_length) for each in (model, base)
    )
    finding = ranking_of_scores(drawn, policy, start, objective=objective, options=options)
    kept = {"ranking_accuracy", "idealized", "reference_ranking_accuracy", "flipped",
            "chosen_change", "rejected_change", "margin"}  # fmt: skip
    values = {
        name.replace("_", " "): metric.value
        for metric in finding.metrics
        if (name := metric.name.removeprefix("gap/")) in kept
    }
    pairs = PairIndex.of(drawn).log_probs(policy, start)
    return {**values, **_flips(pairs), "distance": _distance(policy, start)}


def _flips(pairs: PairedLogProbs) -> dict[str, float | None]:
    """Among pairs that the reference ranks wrong: how much easier those put right were."""
    before, after = (
        (side(pairs.chosen) - side(pairs.rejected)).double().numpy()
        for side in (lambda c: c.reference, lambda c: c.policy)
    )
    wrong = before < 0
    right = after >= 0
    put_right, still_wrong = -before[wrong & right], -before[wrong & ~right]
    if not len(put_right) or not len(still_wrong):
        return {"difficulty, flipped minus not": None}
    return {"difficulty, flipped minus not": float(put_right.mean() - still_wrong.mean())}


def _distance(policy: Scores, start: Scores) -> float:
    """Mean absolute log-ratio of all completions, nats a token."""
    parts = zip(policy.log_probs, start.log_probs, policy.lengths, strict=True)
    return float(np.mean(np.concatenate([np.abs(a - b) / n for a, b, n in parts])))
