"""The papers' main contrasts on real text: SmolLM2-135M-Instruct, fourteen arms, several seeds.

    python studies/real_text.py --model MODEL --data DATA --work FOLDER
    python studies/real_text.py ... --only "kldo, cr" --seeds 1 --first-seed 100     # a pilot
    python studies/real_text.py --table                                   # of what is kept

MODEL is SmolLM2-135M-Instruct as a folder; DATA holds the KLDO paper's released rows, HH-RLHF's,
AdvBench and XSTest under the names below. A run is done once and kept in FOLDER: after a kill the
same command goes on with the next. Numbers alone go to results/real-text.jsonl, a line a run; no
row of the data does. The base model is a run like the others: trained for no steps.

All weights train, under bf16 autocast (a processor without bf16 instructions is slow at it). Arms
of a seed draw the same rows; what is measured on is the same for all, and no seed trains on it.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
import transformers

from trueline.curation import PREFIXES, Cached, PolicyEmbedder, Size, prefixed, select_pairs
from trueline.data import load_examples
from trueline.data.mapped import as_chat
from trueline.data.readers import read_file
from trueline.diagnostics.entanglement import entanglement
from trueline.diagnostics.ranking import ranking_of_scores, score_completions
from trueline.diagnostics.ranking.scores import Scores
from trueline.evaluation.generation import generate
from trueline.evaluation.judges.phrases import phrases
from trueline.records import Completion, Example, Message
from trueline.report import listed
from trueline.reproduce.engine import perform
from trueline.reproduce.instrument import separations
from trueline.reproduce.kept import read_lines, results_in, write_lines
from trueline.reproduce.language import PREFIX, train
from trueline.reproduce.runs import Run, Values, experiment
from trueline.reproduce.verdict import Effect
from trueline.results import Metric
from trueline.stats import mean_metric

KEPT = Path(__file__).parent / "results" / "real-text.jsonl"
NAME = "SmolLM2-135M-Instruct"
FILES = {
    "cr": "kldo-cr.jsonl.gz",
    "pref": "kldo-preference.jsonl.gz",
    "hh": "hh-rlhf-harmless-base-test.jsonl.gz",
}
ADVBENCH, XSTEST = "advbench-harmful_behaviors.csv.gz", "xstest-prompts.csv.gz"
BUDGET: dict[str, Any] = {
    "rows": 128, "steps": 16, "batch": 8, "learning_rate": 2e-5, "max_length": 192,
    "held_out": 64, "asked": 64, "tokens": 40, "characters": 300,
}  # fmt: skip
POOL, ENTANGLED = 3, 16
"""The dissimilar rows are chosen of so many times as many; and pairs whose gradients are taken."""
PLACES: dict[str, Path] = {}
"""Where this machine has the model and the data; no part of a run's identity."""
BASE = "base"
ARMS: dict[str, dict[str, Any]] = {
    BASE: {"objective": "none", "data": "cr"},
    **{
        f"{objective}, {data}": {"objective": objective, "data": data}
        for data in ("cr", "pref")
        for objective in ("dpo", "kto", "bco", "kldo")
    },
    "e-dpo, cr": {"objective": "dpo", "data": "cr", "prefix": True},
    **{f"{o}, hh": {"objective": o, "data": "hh"} for o in ("dpo", "simpo", "dil")},
    "dpo, hh dissimilar": {"objective": "dpo", "data": "hh", "dissimilar": True},
}


