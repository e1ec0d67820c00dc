"""The whole story on a real model, by Trueline's own commands: each is printed before it runs.

    python examples/real/story.py                       # what `make real` does
    python examples/real/story.py --quick               # the same way, too little to learn anything
    python examples/real/story.py --steps evaluate-kldo compare

A step that is done is not done again, and one that was cut off goes on where it can. All that was
printed is in OUT/log, what came out in OUT/summary.md, OUT/summary.json and OUT/report.html.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from get_model import MissingModel, get_model

HERE = Path(__file__).parent
PAPER = {"cr": "kldo-cr.jsonl.gz", "preference": "kldo-preference.jsonl.gz"}
ADVBENCH, XSTEST = "advbench-harmful_behaviors.csv.gz", "xstest-prompts.csv.gz"
LABELED = tuple(
    f"xstest-completions-{name}.csv.gz"
    for name in ("llama2orig", "mistralguard", "mistralinstruct")
)
"""Other models' answers that people labeled: where they are there, a judge is fitted to them."""
EVALUATED = ("base", "kldo", "dpo", "lora")
FASTER = 1.2
"""So many times as fast must bf16 be to be worth its rounding."""
SPEED = """
import json
import torch
from trueline.models.precision import bf16_speed
speed = None if torch.accelerator.is_available() else bf16_speed()
print(json.dumps({"bf16_times_as_fast": speed}))
"""


class StoryError(Exception):
    """What stops the story, in one line."""


@dataclass(frozen=True)
class Budget:
    """How much is done: optimizer steps, their batch (None: the recipe's), rows, the share held
    out, prompts, tokens, pairs."""

    steps: int | None = None
    batch: int | None = None
    rows: int = 700
    held_out: float = 0.08
    prompts: int = 72
    tokens: int = 48
    pairs: int = 12
    attacks: Sequence[str] = ("direct", "prefill")


FULL = Budget()
QUICK = Budget(
    steps=2, batch=8, rows=24, held_out=0.02, prompts=16, tokens=48, pairs=2, attacks=("direct",)
)


@dataclass(frozen=True)
class Step:
    """One command, by name; ``reads`` are files of the story's own that it depends on."""

    name: str
    command: Sequence[str]
    reads: Sequence[Path] = field(default_factory=tuple)

    @property
    def identity(self) -> str:
        """What it would do: its words, and the content of the recipes among them."""
        digest = hashlib.sha256("\0".join(self.command).encode())
        for file in self.reads:
            digest.update(file.read_bytes())
        return digest.hexdigest()


def trueline(*words: object) -> list[str]:
    return [sys.executable, "-m", "trueline", *map(str, words)]


def story(
    model: Path, data: Path | None, out: Path, budget: Budget, *, bf16: bool | None
) -> Iterator[Step]:
    """All steps, in order; training in bf16 where that is faster."""
    made = out / "data"
    if data is None:
        script = [sys.executable, str(HERE / "make_data.py")]
        yield Step("data", [*script, str(model), str(made), str(budget.rows), str(budget.tokens)])
        benchmarks = [f"table={made / 'held-out.jsonl'},label=held-out"]
    else:
        against = [f"--against={data / name}" for name in (ADVBENCH, XSTEST)]
        for name, file in PAPER.items():
            options = (
                "--form",
                "kldo",
                "--to",
                "kldo",
                "--skip-bad",
                "--by",
                "prompt",
                "--near",
                0.8,
            )
            clean = made / f"{name}.jsonl"
            yield Step(
                f"clean-{name}",
                trueline("data", "dedup", data / file, clean, *options, *against, "--overwrite"),
            )
        benchmarks = [f"advbench={data / ADVBENCH}", f"xstest={data / XSTEST}"]
    for name in PAPER:
        clean = made / f"{name}.jsonl"
        form = "kldo" if data else "preference"
        share = ("--test-size", budget.held_out, "--near", 0.8, "--to", form)
        yield Step(
            f"split-{name}",
            trueline("data", "split", clean, made / name, *share, "--overwrite"),
        )
        train = made / name / "train.jsonl"
        yield Step(f"inspect-{name}", trueline("data", "inspect", train, "--model", model))
    yield from _training(model, made, out, budget, bf16)
    for name in EVALUATED:
        yield _evaluation(name, model, benchmarks, out, budget)
    judged = [out / "evaluate" / name for name in EVALUATED]
    if data is not None and all((data / name).is_file() for name in LABELED):
        files, fitted = [data / name for name in LABELED], out / "judge.json"
        words = ("calibrate-judge", *files, "--columns", "xstest", "--fit", fitted)
        yield Step("fit-judge", trueline(*words))
        yield Step("judge", trueline("judge", *judged, "--judge", f"learned={fitted}"))
    yield Step("compare", trueline("compare", *judged, "--output", out / "comparison"))
    runs = [out / "kldo", out / "dpo", out / "dpo-lora", *judged]
    yield Step("report", trueline("report", *runs, "--out", out / "report.html"))


