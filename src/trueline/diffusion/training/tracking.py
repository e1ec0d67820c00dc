"""Metrics and pictures for trackers, through accelerate, and what was trained for the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueline.diffusion.config import DiffusionConfig
from trueline.errors import UserError

UPLOADED = ("*.safetensors", "*.json", "*.txt", "*.md", "*.yaml", "*.model", "samples/*.png",
            "kohya/*")  # fmt: skip
LEFT = ("checkpoint-*", "logs/*", "trueline/*", ".*")
"""What is of the run and not of the model."""


class Trackers:
    """The trackers that ``report_to`` names; without any, nothing happens."""

    def __init__(self, accelerator: Any, config: DiffusionConfig) -> None:
        self.accelerator, self.active = accelerator, bool(config.report_to)
        if not self.active:
            return
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in dataclasses.asdict(config).items()
        }
        try:
            accelerator.init_trackers("trueline", config=plain)
        except (ImportError, OSError, ValueError) as error:
            raise UserError(f"report_to: {error}") from error

    def metrics(self, row: Mapping[str, float], step: int) -> None:
        """One row of numbers."""
        if self.active:
            self.accelerator.log(dict(row), step=step)

    def pictures(self, images: Sequence[Any], prompts: Sequence[str], step: int) -> None:
        """Each picture under its prompt, in each tracker that takes pictures."""
        if not self.active:
            return
        for tracker in self.accelerator.trackers:
            if not hasattr(tracker, "log_images"):
                continue
            given: Mapping[str, Any]
            if tracker.name == "tensorboard":  # (N, H, W, 3) arrays
                arrays = [np.asarray(image.convert("RGB")) for image in images]
                given = {f"samples/{p}": a[None] for p, a in zip(prompts, arrays, strict=True)}
                tracker.log_images(given, step, dataformats="NHWC")
            else:
                given = {f"samples/{p}": [image] for p, image in zip(prompts, images, strict=True)}
                tracker.log_images(given, step)


def push(config: DiffusionConfig, pipeline: str) -> str:
    """Upload what a run left as a model; returns its address.

    Raises:
        UserError: the hub refuses, or is out of reach.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(config.output_dir)
    api = HfApi()
    try:
        name = config.hub_model_id or folder.resolve().name
        made = api.create_repo(name, private=config.hub_private_repo or None, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=list(UPLOADED),
            ignore_patterns=list(LEFT),
            commit_message=f"{config.loss_type} on {pipeline}",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(f"push_to_hub: {said}; what was trained lies in {folder}") from error
    return str(made)
