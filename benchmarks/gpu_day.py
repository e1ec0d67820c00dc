"""The first day on a GPU, in one script: how fast, how full, and what waits for what.

    python benchmarks/gpu_day.py                       # an H200: 1B and 7B shapes, whole and LoRA
    python benchmarks/gpu_day.py --device cpu --sizes tiny --pairs 4    # the same on a CPU, to try

Trueline and TRL, tuned (reference beforehand, no checkpointing where it fits), train the same rows
on models of random weights in bfloat16. For each: pairs a second, the share of the card's own
matrix product, peak memory; and of one profiled step the kernels launched, the host's time, the
waits for the device by name, and whether the variable-length attention ran.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from contenders import Clock
from torch.profiler import ProfilerActivity, profile
from workload import SIZES, make_model, make_rows, needed_flops, tokenizer_of

Options = argparse.Namespace
SIZES["7b"] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
SIZES["tiny"] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
WAITS = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize",
    "aten::_local_scalar_dense", "aten::nonzero", "Memcpy DtoH (Device -> Pageable)",
)  # fmt: skip
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
ATTENTION = ("torch_attn::_varlen_attn", "aten::scaled_dot_product_attention")


class Watch(transformers.TrainerCallback):
    """Seconds of every step after the first two, and a profile of one more at the end."""

    def __init__(self, options: Options, last: int) -> None:
        self.options, self.last = options, last
        self.clock, self.seconds = Clock(options.device), list[float]()
        self.found: dict[str, Any] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin = self.clock()
        if state.global_step == self.last - 1:
            kinds = [ProfilerActivity.CPU]
            kinds += [ProfilerActivity.CUDA] if self.options.device == "cuda" else []
            self.profile = profile(activities=kinds)
            self.profile.__enter__()
            self.host = time.thread_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < self.last:
            self.seconds += [self.clock() - self.begin] if state.global_step > 2 else []
            return
        host = time.thread_time() - self.host
        self.profile.__exit__(None, None, None)
        counts = {event.key: event.count for event in self.profile.key_averages()}
        self.found = {
            "launches": sum(counts.get(name, 0) for name in LAUNCHES),
            "operations": sum(n for name, n in counts.items() if name.startswith("aten::")),
            "host_seconds_profiled": host,
            "waits": {name: counts[name] for name in WAITS if name in counts},
            "attention": {name: counts[name] for name in ATTENTION if name in counts},
        }


def told(options: Options, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "max_steps": options.steps, "max_length": 2048,
        "per_device_train_batch_size": options.pairs, "logging_steps": 1000, "learning_rate": 1e-6,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "bf16": options.device == "cuda", "use_cpu": options.device == "cpu",
        "gradient_checkpointing": options.checkpointing,
    }  # fmt: skip


def adapter(options: Options) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


def trueline(model: Any, tokenizer: Any, rows: Any, lora: bool, options: Options) -> Watch:
    from trueline import AlignmentConfig, AlignmentTrainer

    watch = Watch(options, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        args = AlignmentConfig(
            **told(options, folder),
            max_tokens_per_micro_batch=options.tokens,
            reference_cache="none",
        )
        AlignmentTrainer(
            model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[watch],
            peft_config=adapter(options) if lora else None,
        ).train()  # fmt: skip
    return watch


def trl(model: Any, tokenizer: Any, rows: Any, lora: bool, options: Options) -> Watch:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    watch = Watch(options, options.steps)
    micro = max(1, options.pairs // options.accumulate)
    given = told(options, "") | {"per_device_train_batch_size": micro}
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            **given | {"output_dir": folder}, precompute_ref_log_probs=True,
            gradient_accumulation_steps=options.pairs // micro,
        )  # fmt: skip
        DPOTrainer(
            model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
            callbacks=[watch], peft_config=adapter(options) if lora else None,
        ).train()  # fmt: skip
    return watch


def matrix_rate(device: str) -> float:
    """FLOP a second of a plain matrix product in bfloat16."""
    n = 8192 if device == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock, rates = Clock(device), []
    for _ in range(10):
        begin = clock()
        for _ in range(5):
            a @ b
        rates.append(10 * n**3 / max(clock() - begin, 1e-9))
    return statistics.median(rates)


def measure(
    name: str, run: Callable[..., Watch], size: str, lora: bool, case: str, options: Options
) -> dict[str, Any]:
    """One contender on one shape; what went wrong, where something did."""
    model = make_model(size, options.vocabulary).to(options.device)
    if lora:
        model = model.to(torch.bfloat16)
    rows = make_rows(case, options.pairs * options.steps, options.vocabulary, 1)
    point = {"contender": name, "size": size, "lora": lora, "case": case}
    flops = needed_flops(rows, model) / options.steps * (2 / 3 if lora else 1)
    try:
        watch = run(model, tokenizer_of(options.vocabulary), rows, lora, options)
    except (ImportError, RuntimeError) as error:  # not installed, or out of memory: a result, too
        return point | {"error": str(error).split("\n")[0][:200]}
    taken = statistics.median(watch.seconds)
    peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else None
    used = flops / taken / options.rate
    return point | {"pairs_s": options.pairs / taken, "mfu": used, "peak_gib": peak, **watch.found}


def table(points: list[dict[str, Any]]) -> str:
    lines = [
        "| shape | rows | | pairs/s | of the product | peak GiB | launches | waits | varlen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for p in points:
        shape = f"{p['size']}, {'LoRA' if p['lora'] else 'whole'}"
        if "error" in p:
            lines.append(f"| {shape} | {p['case']} | {p['contender']} | {p['error']} | | | | | |")
            continue
        peak = "" if p["peak_gib"] is None else f"{p['peak_gib']:.1f}"
        varlen = p["attention"].get(ATTENTION[0], 0)
        lines.append(
            f"| {shape} | {p['case']} | {p['contender']} | {p['pairs_s']:.2f} | {p['mfu']:.2f} | "
            f"{peak} | {p['launches']} | {sum(p['waits'].values())} | {varlen} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["1b", "7b"], choices=sorted(SIZES))
    parser.add_argument("--cases", nargs="+", default=["128+128", "64+448", "512+64"])
    parser.add_argument("--pairs", type=int, default=64, help="in an optimizer step")
    parser.add_argument("--steps", type=int, default=8, help="two to warm up, the last profiled")
    parser.add_argument("--tokens", type=int, default=16384, help="in one of Trueline's passes")
    parser.add_argument("--accumulate", type=int, default=8, help="TRL's micro-batches a step")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu-day.json"))
    options = parser.parse_args()
    if options.steps < 4:
        parser.error("--steps must be 4 or more: two warm up, one is timed, one profiled")
    options.rate = matrix_rate(options.device)
    points = []
    for size in options.sizes:
        for lora in (True, False):
            for case in options.cases:
                for name, run in (("Trueline", trueline), ("TRL, tuned", trl)):
                    if options.device == "cuda":
                        torch.cuda.empty_cache()
                        torch.cuda.reset_peak_memory_stats()
                    points.append(measure(name, run, size, lora, case, options))
                    gc.collect()
                    kept = {"rate": options.rate, "torch": torch.__version__, "points": points}
                    options.out.write_text(json.dumps(kept, indent=1))
                    print(table(points[-1:]).splitlines()[-1], flush=True)
    print(table(points))


if __name__ == "__main__":
    main()