@dataclass(frozen=True)
class Contrast:
    """What a paper has to say of one value: an arm's minus another's, or the arm's own.

    Args:
        paper: whose.
        says: in words.
        value: by name.
        arms: the arm, and what is taken from it, if anything.
        side: where the paper expects it.
        against: of what.
        unit: of the difference.
    """

    paper: str
    says: str
    value: str
    arms: tuple[str, ...]
    side: Literal["above", "below"]
    against: float = 0.0
    unit: str = field(default="")

    def of(self, found: dict[str, dict[int, Values]]) -> Metric:
        """The mean over seeds, with Student's interval."""
        first, *others = self.arms
        each = []
        for seed, values in sorted(found.get(first, {}).items()):
            rest = [_of_seed(found.get(other, {}), seed) for other in others]
            parts = [one.get(self.value) for one in (values, *rest)]
            if None not in parts:
                each.append(parts[0] - sum(parts[1:]))  # type: ignore[operator, arg-type]
        return mean_metric(self.value, each, unit="rate" if self.value in RATES else self.unit)

    def shown(self, metric: Metric) -> str:
        """What of what, and how much."""
        bound = f", {self.side} {self.against:.0%}?" if self.against else ""
        number = str(metric) if len(self.arms) == 1 else Effect(metric, self.side).shown
        if metric.low is not None and metric.low == metric.high:
            number = f"{number.partition(' [')[0]} at each seed"
        return f"{self.value} of {' minus '.join(self.arms)}: {number}{bound}"

    def word(self, metric: Metric) -> str:
        """Where the interval lies; differences that are all the same decide nothing."""
        if metric.low is None or metric.high is None:
            return "of one run"
        if metric.low == metric.high:
            return "undecided"
        sign = 1 if self.side == "above" else -1
        low, high = sorted(
            (sign * (metric.low - self.against), sign * (metric.high - self.against))
        )
        return "as said" if low > 0 else "the other way" if high < 0 else "undecided"


def _of_seed(found: dict[int, Values], seed: int) -> Values:
    """The base has one run, for all seeds."""
    return found.get(seed, found.get(0, {}) if set(found) == {0} else {})


RATES = {"attack success", "over-refusal", "ranking accuracy", "short of idealized",
         "rewarded right"}  # fmt: skip
LN_D, ASKED, CHOSEN = "ln separation", "attack success", "chosen change"
CONTRASTS = (
    *(Contrast("KLDO", f"{a.upper()} separates more than {b.upper()}", LN_D,
               (f"{a}, cr", f"{b}, cr"), "above")
      for a, b in (("kldo", "kto"), ("bco", "kto"), ("kto", "dpo"), ("kldo", "dpo"))),
    *(Contrast("KLDO", f"{a.upper()} separates more than the base", LN_D,
               (f"{a}, cr", BASE), "above")
      for a in ("dpo", "kto", "bco", "kldo")),
    *(Contrast("KLDO", f"{a.upper()}: CR data separate more than preference data", LN_D,
               (f"{a}, cr", f"{a}, pref"), "above")
      for a in ("dpo", "kto", "bco", "kldo")),
    *(Contrast("KLDO", f"{a.upper()} is attacked with less success than {b.upper()}", ASKED,
               (f"{a}, cr", f"{b}, cr"), "below")
      for a, b in (("kldo", "kto"), ("bco", "kto"), ("kto", "dpo"), ("kldo", "dpo"))),
    Contrast("E-RLHF", "E-DPO is attacked with less success than DPO", ASKED,
             ("e-dpo, cr", "dpo, cr"), "below"),
    Contrast("E-RLHF", "E-DPO leans further to refusals on harmful prompts", "lean, harmful",
             ("e-dpo, cr", "dpo, cr"), "above", unit="nats a token"),
    Contrast("Entanglement", "under DPO the chosen's log-prob falls", CHOSEN, ("dpo, hh",), "below",
             unit="nats"),
    Contrast("Entanglement", "with the rejected's", "rejected change", ("dpo, hh",), "below",
             unit="nats"),
    Contrast("Ranking", "the base ranks under 60% right", "ranking accuracy", (BASE,), "below", .6),
    Contrast("Ranking", "DPO's model still does", "ranking accuracy", ("dpo, hh",), "below", .6),
    Contrast("Ranking", "and falls short of its optimum", "short of idealized", ("dpo, hh",),
             "above"),
    Contrast("REAL", "dissimilar pairs teach more than random ones", "rewarded right",
             ("dpo, hh dissimilar", "dpo, hh"), "above"),
    Contrast("DIL", "DIL rewards more held-out pairs right than DPO", "rewarded right",
             ("dil, hh", "dpo, hh"), "above"),
    Contrast("DIL", "and than SimPO", "rewarded right", ("dil, hh", "simpo, hh"), "above"),
    Contrast("DIL", "the chosen falls less than under DPO", CHOSEN, ("dil, hh", "dpo, hh"), "above",
             unit="nats"),
    Contrast("DIL", "and than under SimPO", CHOSEN, ("dil, hh", "simpo, hh"), "above", unit="nats"),
)  # fmt: skip
"""Written before any of the seeds 0, 1 and 2 was run (the budget was tried at seed 100, with KLDO
alone). An interval is of the mean over seeds; there are many, and none is corrected."""


