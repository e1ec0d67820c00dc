"""Diffusion alignment against a plain diffusers loop, with diffusers' own choices.

    python benchmarks/diffusion.py --out cost.json  # for tools/diffusion_figures.py --keep
    python benchmarks/diffusion.py --dspo
    python benchmarks/diffusion.py --device cuda --width 320 --batch 8 --steps 20

The contenders align a Stable Diffusion of the same shape and random weights on the same pairs with
Diffusion-DPO (or, with --dspo, DSPO with a fixed target) on a LoRA adapter, a few optimizer steps a
round, one after another, in an order that rotates. The plain loop does what diffusers' own script
for Diffusion-DPO with LoRA does: the reference is the adapter switched off, and every step decodes,
resizes and encodes the images and runs the text encoder. "plain loop, cached" keeps latents and
embeddings in memory, too, so that what is left is the step itself. Trueline's encoding is done and
timed before the first step. The UNet's, the VAE's and the text encoder's widths are those of SD1.5
divided by one factor, so that their shares of the arithmetic stay the real ones.

What counts is processor time (`time.process_time`, one thread); on a GPU it is wall time between
two synchronizations, in bfloat16 under autocast. Peak memory is that during the steps: on a CPU
the high-water mark of a process of each contender's own, set back after the set-up (Linux), with
the libraries that diffusers' script and Trueline both load.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # noqa: F401, by which diffusers' script reads its data, and Trueline too
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

FULL = 320
"""SD1.5's first width; all widths are divided by FULL / --width."""
BETA, RANK, RATE = 2000.0, 16, 1e-4
WORDS = "a photo of the red green blue bright dark small large house tree cat dog sea sky".split()


def make_pipeline(width: int, resolution: int) -> StableDiffusionPipeline:
    """SD1.5's layout at a fraction of its width."""
    torch.manual_seed(0)
    groups = min(32, width // 4)
    unet = UNet2DConditionModel(
        sample_size=resolution // 8,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        cross_attention_dim=768 * width // FULL // 8 * 8,
        attention_head_dim=8,
        norm_num_groups=groups,
    )
    base = 128 * width // FULL // 4 * 4
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(base, 2 * base, 4 * base, 4 * base),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=resolution,
        scaling_factor=0.18215,
    )
    hidden = unet.config.cross_attention_dim
    text = CLIPTextConfig(
        vocab_size=len(WORDS) + 4, hidden_size=hidden, intermediate_size=4 * hidden,
        num_hidden_layers=12, num_attention_heads=4, max_position_embeddings=77,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=_tokenizer(), unet=unet,
        scheduler=DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
            clip_sample=False,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", model_max_length=77,
    )  # fmt: skip


def make_rows(count: int, resolution: int) -> list[dict[str, Any]]:
    """Pairs of JPEG files half as large again as the model's input, as Pick-a-Pic stores them."""
    rng = np.random.default_rng(0)
    side = resolution * 3 // 2

    def jpeg() -> bytes:
        coarse = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((side, side)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    return [
        {"caption": " ".join(rng.choice(WORDS, 12)), "jpg_0": jpeg(), "jpg_1": jpeg(), "label_0": 1}
        for _ in range(count)
    ]


Run = Callable[[int], float]


def plain_loop(
    options: argparse.Namespace, rows: list[dict[str, Any]], *, cached: bool = False
) -> Run:
    """The loop of diffusers' script, written plainly; ``cached`` keeps what it encodes."""
    pipeline = make_pipeline(options.width, options.resolution)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).to(options.device)
    adapter = LoraConfig(
        r=RANK, lora_alpha=RANK, init_lora_weights="gaussian",
        target_modules=["to_k", "to_q", "to_v", "to_out.0"],
    )  # fmt: skip
    pipeline.unet.add_adapter(adapter)
    trained = [p for p in pipeline.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    size = options.resolution

    def pixels(data: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.LANCZOS)
        return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)

    kept: dict[str, tuple[Any, torch.Tensor]] = {}

    @torch.no_grad()
    def encode(batch: list[dict[str, Any]]) -> tuple[Any, torch.Tensor]:
        name = "".join(row["caption"] for row in batch)
        if name in kept:
            return kept[name]
        images = torch.stack(
            [pixels(r["jpg_0"]) for r in batch] + [pixels(r["jpg_1"]) for r in batch]
        )
        tokens = pipeline.tokenizer(
            [r["caption"] for r in batch], padding="max_length", max_length=77,
            return_tensors="pt",
        )  # fmt: skip
        found = (
            pipeline.vae.encode(images.to(options.device)).latent_dist,
            pipeline.text_encoder(tokens.input_ids.to(options.device))[0].repeat(2, 1, 1),
        )
        if cached:
            kept[name] = found
        return found

    def step(batch: list[dict[str, Any]]) -> None:
        with autocast(options):
            drawn, states = encode(batch)
            latents = drawn.sample() * 0.18215
            noise = torch.randn_like(latents).chunk(2)[0].repeat(2, 1, 1, 1)
            times = torch.randint(0, 1000, (len(batch),), device=options.device).repeat(2)
            noisy = pipeline.scheduler.add_noise(latents, noise, times)
            e = pipeline.unet(noisy, times, states).sample.float()
            pipeline.unet.disable_adapters()
            with torch.no_grad():
                r = pipeline.unet(noisy, times, states).sample.float()
            pipeline.unet.enable_adapters()
        noise = noise.float()
        beta = 0.05 if options.dspo else BETA
        (w, l), (rw, rl) = (  # noqa: E741
            (x - noise).square().mean((1, 2, 3)).chunk(2) for x in (e, r)
        )
        z = -0.5 * beta * ((w - l) - (rw - rl))
        if options.dspo:
            drift = (e - r).chunk(2)[0]
            weight = torch.sigmoid(-z)[:, None, None, None]
            target = noise.chunk(2)[0] + (beta * weight * drift).detach()
            loss = (e.chunk(2)[0] - target).square().mean()
        else:
            loss = -F.logsigmoid(z).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def run(steps: int) -> float:
        begin = clock(options)
        for k in range(steps):
            start = k * options.batch % len(rows)
            step(rows[start : start + options.batch])
        return clock(options) - begin

    if cached:
        for start in range(0, len(rows), options.batch):
            encode(rows[start : start + options.batch])
    return run


