"""Two models' pictures of the same prompts from the same noise, and which are better.

For each prompt both models start from one seed, so that a difference is the models'. A scorer's win
rate is the share of prompts on which the aligned model's picture scores higher; ties stand apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueline.diffusion.data.keeping import fingerprint_of
from trueline.diffusion.data.load import CAPTIONS
from trueline.diffusion.evaluation.scorers import Score
from trueline.diffusion.models.families import Generated, TextToImage
from trueline.errors import UserError
from trueline.evaluation.harness.store import digest
from trueline.files import whole
from trueline.interrupts import piece_done
from trueline.results import Finding, Metric
from trueline.stats import bootstrap_interval, mcnemar, mean_metric, rate


@dataclass(frozen=True)
class Gallery:
    """One model's pictures, in the order of the prompts; blanked ones are flagged."""

    name: str
    pictures: Sequence[Generated]


@dataclass(frozen=True)
class Sampling:
    """How pictures are made.

    Args:
        seed: the first prompt's; each further prompt has the next.
        steps: of the sampler.
        guidance: the guidance scale.
        batch_size: pictures at once.
    """

    seed: int = 0
    steps: int = 50
    guidance: float = 7.5
    batch_size: int = 4


def read_prompts(path: str | Path, limit: int | None = None) -> list[str]:
    """Prompts of a text file, one a line, or of a JSONL with ``caption`` or ``prompt``.

    Raises:
        UserError: no such file, no prompt in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file of prompts at {path}")
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    if path.suffix in (".jsonl", ".ndjson"):
        lines = [_prompt(line, f"{path}: line {k}") for k, line in enumerate(lines, start=1)]
    if not lines:
        raise UserError(f"{path} holds no prompt")
    return lines[:limit]


def _prompt(line: str, place: str) -> str:
    try:
        row = json.loads(line)
        return str(next(row[key] for key in CAPTIONS if key in row))
    except (ValueError, TypeError, StopIteration):
        raise UserError(f"{place} is no JSON object with {' or '.join(CAPTIONS)}") from None


def paint(
    model: TextToImage,
    name: str,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    folder: Path | None = None,
    advance: Callable[[int], None] | None = None,
) -> Gallery:
    """One picture for each prompt, the k-th from seed + k, kept as PNG files where asked for; a
    batch that was kept before, made of the same by the same model, is read."""
    model_key = None if folder is None else _key(model)
    pictures: list[Generated] = []
    for start in range(0, len(prompts), sampling.batch_size):
        some = prompts[start : start + sampling.batch_size]
        seeds = [sampling.seed + start + k for k in range(len(some))]
        places: list[tuple[Path, str]] = []
        if folder is not None:
            how = [model_key, list(some), sampling.steps, sampling.guidance]
            keys = [digest([*how, seed]) for seed in seeds]
            places = [(folder / f"{start + k:05d}.png", key) for k, key in enumerate(keys)]
        made = _kept(places) if places else None
        if made is None:
            made = model.generate(some, seeds, steps=sampling.steps, guidance=sampling.guidance)
        for (path, key), one in zip(places, made, strict=False):
            _keep(path, key, one)
        pictures += made
        if advance is not None:
            advance(len(some))
        piece_done()
    return Gallery(name, pictures)


def _key(model: TextToImage) -> str:
    """What a picture depends on besides its prompts and its noise."""
    image = model.image_encoder
    parts = {"denoiser": model.denoiser, **model.encoders}
    scheduler = getattr(getattr(model.pipeline, "scheduler", None), "config", None)
    seen = fingerprint_of({**parts, **({} if image is None else {"image": image})})
    return digest([seen, str(model.denoiser.dtype), dict(scheduler or {})])


def _keep(path: Path, key: str, picture: Generated) -> None:
    """Write a picture, whole or not at all, with the key of what it was made from."""
    from PIL.PngImagePlugin import PngInfo

    if _read(path, key) is not None:
        return
    told = PngInfo()
    told.add_text("trueline", json.dumps({"key": key, "flagged": picture.flagged}))
    with whole(path) as part:
        picture.image.save(part, format="PNG", pnginfo=told)


def _kept(places: Sequence[tuple[Path, str]]) -> list[Generated] | None:
    """A batch of pictures, where all of them were kept."""
    found = [_read(path, key) for path, key in places]
    return None if None in found else [one for one in found if one is not None]


def _read(path: Path, key: str) -> Generated | None:
    """A picture that was made of the same; None where there is none, or none that can be read."""
    from PIL import Image

    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            told = json.loads(image.info.get("trueline", "{}"))
            return Generated(image.copy(), told["flagged"]) if told.get("key") == key else None
    except (OSError, ValueError, SyntaxError, KeyError, AttributeError):
        return None


def score_gallery(gallery: Gallery, prompts: Sequence[str], score: Score) -> list[float | None]:
    """One number for each picture; None, unscored, for a blanked one.

    Raises:
        UserError: the scorer gives another count of numbers, or one that is not finite.
    """
    seen = [k for k, one in enumerate(gallery.pictures) if not one.flagged]
    numbers = list(score([gallery.pictures[k].image for k in seen], [prompts[k] for k in seen]))
    if len(numbers) != len(seen):
        raise UserError(f"the scorer gave {len(numbers)} numbers for {len(seen)} pictures")
    if not all(math.isfinite(number) for number in numbers):
        raise UserError("the scorer gave a number that is not finite")
    found: list[float | None] = [None] * len(prompts)
    for k, number in zip(seen, numbers, strict=True):
        found[k] = float(number)
    return found


def win_finding(
    scorer: str,
    base: tuple[str, Sequence[float | None]],
    aligned: tuple[str, Sequence[float | None]],
    *,
    seed: int = 0,
) -> Finding:
    """Who wins, by how much, and whether chance explains it.

    Args:
        scorer: its name.
        base, aligned: names and scores of the same prompts.
        seed: of the resamples.

    Returns:
        Win rate among the decided prompts with Wilson's interval, both means, their paired
        difference with a bootstrap interval, and the exact sign test's p.
    """
    both = [
        (b, a) for b, a in zip(base[1], aligned[1], strict=True) if b is not None and a is not None
    ]
    wins, losses = sum(a > b for b, a in both), sum(b > a for b, a in both)
    decided = wins + losses
    won = rate("win rate", wins, decided)
    # "better" turns from the base's to the other's where the aligned one wins: the sign test
    test = mcnemar([b > a for b, a in both], [a > b for b, a in both])
    differences = [a - b for b, a in both]
    spread = bootstrap_interval(differences, seed=seed) if len(differences) > 1 else None
    metrics = [
        won,
        Metric("ties", len(both) - decided, n=len(both)),
        Metric("unscored", len(base[1]) - len(both), n=len(base[1])),
        mean_metric(f"mean, {base[0]}", [b for b, _ in both]),
        mean_metric(f"mean, {aligned[0]}", [a for _, a in both]),
        Metric(
            "difference",
            float(np.mean(differences)) if differences else None,
            None if spread is None else spread.low,
            None if spread is None else spread.high,
            len(both),
        ),
        Metric("sign test p", test.p_value if decided else None, n=decided),
    ]
    verdict = "no prompt was decided" if not decided else (
        f"{aligned[0]} beats {base[0]} on {won} of {decided} decided prompts "
        f"(sign test p = {test.p_value:.2g})"
    )  # fmt: skip
    return Finding(f"{aligned[0]}: {scorer}", f"By {scorer}, {verdict}.", metrics)


def compare(
    base: Gallery,
    aligned: Sequence[Gallery],
    prompts: Sequence[str],
    scorers: Mapping[str, Score],
    *,
    seed: int = 0,
) -> tuple[list[Finding], dict[str, dict[str, list[float | None]]]]:
    """A finding for each aligned model and scorer, and all scores by scorer and model."""
    findings: list[Finding] = []
    scores: dict[str, dict[str, list[float | None]]] = {}
    for scorer, score in scorers.items():
        found = {g.name: score_gallery(g, prompts, score) for g in (base, *aligned)}
        scores[scorer] = found
        findings += [
            win_finding(scorer, (base.name, found[base.name]), (g.name, found[g.name]), seed=seed)
            for g in aligned
        ]
    return findings, scores


def is_adapter(folder: str) -> bool:
    """Whether a run left an adapter rather than a whole pipeline."""
    path: Any = Path(folder)
    return path.is_dir() and not (path / "model_index.json").exists()
