"""What a GPU would object to, without one: steps on the meta device, whose tensors refuse to be
read on the host, to be indexed by a mask and, single numbers apart, to meet tensors of the CPU."""

import contextlib
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from test_scoring import make_model, make_trees
from tiny import tiny_llama
from trueline.objectives import bind
from trueline.scoring import Scorer, attention
from trueline.training import step
from trueline.training.metrics import MetricAccumulator, step_metrics
from trueline.training.sampling import BatchPlan


class Seen(TorchDispatchMode):
    """Counts every operation by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        names = [str(function)]
        if names == ["aten.index.Tensor"] and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            names.append("by a mask")  # how many there are is asked of the device
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def reference(trees):
    return torch.zeros(sum(len(tree.branches) for tree in trees))


@pytest.mark.parametrize("loss", ["dpo", "kldo", "ipo", "simpo", "robust_dpo"])
def test_d7_nothing_in_a_step_waits_for_the_device(loss):
    """Several micro-batches and their metrics. Two waits of a whole step are left out: the check of
    all log-probs at its end, and the number that an objective with a statistic logs."""
    objective = bind(loss)
    paired = objective.layout == "paired"
    share = BatchPlan(make_trees(0, 8, 40), 8, micro_batch_size=4, paired=paired).share(range(8))
    model = tiny_llama(num_key_value_heads=1).to("meta", torch.bfloat16)
    enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def quiet(kind, **options):  # torch has no autocast for this device
        return contextlib.nullcontext() if kind == "meta" else autocast(kind, **options)

    with (
        patch.object(torch, "autocast", quiet),
        patch.object(attention, "varlen_works", lambda *_: True),
        patch.object(step, "_check", lambda *_: None),
        patch.object(step.StepEngine, "_observe", lambda *_: {}),
        patch.object(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind)),
        Seen() as seen,
    ):
        engine = step.StepEngine(
            objective,
            Scorer(model, check=False),
            reference if objective.spec.reference else None,
        )
        result = engine.step(share)
        MetricAccumulator().add(step_metrics(engine.assemble(result.rows), objective))
    assert result.loss.device.type == "meta"
    assert all(p.grad is not None for p in model.parameters())
    passes = len(share.micro_batches) * (2 if objective.spec.coupled else 1)
    layers = model.config.num_hidden_layers
    assert seen.counts["torch_attn._varlen_attn.default"] == passes * layers


@pytest.mark.parametrize(("loss", "waits"), [("dpo", 1), ("kldo", 2), ("kto", 2)])
def test_d7_what_a_whole_step_waits_for(loss, waits):
    """The check of all log-probs, and a statistic's number; they were 1, 15 and 8. Batches are put
    together on the host, where asking costs nothing."""
    objective = bind(loss)
    plan = BatchPlan(
        make_trees(0, 8, 40), 8, micro_batch_size=4, paired=objective.layout == "paired",
        mismatched=loss == "kto",
    )  # fmt: skip
    share, model = plan.share(range(8)), tiny_llama(num_key_value_heads=1)
    engine = step.StepEngine(
        objective, Scorer(model, check=False), reference if objective.spec.reference else None
    )
    with Seen() as seen:
        result = engine.step(share)
        MetricAccumulator().add(step_metrics(engine.assemble(result.rows), objective))
    names = ("aten._local_scalar_dense.default", "aten.nonzero.default", "by a mask")
    assert sum(seen.counts.get(name, 0) for name in names) == waits


def test_d6_float32_weights_under_autocast_take_the_flash_call():
    """A GPU's default precision: the rotation leaves queries and keys in float32 beside values in
    bfloat16. Grouped keys and values reach the call as they are."""
    calls = []

    def by_varlen(query, key, value, layout, scale=None, window=None):
        calls.append((query.dtype, key.dtype, value.dtype, query.shape[1], key.shape[1]))
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        return attention.by_part(query, key, value, layout, 0.0, scale, None, window)

    trees = make_trees(0, 3)
    scorer = Scorer(make_model("llama", dtype=torch.float32))
    heads, groups = (
        getattr(scorer.core.config, name) for name in ("num_attention_heads", "num_key_value_heads")
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = scorer(trees)
        with (
            patch.object(attention, "varlen_works", lambda *_: True),
            patch.object(attention, "by_varlen", by_varlen),
        ):
            flash = scorer(trees)
    assert set(calls) == {(*[torch.bfloat16] * 3, heads, groups)}
    assert groups < heads
    assert len(calls) == scorer.core.config.num_hidden_layers
    assert torch.allclose(plain, flash)
