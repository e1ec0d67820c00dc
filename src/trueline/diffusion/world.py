"""A small world of pictures with a known truth: what a diffusion objective does, on a CPU.

An 8 x 8 picture shows one of two shapes in one of three colors; its caption says which. Pictures
differ in brightness, uniform from .2 to 1, and of a pair the brighter is preferred. A small UNet is
trained from nothing on such pictures and then aligned, and an exact judge reads what it paints:
how bright, and whether it is what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from trueline.diffusion.data.images import png, to_image, to_pixels
from trueline.diffusion.data.load import ImageExample, ImageSource
from trueline.diffusion.models.families import Conditions, Generated, TextToImage
from trueline.diffusion.models.schedule import schedule_of
from trueline.errors import UserError

SIDE = 8
WIDTH = 32
"""Numbers in a caption's embedding."""

COLORS = {"red": (1.0, 0.25, 0.2), "green": (0.25, 1.0, 0.3), "blue": (0.3, 0.4, 1.0)}
SHAPES = {
    "square": ("........", ".######.", ".######.", ".######.",
               ".######.", ".######.", ".######.", "........"),
    "cross": ("...##...", "...##...", "...##...", "########",
              "########", "...##...", "...##...", "...##..."),
}  # fmt: skip
CAPTIONS = tuple(f"a {color} {shape}" for shape in SHAPES for color in COLORS)
DARK, FULL = 0.2, 1.0
BRIGHT = 0.8
"""From here on a picture counts as bright."""
TOLERANCE = 0.12
"""A picture is what was asked for while its root mean square distance to that shape and color, at
the best brightness, stays below this (pixels from 0 to 1), and no other caption fits better."""

Progress: TypeAlias = Callable[[int, int, float], None]


def template(caption: str) -> Tensor:
    """(3, 8, 8) the caption's picture at full brightness, 0 to 1."""
    _, color, shape = caption.split()
    mask = torch.tensor([[cell == "#" for cell in row] for row in SHAPES[shape]]).float()
    return torch.tensor(COLORS[color])[:, None, None] * mask


def paint(caption: str, brightness: float) -> Any:
    """The picture of a caption at a brightness."""
    return to_image(2 * brightness * template(caption) - 1)


@dataclass(frozen=True)
class Reading:
    """What the judge saw: brightness (of full) and whether the picture is what was asked for."""

    brightness: float
    valid: bool

    @property
    def bright(self) -> bool:
        return self.brightness >= BRIGHT


def judge(image: Any, caption: str) -> Reading:
    """Read a picture: the brightness that fits each caption best, and which caption fits."""
    pixels = (to_pixels(image) + 1) / 2
    fits = {name: _fit(pixels, template(name)) for name in CAPTIONS}
    brightness, distance = fits[caption]
    best = min(found for _, found in fits.values())
    return Reading(brightness, distance <= TOLERANCE and distance == best)


def _fit(pixels: Tensor, shape: Tensor) -> tuple[float, float]:
    """The brightness b that minimizes |pixels - b shape|, and the distance left."""
    b = float((pixels * shape).sum() / shape.square().sum())
    return b, float((pixels - b * shape).square().mean().sqrt())


