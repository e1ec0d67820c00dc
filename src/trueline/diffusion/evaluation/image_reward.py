"""ImageReward's model on transformers' BLIP: a text encoder that reads the picture, and a head.

    score = (head(first text state) - mean) / std

The released checkpoint has BLIP's original names; they are mapped, and every tensor must fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from trueline.errors import UserError

MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35

NAMES = (
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"^(vision\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"^(vision\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^(vision\..*)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^mlp\.layers\.", "head."),
)
"""From the checkpoint's names to this module's, applied one after another."""


class ImageRewardModel(nn.Module):
    """BLIP's encoders and the reward head.

    Args:
        vision: transformers' BlipVisionConfig; ViT-L/16 at 224 pixels in the release.
        text: BlipTextConfig whose ``encoder_hidden_size`` is the vision's width; BERT-base.
    """

    def __init__(self, vision: Any, text: Any) -> None:
        from transformers import BlipTextModel, BlipVisionModel

        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        # dropout layers hold the places 1, 3 and 5 of the released head
        sizes = (text.hidden_size, 1024, 128, 64, 16, 1)
        layers: list[nn.Module] = []
        for number, (wide, narrow) in enumerate(pairwise(sizes)):
            layers.append(nn.Linear(wide, narrow))
            if number < 3:
                layers.append(nn.Dropout(0.2 if number < 2 else 0.1))
        self.head = nn.Sequential(*layers)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B,) scores of (B, 3, S, S) normalized pictures with (B, T) tokens."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        states = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long,
                                              device=seen.device),
        ).last_hidden_state  # fmt: skip
        return (self.head(states[:, 0])[:, 0] - MEAN) / STD

    def load_released(self, weights: Mapping[str, Tensor]) -> None:
        """Take the release's weights.

        Raises:
            UserError: a tensor is missing, left over, or of another shape.
        """
        renamed = {released_to_own(name): value for name, value in weights.items()}
        renamed = {n: v for n, v in renamed.items() if not n.endswith("embeddings.position_ids")}
        try:
            self.load_state_dict(renamed)
        except RuntimeError as error:
            raise UserError(f"this is no ImageReward checkpoint: {error}") from None


def released_to_own(name: str) -> str:
    """A tensor's name in this module.

    Example:
        >>> released_to_own("blip.visual_encoder.blocks.3.attn.proj.bias")
        'vision.encoder.layers.3.self_attn.projection.bias'
    """
    for pattern, own in NAMES:
        name = re.sub(pattern, own, name)
    return name


def released_configs() -> tuple[Any, Any]:
    """The configurations of ImageReward-v1.0."""
    from transformers import BlipTextConfig, BlipVisionConfig

    vision = BlipVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=224, patch_size=16, layer_norm_eps=1e-6,
    )  # fmt: skip
    text = BlipTextConfig(
        vocab_size=30524, hidden_size=768, encoder_hidden_size=1024, intermediate_size=3072,
        num_hidden_layers=12, num_attention_heads=12,
    )  # fmt: skip
    return vision, text
