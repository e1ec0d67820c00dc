"""Training throughput against TRL, in alternation, in one process.

    make bench                                      # the table of docs/performance.md
    python benchmarks/bench.py --case hh --rounds 5

Every contender trains a Llama of the same shape on the same pairs, a few optimizer steps a round,
one after another, in an order that rotates, so that a machine that slows down slows them all. What
counts is processor time (`time.process_time`, one thread) between the first step's start and the
last one's end; loading, tokenizing and the reference pass are outside. Ratios are taken round by
round. Peak memory is each contender's own process's. Tokens are words of a word-level tokenizer, so
that lengths are exactly those of the case and the same for all.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HH = Path("../shared/data/hh-rlhf-harmless-base-test.jsonl.gz")
STEPS = 2


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word: w0 w1 w2 ..."""
    words = {"<s>": 0, "</s>": 1, "<pad>": 2}
    words |= {f"w{i}": i for i in range(3, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def lengths(case: str, seed: int) -> Iterator[tuple[int, int, int]]:
    """(prompt, chosen, rejected) token counts, at most 512 together."""
    if case != "hh":
        prompt, completion = map(int, case.split("+"))
        while True:
            yield prompt, completion, completion
    from trueline import load_examples

    rows = list(load_examples(HH, skip_bad=True))
    rng = np.random.default_rng(seed)
    for index in rng.permutation(len(rows)):
        example = rows[index]
        # 4.1 characters a token: a byte-level BPE of 32k trained on this text
        prompt = sum(len(m.content) + 12 for m in example.prompt) / 4.1
        sides = [sum(len(m.content) for m in c.content) / 4.1 for c in example.completions]
        chosen, rejected = (int(min(max(side, 2), 250)) for side in sides)
        yield int(min(max(prompt, 4), 508 - max(chosen, rejected))), chosen, rejected


def make_rows(case: str, count: int, vocabulary: int, seed: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)

    def words(n: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(3, vocabulary, n)) + " "

    rows = []
    for _, (prompt, chosen, rejected) in zip(range(count), lengths(case, seed), strict=False):
        sides = {"chosen": words(chosen - 1), "rejected": words(rejected - 1)}
        rows.append({"prompt": words(prompt - 1), **sides})
    return rows


class StepClock(transformers.TrainerCallback):
    """Processor seconds from the first step's begin to the last one's end."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.begin = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.process_time() - self.begin


def common(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": STEPS,
        "max_length": 1024,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": options.bf16,
        "disable_tqdm": True,
    }


Run = Callable[[list[dict[str, str]]], float]


def trueline_run(model: Any, tokenizer: Any, options: argparse.Namespace, name: str) -> Run:
    from trueline import AlignmentConfig, AlignmentTrainer

    objective = name.partition(" ")[2] or "dpo"

    def run(rows: list[dict[str, str]]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            trainer = AlignmentTrainer(
                model,
                args=AlignmentConfig(
                    **common(options, folder),
                    loss_type=objective,
                    per_device_train_batch_size=options.batch,
                    gradient_checkpointing=False,
                    reference_cache="none",
                ),
                train_dataset=rows,
                processing_class=tokenizer,
            )
            clock = StepClock()
            trainer.add_callback(clock)
            trainer.train()
            trainer.scorer.detach()
            return clock.seconds

    return run


def trl_run(model: Any, tokenizer: Any, options: argparse.Namespace, name: str) -> Run:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def run(rows: list[dict[str, str]]) -> float:
        if "sorted" in name:
            rows = sorted(rows, key=lambda row: sum(len(text.split()) for text in row.values()))
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(
                **common(options, folder),
                per_device_train_batch_size=options.batch,
                gradient_checkpointing="default" in name,
                precompute_ref_log_probs=True,
                train_sampling_strategy="sequential" if "sorted" in name else "random",
            )
            trainer = DPOTrainer(
                model,
                args=args,
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
            )
            trainer.remove_callback(transformers.PrinterCallback)
            clock = StepClock()
            trainer.add_callback(clock)
            trainer.train()
            return clock.seconds

    return run


CONTENDERS: dict[str, Callable[..., Run]] = {
    "trueline dpo": trueline_run,
    "trueline kldo": trueline_run,
    "trueline kto": trueline_run,
    "trl dpo, defaults": trl_run,
    "trl dpo, tuned": trl_run,
    "trl dpo, tuned, sorted": trl_run,
}


def make_model(options: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def matrix_rate() -> float:
    """FLOP a processor second of a plain float32 matrix product on one thread."""
    a, b = torch.randn(1024, 512), torch.randn(512, 1376)
    rates = []
    for _ in range(20):
        begin = time.process_time()
        for _ in range(10):
            a @ b
        rates.append(10 * 2 * 1024 * 512 * 1376 / (time.process_time() - begin))
    return statistics.median(rates)


def needed_flops(rows: list[dict[str, str]], model: LlamaForCausalLM) -> float:
    """6 FLOP a weight and token: body on prompt once and both answers, head on scored tokens;
    attention's products left out, so that the utilization is on the low side."""
    embedding = model.get_input_embeddings().weight.numel()
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters()) - embedding - head
    total = 0.0
    for row in rows:
        prompt, chosen, rejected = (
            len(row[k].split()) + 1 for k in ("prompt", "chosen", "rejected")
        )
        total += 6 * body * (prompt + chosen + rejected - 2) + 6 * head * (chosen + rejected)
    return total


def bench(options: argparse.Namespace) -> dict[str, Any]:
    tokenizer = tokenizer_of(options.vocabulary)
    names = [n for n in CONTENDERS if not options.only or n in options.only]
    contenders = {n: CONTENDERS[n](make_model(options), tokenizer, options, n) for n in names}
    speed: dict[str, list[float]] = {name: [] for name in names}
    utilization: list[float] = []
    for round_ in range(options.rounds + 1):
        rows = make_rows(options.case, STEPS * options.batch, options.vocabulary, round_)
        order = names[round_ % len(names) :] + names[: round_ % len(names)]
        for name in order:
            seconds = contenders[name](rows)
            if round_:  # the first round warms up
                speed[name].append(len(rows) / seconds)
                if name == "trueline dpo":
                    done = needed_flops(rows, make_model(options)) / seconds
                    utilization.append(done / matrix_rate())
            print(f"round {round_} {name}: {len(rows) / seconds:.3f} pairs/s", file=sys.stderr)
    return {"case": options.case, "speed": speed, "utilization": utilization}


def spread(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def table(result: dict[str, Any], memory: dict[str, float]) -> str:
    ours = result["speed"].get("trueline dpo")
    lines = [
        "| | pairs per processor second | `trueline dpo` is faster by | peak memory |",
        "|---|---|---|---|",
    ]
    for name, values in result["speed"].items():
        ratio = spread([a / b for a, b in zip(ours, values, strict=True)]) if ours else ""
        peak = f"{memory[name]:.2f} GiB" if name in memory else ""
        lines.append(f"| {name} | {spread(values)} | {ratio} | {peak} |")
    if result["utilization"]:
        lines.append(
            f"\nModel FLOPs utilization of `trueline dpo`: {spread(result['utilization'])}"
        )
    return "\n".join(lines)


def peak_memory(options: argparse.Namespace, name: str) -> float:
    """GiB of a process of its own that trains one warm-up and one round."""
    command = [sys.executable, __file__, "--case", options.case, "--only", name, "--rounds", "1"]
    command += ["--batch", str(options.batch), "--vocabulary", str(options.vocabulary), "--json"]
    command += ["--bf16"] if options.bf16 else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_gib"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--case", default="hh", help="hh, or PROMPT+COMPLETION tokens: 512+64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--only", action="append", help="this contender; may be repeated")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    result = bench(options)
    if options.json:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**result, "peak_gib": peak}))
        return
    names = [] if options.no_memory else list(result["speed"])
    print(table(result, {name: peak_memory(options, name) for name in names}))


if __name__ == "__main__":
    main()