def pairs(count: int, *, seed: int = 0) -> list[ImageExample]:
    """Pairs of one caption whose brighter picture is preferred."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        caption = CAPTIONS[int(rng.integers(len(CAPTIONS)))]
        levels = sorted((float(level) for level in rng.uniform(DARK, FULL, 2)), reverse=True)
        images = tuple(_source(caption, level, f"pair {number + 1}") for level in levels)
        examples.append(ImageExample(caption, images, (True, False)))
    return examples


def swapped(examples: Sequence[ImageExample]) -> list[ImageExample]:
    """The same pairs with every label turned round: the control that must darken."""
    return [ImageExample(e.caption, e.images[::-1], e.desirable) for e in examples]


def random_losers(examples: Sequence[ImageExample], *, seed: int = 0) -> list[ImageExample]:
    """The same chosen pictures with any pair's rejected one of the same caption: the control that
    tells what the pairing adds."""
    rng = np.random.default_rng(seed)
    losers: dict[str, list[ImageSource]] = {}
    for example in examples:
        losers.setdefault(example.caption, []).append(example.images[1])
    return [
        ImageExample(e.caption, (e.images[0], drawn[int(rng.integers(len(drawn)))]), e.desirable)
        for e in examples
        for drawn in [losers[e.caption]]
    ]


def _source(caption: str, level: float, name: str) -> ImageSource:
    data = png(paint(caption, level))
    return ImageSource(lambda: data, name)


class SmallWorldModel(TextToImage):
    """A UNet on pixels, with a frozen random embedding for each caption.

    Args:
        unet: the denoiser.
        seed: of the embedding.
    """

    def __init__(self, unet: Any, *, seed: int = 0) -> None:
        from diffusers import DDIMScheduler

        self.unet = unet
        self.scheduler: Any = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=1.5
        )
        self.schedule = schedule_of(self.scheduler)
        generator = torch.Generator().manual_seed(seed)
        states = torch.randn(len(CAPTIONS), 1, WIDTH, generator=generator)
        self.states = dict(zip(CAPTIONS, states, strict=True)) | {"": torch.zeros(1, WIDTH)}

    @property
    def denoiser(self) -> Any:
        return self.unet

    @denoiser.setter
    def denoiser(self, model: Any) -> None:
        self.unet = model

    @property
    def resolution(self) -> int:
        return SIDE

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {}

    @property
    def image_encoder(self) -> nn.Module | None:
        return None

    def encode_images(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"mean": pixels}

    def scale(self, latents: Tensor) -> Tensor:
        return latents

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        for caption in captions:
            if caption not in self.states:
                raise UserError(f"no such thing in the small world: {caption!r}")
        return {"states": torch.stack([self.states[caption] for caption in captions])}

    def predict(self, model: Any, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        return model(noisy, times, conditions["states"], return_dict=False)[0]

    @torch.no_grad()
    def generate(
        self, captions: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
    ) -> list[Generated]:
        """DDIM from each seed's noise. The world was trained without empty captions, so there is
        no guidance: it must be 1.

        Raises:
            UserError: another guidance, which would have no effect.
        """
        if guidance != 1.0:
            raise UserError(f"the small world has no guidance; set it to 1, got {guidance}")
        noise = [torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
                 for seed in seeds]  # fmt: skip
        noisy = torch.stack(noise)
        conditions = self.encode_captions(captions)
        self.scheduler.set_timesteps(steps)
        for time in self.scheduler.timesteps:
            times = time.expand(len(noisy))
            found = self.predict(self.unet, noisy, times, conditions)
            noisy = self.scheduler.step(found, time, noisy).prev_sample
        return [Generated(to_image(pixels)) for pixels in noisy]

    def save(self, folder: str, *, adapter: bool) -> None:
        """The UNet, as diffusers loads it."""
        if adapter:
            raise UserError("the small world's models are trained whole")
        self.unet.save_pretrained(Path(folder) / "unet")


def untrained(*, seed: int = 0) -> SmallWorldModel:
    """The world's model before it has seen anything: 733 thousand parameters."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=SIDE,
            in_channels=3,
            out_channels=3,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            mid_block_type=None,
            cross_attention_dim=WIDTH,
            norm_num_groups=8,  # a group for each channel would hide the picture's mean
        )
    return SmallWorldModel(unet, seed=seed)


def pretrain(
    model: SmallWorldModel,
    *,
    steps: int = 1200,
    batch: int = 48,
    seed: int = 0,
    rate: float = 2e-3,
    decay: float = 0.995,
    progress: Progress | None = None,
) -> None:
    """Teach the model the world: pictures of all captions and all brightnesses.

    Args:
        model: changed in place; ends with the moving average of its weights.
        steps, batch, rate: AdamW with a linear warmup and a cosine to 0.
        seed: of the pictures and the noise.
        decay: of the average.
        progress: called with (step, steps, loss) now and then.
    """
    from diffusers.training_utils import EMAModel

    unet = model.unet.train().requires_grad_(True)
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1.0, (s + 1) / 50) * 0.5 * (1 + math.cos(math.pi * s / steps)),
    )
    average = EMAModel(parameters, decay=decay)
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.stack([template(caption) for caption in CAPTIONS])
    states = torch.stack([model.states[caption] for caption in CAPTIONS])
    for step in range(1, steps + 1):
        which = torch.randint(len(CAPTIONS), (batch,), generator=generator)
        level = DARK + (FULL - DARK) * torch.rand(batch, 1, 1, 1, generator=generator)
        clean = 2 * level * shapes[which] - 1
        noise = torch.randn(clean.shape, generator=generator)
        index = torch.randint(len(model.schedule), (batch,), generator=generator)
        noisy = model.schedule.add_noise(clean, noise, index)
        times = model.schedule.times[index]
        found = model.predict(unet, noisy, times, {"states": states[which]})
        loss = (found - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.step(parameters)
        if progress is not None and (step % 10 == 0 or step == steps):
            progress(step, steps, loss.item())
    average.copy_to(parameters)
    unet.eval()
