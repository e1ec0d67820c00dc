"""Tiny random text-to-image pipelines of the real classes, pairs of pictures, and trainers."""

import contextlib
import io
import json
from unittest import mock

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from trueline.diffusion import (
    DiffusionConfig,
    DiffusionTrainer,
    load_image_examples,
    text_to_image,
)

WORDS = "a red green blue bright dark square cross of photo the in and".split()
RESOLUTION = 16


def tiny_tokenizer(length=8):
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )


def _text_config(hidden=16, projection=16):
    return CLIPTextConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=projection,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _vae(channels=4, **changes):
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        **changes,
    )


def _unet(**changes):
    return UNet2DConditionModel(
        **{
            "sample_size": RESOLUTION // 2,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            **changes,
        }
    )


def _scheduler(prediction_type):
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def tiny_sd(seed=0, prediction_type="epsilon"):
    torch.manual_seed(seed)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=tiny_tokenizer(),
        unet=_unet(),
        scheduler=_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl(seed=0, prediction_type="epsilon"):
    torch.manual_seed(seed)
    unet = _unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
        transformer_layers_per_block=1,
        use_linear_projection=True,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=_scheduler(prediction_type),
        add_watermarker=False,
    )


def _t5(hidden):
    return T5EncoderModel(
        T5Config(
            vocab_size=len(WORDS) + 4, d_model=hidden, d_kv=8, d_ff=16, num_layers=1, num_heads=2
        )
    )


def tiny_sd3(seed=0):
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=RESOLUTION // 2,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False,
                 use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(_text_config()),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=_t5(32),
        tokenizer_3=tiny_tokenizer(),
    )  # fmt: skip


def tiny_pixart(seed=0):
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        sample_size=RESOLUTION // 2,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=16,
        norm_type="ada_norm_single",
    )
    return PixArtAlphaPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=_t5(16),
        vae=_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


def tiny_flux(seed=0):
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False,
                 use_post_quant_conv=False),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=_t5(32),
        tokenizer_2=tiny_tokenizer(),
    )  # fmt: skip
    pipeline.default_sample_size = RESOLUTION // 2
    return pipeline


PIPELINES = {
    "sd": tiny_sd,
    "sdxl": tiny_sdxl,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "pixart": tiny_pixart,
}


def picture(seed, size=(RESOLUTION, RESOLUTION)):
    """A PNG file's bytes: smooth random colors."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(4, 4, 3, generator=generator).mul(255).byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def pick_rows(n=6, size=(RESOLUTION, RESOLUTION)):
    """Rows with Pick-a-Pic's columns; every fifth would be a tie if n reached it."""
    return [
        {
            "caption": f"a {WORDS[1 + i % 3]} {WORDS[6 + i % 2]}",
            "jpg_0": picture(2 * i, size),
            "jpg_1": picture(2 * i + 1, size),
            "label_0": float(i % 2),
        }
        for i in range(n)
    ]


def write_folder(folder, n=6):
    """A folder of image pairs with a JSONL that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(n):
        for side in ("chosen", "rejected"):
            (folder / f"{i}-{side}.png").write_bytes(picture(2 * i + (side == "rejected")))
        row = {"caption": "a red square", "chosen": f"{i}-chosen.png"}
        lines.append(json.dumps({**row, "rejected": f"{i}-rejected.png"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def config(folder, **changes):
    return DiffusionConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "cache_dir": "none",
            "logging_steps": 1,
            "save_steps": 0,
            "overwrite": True,
            "disable_tqdm": True,
            **changes,
        }
    )


def trainer(folder, pipeline=None, rows=None, **changes):
    examples = load_image_examples(pick_rows() if rows is None else rows).examples
    model = text_to_image(tiny_sd() if pipeline is None else pipeline)
    return DiffusionTrainer(model, config(folder, **changes), examples)


@contextlib.contextmanager
def float64():
    """Trainings in float64: what is left of a difference is no rounding.

    In float32 a pair's errors nearly cancel, and what each rounds to is seen in the coefficients:
    two orders of adding up, 4e-7 apart after one step, are 1e-5 of the movement apart after four.
    """
    from trueline.diffusion.training import trainer as module

    prepare = module.prepare_denoiser

    def prepared(config, model, device, *, reference):
        kept = prepare(config, model, device, reference=reference)
        for denoiser in (model.denoiser, *([kept.denoiser] if kept else [])):
            denoiser.double()
        return kept

    with (
        mock.patch.object(module, "prepare_denoiser", prepared),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.trained])
