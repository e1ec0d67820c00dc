"""KLDO's claim on real text: four objectives, two kinds of data, several seeds, on SmolLM2.

    python studies/real_text.py --model MODEL --data DATA --work FOLDER
    python studies/real_text.py ... --only kldo --data-kinds cr --seeds 1     # a pilot
    python studies/real_text.py ... --rows 64 --steps 4                       # another budget
    python studies/real_text.py --table                                      # of what is kept

MODEL is SmolLM2-135M-Instruct as a folder; DATA holds the KLDO paper's released rows, AdvBench and
XSTest under the names below. A run is done once and kept in FOLDER: after a kill the same command
goes on with the next. Numbers alone go to results/real-text.jsonl, a line a run; no row of the data
does. The base model is a run like the others: trained for no steps.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import transformers

from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.data.readers import read_file
from trueline.diagnostics.ranking import score_completions
from trueline.evaluation.generation import generate
from trueline.evaluation.judges.phrases import phrases
from trueline.records import Completion, Example, Message
from trueline.reproduce.engine import perform
from trueline.reproduce.instrument import separations
from trueline.reproduce.kept import read_lines, results_in, write_lines
from trueline.reproduce.language import train
from trueline.reproduce.runs import Run, Values, experiment
from trueline.stats import mean_metric

KEPT = Path(__file__).parent / "results" / "real-text.jsonl"
NAME = "SmolLM2-135M-Instruct"
FILES = {"cr": "kldo-cr.jsonl.gz", "pref": "kldo-preference.jsonl.gz"}
ADVBENCH, XSTEST = "advbench-harmful_behaviors.csv.gz", "xstest-prompts.csv.gz"
OBJECTIVES = ("dpo", "kto", "bco", "kldo")
BUDGET: dict[str, Any] = {
    "rows": 256, "steps": 16, "batch": 16, "learning_rate": 1e-5, "max_length": 192,
    "held_out": 96, "asked": 48, "tokens": 48, "characters": 400,
}  # fmt: skip
PLACES: dict[str, Path] = {}
"""Where this machine has the model and the data; no part of a run's identity."""


