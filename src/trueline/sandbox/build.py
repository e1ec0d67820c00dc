"""Build a sandbox directory: a base model, alignment data, evaluation sets; once, atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from trueline.errors import UserError
from trueline.files import write_json
from trueline.sandbox import data
from trueline.sandbox.judge import Judge
from trueline.sandbox.model import ModelSize, Progress, new_model, pretrain
from trueline.sandbox.tokenizer import build_tokenizer
from trueline.sandbox.world import World

FORMAT = 1
"""Raised whenever the same settings come to give other files, so that old caches are rebuilt."""

MARKER = "sandbox.json"

Size = Literal["demo", "small", "wide", "test"]


@dataclass(frozen=True)
class Settings:
    """All that decides what a sandbox holds."""

    seed: int
    entities: int
    model: ModelSize
    lead_rate: float = 0.1
    decline_rate: float = 0.08
    kinds: int = 1
    held_out: float = 0.25
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """A digest that differs wherever the sandbox would."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


_SIZES: Mapping[str, Settings] = MappingProxyType(
    {
        "demo": Settings(seed=0, entities=160, model=ModelSize()),
        "small": Settings(seed=0, entities=160, model=ModelSize(hidden=96, layers=3)),
        "wide": Settings(seed=0, entities=320, model=ModelSize(), kinds=4, held_out=0.5),
        "test": Settings(
            seed=0, entities=16, model=ModelSize(hidden=64, layers=2, heads=2, epochs=4)
        ),
    }
)


@dataclass(frozen=True)
class Sandbox:
    """A built sandbox: where its files are, and the world that knows the truth about them."""

    directory: Path
    world: World

    @property
    def model_dir(self) -> Path:
        """The base model and its tokenizer, an ordinary transformers directory."""
        return self.directory / "model"

    @property
    def corpus(self) -> Path:
        """What the base model has read."""
        return self.directory / "corpus.jsonl"

    @property
    def compliance_refusal(self) -> Path:
        """Alignment data whose safe prompts have a refusal for their negative."""
        return self.directory / "compliance_refusal.jsonl"

    @property
    def preference(self) -> Path:
        """Alignment data on the same prompts whose safe negatives are weaker answers."""
        return self.directory / "preference.jsonl"

    @property
    def held_out_refusals(self) -> Path:
        """Refusals of the grammar that neither corpus nor alignment data contain."""
        return self.directory / "held_out_refusals.jsonl"

    @property
    def evaluation(self) -> dict[str, Path]:
        """The evaluation sets: direct, wrapped, prefilled, separation, seen."""
        folder = self.directory / "evaluation"
        return {path.stem: path for path in sorted(folder.glob("*.jsonl"))}

    @cached_property
    def judge(self) -> Judge:
        """The exact judge of this world."""
        return Judge(self.world)


def build_sandbox(
    directory: str | os.PathLike[str],
    *,
    seed: int = 0,
    size: Size = "demo",
    progress: Progress | None = None,
) -> Sandbox:
    """The sandbox in ``directory``, built there unless it stands there already.

    It is built beside ``directory`` and moved there whole, so that an interrupted build leaves
    nothing that looks finished. A sandbox of other settings in ``directory`` is replaced.

    Args:
        directory: where it goes; must be absent, empty, or a sandbox.
        seed: decides the world, the data and the weights.
        size: ``"demo"`` for the whole story, ``"small"`` for the same with half of its model's
            weights, ``"wide"`` for a world of four kinds of harm with a hundred held-out things
            of each sort, ``"test"`` for a model that knows little, in seconds.
        progress: called at each step of pretraining with step, steps and loss.

    Raises:
        UserError: an unknown size, or ``directory`` holds something else.
    """
    if size not in _SIZES:
        raise UserError(f"size must be one of {', '.join(map(repr, _SIZES))}, got {size!r}")
    settings = replace(_SIZES[size], seed=seed)
    target = Path(directory)
    world = World(
        seed=seed, size=settings.entities, held_out=settings.held_out, kinds=settings.kinds
    )
    if _is_built(target, settings):
        return Sandbox(target, world)
    if target.exists() and (not target.is_dir() or _foreign(target)):
        raise UserError(f"{target} holds something other than a sandbox; name a new directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        _write(part, world, settings, progress)
        part.chmod(0o755)
        _move_into_place(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Sandbox(target, world)


def _read_marker(directory: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((directory / MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _is_built(directory: Path, settings: Settings) -> bool:
    """Whether the marker names these settings and every file still has its size."""
    marker = _read_marker(directory)
    if marker is None or marker.get("hash") != settings.hash:
        return False
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == bytes_
        for name, bytes_ in marker["files"].items()
    )


def _foreign(directory: Path) -> bool:
    return any(directory.iterdir()) and _read_marker(directory) is None


def _write(folder: Path, world: World, settings: Settings, progress: Progress | None) -> None:
    rows = write_data(
        folder, world, lead_rate=settings.lead_rate, decline_rate=settings.decline_rate
    )
    tokenizer = build_tokenizer((entity.name for entity in world.entities), world.kinds)
    model = new_model(tokenizer, settings.model, settings.seed)
    pretrain(model, tokenizer, rows, settings.model, seed=settings.seed, progress=progress)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    marker = {"hash": settings.hash, "settings": asdict(settings), "files": sizes}
    write_json(folder / MARKER, marker)


def write_data(
    folder: Path, world: World, *, lead_rate: float = 0.1, decline_rate: float = 0.08
) -> list[data.Row]:
    """Write every JSONL file of ``world`` under ``folder``; returns the corpus' rows."""
    rows = data.corpus(world, lead_rate=lead_rate, decline_rate=decline_rate)
    contrast, preference = data.alignment_rows(world)
    data.write_jsonl(folder / "corpus.jsonl", rows)
    data.write_jsonl(folder / "compliance_refusal.jsonl", contrast)
    data.write_jsonl(folder / "preference.jsonl", preference)
    held_out = ({"text": text} for text in world.held_out_refusals)
    data.write_jsonl(folder / "held_out_refusals.jsonl", held_out)
    (folder / "evaluation").mkdir(exist_ok=True)
    for name, questions in data.evaluation_rows(world).items():
        data.write_jsonl(folder / "evaluation" / f"{name}.jsonl", questions)
    return rows


def _move_into_place(part: Path, target: Path) -> None:
    if not target.exists():
        part.rename(target)
        return
    # A directory cannot be replaced in one step unless it is empty: the old one steps aside.
    old = part.with_suffix(".old")
    target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
