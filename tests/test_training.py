"""The step and the trainer: invariance to the split, resumption, references, TRL's faults."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import TrainerCallback

from closeness import assert_same_movement
from test_scoring import make_model, make_trees
from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline import AlignmentConfig, AlignmentTrainer
from trueline.batching import Encoder, view
from trueline.batching.trees import deranged
from trueline.data import load_examples
from trueline.errors import UserError
from trueline.models.fingerprint import fingerprint
from trueline.objectives import OBJECTIVES, bind
from trueline.scoring import Scorer
from trueline.training import NonFiniteError, StepEngine, last_checkpoint
from trueline.training.reference import Reference, ReferenceCache
from trueline.training.sampling import BatchPlan, Mismatched

SCRIPT = Path(__file__).with_name("train_tiny.py")


def config(folder, **changes):
    return AlignmentConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "reference_cache": "none",
            "gradient_checkpointing": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "report_to": "none",
            "loss_type": "dpo",
            **changes,
        }
    )


def trainer(folder, model=None, rows=None, **changes):
    keywords = {
        k: changes.pop(k) for k in ("ref_model", "peft_config", "eval_dataset") if k in changes
    }
    return AlignmentTrainer(
        model or tiny_llama(),
        args=config(folder, **changes),
        train_dataset=pair_rows() if rows is None else rows,
        processing_class=tiny_tokenizer(),
        **keywords,
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- invariant 1: the split does not matter ------------------------------------------------------


def step_gradient(name, micro_batch_size, coupling="exact", steps=3, **options):
    """The summed gradients of some steps on a model that stands still, in float64."""
    policy, other = make_model("llama"), make_model("llama")
    with torch.no_grad():
        for p in other.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    objective = bind(name, options)
    reference = Reference(Scorer(other), ReferenceCache(None)) if objective.spec.reference else None
    engine = StepEngine(objective, Scorer(policy), reference, coupling=coupling)
    plan = BatchPlan(
        make_trees(0, 20),
        8,
        micro_batch_size=micro_batch_size,
        paired=objective.layout == "paired",
        mismatched=engine._mismatched,
    )
    losses = []
    for _, indices in zip(range(steps), plan, strict=False):
        losses.append(engine.step(plan.share(indices)).loss.item())
    return losses, torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_invariant_1_every_split_gives_the_same_gradient(name):
    losses, truth = step_gradient(name, 8)
    assert math.isfinite(sum(losses))
    for size in (1, 3):
        again, gradient = step_gradient(name, size)
        assert again == pytest.approx(losses, rel=1e-9, abs=1e-9)
        torch.testing.assert_close(gradient, truth, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [["dpo", "sft"], ["bco", "sft"]], ids=" + ".join)
def test_invariant_1_holds_for_a_mean_over_tokens(name):
    losses, truth = step_gradient(name, 8, sft_reduction="tokens")
    assert losses != pytest.approx(step_gradient(name, 8)[0], rel=1e-3)
    again, gradient = step_gradient(name, 3, sft_reduction="tokens")
    assert again == pytest.approx(losses, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(gradient, truth, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "name", [n for n, spec in OBJECTIVES.items() if spec.statistic is not None]
)
def test_ema_coupling_is_the_same_for_every_split(name):
    losses, truth = step_gradient(name, 8, "ema")
    again, gradient = step_gradient(name, 2, "ema")
    assert again == pytest.approx(losses, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(gradient, truth, rtol=1e-6, atol=1e-8)
    exact, _ = step_gradient(name, 8)
    assert losses[0] == pytest.approx(exact[0]), "the first step has no past and is exact"


def test_ema_on_an_objective_without_statistic_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has no effect on objective 'dpo'"):
        trainer(tmp_path, coupling="ema")


@pytest.mark.parametrize("name", ["dpo", "kldo"])
def test_twenty_steps_8x1_equal_1x8(name, tmp_path):
    rows = pair_rows(40)
    models = []
    for size, accumulation in ((8, 1), (1, 8)):
        run = trainer(
            tmp_path / str(size),
            rows=rows,
            loss_type=name,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=20,
        )
        run.train()
        models.append(weights(run.model))
    assert_same_movement(*models, start=weights(tiny_llama()))


def run_script(folder, *arguments, processes=1, wait=True):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        command += ["--standalone"]
    command += [str(SCRIPT), str(folder), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRUELINE_CACHE": str(folder / "cache")}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if wait:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    return process


def test_two_processes_equal_one(tmp_path):
    """gloo; 27 rows in batches of 8: the epoch's last batch of 3 splits into 2 and 1."""
    names = ["dpo", "kto", "bco", "kldo"]
    run_script(tmp_path / "two", *names, processes=2)
    run_script(tmp_path / "one", *names)
    for name in names:
        one, two = (torch.load(tmp_path / n / f"{name}.pt") for n in ("one", "two"))
        assert_same_movement(one["weights"], two["weights"], weights(tiny_llama()))
        assert one["losses"] == pytest.approx(two["losses"], rel=1e-4, abs=1e-5)


