"""More than one process: one process's update, or one line that says why not."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from peft import get_peft_model
from safetensors.torch import save_file

import processes
from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline.batching import Branch, TokenTree
from trueline.config import ModelArguments
from trueline.errors import UserError
from trueline.models import keep_gradients, load_model
from trueline.processes import launched
from trueline.training import pieces
from trueline.training.distributed import check_processes, check_wrapped
from trueline.training.sampling import BatchPlan

TOLERANCE = 1e-5
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(
    not DEEPSPEED, reason="deepspeed is not installed: pip install 'trueline[deepspeed]'"
)


# --- equal work ----------------------------------------------------------------------------------


def tree(size):
    ids = np.arange(size, dtype=np.int32)
    return TokenTree(
        ids, (Branch(ids, np.ones(size, dtype=bool)),) * 2, (True, False), id=str(size)
    )


@pytest.mark.parametrize("budget", [None, 40])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_d4_every_rank_makes_equally_many_passes(world, budget):
    """Over ragged batches, token budgets, ranks without a row; every row counts exactly once."""
    rng = np.random.default_rng(0)
    trees = [tree(int(size)) for size in rng.integers(2, 30, 27)]
    plans = [
        BatchPlan(
            trees, 8, micro_batch_size=2, max_tokens=budget, rank=rank, world_size=world,
            mismatched=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    for indices in plans[0]:
        shares = [plan.share(indices) for plan in plans]
        for kind in ("micro_batches", "mismatched"):
            passes = [getattr(share, kind) for share in shares]
            assert len({len(p) for p in passes}) == 1
            assert all(p.sizes == passes[0].sizes for p in passes)
            own = [len(p.trees) * 2 for p in passes]
            assert list(passes[0].sizes) == own
            assert all(len(trees) == 1 for p in passes for trees, fill in p.marked() if fill)
        rows = [t.id for share in shares for t in share.micro_batches.trees]
        assert sorted(rows) == sorted(trees[i].id for i in indices)


def test_drop_last_leaves_out_what_is_not_whole():
    trees = [tree(5)] * 27
    plan = BatchPlan(trees, 8, drop_last=True)
    assert len(plan) == 3
    assert [len(batch) for batch in plan] == [8, 8, 8]
    with pytest.raises(UserError, match="dataloader_drop_last leaves nothing"):
        BatchPlan(trees, 28, drop_last=True)


# --- refusals ------------------------------------------------------------------------------------


def fake(world=2, *, version=2, adapted=False, quantized=None, **options):
    """What the checks read of a trainer with FSDP."""
    plugin = SimpleNamespace(fsdp_version=version)
    args = {
        "world_size": world, "pair_weighting": None, "entanglement_steps": 0, "fp16": False,
        "optim": "adamw_torch", **options,
    }  # fmt: skip
    return SimpleNamespace(
        args=SimpleNamespace(**args),
        sharded=True,
        adapted=adapted,
        is_fsdp_enabled=True,
        model=SimpleNamespace(config=SimpleNamespace(quantization_config=quantized)),
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
    )


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (fake(version=1), "fsdp_version: 2"),
        (fake(adapted=True), "training an adapter further"),
        (fake(pair_weighting="normalized"), "pair_weighting reads each weight's gradient whole"),
        (fake(entanglement_steps=5), "entanglement_steps reads"),
        (fake(quantized=SimpleNamespace(load_in_8bit=True)), "take load_in_4bit, or one process"),
        (fake(quantized=SimpleNamespace(load_in_4bit=True)), "train QLoRA in one, as plain data"),
        (fake(optim="adafactor"), "take one of adamw_torch"),
        (fake(world=1), "2 processes were started"),
    ],
)
def test_what_does_not_hold_is_refused(trainer, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=message):
        check_processes(trainer)


def test_a_deepspeed_file_that_clips_elsewhere_is_refused():
    trainer = SimpleNamespace(
        is_deepspeed_enabled=True,
        args=SimpleNamespace(max_grad_norm=0.5),
        deepspeed=SimpleNamespace(gradient_clipping=lambda: 1.0),
    )
    with pytest.raises(UserError, match=r"max_grad_norm is 0\.5"):
        check_wrapped(trainer)


# --- one process's update ------------------------------------------------------------------------


TRUTHS = {}
"""What one process trains, by case: engines that train the same share one."""


def truth_of(case, folder):
    alone = {k: v for k, v in case.items() if k not in ("engine", "changes")}
    if str(alone) not in TRUTHS:
        found = processes.run({"run": alone}, folder / f"one-{len(TRUTHS)}", 1)["run"]
        assert not isinstance(found, Exception), repr(found)
        TRUTHS[str(alone)] = found
    return TRUTHS[str(alone)]


def same(cases, folder, world=2):
    """Every case over several processes against the same case in one; the figures of each."""
    truths = {name: truth_of(case, folder) for name, case in cases.items()}
    found, figures = processes.run(cases, folder / "many", world), {}
    for name, case in cases.items():
        one, many = truths[name], found[name]
        assert not isinstance(many, Exception), f"{name}: {many!r}"
        moved = (one["weights"] - one["start"]).norm()
        apart = float((one["weights"] - many["weights"]).norm() / moved)
        assert apart < TOLERANCE, f"{name}: {apart:.2g} of the movement"
        assert many["steps"] == one["steps"], name
        for key in ("loss", "grad_norm", "eval_loss", "rewards/chosen"):
            assert many[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), (name, key)
        share = 1 if case["engine"] == "ddp" else 1 / world
        assert many["held"] == pytest.approx(share, abs=0.1), name
        figures[name] = {"apart": apart, "steps": many["steps"], "held": many["held"]}
    return figures


def test_d4_ragged_rows_and_token_budgets_train_as_one_process_does(tmp_path):
    """A last batch of 3 and 5 held-out rows on 2 ranks; the others' weights are not even there."""
    ragged = {"rows": 27, "evals": 5}
    budget = {**ragged, "max_tokens_per_micro_batch": 60}
    same(
        {
            "ddp": {"engine": "ddp", "loss_type": "kto", **budget},
            "fsdp2": {"engine": "fsdp2", "loss_type": "kldo", **budget},
            "fsdp2-lora": {"engine": "fsdp2", "lora": True, "micro": 4, **ragged},
        },
        tmp_path,
    )