def _training(model: Path, made: Path, out: Path, budget: Budget, bf16: bool) -> Iterator[Step]:
    """KLDO, DPO, and DPO on an adapter that SFT left; each diagnosed; the last is merged too."""
    plan = [
        ("kldo", "cr", model),
        ("dpo", "preference", model),
        ("sft-lora", "preference", model),
        ("dpo-lora", "preference", out / "sft-lora"),
    ]
    for name, source, start in plan:
        recipe = HERE / f"{name}.yaml"
        options: list[object] = ["--config", recipe, "--model_name_or_path", start]
        options += ["--dataset_name", made / source / "train.jsonl"]
        options += ["--eval_dataset_name", made / source / "test.jsonl"]
        options += ["--max_samples", budget.rows, "--output_dir", out / name]
        if bf16 is not None:
            options += ["--bf16", str(bf16).lower()]
        if budget.steps is not None:
            options += ["--max_steps", budget.steps]
        if budget.batch is not None:
            options += ["--per_device_train_batch_size", budget.batch]
        yield Step(name, trueline("align", *options), (recipe,))
        if name != "sft-lora":
            limits = ("--limit", 4 * budget.pairs, "--max-pairs", budget.pairs)
            words = ("diagnose", "all", "--run", out / name, *limits)
            yield Step(f"diagnose-{name}", trueline(*words))
    script = [sys.executable, str(HERE / "check_outputs.py"), str(model)]
    yield Step("check", [*script, *(str(out / name) for name in ("kldo", "dpo", "dpo-lora"))])


def _evaluation(
    name: str, model: Path, benchmarks: Sequence[str], out: Path, budget: Budget
) -> Step:
    words: list[object] = ["evaluate", "--model", _folder(name, model, out)]
    words += [part for benchmark in benchmarks for part in ("--benchmark", benchmark)]
    words += [part for attack in budget.attacks for part in ("--attack", attack)]
    words += ["--judge", "phrases", "--limit", budget.prompts]
    words += ["--max-new-tokens", budget.tokens]
    if name != "base":
        words += ["--utility", f"kl={model},max_new_tokens={budget.tokens // 2}"]
    words += ["--output", out / "evaluate" / name]
    return Step(f"evaluate-{name}", trueline(*words))


def _folder(name: str, model: Path, out: Path) -> Path:
    """Where an evaluated model is."""
    return {"base": model, "lora": out / "dpo-lora" / "merged"}.get(name, out / name)


def precision(out: Path) -> bool | None:
    """Whether this processor multiplies faster in bf16; asked once, so that a story stays one.

    None where there is a GPU, where `trueline align` decides by itself. Asked in a process of its
    own: this one stays small beside the steps."""
    kept = out / "precision.json"
    if not kept.is_file():
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(subprocess.check_output([sys.executable, "-c", SPEED], text=True), "utf-8")
    speed = json.loads(kept.read_text("utf-8"))["bf16_times_as_fast"]
    return None if speed is None else speed > FASTER


def run(step: Step, out: Path) -> None:
    """Do the step unless it is done; its output goes to the terminal and to its log.

    Raises:
        StoryError: the command failed, or the folder holds another story's step.
    """
    marker = out / "steps" / f"{step.name}.json"
    if marker.is_file():
        done = json.loads(marker.read_text("utf-8"))
        if done["identity"] != step.identity:
            raise StoryError(
                f"{out} holds a story whose step {step.name!r} was another one; take another "
                "folder (OUT=...), or remove this one"
            )
        print(f"--- {step.name}: done before, {done['seconds']:.0f} s", flush=True)
        return
    command = list(step.command)
    if "align" in command and any((out / step.name).glob("checkpoint-*")):
        command.append("--resume")
    print(f"--- {step.name}: {' '.join(command)}", flush=True)
    begin, used = time.monotonic(), _processor_time()
    log = out / "log" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
    ):
        for text in _lines(process):
            file.write(text)
            print(text, end="", flush=True)
    if process.returncode:
        raise StoryError(
            f"step {step.name!r} ended with {process.returncode}; its output is in {log}, and the "
            "same command goes on from there"
        )
    kept = {
        "identity": step.identity,
        "seconds": time.monotonic() - begin,
        "processor_seconds": _processor_time() - used,
        "command": command,
    }
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """What a command prints until it ends. An interrupt is the command's own to answer: it got it
    too, and may be saving a checkpoint."""
    assert process.stdout is not None
    while True:
        try:
            line = process.stdout.readline()
        except KeyboardInterrupt:
            continue
        if not line:
            return
        yield line.decode("utf-8", "replace")


