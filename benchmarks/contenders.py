"""Who is measured: Trueline, TRL at its best and at its defaults, and a plain loop."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from workload import Rows

Run = Callable[[Rows], float]
"""Trains on the rows in one epoch and gives the seconds its steps took.

Each training starts from a copy: a trainer may leave its mark on a model (accelerate's autocast
around its forward method, say), which would change what the next one measures.
"""


class Clock:
    """Processor seconds on a CPU, whatever else runs; wall-clock seconds of a finished GPU."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


class StepClock(transformers.TrainerCallback):
    """Seconds from the first step's begin to the last one's end."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.begin = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = self.clock() - self.begin


def common(options: Any, folder: str) -> dict[str, Any]:
    """What all trainers are told alike."""
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "max_length": 2048,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": options.device == "cpu",
        "bf16": options.bf16,
        "disable_tqdm": True,
    }


def adapter(options: Any) -> Any:
    """The adapter that all contenders train where one is asked for."""
    if not options.lora:
        return None
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def trueline(model: Any, tokenizer: Any, options: Any, name: str) -> Run:
    from trueline import AlignmentConfig, AlignmentTrainer

    def run(rows: Rows) -> float:
        with tempfile.TemporaryDirectory() as folder:
            args = AlignmentConfig(
                **common(options, folder),
                loss_type=name.split()[1].rstrip(","),
                per_device_train_batch_size=options.batch,
                gradient_checkpointing=False,
                reference_cache="none",
            )
            trainer = AlignmentTrainer(
                copy.deepcopy(model),
                args=args,
                train_dataset=rows,
                processing_class=tokenizer,
                peft_config=adapter(options),
            )
            if not trainer.scorer.fast:
                raise SystemExit("the scorer took the plain path; its log says why")
            clock = StepClock(Clock(options.device))
            trainer.add_callback(clock)
            trainer.train()
            return clock.seconds

    return run


def trl_dpo(model: Any, tokenizer: Any, options: Any, name: str) -> Run:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def run(rows: Rows) -> float:
        given: dict[str, Any] = {}
        # by default it runs in every step; under an adapter it is the base
        reference = None if options.lora else copy.deepcopy(model)
        if "defaults" not in name:
            reference = None
            given = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
        if "sorted" in name:
            rows = sorted(rows, key=lambda row: sum(len(text.split()) for text in row.values()))
            given["train_sampling_strategy"] = "sequential"
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(
                **common(options, folder), per_device_train_batch_size=options.batch, **given
            )
            data = Dataset.from_list(rows)
            return _timed(DPOTrainer, model, args, data, tokenizer, options, ref_model=reference)

    return run


def trl_kto(model: Any, tokenizer: Any, options: Any, name: str) -> Run:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    def run(rows: Rows) -> float:
        single = [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for row in rows
            for side in ("chosen", "rejected")
        ]
        with tempfile.TemporaryDirectory() as folder:
            args = KTOConfig(
                **common(options, folder),
                per_device_train_batch_size=2 * options.batch,
                gradient_checkpointing=False,
                precompute_ref_log_probs=True,
            )
            return _timed(KTOTrainer, model, args, Dataset.from_list(single), tokenizer, options)

    return run


def _timed(
    kind: Any, model: Any, args: Any, data: Any, tokenizer: Any, options: Any, **given: Any
) -> float:
    model = copy.deepcopy(model)
    given["peft_config"] = adapter(options)
    trainer = kind(model, args=args, train_dataset=data, processing_class=tokenizer, **given)
    trainer.remove_callback(transformers.PrinterCallback)
    clock = StepClock(Clock(options.device))
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds


def naive(model: Any, tokenizer: Any, options: Any, name: str) -> Run:
    """The loop of a tutorial: pad, run both models over everything, all logits, one DPO loss."""
    if options.lora:
        raise SystemExit("the plain loop trains no adapter; name others with --only")
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    clock = Clock(options.device)

    def sums(network: Any, batch: Any, prompts: torch.Tensor) -> torch.Tensor:
        logits = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        targets = batch.input_ids[:, 1:]
        logps = logits[:, :-1].float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        at = torch.arange(targets.shape[1], device=logps.device)
        scored = (at >= prompts[:, None] - 1) & batch.attention_mask[:, 1:].bool()
        return (logps * scored).sum(-1)

    def run(rows: Rows) -> float:
        begin = clock()
        for start in range(0, len(rows), options.batch):
            part = rows[start : start + options.batch]
            texts = [
                r["prompt"] + r[side] + "</s>" for side in ("chosen", "rejected") for r in part
            ]
            batch = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
            prompts = torch.tensor([len(r["prompt"].split()) + 1 for r in part] * 2)
            prompts = prompts.to(model.device)
            with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
                with torch.no_grad():
                    base = sums(reference, batch, prompts)
                ratio = sums(model, batch, prompts) - base
            chosen, rejected = ratio.chunk(2)
            (-F.logsigmoid(0.1 * (chosen - rejected)).mean()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return clock() - begin

    return run


CONTENDERS: dict[str, Callable[..., Run]] = {
    "trueline dpo": trueline,
    "trueline kldo, exact": trueline,
    "trueline kto, exact": trueline,
    "TRL dpo, defaults": trl_dpo,
    "TRL dpo, tuned": trl_dpo,
    "TRL dpo, tuned, sorted": trl_dpo,
    "TRL kto, tuned": trl_kto,
    "plain loop, dpo": naive,
}