@needs_deepspeed
def test_d1_d2_d3_deepspeed_trains_as_one_process_does(tmp_path):
    """Several micro-batches, the optimizer stepping once for all of them."""
    same(
        {
            "zero1": {"engine": "zero1", "rows": 27},
            "zero2": {"engine": "zero2", "rows": 27, "loss_type": "kldo", "lora": True},
            "zero3": {"engine": "zero3", "rows": 27, "evals": 5, "max_grad_norm": 0.01},
        },
        tmp_path,
    )


ENGINES = ["ddp", "fsdp2", *(["zero1", "zero2", "zero3"] if DEEPSPEED else [])]
SPLITS = {
    "one": {"micro": 4},
    "many": {"micro": 1},
    "ragged": {"rows": 27, "evals": 5},
    "tokens": {"rows": 27, "evals": 5, "max_tokens_per_micro_batch": 60},
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "kldo", "kto"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_matrix(engine, objective, tmp_path):
    cases = {
        f"{split}-{'lora' if lora else 'full'}": {
            "engine": engine, "loss_type": objective, "lora": lora, **how,
        }
        for (split, how), lora in itertools.product(SPLITS.items(), (False, True))
    }  # fmt: skip
    figures = same(cases, tmp_path)
    kept = os.environ.get("TRUELINE_FIGURES")
    if kept:  # studies/results/processes.json, of which tools/process_figures.py makes a table
        path = Path(kept)
        all_ = json.loads(path.read_text()) if path.exists() else {}
        rows = {f"{engine} {objective} {name}": row for name, row in figures.items()}
        path.write_text(json.dumps(dict(sorted((all_ | rows).items())), indent=1) + "\n")


TRL = importlib.util.find_spec("trl")


@pytest.mark.slow
@pytest.mark.skipif(TRL is None, reason="trl is not installed, whose files these are")
def test_d3_trl_s_own_files_train_as_one_process_does(tmp_path):
    folder = Path(TRL.submodule_search_locations[0]) / "accelerate_configs"
    names = ["fsdp2", *(["zero1", "zero2", "zero3"] if DEEPSPEED else [])]
    cases = {name: {"engine": str(folder / f"{name}.yaml"), "rows": 27} for name in names}
    same(cases, tmp_path)


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'trueline[bitsandbytes]'",
)


