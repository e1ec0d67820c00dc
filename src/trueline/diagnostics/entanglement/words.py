"""What was measured of entanglement, as metrics with intervals, in plain words, and as figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trueline.diagnostics.entanglement.measure import Measurement
from trueline.diagnostics.entanglement.pairs import Array, Flags
from trueline.diagnostics.entanglement.scores import Indices
from trueline.results import Finding, Metric
from trueline.runs.record import Key
from trueline.stats import clustered_mean, clustered_rate

NAMESPACE, PROXY = "entangle/", "entangle/head_proxy/"
"""Of the metrics; those of the LM head alone have names of their own, lest they pass for exact."""

OFTEN = 0.25
"""A share of pairs from which advice is given."""


def finding(
    found: Measurement,
    *,
    objective: str,
    ids: Sequence[str],
    groups: Indices,
    per_layer: bool,
    heat_maps: Sequence[dict[str, Any]],
    proxy: bool,
) -> Finding:
    """The measurement as a finding.

    Args:
        groups: (P,) the example each pair belongs to; intervals are over examples.
        proxy: only the LM head's gradient was measured.
    """
    prefix = PROXY if proxy else NAMESPACE
    metrics = tuple(_metrics(found, groups, prefix))
    named = {metric.name.removeprefix(prefix): metric for metric in metrics}
    figures: dict[str, Any] = {"pairs": _pairs(found, ids), "gram": _gram(found, ids)}
    if per_layer:
        figures["layers"] = _layers(found)
    if heat_maps:
        figures["heat_maps"] = list(heat_maps)
    summary = _summary(named, objective, len(ids), proxy=proxy)
    return Finding(Key.ENTANGLEMENT, summary, metrics, _advice(named, found, proxy=proxy), figures)


def _metrics(found: Measurement, groups: Indices, prefix: str) -> Iterator[Metric]:
    def mean(name: str, values: Array, unit: str = "") -> Metric:
        known = np.isfinite(values)
        kept = groups[known].tolist()
        return clustered_mean(prefix + name, values[known].tolist(), kept, unit=unit)

    def share(name: str, flags: Flags) -> Metric:
        return clustered_rate(prefix + name, flags.tolist(), groups.tolist())

    unit = "nats per unit of learning rate"
    for name, values in found.pairs.columns().items():
        yield mean(name, values, unit if name.startswith("change") else "")
    for name, flags in found.pairs.flags().items():
        yield share(name, flags)
    yield mean("batch_change_chosen", found.batch_change[:, 0], unit)
    yield mean("batch_change_rejected", found.batch_change[:, 1], unit)
    yield share("batch_chosen_falls", found.batch_change[:, 0] < 0)
    if found.stepped is not None:
        predicted, observed = found.stepped.predicted, found.stepped.observed
        yield mean("predicted_chosen", predicted[:, 0], "nats")
        yield mean("predicted_rejected", predicted[:, 1], "nats")
        yield mean("observed_chosen", observed[:, 0], "nats")
        yield mean("observed_rejected", observed[:, 1], "nats")
        yield share("observed_chosen_falls", observed[:, 0] < 0)
        yield share("prediction_sign_agrees", np.sign(predicted[:, 0]) == np.sign(observed[:, 0]))


def _summary(named: dict[str, Metric], objective: str, count: int, *, proxy: bool) -> str:
    source = "a proxy, the LM head's gradient alone" if proxy else "all trained parameters"
    words = [
        f"On {count} pairs under {objective}, by {source}: a small step on one pair moves chosen "
        f"up and rejected down in {named['case_ideal']} of pairs, pushes both down in "
        f"{named['case_both_fall']} and both up in {named['case_both_rise']}. The cosine of the "
        f"two gradients is {named['cosine']}; <g_w, g_l> is {named['inner_over_smaller']} of the "
        "smaller squared norm (above 1, equal pulls move one of them the wrong way). In a step on "
        f"a whole batch the chosen falls in {named['batch_chosen_falls']} of pairs."
    ]
    if "observed_chosen" in named:
        words.append(
            f"Along the real update the chosen moves by {named['observed_chosen']} nats, "
            f"{named['predicted_chosen']} predicted, with the sign predicted in "
            f"{named['prediction_sign_agrees']} of pairs."
        )
    return " ".join(words)


def _value(metric: Metric) -> float:
    return 0.0 if metric.value is None else metric.value


def _advice(named: dict[str, Metric], found: Measurement, *, proxy: bool) -> str:
    alone, batch = _value(named["chosen_falls"]), _value(named["batch_chosen_falls"])
    words = []
    if alone >= OFTEN:
        words.append(
            "Entanglement lowers the chosen log-probs: the push on the rejected drags them along. "
            "Try pair_weighting: normalized, which balances the two pushes by their gradients' "
            "norms; token_mask: difference, which leaves out the tokens both share; or an "
            "objective that also holds the chosen up (dpop, cpo, or dpo with sft)."
        )
    elif batch >= OFTEN:
        words.append(
            "A pair's own step raises its chosen completion, but the other pairs of its batch "
            "lower it: per-pair remedies will not be enough. Try larger or more varied batches, "
            "or an objective that also holds the chosen up (dpop, cpo, or dpo with sft)."
        )
    if _value(named["case_both_rise"]) >= OFTEN:
        words.append(
            "The push on the chosen lifts the rejected with it; pair_weighting: normalized "
            "balances the two, or lower the weight of what imitates the chosen (sft, cpo's and "
            "slic's term)."
        )
    if _value(named["case_other"]) >= OFTEN:
        words.append(
            "Many pairs are pushed backwards or not at all: at this point the objective's pulls "
            "vanish or are negative there (a target passed, a hinge satisfied)."
        )
    if not words:
        words.append(
            "At these weights a step lowers few chosen log-probs. Where they fall in training, "
            "measure there (entanglement_steps), or along the optimizer's own update, whose "
            "scaling these figures leave out (optimizer_update)."
        )
    if proxy:
        words.append("This is a proxy: measure with method='exact' before acting on it.")
    if len(found.pairs) < 30:
        words.append(f"Only {len(found.pairs)} pairs were measured: give more to be sure.")
    return " ".join(words)


def _pairs(found: Measurement, ids: Sequence[str]) -> dict[str, Any]:
    """One list a quantity, pairs in order."""
    columns: dict[str, Array] = {
        **found.pairs.columns(),
        "batch_change_chosen": found.batch_change[:, 0],
        "batch_change_rejected": found.batch_change[:, 1],
    }
    if found.stepped is not None:
        for name in ("predicted", "observed"):
            values = getattr(found.stepped, name)
            columns |= {f"{name}_chosen": values[:, 0], f"{name}_rejected": values[:, 1]}
    plain = {name: [_plain(x) for x in values] for name, values in columns.items()}
    return {"id": list(ids), "case": found.pairs.cases.tolist(), **plain}


def _plain(value: float) -> float | None:
    """A number for JSON, which has no NaN: undefined is None."""
    return float(value) if np.isfinite(value) else None


def _gram(found: Measurement, ids: Sequence[str]) -> dict[str, Any]:
    labels = [f"{ids[i // 2]} {'rejected' if i % 2 else 'chosen'}" for i in range(len(found.gram))]
    return {"labels": labels, "inner": found.gram.tolist()}


def _layers(found: Measurement) -> dict[str, Any]:
    """Each layer's part of the mean inner product and squared norms, and its own mean cosine."""
    rows: list[tuple[Any, ...]] = []
    for layer, (inner, chosen, rejected) in ((k, v.T) for k, v in found.layers.items()):
        scale = np.sqrt(chosen * rejected)
        cosine = np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0)
        means = (inner.mean(), chosen.mean(), rejected.mean(), cosine.mean())
        rows.append((layer, *map(float, means)))
    rows.sort(key=lambda row: _order(row[0]))
    names = ("layer", "inner", "squared_norm_chosen", "squared_norm_rejected", "cosine")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _order(layer: str) -> tuple[int, int, str]:
    """Embeddings first, layers by number, then norm and head."""
    if layer.startswith("layer "):
        return 1, int(layer.removeprefix("layer ")), layer
    return (0 if layer.startswith(("embed", "w")) else 2), 0, layer
