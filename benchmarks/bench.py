"""Measure Trueline against TRL and a plain loop, in alternation, in one process.

    make bench                                             # all of it, into benchmarks/results
    python benchmarks/bench.py throughput --case hh        # one table
    python benchmarks/bench.py throughput --model FOLDER   # a checkpoint, at its own size; --lora
    python benchmarks/bench.py --help

Contenders train Llamas of the same weights on the same pairs, one after another, in an order that
rotates, so that a machine that slows down slows them all; ratios are taken round by round. On a CPU
processor time of one thread counts, on a GPU wall-clock time. Loading, tokenizing and, where it is
precomputed, the reference pass lie outside the throughput. Tokens are words of a word-level
tokenizer, so that lengths are those of the case and the same for all.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from contenders import CONTENDERS, Clock, common
from workload import (
    HH,
    Rows,
    load_model,
    make_model,
    make_rows,
    needed_flops,
    needed_tokens,
    tokenizer_of,
)

RESULTS = Path(__file__).with_name("results")
REAL = ["trueline dpo", "TRL dpo, defaults", "TRL dpo, tuned", "TRL dpo, tuned, sorted"]
"""Who is measured on a checkpoint."""
Options = argparse.Namespace


def model_of(options: Options) -> Any:
    """The checkpoint of --model, else a Llama of --size."""
    if options.model is not None:
        return load_model(options.model, options.device)
    return make_model(options.size, options.vocabulary, options.device)


def rows_of(options: Options, count: int, seed: int) -> Rows:
    return make_rows(options.case, count, options.vocabulary, seed, options.data)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (10th to 90th percentile)."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def matrix_rate(options: Options) -> float:
    """FLOP a second of a plain matrix product in the precision that is trained in."""
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    n = 1024 if options.device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=options.device, dtype=dtype) for _ in range(2))
    clock, rates = Clock(options.device), []
    for _ in range(10):
        begin = clock()
        for _ in range(5):
            a @ b
        rates.append(5 * 2 * n**3 / (clock() - begin))
    return statistics.median(rates)


# --- 1 to 3: training throughput ------------------------------------------------------------------


def alternate(runs: dict[str, Callable[[Rows], float]], options: Options) -> dict[str, Any]:
    """Seconds of each contender in each counted round, and the rounds' pairs and tokens."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    tokens, rates, flops = [], [], []
    model = model_of(options)
    for round_ in range(options.rounds + 1):
        steps = options.steps if round_ else 1  # the first round warms up
        rows = rows_of(options, steps * options.batch, round_)
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            taken = runs[name](rows)
            print(f"round {round_} {name}: {len(rows) / taken:.3f} pairs/s", file=sys.stderr)
            if round_:
                seconds[name].append(taken)
        if round_:
            tokens.append(needed_tokens(rows))
            flops.append(needed_flops(rows, model, lora=options.lora))
            rates.append(matrix_rate(options))
    pairs = options.steps * options.batch
    return {"seconds": seconds, "pairs": pairs, "tokens": tokens, "flops": flops, "rates": rates}


