"""Separation: how far apart a model holds harmful and safe prompts.

Alignment as divergence estimation predicts that a well aligned model pulls the two apart inside.
The measure is the Bhattacharyya distance of the two clouds of hidden vectors in their two
principal components. By default the plane is fitted on one half of the prompts and everything is
measured on the other; the paper's own protocol, one set for both, is ``preset="paper"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trueline.diagnostics.separation.compare import (
    separation_change,
    separation_change_of,
    separation_profile,
)
from trueline.diagnostics.separation.distances import bhattacharyya_distance
from trueline.diagnostics.separation.fit import Preset, Protocol, check_preset, labels_of
from trueline.diagnostics.separation.hidden import Position, hidden_states
from trueline.diagnostics.separation.measure import Placement, metrics
from trueline.diagnostics.separation.words import verdict
from trueline.errors import UserError
from trueline.prompts import Progress
from trueline.records import Text
from trueline.results import Finding
from trueline.runs.record import Key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "bhattacharyya_distance",
    "hidden_states",
    "separation",
    "separation_change",
    "separation_change_of",
    "separation_of",
    "separation_profile",
    "short_texts",
]


def separation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    harmful: Sequence[bool],
    *,
    layer: int = -1,
    position: Position = "last_prompt_token",
    preset: Preset | None = None,
    fit_fraction: float | None = None,
    shrinkage: float | None = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
    batch_size: int = 32,
    name: str = Key.SEPARATION,
    progress: Progress | None = None,
) -> Finding:
    """How far apart the model holds harmful and safe prompts; see :func:`separation_of`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: N prompts, plain text or messages, both classes among them.
        harmful: N labels.
        layer: which hidden states; see
            :func:`~trueline.diagnostics.separation.hidden.hidden_states`.
        position: where in the prompt; likewise.
        preset: ``"paper"`` for the published protocol: last layer, last prompt token, plane
            fitted on all prompts, no shrinkage beyond a ridge of 1e-6.
        fit_fraction, shrinkage, seed, n_bootstrap, name: as in :func:`separation_of`.
        batch_size: prompts in a forward pass.
        progress: called with (done, all) after each batch.

    Returns:
        A finding with the metrics, a verdict and the scatter.

    Raises:
        UserError: bad prompts or labels, or an option that contradicts the preset.

    Source: "LLM Safety Alignment is Divergence Estimation in Disguise", section 5.
    """
    check_preset(preset, layer, position)
    states = hidden_states(
        model,
        tokenizer,
        prompts,
        layer=layer,
        position=position,
        batch_size=batch_size,
        progress=progress,
    )
    return separation_of(
        states.numpy(),
        harmful,
        texts=short_texts(prompts),
        preset=preset,
        fit_fraction=fit_fraction,
        shrinkage=shrinkage,
        seed=seed,
        n_bootstrap=n_bootstrap,
        name=name,
    )


def separation_of(
    states: Any,
    harmful: Sequence[bool],
    *,
    texts: Sequence[str] = (),
    preset: Preset | None = None,
    fit_fraction: float | None = None,
    shrinkage: float | None = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
    name: str = Key.SEPARATION,
) -> Finding:
    """The separation of hidden vectors that were computed already.

    The prompts are split at random within each class. On the first part two principal components
    and a linear probe are fitted; on the second, in that plane, the Bhattacharyya distance, its
    coefficient, the silhouette score and Fisher's ratio are measured, and the probe's AUROC (on
    all dimensions). Intervals resample the measured prompts within each class and hold plane and
    probe fixed: they speak of other prompts, not of another plane.

    Args:
        states: (N, d) vectors.
        harmful: N labels.
        texts: N short texts for the scatter, or none.
        preset: ``"paper"`` fits the plane on all prompts and measures there on all of them; the
            probe is still scored on held-out prompts.
        fit_fraction: share of each class that plane and probe are fitted on; 0.5 unless given.
        shrinkage: of the covariances in the plane; 0.01 unless given (1e-6 with the preset).
        seed: of split and resamples.
        n_bootstrap: resamples for each interval; 0 for none.
        name: the finding's name.

    Raises:
        UserError: lengths that differ, too few prompts of a class, or an option beside the preset.
    """
    labels = labels_of(harmful, len(states))
    if len(texts) not in (0, len(states)):
        raise UserError(f"expected {len(states)} texts or none, got {len(texts)}")
    protocol = Protocol(preset, fit_fraction, shrinkage, seed, n_bootstrap)
    return _finding(Placement.of(states, labels, protocol), texts, name)


def _finding(place: Placement, texts: Sequence[str], name: str) -> Finding:
    found = tuple(metrics(place))
    summary, advice = verdict({m.name: m for m in found}, place.labels)
    shown = (
        [text for text, keep in zip(texts, place.measured, strict=True) if keep] if texts else []
    )
    scatter = {
        "x": place.plane[:, 0].round(5).tolist(),
        "y": place.plane[:, 1].round(5).tolist(),
        "harmful": place.labels.tolist(),
        "text": shown,
        "explained_variance": place.explained,
        "protocol": place.protocol.name,
    }
    return Finding(name, summary, found, advice, {"scatter": scatter})


def short_texts(prompts: Sequence[Text]) -> list[str]:
    """What a scatter shows of each prompt."""
    return [_short(prompt) for prompt in prompts]


def _short(prompt: Text, limit: int = 90) -> str:
    """What the reader of a scatter needs to recognize a prompt: the last turn's beginning."""
    text = prompt if isinstance(prompt, str) else prompt[-1].content
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
