"""Loading the policy, its tokenizer, its adapter and its reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from trueline.config import ModelArguments
from trueline.errors import UserError


def load_model(args: ModelArguments, *, name: str | None = None) -> Any:
    """A causal language model from a folder or a hub id.

    Args:
        args: where it is and in which precision; quantized where ``load_in_4bit`` or
            ``load_in_8bit`` says so.
        name: another model with the same settings (the reference).

    Raises:
        UserError: no name, an unreadable folder, a missing extra.
    """
    name = name or args.model_name_or_path
    if name is None:
        raise UserError("model_name_or_path is missing: give a model folder or a hub id")
    options: dict[str, Any] = {
        "revision": args.model_revision,
        "trust_remote_code": args.trust_remote_code,
        "dtype": _dtype(args.dtype),
    }
    if args.attn_implementation is not None:
        options["attn_implementation"] = args.attn_implementation
    if args.load_in_4bit or args.load_in_8bit:
        options["quantization_config"] = _quantization(args)
    try:
        return AutoModelForCausalLM.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load model {name!r}: {_first_line(error)}") from error


def load_tokenizer(args: ModelArguments) -> Any:
    """The model's tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(
            args.model_name_or_path,
            revision=args.model_revision,
            trust_remote_code=args.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the tokenizer of {args.model_name_or_path!r}: {_first_line(error)}"
        ) from error


def lora_config(args: ModelArguments) -> Any | None:
    """The peft LoRA configuration, or None where all weights are trained.

    Raises:
        UserError: a quantized base without an adapter, or a LoRA option without ``use_peft``.
    """
    quantized = args.load_in_4bit or args.load_in_8bit
    if not args.use_peft:
        if quantized:
            raise UserError("quantized weights cannot be trained; add use_peft: true (QLoRA)")
        defaults = ModelArguments()
        for key in ("lora_r", "lora_alpha", "lora_target_modules", "use_rslora", "use_dora"):
            if getattr(args, key) != getattr(defaults, key):
                raise UserError(f"{key} has no effect without use_peft: true")
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules or "all-linear",
        modules_to_save=args.lora_modules_to_save,
        use_rslora=args.use_rslora,
        use_dora=args.use_dora,
        task_type=args.lora_task_type,
    )


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to 0, attention's included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _dtype(name: str) -> Any:
    if name == "auto":
        return name
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"dtype must be auto, float32, bfloat16 or float16, got {name!r}")
    return dtype


def _quantization(args: ModelArguments) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            "load_in_4bit and load_in_8bit need the extra: pip install 'trueline[bitsandbytes]'"
        ) from None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=args.load_in_4bit,
        load_in_8bit=args.load_in_8bit,
        bnb_4bit_quant_type=args.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=args.use_bnb_nested_quant,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
