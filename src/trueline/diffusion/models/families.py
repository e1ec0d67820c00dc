"""Text-to-image models by family: what differs between SD1.5, SDXL, SD3, Flux and PixArt, no more.

A :class:`TextToImage` wraps a diffusers pipeline. The rest of Trueline asks it to encode captions
and images, to predict, and to generate; adding a family is one small class and one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from trueline.diffusion.data.images import Framed
from trueline.diffusion.models.adapters import load_adapter, save_adapter, save_kohya
from trueline.diffusion.models.schedule import Schedule, schedule_of
from trueline.errors import UserError
from trueline.registry import Registry

Conditions: TypeAlias = Mapping[str, Tensor]
"""Named (B, ...) tensors that the model reads beside the noised image."""

FAMILIES: Registry[type[TextToImage]] = Registry("text-to-image pipeline")


@dataclass(frozen=True)
class Generated:
    """A generated picture; ``flagged`` where the pipeline's safety checker blanked it."""

    image: Any
    flagged: bool = False


class TextToImage:
    """A text-to-image model: a diffusers pipeline, or whatever behaves like this class.

    Args:
        pipeline: the diffusers pipeline.

    The denoiser (``unet`` or ``transformer``) is what is trained; all else is frozen.
    """

    component = "unet"
    lora_targets: Sequence[str] = ("to_k", "to_q", "to_v", "to_out.0")
    calling: Mapping[str, Any] = {}
    """What else the pipeline is called with."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.schedule: Schedule = schedule_of(pipeline.scheduler)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.component:
                part.requires_grad_(False).eval()

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.component)

    @denoiser.setter
    def denoiser(self, model: Any) -> None:
        self.pipeline.register_modules(**{self.component: model})

    @property
    def resolution(self) -> int:
        """Pixels of a side that the denoiser was made for."""
        factor = 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)
        return int(self.denoiser.config.sample_size) * factor

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The frozen parts that captions go through."""
        parts = self.pipeline.components.items()
        return {n: p for n, p in parts if n.startswith("text_encoder") and p is not None}

    @property
    def image_encoder(self) -> nn.Module | None:
        """The frozen part that images go through; None where the model works on pixels."""
        return self.pipeline.vae

    def place(self, device: torch.device) -> None:
        """Move the frozen parts."""
        for part in (*self.encoders.values(), self.image_encoder):
            if part is not None:
                part.to(device)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> dict[str, Tensor]:
        """Mean and log-variance of (B, 3, S, S) images' latents, by name."""
        vae, dtype = self.pipeline.vae, self.pipeline.vae.dtype
        overflows = dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
        if overflows:
            vae.to(torch.float32)
        found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        if overflows:
            vae.to(dtype)
        return {"mean": found.mean, "logvar": found.logvar}

    def scale(self, latents: Tensor) -> Tensor:
        """Latents as the denoiser takes them."""
        config = self.pipeline.vae.config
        return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The conditions of (B,) captions; of "", what guidance takes for no caption."""
        raise NotImplementedError

    def framing(self, frame: Framed) -> dict[str, Tensor]:
        """Conditions that an image's size and crop add; none for most families."""
        return {}

    def predict(self, model: Any, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """The denoiser's (B, ...) predictions."""
        raise NotImplementedError

    def generate(
        self, captions: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
    ) -> list[Generated]:
        """One picture for each caption, from the noise of its seed."""
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.pipeline.set_progress_bar_config(disable=True)
        with self._placed():
            done = self.pipeline(
                prompt=list(captions),
                generator=generators,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=self.resolution,
                width=self.resolution,
                **self.calling,
            )
        flags = getattr(done, "nsfw_content_detected", None) or [False] * len(captions)
        return [Generated(i, bool(f)) for i, f in zip(done.images, flags, strict=True)]

    def save(self, folder: str, *, adapter: bool) -> None:
        """The whole pipeline, or, where one was trained, only its adapter: both as diffusers loads
        them."""
        if adapter:
            save_adapter(self.pipeline, self.component, folder)
        else:
            self.pipeline.save_pretrained(folder)

    def save_kohya(self, folder: str) -> None:
        """The adapter in kohya's format, into the folder's ``kohya``.

        Raises:
            UserError: this family's adapters have no such format here.
        """
        if self.component != "unet":
            raise UserError(
                f"save_kohya is for SD and SDXL, and not for {type(self.pipeline).__name__}; the "
                "adapter lies beside, as diffusers loads it"
            )
        save_kohya(self.denoiser, folder)

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Frozen parts beside the denoiser while pictures are made, and back."""
        before = [(p, next(p.parameters()).device) for p in self.encoders.values()]
        if self.image_encoder is not None:
            before.append((self.image_encoder, next(self.image_encoder.parameters()).device))
        self.place(self.denoiser.device)
        try:
            yield
        finally:
            for part, device in before:
                part.to(device)


class StableDiffusion(TextToImage):
    """SD 1.x and 2.x: a UNet that reads one text encoder's states."""

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        device = self.pipeline.text_encoder.device
        states, _ = self.pipeline.encode_prompt(list(captions), device, 1, False)
        return {"states": states}

    def predict(self, model: Any, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        states = conditions["states"].to(noisy.dtype)
        return model(noisy, times, encoder_hidden_states=states, return_dict=False)[0]


class StableDiffusionXL(TextToImage):
    """SDXL: two text encoders, a pooled embedding, and the image's size and crop as conditions."""

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        device = self.pipeline.text_encoder_2.device
        states, _, pooled, _ = self.pipeline.encode_prompt(
            list(captions), device=device, do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            said = torch.tensor([bool(c) for c in captions], device=states.device)
            states, pooled = states * said[:, None, None], pooled * said[:, None]
        return {"states": states, "pooled": pooled}

    def framing(self, frame: Framed) -> dict[str, Tensor]:
        size = frame.pixels.shape[-1]
        return {"time_ids": torch.tensor([*frame.original, *frame.corner, size, size]).float()}

    def predict(self, model: Any, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        given = {name: value.to(noisy.dtype) for name, value in conditions.items()}
        added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
        return model(
            noisy,
            times,
            encoder_hidden_states=given["states"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


class StableDiffusion3(TextToImage):
    """SD3: a transformer trained by flow matching, with three text encoders."""

    component = "transformer"
    lora_targets = (*TextToImage.lora_targets, "add_k_proj", "add_q_proj", "add_v_proj",
                    "to_add_out")  # fmt: skip

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        given = list(captions)
        device = next(iter(self.encoders.values())).device
        states, _, pooled, _ = self.pipeline.encode_prompt(
            given, given, given, device=device, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def predict(self, model: Any, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        return model(
            hidden_states=noisy,
            timestep=times,
            encoder_hidden_states=conditions["states"].to(noisy.dtype),
            pooled_projections=conditions["pooled"].to(noisy.dtype),
            return_dict=False,
        )[0]


class Flux(TextToImage):
    """Flux: a transformer trained by flow matching on latents packed two by two into tokens."""

    component = "transformer"
    lora_targets = StableDiffusion3.lora_targets
    guidance = 3.5
    """What the guidance-distilled models are told in training, as diffusers' scripts do."""

    @property
    def resolution(self) -> int:
        return int(self.pipeline.default_sample_size * self.pipeline.vae_scale_factor)

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        given, device = list(captions), self.pipeline.text_encoder.device
        states, pooled, _ = self.pipeline.encode_prompt(given, given, device=device)
        return {"states": states, "pooled": pooled}

    def predict(self, model: Any, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        count, channels, height, width = noisy.shape
        states = conditions["states"].to(noisy.dtype)
        told = None
        if self.denoiser.config.guidance_embeds:
            told = noisy.new_full((count,), self.guidance, dtype=torch.float32)
        found = model(
            hidden_states=_packed(noisy),
            timestep=times / 1000,
            guidance=told,
            pooled_projections=conditions["pooled"].to(noisy.dtype),
            encoder_hidden_states=states,
            txt_ids=noisy.new_zeros(states.shape[1], 3),
            img_ids=_places(height // 2, width // 2).to(noisy),
            return_dict=False,
        )[0]
        tokens = found.view(count, height // 2, width // 2, channels, 2, 2)
        return tokens.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, height, width)


def _packed(latents: Tensor) -> Tensor:
    """(B, H W / 4, 4 C) tokens of two by two latents each."""
    count, channels, height, width = latents.shape
    cells = latents.view(count, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * 4)


def _places(height: int, width: int) -> Tensor:
    """(H W, 3) zero, row and column of each token."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3)


class PixArt(TextToImage):
    """PixArt: a DiT that reads masked T5 states; the half of its output that is a learned variance
    is left alone."""

    component = "transformer"
    calling = {"use_resolution_binning": False}  # noqa: RUF012

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        device = self.pipeline.text_encoder.device
        states, mask, _, _ = self.pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, device=device
        )
        return {"states": states, "mask": mask}

    def predict(self, model: Any, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.config.sample_size == 128:  # the 1024-pixel models read their size
            side = noisy.new_full((len(noisy), 2), float(self.resolution))
            added = {"resolution": side, "aspect_ratio": noisy.new_ones(len(noisy), 1)}
        out = model(
            noisy,
            encoder_hidden_states=conditions["states"].to(noisy.dtype),
            encoder_attention_mask=conditions["mask"],
            timestep=times,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out[:, : noisy.shape[1]]


FAMILIES.add("StableDiffusionPipeline", StableDiffusion)
FAMILIES.add("StableDiffusionXLPipeline", StableDiffusionXL)
FAMILIES.add("StableDiffusion3Pipeline", StableDiffusion3)
FAMILIES.add("FluxPipeline", Flux)
FAMILIES.add("PixArtAlphaPipeline", PixArt, ["PixArtSigmaPipeline"])


def text_to_image(pipeline: Any) -> TextToImage:
    """The wrapper for a diffusers pipeline.

    Raises:
        UnknownNameError: its class is not known; the message lists those that are.
    """
    return FAMILIES[type(pipeline).__name__](pipeline)


def load_text_to_image(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    adapter: str | None = None,
    variant: str | None = None,
    vae: str | None = None,
) -> TextToImage:
    """A pipeline from a folder or a hub id.

    Args:
        name: where it is.
        revision: branch, tag or commit of a hub model.
        dtype: float32, bfloat16 or float16, of the weights; a VAE that asks for float32 keeps it.
        adapter: a folder with LoRA weights to put on it, as a LoRA run leaves them.
        variant: which of the model's files, such as fp16.
        vae: another image encoder in the place of its own: a folder or a hub id.

    Raises:
        UserError: diffusers is missing; nothing is there; the dtype or the pipeline is unknown.
    """
    try:
        from diffusers import AutoencoderKL, DiffusionPipeline
    except ImportError:
        raise UserError(
            "diffusion models need the extra: pip install 'trueline[diffusion]'"
        ) from None
    kind = getattr(torch, dtype, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    try:
        own = {} if vae is None else {"vae": AutoencoderKL.from_pretrained(vae).to(kind)}
        pipeline = DiffusionPipeline.from_pretrained(
            name, revision=revision, dtype=kind, variant=variant, **own
        )
        model = text_to_image(pipeline)
        if adapter is not None:
            load_adapter(pipeline, model.component, adapter)
    except (OSError, ValueError) as error:
        what = name if adapter is None else f"{name} with adapter {adapter}"
        raise UserError(f"cannot load {what!r}: {str(error).strip().splitlines()[0]}") from error
    return model
