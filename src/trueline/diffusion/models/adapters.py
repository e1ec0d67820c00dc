"""LoRA adapters on a denoiser: put on, switched off for the reference, kept, and read back.

What is kept holds the rank, alpha and targets beside the weights: without them a reader takes
alpha for the rank, and has another model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trueline.errors import UserError
from trueline.files import whole

log = logging.getLogger(__name__)

WEIGHTS = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FACTS = ("r", "lora_alpha", "target_modules", "lora_dropout", "bias", "use_rslora", "use_dora")
"""What an adapter is beside its weights; few, so that another version of peft reads them."""


def add_adapter(
    denoiser: Any,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: Sequence[str],
    seed: int,
) -> None:
    """Freeze a denoiser and put a fresh LoRA adapter on it, float32, drawn from the seed alone.

    Raises:
        UserError: no module has one of the targets' names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    denoiser.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        init_lora_weights="gaussian",
        target_modules=list(targets),
    )
    try:
        with torch.random.fork_rng(_devices(denoiser)):
            torch.manual_seed(seed)
            if in_diffusers(denoiser):
                denoiser.add_adapter(config)
            else:
                inject_adapter_in_model(config, denoiser)
    except ValueError as error:
        raise UserError(f"lora_target_modules: {str(error).splitlines()[0]}") from None
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def adapter_off(denoiser: Any) -> Iterator[None]:
    """The denoiser as it was without its adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in denoiser.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapter(pipeline: Any, component: str, folder: str | Path) -> None:
    """Write the adapter as ``load_lora_weights`` of diffusers reads it or, where diffusers has no
    adapters for this model, as ``PeftModel.from_pretrained`` of peft does."""
    from peft import get_peft_model_state_dict

    denoiser = getattr(pipeline, component)
    weights = {k: v.cpu().contiguous() for k, v in get_peft_model_state_dict(denoiser).items()}
    if not in_diffusers(denoiser):
        from safetensors.torch import save_file

        config = denoiser.peft_config["default"]
        config.target_modules = sorted(config.target_modules)
        config.save_pretrained(folder)
        named = {f"base_model.model.{name}": tensor for name, tensor in weights.items()}
        save_file(named, Path(folder) / PEFT_WEIGHTS, metadata={"format": "pt"})
        return
    part = "unet" if component == "unet" else "transformer"
    given: dict[str, Any] = {
        f"{part}_lora_layers": weights,
        f"{part}_lora_adapter_metadata": _facts(denoiser),
    }
    type(pipeline).save_lora_weights(folder, **given)
    _in_order(Path(folder) / WEIGHTS)


def save_kohya(denoiser: Any, folder: str | Path) -> None:
    """Write a UNet's adapter into the folder's ``kohya``, in the format of kohya's scripts, which
    other programs read; with its own alpha, where diffusers' conversion writes the rank."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    alpha = torch.tensor(float(denoiser.peft_config["default"].lora_alpha))
    named: dict[str, torch.Tensor] = {}
    for name, tensor in get_peft_model_state_dict(denoiser).items():
        module, side, _ = name.rsplit(".", 2)
        key = f"lora_unet_{module.replace('.', '_')}"
        part = {"lora_A": "lora_down", "lora_B": "lora_up"}[side]
        named[f"{key}.{part}.weight"] = tensor.cpu().contiguous()
        named[f"{key}.alpha"] = alpha.clone()
    target = Path(folder) / "kohya"
    target.mkdir(parents=True, exist_ok=True)
    save_file(named, target / WEIGHTS)


def load_adapter(pipeline: Any, component: str, folder: str | Path) -> None:
    """Put on what :func:`save_adapter` wrote, or any LoRA that diffusers reads."""
    if not (Path(folder) / PEFT_CONFIG).exists():
        if not _says_alpha(Path(folder) / WEIGHTS):
            log.warning(
                "%s does not say its alpha, and is read as if it were its rank; if it was trained "
                "with another, this is another model than the one that was trained", folder,
            )  # fmt: skip
        pipeline.load_lora_weights(str(folder))
        return
    from peft import PeftModel

    denoiser = PeftModel.from_pretrained(getattr(pipeline, component), str(folder))
    pipeline.register_modules(**{component: denoiser.get_base_model()})


def _in_order(file: Path) -> None:
    """Sort a safetensors file's notes, which are written in an order of each process's own: the
    same weights are the same file."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    notes = header.get("__metadata__", {})
    header["__metadata__"] = dict(sorted(notes.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with whole(file) as part:
        part.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def in_diffusers(denoiser: Any) -> bool:
    """Whether diffusers itself gives this kind of model adapters."""
    return hasattr(denoiser, "add_adapter")


def _says_alpha(file: Path) -> bool:
    from safetensors import safe_open

    if not file.exists():
        return True  # another name, another convention: diffusers knows those that there are
    with safe_open(file, framework="pt") as held:
        names = list(held.keys())
        return "lora_adapter_metadata" in (held.metadata() or {}) or any(
            name.endswith(".alpha") for name in names
        )


def _facts(denoiser: Any) -> Mapping[str, Any]:
    config = denoiser.peft_config["default"]
    facts = {name: getattr(config, name) for name in FACTS}
    return facts | {"target_modules": sorted(facts["target_modules"])}  # a set has no order


def _devices(denoiser: Any) -> list[torch.device]:
    device = next(denoiser.parameters()).device
    return [device] if device.type == "cuda" else []
