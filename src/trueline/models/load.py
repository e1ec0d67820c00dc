"""Loading the policy, its tokenizer, its adapter and its reference."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from trueline.config import ModelArguments
from trueline.errors import UserError
from trueline.models.precision import slow_bf16
from trueline.terminal import say


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
    _say_if_slow(args.dtype)
    adapter = adapter_settings(name)
    base = name if adapter is None else adapter.base_model_name_or_path
    try:
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    except (OSError, ValueError) as error:
        under = "" if adapter is None else f", the base that the adapter {name!r} names"
        raise UserError(f"cannot load model {base!r}{under}: {_first_line(error)}") from error
    keep_gradients(model)
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, name, is_trainable=True)


def adapter_settings(name: str | None) -> Any | None:
    """The peft configuration of a folder that holds an adapter; None of any other, or a hub id."""
    if name is None or not (Path(name) / "adapter_config.json").is_file():
        return None
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot read the adapter {name!r}: {_first_line(error)}") from error


def merge_adapter(folder: Path, args: ModelArguments) -> Path:
    """Write the model that an adapter folder stands for as plain weights, in ``folder/merged``.

    The base is read again, on the CPU, so that neither a device's memory nor how the weights are
    spread matters, and so that what is merged is what was saved.
    """
    plain = replace(args, model_name_or_path=str(folder), load_in_4bit=False, load_in_8bit=False)
    merged = load_model(plain).merge_and_unload()
    merged.save_pretrained(folder / "merged")
    load_tokenizer(plain).save_pretrained(folder / "merged")
    return folder / "merged"


def check_vocabulary(model: Any, tokenizer: Any, name: str = "the model") -> None:
    """Refuse a tokenizer of another model: one with ids that the model has no embedding for.

    More embeddings than tokens is usual (rounded up), and so is a padding token beyond them, which
    no model reads.

    Raises:
        UserError: an id has no embedding.
    """
    rows = model.get_input_embeddings().num_embeddings
    ids = set(tokenizer.get_vocab().values()) - {tokenizer.pad_token_id}
    beyond = sum(i >= rows for i in ids)
    if beyond:
        raise UserError(
            f"{name} has {rows} token embeddings and the tokenizer {len(ids)} tokens, {beyond} of "
            "them with ids beyond the embeddings: they do not belong together; use the tokenizer "
            "that the model was saved with"
        )


def load_tokenizer(args: ModelArguments) -> Any:
    """The model's tokenizer; for an adapter folder without one, its base's."""
    name: Any = args.model_name_or_path
    adapter = adapter_settings(name)
    if adapter is not None and not list(Path(name).glob("tokenizer*")):
        name = adapter.base_model_name_or_path
    try:
        return AutoTokenizer.from_pretrained(
            name,
            revision=args.model_revision,
            trust_remote_code=args.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the tokenizer of {args.model_name_or_path!r}: {_first_line(error)}"
        ) from error


def sentence_encoder(model: str, *, device: str | None = None) -> Any:
    """A sentence-embedding model (the extra ``embed``). Code that comes with a model is never run.

    Args:
        model: a folder or a hub id.
        device: where it computes; its own choice if None.

    Raises:
        UserError: the extra is missing, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            "a sentence-embedding model needs the extra: pip install 'trueline[embed]'"
        ) from None
    try:
        return SentenceTransformer(model, device=device, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load sentence-embedding model {model!r}: {_first_line(error)}"
        ) from error


def lora_config(args: ModelArguments) -> Any | None:
    """The peft LoRA configuration, or None where all weights are trained or an adapter that
    ``model_name_or_path`` holds is trained further.

    Raises:
        UserError: a quantized base without an adapter, a LoRA option without ``use_peft`` or
            other than the adapter's own.
    """
    quantized = args.load_in_4bit or args.load_in_8bit
    kept = adapter_settings(args.model_name_or_path)
    if args.merge_adapter and not args.use_peft and kept is None:
        raise UserError("merge_adapter: true has no effect without an adapter (use_peft: true)")
    if kept is not None:
        _check_kept(args, kept)
        return None
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