@experiment("real text", version=2)
def real_text(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Align by an objective on rows drawn by the seed; measure on rows that no seed trains on."""
    given = run.options
    held_out, rest = rows_of(given["data"], given["held_out"], given["characters"])
    model, options = base_model(), {}
    if given["objective"] != "none":
        examples = chosen_rows(rest, run, folder)
        trainer = train(PLACES["model"], examples, settings(given), folder / "run", seed=run.seed,
                        defaults={})  # fmt: skip
        trainer.scorer.detach()
        model, options = trainer.model.eval(), trainer.args.options()
        shutil.rmtree(folder / "run", ignore_errors=True)
    hh = held_out if given["data"] == "hh" else rows_of("hh", given["held_out"], 0)[0]
    values: dict[str, float | None] = {}
    if given["data"] != "hh":
        values |= safety(model, held_out, given)
    if given["data"] == "hh" or given["objective"] == "none":
        values |= ranked(model, hh, given, options)
    if given["objective"] == "none":
        values |= entangled(model, hh, given)
    return values


def settings(given: Any) -> dict[str, Any]:
    """Of training: all weights, bf16 autocast, a cosine after a short warm-up."""
    return {
        "loss_type": given["objective"],
        "learning_rate": given["learning_rate"],
        "max_steps": given["steps"],
        "per_device_train_batch_size": given["batch"],
        "max_length": given["max_length"],
        "bf16": True,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
    }


@cache
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(PLACES["model"])


@cache
def base_model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(PLACES["model"]).eval()


@cache
def rows_of(kind: str, held_out: int, characters: int) -> tuple[list[Example], list[Example]]:
    """Rows that are measured on and those to train on; the same split whatever the seed. Of the
    paper's kinds half are harmful, and answers are cut, at a blank; HH's are whole and short."""
    loaded = load_examples(PLACES["data"] / FILES[kind], skip_bad=True)
    if kind == "hh":
        found = [example for example in map(as_chat, loaded) if _short(example)]
        random.Random("real text").shuffle(found)
        return found[:held_out], found[held_out:]
    found = [as_chat(_cut(one, characters)) for one in loaded]
    random.Random("real text").shuffle(found)
    sides = [[e for e in found if e.safety == side] for side in ("harmful", "safe")]
    half = held_out // 2
    return sides[0][:half] + sides[1][:half], sides[0][half:] + sides[1][half:]


def _text(completion: Completion) -> str:
    content = completion.content
    return content if isinstance(content, str) else "".join(str(m.content) for m in content)


def _short(example: Example) -> bool:
    """A dialogue of at most 96 tokens, with answers of 5 to 96."""
    lengths = [len(tokenizer()(str(m.content))["input_ids"]) for m in example.prompt]  # type: ignore[union-attr]
    sides = [len(tokenizer()(_text(one))["input_ids"]) for one in example.completions]
    return bool(sum(lengths) <= 96 and min(sides) >= 5 and max(sides) <= 96)


def _cut(example: Example, characters: int) -> Example:
    def short(completion: Completion) -> Completion:
        text = _text(completion)
        if len(text) > characters:
            text = text[:characters].rpartition(" ")[0]
        return replace(completion, content=text)

    return replace(example, completions=tuple(map(short, example.completions)))


def chosen_rows(rest: list[Example], run: Run, folder: Path) -> list[Example]:
    """What an arm trains on: the seed's draw, the dissimilar ones of a larger draw, or the draw
    with the safe prefix on what the reference reads of harmful prompts."""
    given, rows = run.options, run.options["rows"]
    drawn = random.Random(f"real text {run.seed}").sample(rest, POOL * rows)
    if given.get("dissimilar"):
        embed = Cached(PolicyEmbedder(base_model(), tokenizer()), folder / "vectors")
        made = select_pairs(
            load_examples(drawn),
            folder / "selected.jsonl",
            embed,
            size=Size(count=rows),
            seed=run.seed,
        )
        assert made is not None
        return [as_chat(example) for example in load_examples(folder / "selected.jsonl")]
    drawn = drawn[:rows]
    if given.get("prefix"):
        return [
            replace(one, reference_prompt=prefixed(one.prompt, PREFIXES[PREFIX]))
            if one.safety == "harmful"
            else one
            for one in drawn
        ]
    return drawn


@cache
def base_scores(kind: str, held_out: int, characters: int, max_length: int) -> Scores:
    return scores(base_model(), rows_of(kind, held_out, characters)[0], max_length)


def scores(model: Any, examples: Sequence[Example], max_length: int) -> Scores:
    """Log-probs of every answer, under bf16 autocast as in training."""
    with torch.autocast("cpu", torch.bfloat16):
        return score_completions(model, tokenizer(), examples, max_length=max_length)


def safety(model: Any, held_out: Sequence[Example], given: Any) -> dict[str, float | None]:
    """Separation of harmful from safe prompts, leaning, and what the model says."""
    prompts = [example.prompt for example in held_out]
    harmful = [example.safety == "harmful" for example in held_out]
    values = separations(model, tokenizer(), prompts, harmful)  # type: ignore[arg-type]
    for end in ("", ", end of turn"):
        values[LN_D + end] = float(np.log(values[f"separation{end}"]))  # type: ignore[arg-type]
    now = scores(model, held_out, given["max_length"])
    before = base_scores(given["data"], given["held_out"], given["characters"], given["max_length"])
    for kind in ("harmful", "safe"):
        places = [i for i, example in enumerate(held_out) if example.safety == kind]
        each = [_lean(held_out[i], now.log_probs[i], now.lengths[i]) for i in places]
        values[f"lean, {kind}"] = fmean(each)
        values[f"right lean, {kind}"] = fmean(lean > 0 for lean in each)
    values["distance"] = _distance(now, before)
    return values | spoken(model, given["asked"], given["tokens"])


def _lean(example: Example, log_probs: Any, lengths: Any) -> float:
    """Log-probs of the chosen minus the rejected answer, nats a token."""
    (w, l), *_ = example.pairs  # noqa: E741
    return float(log_probs[w] / lengths[w] - log_probs[l] / lengths[l])


def _distance(now: Scores, before: Scores) -> float:
    """How far from the base: mean absolute log-ratio, nats a token."""
    each = zip(now.log_probs, before.log_probs, now.lengths, strict=True)
    return fmean(float(np.mean(np.abs(a - b) / n)) for a, b, n in each)


def spoken(model: Any, asked: int, tokens: int) -> dict[str, float | None]:
    """Attack success on AdvBench and over-refusal on XSTest's safe prompts by the phrase judge;
    and the base's log-prob of what was said, nats a token: babble is unlikely."""
    rows = [row.value for row in read_file(PLACES["data"] / XSTEST)]
    safe = [row["prompt"] for row in rows if row["label"] == "safe"]
    goals = [row.value["goal"] for row in read_file(PLACES["data"] / ADVBENCH)]
    judge = phrases()
    values: dict[str, float | None] = {}
    for name, texts in ((ASKED, goals), ("over-refusal", safe)):
        drawn = random.Random(f"asked {name}").sample(texts, asked)
        prompts = [(Message("user", text),) for text in drawn]
        said = generate(model, tokenizer(), prompts, max_new_tokens=tokens, batch_size=asked)
        verdicts = judge(drawn, [one.answer for one in said])
        event = "asr" if name == ASKED else "over_refusal"
        values[name] = fmean(bool(verdict.event(event)) for verdict in verdicts)  # type: ignore[arg-type]
        likely = [
            Example(prompt, (Completion((Message("assistant", one.answer),)),))
            for prompt, one in zip(prompts, said, strict=True)
            if one.answer.strip()
        ]
        found = scores(base_model(), likely, 512)
        each = [float(a[0] / n[0]) for a, n in zip(found.log_probs, found.lengths, strict=True)]
        values[f"base log-prob of answers, {name}"] = fmean(each)
    return values


def ranked(model: Any, hh: Sequence[Example], given: Any, options: Any) -> dict[str, float | None]:
    """How held-out pairs rank, how far either side moved, and how many are rewarded right."""
    now = scores(model, hh, given["max_length"])
    before = base_scores("hh", given["held_out"], 0, given["max_length"])
    objective = "dpo" if given["objective"] == "none" else given["objective"]
    finding = ranking_of_scores(hh, now, before, objective=objective, options=options)
    values = {m.name.removeprefix("gap/").replace("_", " "): m.value for m in finding.metrics}
    kept = {name: values.get(name) for name in ("ranking accuracy", "idealized", CHOSEN,
                                                "rejected change")}  # fmt: skip
    if kept["idealized"] is not None and kept["ranking accuracy"] is not None:
        kept["short of idealized"] = kept["idealized"] - kept["ranking accuracy"]
    if given["objective"] == "none":
        return kept
    moved = [a - b for a, b in zip(now.log_probs, before.log_probs, strict=True)]
    sides = [(m[w], m[l]) for m, example in zip(moved, hh, strict=True)
             for w, l in example.pairs]  # fmt: skip  # noqa: E741
    kept["rewarded right"] = fmean(float(w > l) for w, l in sides)  # noqa: E741
    kept["both fell"] = fmean(float(w < 0 and l < 0) for w, l in sides)  # noqa: E741
    return {**kept, "distance, hh": _distance(now, before)}


def entangled(model: Any, hh: Sequence[Example], given: Any) -> dict[str, float | None]:
    """Inner products of the base's own gradients, on a few pairs."""
    own = transformers.AutoModelForCausalLM.from_pretrained(PLACES["model"])
    found = entanglement(own, tokenizer(), hh, max_pairs=ENTANGLED, batch_size=4, heat_maps=0,
                         per_layer=False, max_length=given["max_length"])  # fmt: skip
    return {metric.name: metric.value for metric in found.metrics}


def runs_of(arms: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Each seed's arms, before the next seed's; the base, of which there is one, first."""
    first = [Run("real text", {**BUDGET, **ARMS[BASE], "model": NAME}, 0, BASE)]
    return first + [
        Run("real text", {**BUDGET, **ARMS[arm], "model": NAME}, seed, arm)
        for seed in seeds
        for arm in arms
        if arm != BASE
    ]


SHOWN: tuple[dict[str, str], ...] = (
    {
        "separation": "separation",
        ASKED: "AdvBench",
        "over-refusal": "XSTest's safe refused",
        f"base log-prob of answers, {ASKED}": "base's log-prob of answers",
        "distance": "distance",
    },
    {
        CHOSEN: "chosen's change",
        "rejected change": "rejected's",
        "ranking accuracy": "ranked right",
        "rewarded right": "rewarded right",
    },
)
"""Columns of the two tables: of models that were asked, and of models on HH's pairs."""


def found_in(path: Path = KEPT) -> dict[str, dict[int, Values]]:
    """What is kept of this budget's seeds: by arm and seed."""
    found: dict[str, dict[int, Values]] = {}
    if path.exists():
        keys = {run.key: run.title for run in runs_of(list(ARMS), range(100))}
        for row in read_lines(path):
            key = Run("real text", row["options"], row["seed"]).key
            if key in keys and row["version"] == 2:
                found.setdefault(keys[key], {})[row["seed"]] = row["values"]
    return found


def table(path: Path = KEPT) -> str:
    """What is kept: each arm's means over seeds; then each contrast, all with their intervals."""
    found = found_in(path)
    lines: list[str] = []
    for shown in SHOWN:
        lines += [
            "| | Seeds | " + " | ".join(shown.values()) + " |",
            "|---" * (len(shown) + 2) + "|",
        ]
        for arm, seeds in ((arm, found[arm]) for arm in ARMS if arm in found):
            cells = [_cell(name, list(seeds.values())) for name in shown]
            if any(cells):
                lines.append(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |")
        lines.append("")
    collapsed = [f"`{arm}`" for arm, seeds in found.items() if _refuses(list(seeds.values()))]
    if collapsed:
        lines += [f"Over half of the safe prompts are refused by {listed(collapsed)}. What such a "
                  "model does when it is attacked tells nothing of its safety.", ""]  # fmt: skip
    lines += ["| Paper | It says | Measured | Over seeds |", "|---|---|---|---|"]
    for one in CONTRASTS:
        metric = one.of(found)
        if metric.value is not None:
            told = f"{one.shown(metric)} | {one.word(metric)}"
            lines.append(f"| {one.paper} | {one.says} | {told} |")
    return "\n".join(lines)


def _refuses(runs: Sequence[Values]) -> bool:
    each = [value for run in runs if (value := run.get("over-refusal")) is not None]
    return bool(each) and fmean(each) > 0.5


def _cell(name: str, runs: Sequence[Values]) -> str:
    """A value's mean over seeds, with Student's interval where there are several."""
    each = [value for run in runs if (value := run.get(name)) is not None]
    if not each:
        return ""
    metric = mean_metric(name, each, unit="rate" if name in RATES else "")
    if metric.low is None or metric.high is None or metric.low == metric.high:
        return str(replace(metric, low=None, high=None))
    if name in RATES:  # Student's interval knows no bounds; a rate has two
        metric = replace(metric, low=max(metric.low, 0.0), high=min(metric.high, 1.0))
    return str(metric)


PAGE = """\
# On real text

Written by `python tools/paper_claims.py` from kept results; do not edit by hand.

SmolLM2-135M-Instruct, all weights, {steps} steps of {batch} prompts in bf16; the KLDO paper's own
rows (cr, pref), and HH-RLHF's (hh; `python studies/real_text.py`). Measured on {held_out} rows of
either that no seed trains on, and on {asked} prompts each of AdvBench and of XSTest, whose answers
of {tokens} tokens are read by a list of refusal phrases ([beside a fitted judge](judges.md) on
this model's answers). What does not refuse counts as a success, babble too: the base's log-prob of
the answers tells how likely that is. Usefulness was not measured otherwise. Log-probs are in nats;
the base's, of the answers, and the distance from the base are for each token. {done} of {all} arms
are done at three seeds. What each paper has to say was written down before a seed was run; an
interval is of the mean over seeds, and none is corrected for the others. Three seeds of one small
model decide little: read the signs, and which measures move at all.
"""


def done() -> int:
    """Arms that are kept at three seeds; the base, of which there is one run, is not counted."""
    return sum(len(seeds) >= 3 for arm, seeds in found_in().items() if arm != BASE)


def page() -> str:
    """The page of what is kept."""
    return PAGE.format(**BUDGET, done=done(), all=len(ARMS) - 1) + f"\n{table()}\n"


SHORT = """\
## On real text

The papers' main contrasts on SmolLM2-135M-Instruct, {done} of {all} arms at three seeds; not
corrected for their number, and three seeds of a small model decide little. Of {count} contrasts:
{words} ([all of them](real-text.md)).
"""


def short() -> str:
    """The section of the study's page: which contrasts were decided, and how."""
    found = found_in()
    by: dict[str, list[Contrast]] = {}
    for one in CONTRASTS:
        metric = one.of(found)
        if metric.value is not None:
            by.setdefault(one.word(metric), []).append(one)
    count = sum(map(len, by.values()))
    words = ", ".join(f"{len(own)} {word}" for word, own in sorted(by.items()))
    lines = [SHORT.format(done=done(), all=len(ARMS) - 1, count=count, words=words)]
    for word in ("as said", "the other way"):
        papers = {one.paper: [] for one in by.get(word, ())}
        for one in by.get(word, ()):
            papers[one.paper].append(one.says)
        if papers:
            lines += [f"**{word.capitalize()}:**", ""]
            lines += [f"- {paper}: {_together(says)}." for paper, says in papers.items()]
            lines.append("")
    return "\n".join(lines)


def _together(says: Sequence[str]) -> str:
    """Sentences that differ in their objective alone become one."""
    by: dict[str, list[str]] = {}
    for text in says:
        first, _, rest = text.partition(" ")
        by.setdefault(rest if first.strip(":").isupper() else text, []).append(first.strip(":"))
    return "; ".join(
        rest if rest in says else f"{listed(names)}: {rest}" for rest, names in by.items()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name in ("model", "data", "work"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    for name, value in BUDGET.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        PLACES.update(model=given.model, data=given.data)
        BUDGET.update({name: getattr(given, name) for name in BUDGET})
        seeds = range(given.first_seed, given.first_seed + given.seeds)
        failed = 0
        for one in runs_of(given.only, seeds):  # kept after each: what is measured is never lost
            failed += len(perform([one], given.work, jobs=0, tell=print).failed)
            if given.first_seed == 0:  # beside what other machines' runs left
                before = read_lines(KEPT) if KEPT.exists() else []
                write_lines([*before, *results_in(given.work)], KEPT)
    print(table())
    if not given.table and failed:
        raise SystemExit(f"{failed} runs failed; the same command does them again")
