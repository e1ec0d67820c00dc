"""Separation: how far apart a model holds harmful and safe prompts, across models and layers.

Alignment as divergence estimation predicts that a well aligned model pulls the two apart inside.
The measure is the Bhattacharyya distance of the two clouds of hidden vectors in their two
principal components. By default the plane is fitted on one half of the prompts and everything is
measured on the other; the paper's own protocol, one set for both, is ``preset="paper"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trueline.diagnostics.separation.fit import Flags, Preset, Protocol, check_preset, labels_of
from trueline.diagnostics.separation.hidden import Position, hidden_states, layer_states
from trueline.diagnostics.separation.measure import (
    Placement,
    change_metrics,
    change_verdict,
    metrics,
    one_metric,
    profile_verdict,
    verdict,
)
from trueline.errors import UserError
from trueline.prompts import Progress
from trueline.records import Text
from trueline.results import Finding, Metric
from trueline.runs.record import Key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def separation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    harmful: Sequence[bool],
    *,
    layer: int = -1,
    position: Position = "last_prompt_token",
    preset: Preset | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    **protocol: Any,
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
        batch_size: prompts in a forward pass.
        progress: called with (done, all) after each batch.
        protocol: fit_fraction, shrinkage, seed, n_bootstrap, name: as in :func:`separation_of`.

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
        **protocol,
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


def separation_change(
    before: PreTrainedModel,
    after: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    harmful: Sequence[bool],
    *,
    layer: int = -1,
    position: Position = "last_prompt_token",
    batch_size: int = 32,
    progress: Progress | None = None,
    **options: Any,
) -> Finding:
    """What training did to the separation: two models on the same prompts, paired.

    Args:
        before, after: the models, of one architecture and tokenizer.
        tokenizer, prompts, harmful, layer, position, batch_size, progress: as in
            :func:`separation`.
        options: as in :func:`separation_change_of`.
    """
    old, new = (
        hidden_states(
            model,
            tokenizer,
            prompts,
            layer=layer,
            position=position,
            batch_size=batch_size,
            progress=progress,
        ).numpy()
        for model in (before, after)
    )
    return separation_change_of(old, new, harmful, **options)


def separation_change_of(
    before: Any,
    after: Any,
    harmful: Sequence[bool],
    *,
    preset: Preset | None = None,
    fit_fraction: float | None = None,
    shrinkage: float | None = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
    name: str = Key.SEPARATION_CHANGE,
) -> Finding:
    """The change of every statistic, with intervals that resample the same prompts in both models.

    Plane and probe are fitted for each model by itself, on the same part of the prompts, and held
    fixed. The prompts' own variety moves both models' numbers alike and cancels in the change, so
    its interval is narrower than two separate ones suggest.

    Args:
        before, after: (N, d) vectors of the same N prompts; d may differ.
        harmful: N labels.
        preset, fit_fraction, shrinkage, seed, n_bootstrap, name: as in :func:`separation_of`.

    Raises:
        UserError: as :func:`separation_of`.
    """
    labels = labels_of(harmful, len(before))
    protocol = Protocol(preset, fit_fraction, shrinkage, seed, n_bootstrap)
    places = [Placement.of(states, labels, protocol) for states in (before, after)]
    found = tuple(change_metrics(*places))
    summary, advice = change_verdict({m.name: m for m in found}, places[0].labels)
    return Finding(name, summary, found, advice)


def separation_profile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    harmful: Sequence[bool],
    *,
    position: Position = "last_prompt_token",
    fit_fraction: float | None = None,
    shrinkage: float | None = None,
    seed: int = 0,
    n_bootstrap: int = 200,
    batch_size: int = 32,
    name: str = Key.PROFILE,
    progress: Progress | None = None,
) -> Finding:
    """The separation at every layer, from one pass over the prompts.

    Args: as in :func:`separation`; the split is the same at every layer.

    Returns:
        A finding with the distance and the probe's AUROC of each layer, 0 being the embeddings,
        and ``figures["profile"]``.
    """
    states = layer_states(
        model, tokenizer, prompts, position=position, batch_size=batch_size, progress=progress
    )
    labels = labels_of(harmful, states.shape[1])
    protocol = Protocol(None, fit_fraction, shrinkage, seed, n_bootstrap)
    names = ("bhattacharyya_distance", "probe_auroc")
    found: dict[str, dict[int, Metric]] = {kind: {} for kind in names}
    for layer, vectors in enumerate(states):
        for metric in _of_layer(vectors, labels, protocol, names):
            found[metric.name][layer] = replace(metric, name=f"layer {layer}, {metric.name}")
    profile = {
        kind: [[m.value, m.low, m.high] for m in layers.values()] for kind, layers in found.items()
    }
    return Finding(
        name,
        profile_verdict(*found.values()),
        tuple(m for layers in found.values() for m in layers.values()),
        figures={"profile": profile},
    )


def _of_layer(
    vectors: Tensor, labels: Flags, protocol: Protocol, names: Sequence[str]
) -> Iterator[Metric]:
    """A layer's statistics; unscored where all prompts have one vector, as the embedding of a
    closing token that every prompt ends with."""
    if bool((vectors == vectors[0]).all()):
        yield from (Metric(name, None, n=0) for name in names)
        return
    place = Placement.of(vectors.numpy(), labels, protocol)
    yield from (one_metric(place, name) for name in names)
