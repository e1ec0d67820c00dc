"""Separation across models and layers: what training changed, and where in the model it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trueline.diagnostics.separation.fit import Flags, Preset, Protocol, labels_of
from trueline.diagnostics.separation.hidden import Position, hidden_states, layer_states
from trueline.diagnostics.separation.measure import Placement, change_metrics, one_metric
from trueline.diagnostics.separation.words import change_verdict, profile_verdict
from trueline.prompts import Progress
from trueline.records import Text
from trueline.results import Finding, Metric
from trueline.runs.record import Key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