def throughput(options: Options) -> str:
    """Pairs and real tokens a second, memory, and how near the arithmetic's limit."""
    tokenizer = tokenizer_of(options.vocabulary)
    names = options.only or (REAL if options.model is not None else list(CONTENDERS))
    which = options.size if options.model is None else options.model.name
    label = f"throughput-{options.case}-{options.vocabulary}-{options.batch}-{which}"
    label += ("-lora" if options.lora else "") + ("-bf16" if options.bf16 else "")
    if options.apart:
        found = {name: apart(options, [name], rounds=options.rounds) for name in names}
        pairs = options.steps * options.batch
        rounds = [rows_of(options, pairs, i + 1) for i in range(options.rounds)]
        result = {
            "seconds": {name: found[name]["seconds"][name] for name in names},
            "pairs": pairs,
            "tokens": list(map(needed_tokens, rounds)),
        }
        memory = {name: found[name]["peak_gib"] for name in names}
        save(label, {**vars(options), **result, "memory": memory}, options)
        return f"kept: {label}"
    runs = {}
    for name in names:
        model = model_of(options)
        runs[name] = CONTENDERS[name](model, tokenizer, options, name)
    result = alternate(runs, options)
    if options.inner:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if options.device != "cpu":
            peak = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps({"peak_gib": peak, "seconds": result["seconds"]}))
        return ""
    memory = {}
    if not options.no_memory:
        memory = {name: apart(options, [name], rounds=0)["peak_gib"] for name in names}
    save(label, {**vars(options), **result, "memory": memory}, options)
    ours = result["seconds"][names[0]]
    rows = []
    for name in names:
        taken = result["seconds"][name]
        rows.append(
            [
                name,
                spread([result["pairs"] / t for t in taken]),
                spread([n / t for n, t in zip(result["tokens"], taken, strict=True)], 0),
                spread([t / own for t, own in zip(taken, ours, strict=True)]),
                f"{memory[name]:.2f} GiB" if memory else "",
            ]
        )
    header = ["", "pairs/s", "real tokens/s", f"{names[0]} is faster by", "peak memory"]
    parts = zip(result["flops"], ours, result["rates"], strict=True)
    used = spread([flops / (taken * rate) for flops, taken, rate in parts])
    return f"{table(header, rows)}\n\nModel FLOPs utilization of {names[0]}: {used}\n"


