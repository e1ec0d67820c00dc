"""What each number of a configuration may be: ours, transformers' and peft's.

Libraries take a negative rate, a NaN or a batch of nothing as they come, and fail much later or not
at all. Every number is checked here when a configuration is made. One that is not listed must be
finite and not negative, so that a key which comes with a later release is not taken as it comes.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any

from trueline.errors import UserError
from trueline.options import Range

COUNT, AMOUNT, POSITIVE = Range(1), Range(0), Range(0, open="low")
SHARE, SEED = Range(0, 1), Range(0, 2**32 - 1, open="neither")

RANGES: Mapping[str, Range] = {
    **dict.fromkeys(
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
        "save_total_limit max_samples max_prompt_length max_tokens_per_micro_batch lora_r "
        "entanglement_pairs answers_prompts answers_tokens dataset_num_proc streaming_buffer "
        "torch_empty_cache_steps eval_accumulation_steps dataloader_prefetch_factor ddp_timeout "
        "ddp_bucket_cap_mb".split(),
        COUNT,
    ),
    **dict.fromkeys(
        "num_train_epochs lora_alpha logging_steps eval_steps save_steps adam_epsilon "
        "neftune_noise_alpha token_mask_learning_rate".split(),
        POSITIVE,
    ),
    **dict.fromkeys("test_size adam_beta1 adam_beta2 lora_dropout".split(), SHARE),
    "max_length": Range(2),
    "max_steps": Range(-1),
    "local_rank": Range(-1),
    "seed": SEED,
    "data_seed": SEED,
    "label_smoothing_factor": Range(0, 1),
}
"""By key; ``max_steps: -1`` leaves the length to ``num_train_epochs``."""

ELSEWHERE = {"beta", "label_smoothing", "desirable_weight", "undesirable_weight", "simpo_gamma"}
"""Options of objectives: their own signatures say what they may be."""


def check_ranges(config: Any, own: Mapping[str, Range] | None = None) -> None:
    """Check every number of a configuration's dataclass, by its own ranges before the common ones.

    Raises:
        UserError: ``key must be >= 1, got 0``.
    """
    for field in dataclasses.fields(config):
        if not field.init or field.name in ELSEWHERE:
            continue
        value = getattr(config, field.name)
        values = value if isinstance(value, list) else [value]
        bounds = {**RANGES, **(own or {})}.get(field.name, AMOUNT)
        for number in values:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not math.isfinite(number) or number not in bounds:
                raise UserError(f"{field.name} must be a number {bounds}, got {number}")
    steps = getattr(config, "max_steps", None)
    if steps == 0:
        raise UserError("max_steps must be 1 or more, or -1 to train num_train_epochs; got 0")


def numeric_keys(config: type[Any]) -> dict[str, bool]:
    """The keys of a configuration that take a number, and whether it has to be whole."""
    hints = typing.get_type_hints(config)
    found: dict[str, bool] = {}
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        kinds = set(typing.get_args(hint)) if _is_union(hint) else {hint}
        if field.init and kinds & {int, float}:
            found[field.name] = float not in kinds
    return found


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, UnionType)