def four_bit_grads(model, ids):
    model.zero_grad()
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@needs_bitsandbytes
def test_gradients_of_four_bit_weights_are_the_same_after_an_evaluation(tmp_path):
    """bitsandbytes leaves a layer that was called without gradients in a layout that has none, on
    processors with AVX512-BF16: the reference pass alone would spoil all that is trained."""
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    args = ModelArguments(str(tmp_path), dtype="float32", load_in_4bit=True)
    model = get_peft_model(load_model(args), processes.adapter())
    ids = torch.arange(40).reshape(2, 20)
    before = four_bit_grads(model, ids)
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    assert torch.equal(four_bit_grads(model, ids), before)


def test_a_layer_that_was_repacked_before_it_came_is_refused():
    layer = torch.nn.Linear(2, 2)
    layer.support_avx512bf16_for_cpu = True
    model = torch.nn.Sequential(layer)
    keep_gradients(model)
    assert not layer.support_avx512bf16_for_cpu
    layer.support_avx512bf16_for_cpu = True
    layer.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(UserError, match=r"four-bit layer 0 .* load the model anew"):
        keep_gradients(model)


@pytest.mark.slow
@needs_bitsandbytes
def test_qlora_trains_as_one_process_does(tmp_path):
    """Four-bit weights under an adapter; where the weights themselves are spread it is refused."""
    case = {"quantized": True, "lora": True, "rows": 27, "evals": 5}
    engines = ["ddp", *(["zero1", "zero2"] if DEEPSPEED else [])]
    same({name: {**case, "engine": name} for name in engines}, tmp_path)
    for name in ("fsdp2", *(["zero3"] if DEEPSPEED else [])):
        found = processes.run({"run": {**case, "engine": name}}, tmp_path / name, 2)["run"]
        assert "train QLoRA in one" in str(found), repr(found)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "ddp"])
def test_d5_a_reference_of_its_own_is_spread_as_the_policy_is(engine, tmp_path):
    live = {"engine": engine, "precompute_ref_log_probs": False, "rows": 27, "evals": 5}
    cases = {
        "named": {"engine": engine, "reference": True},
        "live": {**live, "reference": True, "loss_type": "kto"},
        "frozen": live,
    }
    if engine == "zero3":  # whose weights are spread before a copy could be made
        frozen = processes.run({"frozen": cases.pop("frozen")}, tmp_path / "refused", 2)["frozen"]
        assert "zero3_init_flag spreads the weights" in str(frozen)
    same(cases, tmp_path)


