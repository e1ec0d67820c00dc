"""Does choosing dissimilar responses (REAL) give fewer wrong labels, and a better model?

    python examples/real_selection.py --output runs/real-selection

In the sandbox the truth is known. For each prompt two responses are drawn whose quality differs:
on a safe request, how many of the three ingredients are right, a refusal being worst; on a harmful
one a refusal is best, and a recipe the worse the more of it is right. A rater labels each pair and
errs with

    P(wrong) = s(-gap / temperature),   s the logistic sigmoid

so close pairs get more wrong labels; the noise knows nothing of embeddings. `select_pairs` then
takes half of the pairs by the base model's own embeddings, most dissimilar (easy) or most similar
(hard), and random controls of the same size, and measures their label error against the truth.
Each of easy, hard and random trains the same base model with DPO; what came of it is measured on
things that no training data named. All of it is done for several seeds of pairs, noise and
training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from trueline.curation import Cached, PolicyEmbedder, select_pairs
from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.reproduce.experiments.selection import write_pairs
from trueline.reproduce.instrument import measures, replies
from trueline.reproduce.language import train
from trueline.results import Metric
from trueline.sandbox import Sandbox, build_sandbox
from trueline.stats import mean_metric, rate

ARMS = ("easy", "hard", "random")
OUTCOMES = ("attack success, direct", "over-refusal", "correct answers")


def one_seed(sandbox: Sandbox, seed: int, temperature: float, folder: Path) -> dict[str, Any]:
    """Label errors of the selections, and what models trained on them do."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(sandbox.world, seed, temperature, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(sandbox.model_dir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(sandbox.model_dir)
    vectors = Cached(PolicyEmbedder(model, tokenizer), folder / "vectors")
    found: dict[str, Any] = {"errors": {}, "outcomes": {}}
    for arm in ARMS:
        made = select_pairs(
            load_examples(folder / "rated.jsonl"),
            folder / f"{arm}.jsonl",
            vectors,
            strategy=arm,
            seed=seed,
            second=load_examples(folder / "true.jsonl"),
            overwrite=True,
        )
        assert made is not None
        for metric in made.finding.metrics:
            what, _, group = metric.name.partition(", ")
            if what == "label error by second labels" and (arm == "easy" or group == "selected"):
                found["errors"][arm if group == "selected" else group] = metric
        chosen = [as_chat(example) for example in load_examples(folder / f"{arm}.jsonl")]
        trainer = train(sandbox.model_dir, chosen, {"loss_type": "dpo"}, folder / arm, seed=seed)
        trainer.scorer.detach()
        said = replies(sandbox, trainer.model, tokenizer)
        found["outcomes"][arm] = {m.name: m.metric for m in measures(said) if m.name in OUTCOMES}
    return found


def pooled(results: Sequence[dict[str, Any]], group: str) -> Metric:
    """A group's label error over all seeds, pair by pair."""
    parts = [result["errors"][group] for result in results]
    wrong = sum(round(part.value * part.n) for part in parts)
    return rate(group, wrong, sum(part.n for part in parts))


def report(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Pooled label errors, means over seeds, and paired differences to random, as text."""
    lines = {}
    for group in (*ARMS, "length-matched", "all"):
        lines[f"label error, {group}"] = str(pooled(results, group))
    for name in OUTCOMES:
        values = {arm: [result["outcomes"][arm][name].value for result in results] for arm in ARMS}
        for arm in ARMS:
            mean = mean_metric(name, values[arm], unit="rate")
            lines[f"{name}, {arm}"] = str(mean)
            if arm != "random":
                change = [a - b for a, b in zip(values[arm], values["random"], strict=True)]
                lines[f"{name}, {arm} minus random"] = str(mean_metric(name, change, unit="rate"))
    return lines


def main() -> None:
    """Build or find the sandbox, run every seed, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("runs/real-selection"))
    parser.add_argument("--size", choices=("demo", "test"), default="demo")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=1.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sandbox = build_sandbox(given.output / "sandbox", seed=0, size=given.size)
    results = []
    for seed in range(given.seeds):
        results.append(one_seed(sandbox, seed, given.temperature, given.output / f"seed{seed}"))
        print(f"seed {seed} done", flush=True)
    lines = report(results)
    (given.output / "result.json").write_text(json.dumps(lines, indent=2) + "\n", "utf-8")
    for name, value in lines.items():
        print(f"{name:>45}  {value}")


if __name__ == "__main__":
    main()
