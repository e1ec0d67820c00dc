"""The memory estimate: measured where it can be, and an error before a run that cannot fit."""

from dataclasses import replace

import pytest
import torch

from test_scoring import make_model, make_trees
from test_training import lora, trainer
from tiny import tiny_llama
from trueline.errors import UserError
from trueline.scoring import Scorer, Shortcuts
from trueline.training import memory
from trueline.training.memory import estimate


def saved_by_autograd(scorer, trees):
    """Bytes autograd keeps for the bodies of these trees, counted apart from the estimate's code:
    unique storages that are no parameter's."""
    known = {p.data_ptr() for p in scorer.model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = scorer.pack(trees)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scorer.core.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            layout=batch.layout,
            use_cache=False,
        )
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_a_container_s_file_cache_is_room(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nactive_file 200\ninactive_file 400\n")
    assert memory._left_in_container(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    with pytest.raises(ValueError, match="max"):  # no limit: the machine's own is asked
        memory._left_in_container(tmp_path)


def test_activations_are_what_autograd_keeps():
    scorer = Scorer(make_model("llama"), shortcuts=Shortcuts(last_layer=False))
    trees = make_trees(count=60)
    tokens = scorer.pack(trees).input_ids.shape[1]
    guess = estimate(scorer, tokens=tokens, scored=1).activations
    assert guess == pytest.approx(saved_by_autograd(scorer, trees), rel=0.1)


def test_weights_gradients_and_states_are_counted():
    model = tiny_llama()
    size = 4 * sum(p.numel() for p in model.parameters())
    found = estimate(
        Scorer(model), tokens=100, scored=10, reference=tiny_llama(), optimizer="adamw_torch_fused"
    )
    assert (found.gradients, found.optimizer) == (size, 2 * size)
    assert found.weights == found.reference
    assert found.weights == pytest.approx(size, rel=0.05)  # and a few buffers
    assert found.total == found.weights + found.reference + found.to_come


def test_checkpointing_keeps_less_and_an_adapter_trains_less(tmp_path):
    plain = trainer(tmp_path / "plain", max_steps=1)
    plain.train()
    sparing = trainer(tmp_path / "sparing", max_steps=1, gradient_checkpointing=True)
    sparing.train()
    adapted = trainer(tmp_path / "adapted", max_steps=1, peft_config=lora())
    adapted.train()
    assert sparing.memory.activations < plain.memory.activations
    assert adapted.memory.optimizer < plain.memory.optimizer
    assert plain.memory.reference == 0, "the policy before training is the reference"


def test_a_run_that_cannot_fit_stops_before_it_starts(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=1)
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(UserError, match=r"does not fit.*max_tokens_per_micro_batch"):
        run.train()
    assert run.state.global_step == 0
    assert len(run.reference.cache) == 0, "not even the reference pass was started"


def test_the_remedy_names_what_takes_most():
    few = estimate(Scorer(tiny_llama()), tokens=1, scored=1)
    with pytest.raises(UserError, match="use_peft: true"):
        replace(few, activations=0, head=0, available=0).check()


def test_the_estimate_bounds_what_a_step_takes(tmp_path):
    """Peak of live bytes during one real step, as the allocator's own counter has it."""
    run = trainer(tmp_path, max_steps=1, per_device_train_batch_size=12)
    run.train()
    tokens, scored = run.plan.largest()
    batch = run.plan.share(next(iter(run.plan)))
    packed = run.scorer.pack(batch.micro_batches[0])
    assert (packed.input_ids.shape[1], len(packed.targets)) == (tokens, scored)
    assert saved_by_autograd(run.scorer, batch.micro_batches[0]) < 1.3 * run.memory.activations