SHARDED = {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}
RESUMED = {
    "ddp": {"engine": "ddp"},
    "fsdp2-full": {"engine": "fsdp2", "changes": {"fsdp_state_dict_type": "FULL_STATE_DICT"}},
    "fsdp2-sharded": {"engine": "fsdp2", "changes": SHARDED},
    **{name: {"engine": name} for name in ENGINES if name.startswith("zero")},
}


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        pytest.param(*case, marks=() if case == ("fsdp2-sharded", False) else pytest.mark.slow)
        for case in itertools.product(RESUMED, (False, True))
    ],
)
def test_resumed_by_another_number_of_processes(name, lora, tmp_path):
    """Stopped after 3 of 6 steps on two processes, resumed on two and on four."""
    case = {
        **RESUMED[name],
        "lora": lora,
        "loss_type": "kldo",
        "max_steps": 6,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": None,
    }
    alone = {k: v for k, v in case.items() if k not in ("engine", "changes")}
    one = processes.run({"run": alone}, tmp_path / "one", 1)["run"]
    stopped = processes.run({"run": {**case, "stop": 3}}, tmp_path / "many", 2)["run"]
    assert not isinstance(stopped, Exception), repr(stopped)
    assert list((tmp_path / "many/run").glob("*.safetensors"))  # the final model, whole
    shutil.copytree(tmp_path / "many", tmp_path / "four")
    for folder, world in (("many", 2), ("four", 4)):
        again = processes.run({"run": {**case, "resume": True}}, tmp_path / folder, world)["run"]
        assert not isinstance(again, Exception), repr(again)
        assert again["steps"] == one["steps"]
        assert again["loss"] == pytest.approx(one["loss"], rel=1e-4), "the first three, too"
        apart = (one["weights"] - again["weights"]).norm() / (one["weights"] - one["start"]).norm()
        assert apart < TOLERANCE, f"{world} processes: {apart:.2g}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "ended"),
    [pair for pair in itertools.product(ENGINES[1:], ENGINES) if pair[0] != pair[1]],
)
def test_a_run_changes_its_engine(begun, ended, tmp_path):
    """A checkpoint of one engine, resumed by another and another number of processes."""
    case = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    one = processes.run({"run": case}, tmp_path / "one", 1)["run"]
    processes.run({"run": {**case, "engine": begun, "stop": 2}}, tmp_path / "many", 2)
    resumed = {**case, "engine": ended, "resume": True}
    again = processes.run({"run": resumed}, tmp_path / "many", 4)["run"]
    assert not isinstance(again, Exception), repr(again)
    apart = (one["weights"] - again["weights"]).norm() / (one["weights"] - one["start"]).norm()
    assert apart < TOLERANCE, f"{apart:.2g}"


@pytest.mark.parametrize(("writers", "readers"), [(1, 3), (2, 2), (3, 1), (4, 7)])
def test_pieces_are_read_however_they_were_cut(writers, readers, tmp_path):
    """Rows laid one behind the other and cut anywhere, also so that a process holds none."""
    rng = np.random.default_rng([writers, readers])
    whole = {f"w{n}": torch.randn(int(rng.integers(1, 40))) for n in range(5)}

    def cuts(count, size):
        marks = sorted(int(x) for x in rng.integers(0, size + 1, count - 1))
        return list(itertools.pairwise([0, *marks, size]))

    shares = {name: cuts(writers, len(row)) for name, row in whole.items()}
    for rank in range(writers):
        held = {n: cut[rank] for n, cut in shares.items() if cut[rank][0] < cut[rank][1]}
        facts = {"starts": json.dumps({n: start for n, (start, _) in held.items()})}
        tensors = {n: whole[n][start:stop].clone() for n, (start, stop) in held.items()}
        save_file(tensors, tmp_path / f"pieces-weight-{rank}.safetensors", metadata=facts)
    files = sorted(tmp_path.glob("*.safetensors"))
    kept = pieces.Kept(files)
    for name, row in whole.items():
        for start, stop in cuts(readers, len(row)):
            into = torch.zeros(stop - start)
            kept.read(pieces.Piece(name, start, row, 0, stop - start), into)
            assert torch.equal(into, row[start:stop])
    name, row = max(whole.items(), key=lambda found: len(found[1]))
    without = [file for rank, file in enumerate(files) if shares[name][rank][0] == len(row)]
    with pytest.raises(UserError, match="the checkpoint lacks elements"):
        pieces.Kept(without).read(pieces.Piece(name, 0, row, 0, len(row)), torch.zeros(len(row)))


# --- starting several processes ------------------------------------------------------------------