_LORA = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout",
         "use_rslora": "use_rslora", "use_dora": "use_dora",
         "lora_modules_to_save": "modules_to_save"}  # fmt: skip


def _check_kept(args: ModelArguments, kept: Any) -> None:
    """An adapter that is trained further keeps its settings; others are refused, not ignored."""
    defaults = ModelArguments()
    for key, own in _LORA.items():
        given, has = getattr(args, key), getattr(kept, own, None)
        if given not in (getattr(defaults, key), has):
            raise UserError(
                f"{key} is {given}, and the adapter {args.model_name_or_path!r} that is trained "
                f"further has {has}; leave it out, or merge the adapter and train a new one"
            )
    if args.lora_target_modules is not None:
        raise UserError(
            f"lora_target_modules has no effect on {args.model_name_or_path!r}, an adapter that "
            "is trained further; leave it out"
        )


REFERENCE = "reference"
"""The name of an adapter's frozen copy."""


def freeze_copy(model: Any) -> None:
    """Keep the active adapter as it is under the name ``reference``; the base is not copied."""
    active = model.active_adapter
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    model.add_adapter(REFERENCE, copy.deepcopy(model.peft_config[active]))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if f".{REFERENCE}" in name and name not in flags:
                source = parameters[name.replace(f".{REFERENCE}", f".{active}")]
                parameter.data = source.detach().clone()
                parameter.requires_grad_(False)
    model.set_adapter(active)
    for name, flag in flags.items():
        parameters[name].requires_grad_(flag)


@contextlib.contextmanager
def frozen_copy(model: Any) -> Iterator[None]:
    """Inside, the model answers with the adapter that :func:`freeze_copy` kept."""
    active = model.active_adapter
    flags = [(p, p.requires_grad) for p in model.parameters()]
    model.set_adapter(REFERENCE)
    try:
        yield
    finally:
        model.set_adapter(active)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def without_copy(model: Any) -> Iterator[None]:
    """Inside, saving the model leaves out the frozen copy of its adapter."""
    configs = getattr(model, "peft_config", {})
    kept = configs.pop(REFERENCE, None)
    try:
        yield
    finally:
        if kept is not None:
            configs[REFERENCE] = kept


def trained_adapter(model: Any) -> str | None:
    """The active adapter's name where it has been trained: where it is not the identity.

    A new LoRA adapter's second factors are all zero; of other kinds every one counts as trained.
    """
    if not hasattr(model, "peft_config") or not hasattr(model, "active_adapter"):
        return None
    active = str(model.active_adapter)
    second = ("lora_B", "lora_embedding_B")
    named = list(model.named_parameters())
    factors = [p for name, p in named if any(f".{s}.{active}" in name for s in second)]
    if not factors or model.peft_config[active].modules_to_save:
        return active
    return active if any(bool(p.detach().any()) for p in factors) else None


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to 0, attention's included; an adapter's own stays."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout) and ".lora_dropout." not in f".{path}":
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def keep_gradients(model: nn.Module) -> None:
    """Keep four-bit layers in the layout that has a backward.

    bitsandbytes repacks a layer at its first call without gradients on a processor with
    AVX512-BF16, for a faster product that has no backward, and leaves it so: after one evaluation,
    training would go on with other gradients and no more than a warning. Its way back rounds the
    scales, so a model that was repacked before it came here is refused.

    Raises:
        UserError: a layer was repacked before.
    """
    for path, module in model.named_modules():
        if not getattr(module, "support_avx512bf16_for_cpu", False):
            continue
        state = getattr(module.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise UserError(
                f"the four-bit layer {path} was called without gradients before, and bitsandbytes "
                "left it in a layout that has none; load the model anew and train it first"
            )
        module.support_avx512bf16_for_cpu = False


def _say_if_slow(dtype: str) -> None:
    if dtype.removeprefix("torch.") == "bfloat16" and not torch.cuda.is_available():
        line = slow_bf16("dtype: bfloat16", "dtype: float32")
        if line:
            say(line)


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
