"""Run as a program under torchrun: aligns a tiny model and writes what became of it."""

import sys
from pathlib import Path

import torch

from tiny_diffusion import float64, pick_rows, tiny_sd, weights
from trueline.diffusion import (
    DiffusionConfig,
    DiffusionTrainer,
    load_image_examples,
    text_to_image,
)

NAMES = ("diffusion_kto", "aot")


def align(name, folder, processes):
    """The trainer after four steps of four pairs, however many processes share them."""
    config = DiffusionConfig(
        loss_type=name,
        beta=20.0,
        output_dir=str(folder / name),
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4 // processes,
        learning_rate=1e-2,
        random_flip=True,
        caption_dropout=0.2,
        cache_dir=str(folder / "cache"),
        logging_steps=1,
        disable_tqdm=True,
    )
    examples = load_image_examples(pick_rows(6)).examples
    with float64():
        trainer = DiffusionTrainer(text_to_image(tiny_sd()), config, examples)
        start = weights(trainer)
        row = trainer.train()
    return trainer, {"start": start, "weights": weights(trainer), "row": row}


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in NAMES:
        trainer, found = align(name, folder, 2)
        if trainer.accelerator.is_main_process:
            torch.save(found, folder / f"{name}.pt")
    trainer.close()


if __name__ == "__main__":
    main()