def _processor_time() -> float:
    """Seconds that ended commands spent on processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def outcome(out: Path) -> dict[str, Any]:
    """Every rate of every model as it came out, and how long each step took: numbers alone."""
    rates: dict[str, dict[str, Any]] = {}
    for name in EVALUATED:
        file = out / "evaluate" / name / "findings.json"
        for finding in json.loads(file.read_text("utf-8")) if file.is_file() else []:
            judge = finding["name"].removeprefix("judged by ")
            by = "" if judge in (finding["name"], "phrases") else f", by {judge}"
            for metric in finding["metrics"]:
                told = {key: metric[key] for key in KNOWN if key in metric}
                row = rates.setdefault(metric["name"] + by, {})
                if name in row:  # as another finding calls its own, too
                    row = rates.setdefault(f"{metric['name']} ({finding['name']})", {})
                row[name] = told
    steps = sorted((out / "steps").glob("*.json"), key=lambda path: path.stat().st_mtime)
    took = {path.stem: json.loads(path.read_text("utf-8")) for path in steps}
    return {
        "models": [name for name in EVALUATED if any(name in column for column in rates.values())],
        "rates": rates,
        "seconds": {name: round(step["seconds"]) for name, step in took.items()},
        "processor_seconds": {
            name: round(step["processor_seconds"])
            for name, step in took.items()
            if "processor_seconds" in step
        },
        "processors": os.cpu_count(),
    }


def summary(told: dict[str, Any]) -> str:
    """The outcome as a table."""
    lines = ["| | " + " | ".join(told["models"]) + " |", "|---" * (len(told["models"]) + 1) + "|"]
    for row, columns in told["rates"].items():
        cells = (_said(columns[name]) if name in columns else "" for name in told["models"])
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    minutes = sum(told["seconds"].values()) / 60
    busy = sum(told["processor_seconds"].values()) / 60
    each = ", ".join(f"{name} {seconds}" for name, seconds in told["seconds"].items())
    time = f"{minutes:.0f} minutes, {busy:.0f} of processor time (seconds: {each})"
    return "\n".join([*lines, "", time, ""])


KNOWN = ("name", "value", "low", "high", "n", "unit")


def _said(metric: dict[str, Any]) -> str:
    from trueline.results import Metric

    return str(Metric(**metric))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a model's folder, instead of SmolLM2")
    parser.add_argument("--data", type=Path, help="a folder with the paper's data; else made here")
    parser.add_argument("--out", type=Path, help="runs/real, or runs/real-quick")
    parser.add_argument(
        "--quick", action="store_true", help="the same way, too little to learn anything"
    )
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="only these, by name")
    given = parser.parse_args()
    out = given.out or Path("runs/real-quick" if given.quick else "runs/real")
    try:
        model = given.model or get_model()
        data, budget = _data(given.data), QUICK if given.quick else FULL
        steps = list(story(model, data, out, budget, bf16=precision(out)))
        names = [step.name for step in steps]
        for name in given.steps or ():
            if name not in names:
                raise StoryError(f"no step {name!r}; there are {', '.join(names)}")
        for step in steps:
            if given.steps is None or step.name in given.steps:
                run(step, out)
    except (StoryError, MissingModel) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    told = outcome(out)
    text = summary(told)
    (out / "summary.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    (out / "summary.md").write_text(text, "utf-8")
    print(f"\n{text}\nreport: {out / 'report.html'}")


def _data(folder: Path | None) -> Path | None:
    """The folder, where all files of it are there; None where none is named.

    Raises:
        StoryError: a file is missing.
    """
    if folder is None:
        return None
    missing = [
        name for name in (*PAPER.values(), ADVBENCH, XSTEST) if not (folder / name).is_file()
    ]
    if missing:
        raise StoryError(
            f"{folder} has no {', '.join(missing)}; leave DATA out to make data instead"
        )
    return folder


if __name__ == "__main__":
    main()