# --- invariant 3: resumption ---------------------------------------------------------------------


def test_resumed_equals_uninterrupted(tmp_path):
    """Over an epoch's end, with dropout on and a moving average in the objective."""
    options = {
        "loss_type": "bco",
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "disable_dropout": False,
    }

    def run(folder, **changes):
        model = tiny_llama(attention_dropout=0.2)
        return trainer(folder, model, pair_rows(12), **options, **changes)

    whole = run(tmp_path / "whole")
    whole.train()
    part = run(tmp_path / "part")
    part.add_callback(StopAt(5))
    part.train()
    assert last_checkpoint(tmp_path / "part").name == "checkpoint-4"
    resumed = run(tmp_path / "part")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 9
    assert torch.equal(weights(resumed.model), weights(whole.model))


class StopAt(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_killed_training_resumes_to_the_same_weights(tmp_path):
    run_script(tmp_path / "whole", "kldo", "--steps", 30)
    process = run_script(tmp_path / "killed", "kldo", "--steps", 30, "--slow", wait=False)
    target = tmp_path / "killed" / "kldo" / "checkpoint-10" / "checksums.json"
    deadline = time.monotonic() + 120
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    broken = tmp_path / "killed" / "kldo" / "checkpoint-99"
    broken.mkdir()  # what a kill in the middle of writing leaves behind
    (broken / "model.safetensors").write_bytes(b"half")
    run_script(tmp_path / "killed", "kldo", "--steps", 30, "--resume")
    one, two = (torch.load(tmp_path / n / "kldo.pt") for n in ("whole", "killed"))
    assert torch.equal(one["weights"], two["weights"])


def test_resuming_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(UserError, match="no whole checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


# --- references and adapters ---------------------------------------------------------------------


def lora():
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def test_adapter_off_equals_a_frozen_copy(tmp_path):
    """The base under the adapter is the reference, bit for bit the same as a copy of it."""
    runs = [
        trainer(tmp_path / "off", peft_config=lora(), max_steps=4),
        trainer(tmp_path / "copy", peft_config=lora(), ref_model=tiny_llama(), max_steps=4),
    ]
    for run in runs:
        torch.manual_seed(1)
        run.train()
    assert torch.equal(weights(runs[0].model), weights(runs[1].model))
    assert runs[0].state.log_history[0]["rewards/chosen"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_precomputed_reference_equals_a_live_one(name, tmp_path):
    def run(label, **changes):
        result = trainer(tmp_path / label, loss_type=name, max_steps=5, **changes)
        result.train()
        return weights(result.model)

    before = run("before")
    start = weights(tiny_llama())
    assert_same_movement(before, run("live", precompute_ref_log_probs=False), start)
    assert_same_movement(before, run("given", ref_model=tiny_llama()), start)


def test_output_loads_in_plain_transformers(tmp_path):
    run = trainer(tmp_path, max_steps=2)
    run.train()
    run.save_model()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(weights(again), weights(run.model))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template
    assert (tmp_path / "model.safetensors").exists()


def test_a_new_adapter_is_drawn_by_the_seed_whatever_was_drawn_before(tmp_path):
    def drawn(seed):
        torch.rand(3)
        run = trainer(tmp_path, peft_config=lora(), seed=seed)
        return {n: p.detach().clone() for n, p in run.model.named_parameters() if "lora_A" in n}

    one, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_adapter_loads_in_plain_peft(tmp_path):
    from peft import PeftModel

    run = trainer(tmp_path, peft_config=lora(), max_steps=3)
    run.train()
    run.save_model()
    assert (tmp_path / "adapter_model.safetensors").exists()
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    ids = torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(again(input_ids=ids).logits, run.model.eval()(input_ids=ids).logits)


def test_a_trained_policy_is_no_reference_for_new_data(tmp_path):
    run = trainer(tmp_path, max_steps=2)
    run.train()
    with pytest.raises(UserError, match="has been trained since"):
        run.evaluate([{"prompt": "why ?", "chosen": "because yes", "rejected": "because no"}])


def test_a_reference_for_a_reference_free_objective_is_an_error(tmp_path):
    with pytest.raises(UserError, match="reads no reference"):
        trainer(tmp_path, loss_type="simpo", ref_model=tiny_llama())


def trees_of(rows):
    encode = Encoder(tiny_tokenizer())
    return [t for e in load_examples(rows) for t in view(e, encode(e), "paired")]


def test_cache_is_reused_and_a_damaged_shard_recomputed(tmp_path, caplog):
    trees = trees_of(pair_rows())
    model = tiny_llama()
    first = Reference(Scorer(model), ReferenceCache(tmp_path))
    truth = first(trees)
    first.cache.flush()
    (shard,) = tmp_path.glob("*.safetensors")
    again = Reference(Scorer(model), ReferenceCache(tmp_path))
    assert len(again.missing_at(trees)) == 0
    assert torch.equal(again(trees), truth)
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    repaired = Reference(Scorer(model), ReferenceCache(tmp_path))
    assert "damaged" in caplog.text
    assert len(repaired.missing_at(trees)) == len(trees)
    torch.testing.assert_close(repaired(trees), truth)


def test_an_index_of_many_sums_is_read_instead_of_shards(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("trueline.training.reference.INDEXED", 8)
    monkeypatch.setattr("trueline.training.reference.SHARD_ROWS", 5)
    keys = [bytes([i % 7, i]) * 8 for i in range(40)]  # many share one half

    def fill(numbers):
        cache = ReferenceCache(tmp_path)
        for i in numbers:
            cache.add(keys[i], np.full(3, -i, dtype=np.float32))
        cache.exchange()

    fill(range(20))
    fill(range(15, 33))  # the second time the index holds both
    monkeypatch.setattr(ReferenceCache, "_read", None)
    cache = ReferenceCache(tmp_path)
    assert isinstance(cache._sums.parts[0], np.memmap)
    assert {i: cache[keys[i]] for i in range(33)} == {i: -3.0 * i for i in range(33)}
    assert len(cache) == 33
    assert keys[33] not in cache
    monkeypatch.undo()
    index = tmp_path / "index.npy"
    data = bytearray(index.read_bytes())
    data[-3] ^= 1
    index.write_bytes(data)
    assert ReferenceCache(tmp_path)[keys[32]] == -96.0
    assert "is not used" in caplog.text


WRITER = """
import sys
from pathlib import Path
import numpy as np
from trueline.training import reference
reference.SHARD_ROWS = 5
cache = reference.ReferenceCache(Path(sys.argv[1]))
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    cache.add(i.to_bytes(16, "little"), np.full(3, i, dtype=np.float32))
cache.flush()
"""


def test_two_processes_write_one_cache_at_once(tmp_path):
    ranges = [("0", "60"), ("40", "100")]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), *bounds])
        for bounds in ranges
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    cache = ReferenceCache(tmp_path)
    assert {i: cache[i.to_bytes(16, "little")] for i in range(100)} == {
        i: 3.0 * i for i in range(100)
    }
    assert not list(tmp_path.glob("*.damaged")) + list(tmp_path.glob("*.part"))


def test_kto_keeps_no_copy_and_runs_no_reference_in_the_loop(tmp_path, monkeypatch):
    """What KTO compares with is planned, so its reference log-probs are filled beforehand."""
    run = trainer(tmp_path, loss_type="kto", num_train_epochs=2, eval_dataset=pair_rows(5))
    assert run.reference.scorer is run.scorer
    fill, calls = run.reference.fill, []

    def counted(*args):
        calls.append(run.state.global_step)
        fill(*args)

    monkeypatch.setattr(run.reference, "fill", counted)
    run.train()
    run.evaluate()
    assert set(calls) == {0}, "all of it before the first step"


def test_what_kto_compares_with_is_made_once_and_then_looked_up(tmp_path, monkeypatch):
    """A restart on kept reference log-probs makes no tree for its plan; a plan of other batches,
    a list or a shard that is damaged, and it is made again."""
    made, walk = [], Mismatched.__iter__
    monkeypatch.setattr(Mismatched, "__iter__", lambda self: (made.append(1), walk(self))[1])

    def train(label, **changes):
        cache = {"reference_cache": str(tmp_path / "cache")}
        run = trainer(tmp_path / label, loss_type="kto", **cache, **{"max_steps": 3, **changes})
        run.train()
        times = len(made)
        made.clear()
        return times, weights(run.model)

    def flip(pattern):
        for path in (tmp_path / "cache").rglob(pattern):
            data = bytearray(path.read_bytes())
            data[-20] ^= 1
            path.write_bytes(data)

    times, truth = train("first")
    assert times == 1
    for label, damage in {"again": None, "list": "*.keys", "sums": "*.safetensors"}.items():
        flip(damage or "none")
        times, found = train(label)
        assert (label, times) == (label, 0 if damage is None else 1)
        assert torch.equal(found, truth)
    for label, changes in {"seed": {"seed": 7}, "steps": {"max_steps": 4}}.items():
        assert train(label, **changes)[0] == 1, label
        assert train(f"{label} again", **changes)[0] == 0, label


def test_micro_batches_by_tokens_give_the_same_update(tmp_path):
    def run(label, **changes):
        changes["adam_epsilon"] = 1e-4  # or rounding shows where a gradient is almost nothing
        result = trainer(tmp_path / label, loss_type="kldo", max_steps=5, **changes)
        result.train()
        return result

    by_count, by_tokens = run("count"), run("tokens", max_tokens_per_micro_batch=25)
    sizes = [len(trees) for trees in by_tokens.plan.share(range(12)).micro_batches]
    assert sum(sizes) == 12
    assert max(sizes) < 4
    both = weights(by_count.model), weights(by_tokens.model)
    assert_same_movement(*both, start=weights(tiny_llama()))


def test_reference_prompt_conditions_the_reference_alone():
    row = {"prompt": "why ?", "reference_prompt": "because we help why ?"}
    row |= {"chosen": "yes", "rejected": "no"}
    (tree,) = trees_of([row])
    plain = {**row, "prompt": row["reference_prompt"]}
    (as_seen,) = trees_of([plain])
    reference = Reference(Scorer(tiny_llama()), ReferenceCache(None))
    assert torch.equal(reference([tree]), reference([as_seen]))
    assert len(tree.prompt) == 3, "the policy sees the prompt itself"


# --- what must stop, stops -----------------------------------------------------------------------


@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "avx2",
    reason="torch's bf16 attention packs for the processor's AVX-512 where its setting forbids it",
)
def test_bf16_holds_for_reference_and_policy_also_in_a_second_training(tmp_path, caplog):
    """Accelerate wraps a model's forward method once and leaves it wrapped, so neither a scorer
    attached later nor the reference pass can rely on that."""
    model = tiny_llama()
    for again in (False, True):
        made = trainer(tmp_path / str(again), model, bf16=True)
        assert made.scorer.fast, caplog.text
        seen = set()
        layer = model.model.layers[0].mlp.down_proj
        handle = layer.register_forward_hook(
            lambda module, given, out, seen=seen: seen.add((torch.is_grad_enabled(), out.dtype))
        )
        made.train()
        handle.remove()
        assert seen == {(False, torch.bfloat16), (True, torch.bfloat16)}
        if not again:
            first = made.state.log_history[0]
            assert abs(first["rewards/margins"]) < 1e-3  # policy is reference before the step