def apart(options: Options, names: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """Peak memory (GiB) and seconds of a process of its own: a warm-up step, then the rounds."""
    command = [sys.executable, __file__, "throughput", "--rounds", str(rounds), "--inner"]
    for name in names:
        command += ["--only", name]
    for key in ("case", "batch", "vocabulary", "size", "device", "steps", "data", "model"):
        if getattr(options, key) is not None:
            command += [f"--{key}", str(getattr(options, key))]
    command += [f"--{key}" for key in ("bf16", "lora") if getattr(options, key)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- the shortcuts, each alone --------------------------------------------------------------------


def shortcuts(options: Options) -> str:
    """What each shortcut saves: forward and backward, against padded rows with all logits."""
    from dataclasses import fields

    from trueline.scoring import Scorer, Shortcuts

    names = [field.name for field in fields(Shortcuts)]
    order = ["compact_head", "share", "pack", "chunked_head", "last_layer"]
    assert sorted(names) == sorted(order)
    ladder = {"padded, all logits": Shortcuts(**dict.fromkeys(names, False))}
    on: dict[str, bool] = dict.fromkeys(names, False)
    for name in order:
        on[name] = True
        ladder[f"+ {name}"] = Shortcuts(**on)
    model = model_of(options)
    clock = Clock(options.device)
    trees_of = encoder(options)

    def run(choice: Shortcuts) -> Callable[[Rows], float]:
        def timed(rows: Rows) -> float:
            trees = trees_of(rows)
            scorer = Scorer(model, shortcuts=choice, check=False)
            begin = clock()
            for start in range(0, len(trees), options.batch):
                scorer(trees[start : start + options.batch]).sum().backward()
                model.zero_grad()
            taken = clock() - begin
            scorer.detach()
            return taken

        return timed

    result = alternate({name: run(choice) for name, choice in ladder.items()}, options)
    save("shortcuts", {**vars(options), **result}, options)
    first = result["seconds"]["padded, all logits"]
    rows = [
        [name, spread([a / b for a, b in zip(first, taken, strict=True)])]
        for name, taken in result["seconds"].items()
    ]
    return table(["step (forward and backward)", "faster by"], rows)


def encoder(options: Options) -> Callable[[Rows], list[Any]]:
    """From rows to paired token trees."""
    from trueline import load_examples
    from trueline.batching import Encoder, view

    encode = Encoder(tokenizer_of(options.vocabulary), max_length=2048)

    def trees_of(rows: Rows) -> list[Any]:
        return [tree for e in load_examples(rows) for tree in view(e, encode(e), "paired")]

    return trees_of


# --- 4: slopes ------------------------------------------------------------------------------------


def slopes(options: Options) -> str:
    """Seconds a step against length, batch and vocabulary, and the exponent of the cost."""
    base = {"case": "128+64", "batch": 4, "vocabulary": 32000}
    axes: dict[str, list[Any]] = {
        "case": ["64+32", "128+64", "256+128", "512+256"],
        "batch": [4, 8, 16, 32],
        "vocabulary": [8000, 32000, 128000],
    }
    names = options.only or ["trueline dpo", "TRL dpo, tuned"]
    found, rows = {}, []
    for axis, values in axes.items():
        for value in values:
            point = argparse.Namespace(**{**vars(options), **base, axis: value})
            result = apart(point, names, rounds=options.rounds)
            found[f"{axis} {value}"] = {
                name: statistics.median(taken) / point.steps
                for name, taken in result["seconds"].items()
            }
        sizes = [sum(map(int, v.split("+"))) if axis == "case" else v for v in values]
        for name in names:
            taken = [found[f"{axis} {value}"][name] for value in values]
            exponent = np.polyfit(np.log(sizes), np.log(taken), 1)[0]
            label = "length" if axis == "case" else axis
            rows.append([label, name, *(f"{t:.2f}" for t in taken), f"{exponent:.2f}"])
    save("slopes", {**vars(options), "axes": axes, "seconds": found}, options)
    header = ["along", "", "1st", "2nd", "3rd", "4th", "exponent"]
    rows = [[*row[:-1], *[""] * (7 - len(row)), row[-1]] for row in rows]
    return table(header, rows) + "\n\n" + json.dumps(axes)


# --- 5: the reference pass ------------------------------------------------------------------------


def reference(options: Options) -> str:
    """The reference pass over the same rows: TRL's, ours cold, ours from the cache."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from trueline.models import fingerprint
    from trueline.scoring import Scorer
    from trueline.training.reference import Reference, ReferenceCache

    tokenizer, clock = tokenizer_of(options.vocabulary), Clock(options.device)
    model = model_of(options)
    trees_of = encoder(options)

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            begin = clock()
            try:
                return super()._precompute_ref_logps(*args, **kwargs)
            finally:
                self.taken = clock() - begin

    def trl(rows: Rows) -> float:
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(
                **common(options, folder),
                per_device_train_batch_size=options.batch,
                precompute_ref_log_probs=True,
            )
            data = Dataset.from_list(rows)
            return Timed(model, args=args, train_dataset=data, processing_class=tokenizer).taken

    with tempfile.TemporaryDirectory() as root:
        scorer = Scorer(model)

        def ours(rows: Rows) -> float:
            trees = trees_of(rows)
            begin = clock()
            cache = ReferenceCache(Path(root) / fingerprint(model, "float32"))
            Reference(scorer, cache)(trees)
            cache.flush()
            return clock() - begin

        runs = {"TRL": trl, "trueline, cold": ours, "trueline, cached": ours}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(options.rounds + 1):
            rows = rows_of(options, options.steps * options.batch, round_)
            for name, run in runs.items():  # the second run over the same rows finds them cached
                taken = run(rows)
                if round_:
                    seconds[name].append(taken)
    save("reference", {**vars(options), "seconds": seconds}, options)
    pairs = options.steps * options.batch
    rows_ = [
        [
            name,
            spread([1000 * t / pairs for t in taken], 1),
            spread([a / b for a, b in zip(seconds["TRL"], taken, strict=True)], 1),
        ]
        for name, taken in seconds.items()
    ]
    return table(["reference pass", "ms a pair", "faster than TRL by"], rows_)


# --- 6: start-up ----------------------------------------------------------------------------------


def startup(options: Options) -> str:
    """Wall-clock seconds until something answers: median of a few fresh processes."""
    trl_help = "import sys; sys.argv = ['trl', '--help']; from trl.cli import main; main()"
    commands = {
        "`import trueline`": [sys.executable, "-c", "import trueline"],
        "`from trueline import AlignmentTrainer`": [
            sys.executable,
            "-c",
            "from trueline import AlignmentTrainer",
        ],
        "`from trl import DPOTrainer`": [sys.executable, "-c", "from trl import DPOTrainer"],
        "`trueline --help`": [str(Path(sys.executable).with_name("trueline")), "--help"],
        "`trl --help`": [sys.executable, "-c", trl_help],
        "first step, trueline dpo": _first_step("trueline dpo"),
        "first step, TRL dpo, tuned": _first_step("TRL dpo, tuned"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - begin)
    save("startup", {"seconds": seconds}, options)
    return table(["", "seconds"], [[name, spread(taken)] for name, taken in seconds.items()])


def _first_step(name: str) -> list[str]:
    """A process that trains one step of one pair: imports, loading, reference pass and step."""
    arguments = ["--only", name, "--case", "64+32", "--batch", "1", "--rounds", "0", "--inner"]
    return [sys.executable, __file__, "throughput", *arguments]


# --- results --------------------------------------------------------------------------------------


def save(name: str, value: dict[str, Any], options: Options) -> None:
    """Keep the numbers, with the machine they were measured on."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "device": options.device
        if options.device == "cpu"
        else torch.cuda.get_device_name(options.device),
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**value, "machine": machine}, indent=1, default=str) + "\n")


