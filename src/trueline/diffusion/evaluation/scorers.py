"""Scorers of pictures: each takes pictures and captions and gives one number a picture.

A scorer is named on the command line with where its weights lie, by hub id or path:

    pickscore    clip=openai/clip-vit-large-patch14    aesthetics=weights.pth    my_package.mine:f
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trueline.diffusion.data.images import pillow, to_pixels
from trueline.diffusion.evaluation.image_reward import (
    MAX_TOKENS,
    ImageRewardModel,
    released_configs,
)
from trueline.errors import UserError
from trueline.evaluation.plugins import Plugin, parse_spec, register
from trueline.registry import Registry

Score: TypeAlias = Callable[[Sequence[Any], Sequence[str]], list[float]]

SCORERS: Registry[Plugin[Score]] = Registry("picture scorer")

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_L = "openai/clip-vit-large-patch14"
BATCH = 16


def make_scorer(text: str, device: str | torch.device = "cpu") -> tuple[str, Score]:
    """A scorer's name and function from one line of the command line.

    Raises:
        UserError: an unknown scorer or option, weights that cannot be read.
    """
    if ":" in text and "=" not in text:
        return text, _own(text)
    spec = parse_spec(text)
    found = SCORERS[spec.name](spec.main, **{**spec.options, "device": str(device)})
    return spec.label, found


def _own(path: str) -> Score:
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise UserError(f"scorer {path!r} is not written as my_package.module:function")
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UserError(f"scorer {path!r} cannot be imported: {error}") from None
    if not callable(function):
        raise UserError(f"scorer {path!r}: module {module!r} has no function {name!r}")
    return function


@register(SCORERS, "pickscore")
def pickscore(
    model: str = "yuvalkirstain/PickScore_v1",
    *,
    tokenizer: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    device: str = "cpu",
) -> Score:
    """PickScore: a CLIP tuned on Pick-a-Pic; its scaled cosine of picture and caption."""
    return partial(_clip_scores, *_clip(model, tokenizer, device), None)


@register(SCORERS, "clip")
def clip(model: str = CLIP_L, *, tokenizer: str | None = None, device: str = "cpu") -> Score:
    """CLIP score: 100 times the cosine of picture and caption."""
    return partial(_clip_scores, *_clip(model, tokenizer or model, device), 100.0)


@register(SCORERS, "hpsv2")
def hpsv2(model: str, *, tokenizer: str | None = None, device: str = "cpu") -> Score:
    """HPSv2: a CLIP ViT-H tuned on human preferences, in transformers' format; its cosine."""
    return partial(_clip_scores, *_clip(model, tokenizer or model, device), 1.0)


@register(SCORERS, "aesthetics")
def aesthetics(weights: str, *, clip: str = CLIP_L, device: str = "cpu") -> Score:
    """LAION's improved aesthetics predictor over CLIP ViT-L/14; the caption is not read."""
    model, _ = _clip(clip, None, device)
    head = aesthetics_head(model.config.projection_dim)
    try:
        head.load_state_dict(
            {name.removeprefix("layers."): value for name, value in _weights(weights).items()}
        )
    except RuntimeError as error:
        raise UserError(f"{weights} is no aesthetics predictor of {clip}: {error}") from None
    head.to(device).eval()

    @torch.no_grad()
    def score(images: Sequence[Any], captions: Sequence[str]) -> list[float]:
        found = [head(F.normalize(x, dim=-1))[:, 0] for x in _embedded(model, images)]
        return _numbers(found)

    return score


@register(SCORERS, "imagereward")
def imagereward(
    weights: str, *, tokenizer: str = "google-bert/bert-base-uncased", device: str = "cpu"
) -> Score:
    """ImageReward: a BLIP tuned on human rankings; the release's weights, .pt or .safetensors."""
    model = ImageRewardModel(*released_configs())
    model.load_released(_weights(weights))
    return image_reward_scores(model.to(device).eval(), _tokenizer(tokenizer))


def image_reward_scores(model: ImageRewardModel, tokenizer: Any) -> Score:
    """The scorer of an ImageReward model and its tokenizer."""
    size = int(model.vision.config.image_size)
    device = next(model.parameters()).device

    @torch.no_grad()
    def score(images: Sequence[Any], captions: Sequence[str]) -> list[float]:
        found = []
        for start in range(0, len(images), BATCH):
            some = slice(start, start + BATCH)
            tokens = tokenizer(
                list(captions[some]), padding="max_length", truncation=True, max_length=MAX_TOKENS,
                return_tensors="pt",
            ).to(device)  # fmt: skip
            pixels = normalized(images[some], size).to(device)
            found.append(model(pixels, tokens.input_ids, tokens.attention_mask))
        return _numbers(found)

    return score


def aesthetics_head(width: int) -> nn.Sequential:
    """The predictor's layers, with the places its weights' names count."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip


@torch.no_grad()
def _clip_scores(
    model: Any, tokenizer: Any, scale: float | None, images: Sequence[Any], captions: Sequence[str]
) -> list[float]:
    factor = float(model.logit_scale.exp()) if scale is None else scale
    found = []
    for start, seen in zip(range(0, len(images), BATCH), _embedded(model, images), strict=True):
        tokens = tokenizer(
            list(captions[start : start + BATCH]), padding=True, truncation=True,
            max_length=model.config.text_config.max_position_embeddings, return_tensors="pt",
        ).to(model.device)  # fmt: skip
        read = model.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        found.append(factor * F.cosine_similarity(seen, read))
    return _numbers(found)


def _embedded(model: Any, images: Sequence[Any]) -> list[Tensor]:
    """CLIP's projected embeddings of pictures, a batch at a time."""
    size = int(model.config.vision_config.image_size)
    return [
        model.get_image_features(
            pixel_values=normalized(images[k : k + BATCH], size).to(model.device)
        ).pooler_output
        for k in range(0, len(images), BATCH)
    ]


def normalized(images: Sequence[Any], size: int) -> Tensor:
    """(B, 3, S, S) pictures as CLIP and BLIP read them: resized, cut to a square, standardized."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    rows = []
    for image in images:
        scale = size / min(image.size)
        wide, high = (max(size, round(side * scale)) for side in image.size)
        resized = image.convert("RGB").resize((wide, high), pillow().Resampling.BICUBIC)
        left, top = (wide - size) // 2, (high - size) // 2
        square = resized.crop((left, top, left + size, top + size))
        rows.append(((to_pixels(square) + 1) / 2 - mean) / std)
    return torch.stack(rows)


def _clip(model: str, tokenizer: str | None, device: str) -> tuple[Any, Any]:
    from transformers import CLIPModel

    try:
        loaded = CLIPModel.from_pretrained(model).to(device).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the CLIP model {model!r}: {_line(error)}") from error
    return loaded, None if tokenizer is None else _tokenizer(tokenizer)


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the tokenizer {name!r}: {_line(error)}") from error


def _weights(path: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors or a .pt/.pth file; no pickled code is run."""
    if not Path(path).is_file():
        raise UserError(f"there is no weights file at {path}")
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    try:
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return found
    except Exception as error:  # torch raises several kinds for what is no file of tensors
        raise UserError(f"{path} holds no plain tensors: {_line(error)}") from error


def _numbers(parts: Sequence[Tensor]) -> list[float]:
    return torch.cat(list(parts)).float().tolist() if parts else []


def _line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