def test_d8_bare_torchrun_on_a_cpu_meets():
    code = (
        "import os; from trueline import AlignmentConfig; "
        "args = AlignmentConfig(output_dir='unused', loss_type='dpo'); "
        "os.write(1, f'{args.world_size} {args.device.type}\\n'.encode())"  # in one piece
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, "--no-python", sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["2", "cpu"] * 2, done.stderr


def test_num_processes_becomes_a_launcher_s_command():
    words = ["align", "--config", "a.yaml", "--beta", "0.2"]
    assert launched(words) is None
    assert launched([*words, "--num_processes=4"])[2:] == [
        "torch.distributed.run", "--nproc_per_node=4", "--standalone", "-m", "trueline", *words,
    ]  # fmt: skip
    two = "--num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 --num_processes 16".split()
    assert launched([*two, *words])[3:7] == [
        "--nproc_per_node=8", "--nnodes=2", "--node_rank=1", "--master_addr=10.0.0.1",
    ]  # fmt: skip
    named = launched([*words, *two, "--accelerate_config", "zero3"])
    assert named[2] == "accelerate.commands.launch"
    assert named[3].endswith("zero3.yaml")
    assert {"--num_machines=2", "--num_processes=16"} <= set(named)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num_processes", "needs a value"),
        ("--num_processes two", "number of 1 or more"),
        ("--num_machines 2 --num_processes 4", "needs --machine_rank"),
        ("--machine_rank 1 --num_processes 4", "no effect without --num_machines"),
        ("--accelerate_config zero4", "neither a file nor one of"),
        ("--num_processes 3 --num_machines 2 --machine_rank 0 --main_process_ip a", "evenly"),
    ],
)
def test_a_launch_that_cannot_be_is_one_line(words, message):
    with pytest.raises(UserError, match=message):
        launched(["align", *words.split()])


def test_a_launched_process_starts_no_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a launcher has started this one already"):
        launched(["align", "--num_processes", "2"])


@pytest.fixture
def model_and_rows(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("\n".join(map(json.dumps, pair_rows(12))))
    config = {
        "loss_type": "dpo",
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(rows),
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 2,
        "learning_rate": 0.01, "gradient_checkpointing": False, "test_size": 0.25,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none",
    }  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def saved(folder):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.mark.slow
def test_two_machines_and_one_train_the_same_model(model_and_rows, tmp_path):
    """Two groups of two processes that meet at an address, as two machines do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRUELINE_CACHE": str(tmp_path / "cache")}
    words = [sys.executable, "-m", "trueline", "align", "--config", str(model_and_rows)]

    def start(*more):
        return subprocess.Popen([*words, *more], env=environment, stderr=subprocess.PIPE, text=True)

    alone = start("--output_dir", str(tmp_path / "one"), "--gradient_accumulation_steps", "4")
    assert alone.wait(600) == 0, alone.stderr.read()
    meeting = "--num_processes 4 --num_machines 2 --main_process_ip 127.0.0.1".split()
    meeting += ["--main_process_port", "29631", "--output_dir", str(tmp_path / "two")]
    machines = [start(*meeting, "--machine_rank", str(rank)) for rank in range(2)]
    for machine in machines:
        assert machine.wait(600) == 0, machine.stderr.read()
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    begun = saved(tmp_path / "model")
    assert (one - two).norm() / (one - begun).norm() < TOLERANCE


@pytest.mark.slow
def test_the_page_s_configurations_train(model_and_rows, tmp_path):
    """docs/tasks/several-gpus.md on two processes of a CPU, with a tiny model and its rows."""
    page = Path(__file__).parents[1] / "docs/tasks/several-gpus.md"
    tiny = yaml.safe_load(model_and_rows.read_text())
    kept = ("model_name_or_path", "dataset_name", "max_steps", "gradient_checkpointing")
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for index, block in enumerate(blocks):
        config = yaml.safe_load(block) | {key: tiny[key] for key in kept}
        config |= {"output_dir": str(tmp_path / f"{index}"), "report_to": "none"}
        config |= {"per_device_train_batch_size": 2, "max_tokens_per_micro_batch": 64}
        path = tmp_path / f"{index}.yaml"
        path.write_text(yaml.safe_dump(config))
        words = ["align", "--config", str(path), "--num_processes", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "trueline", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TRUELINE_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / f"{index}").glob("*model.safetensors"))