def cached_loop(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Run:
    """The plain loop, with latents and embeddings kept in memory."""
    return plain_loop(options, rows, cached=True)


def clock(options: argparse.Namespace) -> float:
    """Processor seconds, or on a GPU seconds."""
    if options.device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def autocast(options: argparse.Namespace) -> Any:
    """bfloat16 on a GPU."""
    return torch.autocast(options.device, torch.bfloat16, enabled=options.device != "cpu")


def trueline_loop(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Run:
    """The same objective, data and adapter through Trueline."""
    from trueline.diffusion import (
        DiffusionConfig,
        DiffusionTrainer,
        load_image_examples,
        text_to_image,
    )

    config = DiffusionConfig(
        loss_type="dspo" if options.dspo else "diffusion_dpo",
        objective_options={"beta": 0.05, "detach": True} if options.dspo else {"beta": BETA},
        use_peft=True, lora_r=RANK, lora_alpha=RANK,
        learning_rate=RATE, per_device_train_batch_size=options.batch, max_steps=10**6,
        output_dir=tempfile.mkdtemp(), cache_dir=tempfile.mkdtemp(), save_steps=0,
        encode_first=True, mixed_precision="no" if options.device == "cpu" else "bf16",
        logging_steps=10**6, disable_tqdm=True,
    )  # fmt: skip
    begin = time.process_time()
    trainer = DiffusionTrainer(
        text_to_image(make_pipeline(options.width, options.resolution)),
        config,
        load_image_examples(rows).examples,
    )
    encoding = time.process_time() - begin
    print(f"encoding {len(rows)} pairs once: {encoding:.1f} s", file=sys.stderr)

    def run(steps: int) -> float:
        begin = clock(options)
        for _ in range(steps):
            trainer._step()
        return clock(options) - begin

    return run


CONTENDERS: dict[str, Callable[[argparse.Namespace, list[dict[str, Any]]], Run]] = {
    "trueline": trueline_loop,
    "plain loop": plain_loop,
    "plain loop, cached": cached_loop,
}


def bench(options: argparse.Namespace) -> dict[str, list[float]]:
    """Steps a processor second of each contender, round by round."""
    rows = make_rows(options.batch * 4, options.resolution)
    names = [name for name in CONTENDERS if options.only in (None, name)]
    runs = {name: CONTENDERS[name](options, rows) for name in names}
    speed: dict[str, list[float]] = {name: [] for name in names}
    reset_peak()
    for round_ in range(options.rounds + 1):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            seconds = runs[name](options.steps)
            if round_:  # the first round warms up
                speed[name].append(options.steps / seconds)
            print(f"round {round_} {name}: {options.steps / seconds:.3f} steps/s", file=sys.stderr)
    return speed


def peak_memory(options: argparse.Namespace, name: str) -> float:
    """MiB of a process of its own."""
    command = [sys.executable, __file__, "--only", name, "--rounds", "1", "--json"]
    for key in ("width", "resolution", "batch", "steps", "device"):
        command += [f"--{key}", str(getattr(options, key))]
    command += ["--dspo"] if options.dspo else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def reset_peak() -> None:
    """Start the high-water mark of resident memory anew, with freed memory given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The high-water mark since then; on a GPU of its own memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1]) / 2**10


def spread(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--width", type=int, default=96, help="of the UNet; SD1.5 has 320")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1, help="pairs in a step")
    parser.add_argument("--steps", type=int, default=1, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dspo", action="store_true", help="DSPO, detached, for Diffusion-DPO")
    parser.add_argument("--only", choices=list(CONTENDERS))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="keep speeds and memory there, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    speed = bench(options)
    if options.json:
        print(json.dumps({"speed": speed, "peak_mib": peak_mib()}))
        return
    print("| | steps per processor second | peak memory, MiB |\n|---|---|---|")
    memory = {} if options.no_memory else {name: peak_memory(options, name) for name in speed}
    for name, values in speed.items():
        print(f"| {name} | {spread(values)} | {f'{memory[name]:.0f}' if memory else ''} |")
    if options.out is not None:
        objective = "dspo" if options.dspo else "diffusion_dpo"
        settings = {k: getattr(options, k) for k in ("width", "resolution", "batch", "steps")}
        kept = {"objective": objective, **settings, "torch": torch.__version__, "speed": speed}
        options.out.write_text(json.dumps({**kept, "memory": memory}, indent=1) + "\n")
    for name in list(speed)[1:] if "trueline" in speed else ():
        ratios = [a / b for a, b in zip(speed["trueline"], speed[name], strict=True)]
        print(f"\nTrueline is faster than the {name} by {spread(ratios)}.")


if __name__ == "__main__":
    main()