def plot(options: Options) -> str:
    """One picture of all throughput results: pairs a second by contender and case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [json.loads(p.read_text()) for p in RESULTS.glob("throughput-*.json")]
    found.sort(key=lambda r: (r["case"] != "hh", r["vocabulary"], r["bf16"], r["case"]))
    if not found:
        return "no results to draw; run throughput first"
    figure, axes = pyplot.subplots(
        1, len(found), figsize=(3.6 * len(found), 3.4), layout="constrained", squeeze=False
    )
    for axis, result in zip(axes[0], found, strict=True):
        names = list(result["seconds"])
        rates = [[result["pairs"] / t for t in result["seconds"][n]] for n in names]
        low, middle, high = np.array([np.percentile(r, [10, 50, 90]) for r in rates]).T
        colors = ["#0b6e6e" if n.startswith("trueline") else "#b8b8b8" for n in names]
        axis.barh(names, middle, color=colors)
        axis.errorbar(
            middle, range(len(names)), xerr=[middle - low, high - middle], fmt="none", ecolor="#333"
        )
        axis.invert_yaxis()
        precision = "bf16" if result["bf16"] else "fp32"
        lengths = "HH lengths" if result["case"] == "hh" else f"{result['case']} tokens"
        what = f"{result['vocabulary'] // 1000}k"
        if result.get("model"):
            what = Path(result["model"]).name + (", LoRA" if result["lora"] else "")
        axis.set_title(f"{lengths}, {what}, {precision}", fontsize=9)
        axis.set_xlabel("pairs a second", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    target = RESULTS / "throughput.png"
    figure.savefig(target, dpi=150)
    return f"written: {target}"


MEASURES = {f.__name__: f for f in (throughput, shortcuts, slopes, reference, startup, plot)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--case", default="hh", help="hh, or PROMPT+COMPLETION tokens: 512+64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps a round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--size", choices=("60m", "1b"), default="60m")
    parser.add_argument("--model", type=Path, help="a checkpoint's folder, instead of --size")
    parser.add_argument("--lora", action="store_true", help="train an adapter of rank 16")
    parser.add_argument("--data", type=Path, default=HH, help="HH-RLHF's file, for hh's lengths")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--only", action="append", help="this contender; may be repeated")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument(
        "--apart", action="store_true", help="each contender in a process of its own, in turn"
    )
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is not None:
        options.vocabulary = transformers.AutoConfig.from_pretrained(options.model).vocab_size
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if text := MEASURES[options.measure](options):
        print(text)


if __name__ == "__main__":
    main()