@pytest.mark.slow
def test_compiled_trains_to_the_same_losses(tmp_path):
    found = []
    for number, compiling in enumerate(({}, {"torch_compile_backend": "eager"})):
        made = trainer(tmp_path / str(number), torch_compile=bool(compiling), **compiling)
        made.train()
        found.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert len(found[0]) > 1
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_non_finite_log_probs_stop_and_name_the_rows(tmp_path):
    model = tiny_llama()
    run = trainer(tmp_path, model)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("nan")  # "sky" is in no row, "the" in all
        model.model.embed_tokens.weight[4] = float("nan")
    with pytest.raises(NonFiniteError, match="row"):
        run.train()
    assert run.state.global_step == 0


def test_a_non_finite_gradient_stops_and_names_the_rows(tmp_path):
    model = tiny_llama()
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    run = trainer(tmp_path, model)
    before = weights(model).clone()
    with pytest.raises(NonFiniteError, match="gradient is not finite in step 1, on rows row"):
        run.train()
    assert torch.equal(weights(model), before)


def test_evaluation_best_model_and_tensorboard_work_as_in_any_trainer(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run = trainer(
        tmp_path,
        eval_dataset=pair_rows(6),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="rewards/accuracies",
        load_best_model_at_end=True,
        report_to="tensorboard",
        loss_type="kldo",
        max_steps=3,
    )
    run.train()
    evaluations = [row for row in run.state.log_history if "eval_rewards/accuracies" in row]
    assert len(evaluations) == 3
    assert run.state.best_metric == max(row["eval_rewards/accuracies"] for row in evaluations)
    assert list((tmp_path).rglob("events.out.tfevents*"))


def test_a_callback_that_logs_takes_no_step_out_of_the_log(tmp_path):
    run = trainer(tmp_path, max_steps=4)

    class Measures(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % 2 == 0:
                run.log({"measured": 1.0})

    run.add_callback(Measures())
    run.train()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in logged if "measured" in row] == [2, 4]


def test_options_without_effect_are_errors(tmp_path):
    with pytest.raises(UserError, match="'simpo_gamma' has no effect on objective 'dpo'"):
        trainer(tmp_path, simpo_gamma=1.0)
    with pytest.raises(KeyError, match="did you mean 'kldo'"):
        trainer(tmp_path, loss_type="kldoo")


def test_paired_objective_on_unpaired_data_names_the_row(tmp_path):
    with pytest.raises(UserError, match="needs preference pairs"):
        trainer(tmp_path, rows=[{"prompt": "why ?", "completion": "because", "label": True}])


# --- TRL's faults, each by its number ------------------------------------------------------------


def test_f1_batches_of_unpaired_data_are_balanced():
    rows = [
        {"prompt": f"why {'one ' * i}?", "completion": "yes", "label": i < 16} for i in range(32)
    ]
    encode = Encoder(tiny_tokenizer())
    trees = [t for e in load_examples(rows) for t in view(e, encode(e), "unpaired")]
    plan = BatchPlan(trees, 8, paired=False)
    batches = [plan.share(indices) for indices in plan]
    assert [batch.counts for batch in batches] == [(4, 4)] * 4
    seen = sorted(i for indices in plan for i in indices)
    assert seen == list(range(32)), "every row once an epoch"


def test_f2_kto_does_not_depend_on_the_split(tmp_path):
    kls = []
    for size, accumulation in ((16, 1), (8, 2), (4, 4), (2, 8)):
        run = trainer(
            tmp_path / str(size),
            rows=pair_rows(32),
            loss_type="kto",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=5,
            learning_rate=0.03,
        )
        run.train()
        kls.append(torch.tensor([x["kl"] for x in run.state.log_history if "kl" in x]))
    for k in kls[1:]:
        assert_same_movement(kls[0], k, start=0.0, tolerance=1e-4)
    assert kls[0].max() > 0.5


def test_f3_no_completion_is_its_own_mismatch():
    trees = trees_of(pair_rows(9))
    for n in (1, 2, 3, 9):
        plan = BatchPlan(trees, n, mismatched=True)
        for indices in plan:
            batch = plan.share(indices)
            for tree, other in zip(batch.micro_batches[0], batch.mismatched[0], strict=True):
                assert np.array_equal(tree.prompt, other.prompt)
                assert all(a is not b for a in tree.branches for b in other.branches)
    same = [trees[0]] * 3
    assert deranged(same) == [None] * 3


def shards(folder):
    return sorted(p.name for p in Path(folder).rglob("*.safetensors"))


def cached_run(tmp_path, label, model=None, **changes):
    run = trainer(
        tmp_path / label, model, max_steps=1, reference_cache=str(tmp_path / "cache"), **changes
    )
    run.train()
    return shards(tmp_path / "cache")


def test_f4_cache_survives_other_learning_rate_seed_and_folder(tmp_path):
    first = cached_run(tmp_path, "a")
    assert first
    assert cached_run(tmp_path, "b", learning_rate=1e-4, seed=7, loss_type="ipo") == first


def test_f5_cache_misses_when_something_that_matters_changed(tmp_path):
    first = cached_run(tmp_path, "a")
    assert len(cached_run(tmp_path, "b", max_length=6)) > len(first), "other ids, other rows"
    assert fingerprint(tiny_llama(), "float32") != fingerprint(tiny_llama(1), "float32")
    assert fingerprint(tiny_llama(), "float32") != fingerprint(tiny_llama(), "bfloat16")
    other = tiny_llama(rms_norm_eps=1e-3)
    assert fingerprint(tiny_llama(), "float32") != fingerprint(other, "float32")


def test_f6_cache_is_untouched_by_lora(tmp_path):
    first = cached_run(tmp_path, "a")
    assert cached_run(tmp_path, "b", peft_config=lora()) == first


def test_f7_label_smoothing_is_honored_or_an_error(tmp_path):
    losses = []
    for smoothing in (None, 0.3):
        run = trainer(
            tmp_path / str(smoothing),
            ref_model=tiny_llama(1),
            label_smoothing=smoothing,
            max_steps=1,
        )
        run.train()
        losses.append(run.state.log_history[0]["loss"])
    assert losses[0] != pytest.approx(losses[1], abs=1e-4)
    with pytest.raises(UserError, match="has no effect"):
        trainer(tmp_path, loss_type="ipo", label_smoothing=0.1)


def test_f8_bco_has_its_shift(tmp_path):
    run = trainer(tmp_path, loss_type="bco", ref_model=tiny_llama(1), max_steps=1)
    run.train()
    row = run.state.log_history[0]
    middle = (row["rewards/chosen"] + row["rewards/rejected"]) / 2
    assert row["rewards/shift"] == pytest.approx(middle, rel=1e-4)
    assert abs(middle) > 1e-4


def test_metric_names_are_trls(tmp_path):
    run = trainer(tmp_path, eval_dataset=pair_rows(4), max_steps=1)
    run.train()
    metrics = run.evaluate()
    for side in ("chosen", "rejected"):
        assert f"eval_logps/{side}" in metrics
        assert f"eval_rewards/{side}" in metrics
    assert {"eval_rewards/accuracies", "eval_rewards/margins", "eval_loss"} <= set(metrics)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1
    assert "rewards/margins" in lines[0]


# --- the catalogue in training -------------------------------------------------------------------


def prefixed(rows):
    return [{**row, "reference_prompt": "because we help " + row["prompt"]} for row in rows]


def test_e_dpo_is_dpo_with_the_references_prompt(tmp_path):
    def run(label, rows, **changes):
        result = trainer(tmp_path / label, rows=rows, max_steps=4, **changes)
        result.train()
        return weights(result.model)

    safe = run("e-dpo", prefixed(pair_rows()), loss_type="e_dpo")
    assert torch.equal(safe, run("dpo with", prefixed(pair_rows()), loss_type="dpo"))
    assert not torch.allclose(safe, run("dpo", pair_rows(), loss_type="dpo"), atol=1e-4)
    with pytest.raises(UserError, match="needs 'reference_prompt'"):
        trainer(tmp_path / "none", loss_type="e_dpo")


@pytest.mark.parametrize("name", ["kto", "kldo", "ipo"])
def test_every_reference_based_objective_takes_the_references_prompt(name, tmp_path):
    rewards = []
    for rows in (pair_rows(), prefixed(pair_rows())):
        run = trainer(tmp_path / str(len(rewards)), rows=rows, loss_type=name, max_steps=1)
        run.train()
        rewards.append(run.state.log_history[0]["rewards/chosen"] / run.objective.beta)
    assert rewards[0] == pytest.approx(0, abs=1e-5)
    assert abs(rewards[1]) > 1e-4


def test_a_weighted_sum_trains_and_splits(tmp_path):
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        run = trainer(
            tmp_path / str(size),
            loss_type=["dpo", "sft"],
            loss_weights=[1.0, 0.2],
            beta=0.3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
        )
        run.train()
        results.append(weights(run.model))
    assert_same_movement(*results, start=weights(tiny_llama()))


def test_an_objective_of_ones_own_trains(tmp_path, monkeypatch):
    module = tmp_path / "losses_of_mine.py"
    module.write_text(
        "from torch import Tensor\n"
        "from trueline import PairedLogProbs\n"
        "def mine(pairs: PairedLogProbs, *, scale: float = 1.0) -> Tensor:\n"
        "    return -scale * pairs.margin\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = trainer(
        tmp_path / "run",
        loss_type="losses_of_mine:mine",
        objective_options={"scale": 0.5},
        max_steps=2,
    )
    run.train()
    assert "rewards/margins" in run.state.log_history[0]


def test_a_dominating_sample_is_warned_of_once(tmp_path, caplog):
    run = trainer(tmp_path, loss_type="kldo", beta=50.0, ref_model=tiny_llama(1), max_steps=3)
    run.train()
    assert len([r for r in caplog.records if "of the weight of all" in r.message]) == 1