@experiment("real text")
def real_text(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Align by an objective on rows drawn by the seed; measure on rows that no seed trains on."""
    given = run.options
    tokenizer = transformers.AutoTokenizer.from_pretrained(PLACES["model"])
    held_out, rest = rows_of(given["data"], given["held_out"], given["characters"])
    base = transformers.AutoModelForCausalLM.from_pretrained(PLACES["model"]).eval()
    model = base
    if given["objective"] != "none":
        drawn = random.Random(f"real text {run.seed}").sample(rest, given["rows"])
        options = {
            "loss_type": given["objective"],
            "learning_rate": given["learning_rate"],
            "max_steps": given["steps"],
            "per_device_train_batch_size": given["batch"],
            "max_length": given["max_length"],
            "lr_scheduler_type": "cosine",
            "warmup_steps": 4,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1,
        }
        place = folder / "run"
        trainer = train(PLACES["model"], drawn, options, place, seed=run.seed, defaults={})
        trainer.scorer.detach()
        model = trainer.model.eval()
        shutil.rmtree(place, ignore_errors=True)
    prompts = [example.prompt for example in held_out]
    harmful = [example.safety == "harmful" for example in held_out]
    values = separations(model, tokenizer, prompts, harmful)  # type: ignore[arg-type]
    values |= leanings(model, base, tokenizer, held_out, given["max_length"])
    return values | spoken(model, base, tokenizer, given["asked"], given["tokens"])


def rows_of(kind: str, held_out: int, characters: int) -> tuple[list[Example], list[Example]]:
    """Rows that are measured on, half of them harmful, and those to train on; the same split
    whatever the seed and the kind of data. Answers are cut, at a blank."""
    found = [as_chat(_cut(one, characters)) for one in load_examples(PLACES["data"] / FILES[kind])]
    random.Random("real text").shuffle(found)
    sides = [[e for e in found if e.safety == side] for side in ("harmful", "safe")]
    half = held_out // 2
    return sides[0][:half] + sides[1][:half], sides[0][half:] + sides[1][half:]


def _cut(example: Example, characters: int) -> Example:
    from dataclasses import replace

    def short(completion: Completion) -> Completion:
        text = completion.content
        assert isinstance(text, str)
        if len(text) > characters:
            text = text[:characters].rpartition(" ")[0]
        return replace(completion, content=text)

    return replace(example, completions=tuple(map(short, example.completions)))


def leanings(
    model: Any, base: Any, tokenizer: Any, held_out: Sequence[Example], max_length: int
) -> dict[str, float | None]:
    """Log-probs of the chosen minus the rejected answer, nats a token, on held-out rows of either
    kind; how many are ranked right; and how far the model is from the base."""
    now, before = (
        score_completions(each, tokenizer, held_out, max_length=max_length)
        for each in (model, base)
    )
    values: dict[str, float | None] = {}
    for kind in ("harmful", "safe"):
        places = [i for i, example in enumerate(held_out) if example.safety == kind]
        for name, scores in (("lean", now), ("lean before", before)):
            each = [_lean(held_out[i], scores.log_probs[i], scores.lengths[i]) for i in places]
            values[f"{name}, {kind}"] = fmean(each)
            values[f"right {name}, {kind}"] = fmean(lean > 0 for lean in each)
    moved = [
        float(np.mean(np.abs(a - b) / n))
        for a, b, n in zip(now.log_probs, before.log_probs, now.lengths, strict=True)
    ]
    return {**values, "distance": fmean(moved)}


def _lean(example: Example, log_probs: Any, lengths: Any) -> float:
    (w, l), *_ = example.pairs  # noqa: E741
    return float(log_probs[w] / lengths[w] - log_probs[l] / lengths[l])


def spoken(
    model: Any, base: Any, tokenizer: Any, asked: int, tokens: int
) -> dict[str, float | None]:
    """Attack success on AdvBench and over-refusal on XSTest's safe prompts by the phrase judge;
    and the base's log-prob of what was said, nats a token: babble is unlikely."""
    rows = [row.value for row in read_file(PLACES["data"] / XSTEST)]
    safe = [row["prompt"] for row in rows if row["label"] == "safe"]
    goals = [row.value["goal"] for row in read_file(PLACES["data"] / ADVBENCH)]
    judge, values = phrases(), {}
    for name, texts in (("attack success", goals), ("over-refusal", safe)):
        drawn = random.Random(f"asked {name}").sample(texts, asked)
        prompts = [(Message("user", text),) for text in drawn]
        said = generate(model, tokenizer, prompts, max_new_tokens=tokens, batch_size=16)
        verdicts = judge(drawn, [one.answer for one in said])
        event = "asr" if name == "attack success" else "over_refusal"
        values[name] = fmean(bool(verdict.event(event)) for verdict in verdicts)  # type: ignore[arg-type]
        likely = [
            Example(prompt, (Completion((Message("assistant", one.answer),)),))
            for prompt, one in zip(prompts, said, strict=True)
            if one.answer.strip()
        ]
        scores = score_completions(base, tokenizer, likely, max_length=512)
        each = [float(a[0] / n[0]) for a, n in zip(scores.log_probs, scores.lengths, strict=True)]
        values[f"base log-prob of answers, {name}"] = fmean(each)
    return values


def runs_of(objectives: Sequence[str], kinds: Sequence[str], seeds: int) -> list[Run]:
    """Each seed's arms, before the next seed's; the base, of which there is one, first."""
    arms = [(objective, kind) for kind in kinds for objective in objectives]
    runs = [
        Run("real text", {**BUDGET, "objective": "none", "data": "cr", "model": NAME}, 0, "base")
    ]
    return runs + [
        Run("real text", {**BUDGET, "objective": o, "data": k, "model": NAME}, seed, f"{o}, {k}")
        for seed in range(seeds)
        for o, k in arms
    ]


SHOWN = ("separation", "lean, harmful", "lean, safe", "attack success", "over-refusal",
         "base log-prob of answers, attack success", "distance")  # fmt: skip


def table() -> str:
    """What is kept: each arm's means over seeds, with how many there are."""
    lines = ["| | seeds | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 2) + "|"]
    arms: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in read_lines(KEPT):
        given = row["options"]
        key = (given["objective"], given["data"]) if given["objective"] != "none" else ("base", "")
        arms.setdefault(key, []).append(row["values"])
    for (objective, kind), found in sorted(arms.items()):
        cells = [str(mean_metric(name, [one[name] for one in found])) for name in SHOWN]
        lines.append(f"| {objective} {kind} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name in ("model", "data", "work"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--data-kinds", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--seeds", type=int, default=3)
    for name in ("rows", "steps", "asked"):
        parser.add_argument(f"--{name}", type=int, default=BUDGET[name])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        PLACES.update(model=given.model, data=given.data)
        BUDGET.update(rows=given.rows, steps=given.steps, asked=given.asked)
        runs = runs_of(given.only, given.data_kinds, given.seeds)
        for one in runs:  # kept after each: what is measured is never lost
            perform([one], given.work, jobs=0, tell=print)
            write_lines(results_in(given.work), KEPT)
    print(table())
