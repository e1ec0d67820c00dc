"""Models: loaded with their adapters, told apart by their weights, in the precision asked for."""

from trueline.models.load import (
    REFERENCE,
    check_vocabulary,
    disable_dropout,
    freeze_copy,
    frozen_copy,
    keep_gradients,
    load_model,
    load_tokenizer,
    lora_config,
    merge_adapter,
    sentence_encoder,
    trained_adapter,
    without_copy,
)

__all__ = [
    "REFERENCE",
    "check_vocabulary",
    "disable_dropout",
    "freeze_copy",
    "frozen_copy",
    "keep_gradients",
    "load_model",
    "load_tokenizer",
    "lora_config",
    "merge_adapter",
    "sentence_encoder",
    "trained_adapter",
    "without_copy",
]
