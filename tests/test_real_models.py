"""What a first real checkpoint taught: adapters trained further, rewards, ties, pace, precision."""

import io
import json
import time

import pytest
import torch
from rich.console import Console

from test_cli_align import arguments_for
from test_training import trainer
from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline import AlignmentConfig, terminal
from trueline.batching import Encoder
from trueline.cli import main
from trueline.errors import UserError
from trueline.evaluation.benchmarks import Benchmark, Item, limited
from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.models import check_vocabulary, trained_adapter
from trueline.models.fingerprint import fingerprint
from trueline.objectives import OBJECTIVES, bind
from trueline.objectives.combined import Combined
from trueline.training.metrics import step_metrics


def align(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["trueline", "align", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code  # noqa: PT017


@pytest.fixture
def files(tmp_path):
    folder, rows = tmp_path / "model", tmp_path / "pairs.jsonl"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    rows.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(40)))
    return folder, rows


LORA = {"use_peft": "true", "lora_r": 4, "lora_dropout": 0, "lora_target_modules": "all-linear"}


def test_r8_sft_with_lora_then_dpo_on_its_adapter(tmp_path, files, monkeypatch):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    model, rows = files
    sft, dpo = tmp_path / "sft", tmp_path / "dpo"
    cached = {"reference_cache": tmp_path / "cache"}
    align(monkeypatch, *arguments_for(model, rows, sft, loss_type="sft", **LORA))
    align(monkeypatch, *arguments_for(sft, rows, dpo, merge_adapter="true", **cached))
    facts = json.loads((dpo / "manifest.json").read_text())
    assert facts["reference_is"] == "the policy as it starts: a frozen copy of its adapter"
    started = AutoPeftModelForCausalLM.from_pretrained(sft).eval()
    assert facts["reference"] == fingerprint(started, "torch.float32", adapters="default")
    first = json.loads((dpo / "metrics.jsonl").read_text().splitlines()[1])
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5), "log-ratios start at 0"
    assert not (dpo / "reference").exists(), "the frozen copy is not saved"

    ids = torch.arange(4, 20)[None]
    trained = AutoPeftModelForCausalLM.from_pretrained(dpo).eval()
    merged = AutoModelForCausalLM.from_pretrained(dpo / "merged").eval()
    assert not hasattr(merged, "peft_config")
    with torch.no_grad():
        logits = trained(ids).logits
        moved = (logits - started(ids).logits).norm()
        assert moved > 1e-3
        assert (merged(ids).logits - logits).norm() < 1e-4 * moved


def adapted(seed=0, trained=True):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if trained and "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("loss_type", ["dpo", "kto"])
def test_r8_a_trained_adapter_is_its_own_reference(tmp_path, loss_type):
    """As with a whole second model as reference, without a copy of the base."""
    runs = {}
    for name in ("own", "given"):
        other = {"ref_model": adapted()} if name == "given" else {}
        run = trainer(
            tmp_path / name, model=adapted(), loss_type=loss_type, seed=3, max_steps=4, **other
        )
        run.train()
        runs[name] = run
    named = dict(runs["given"].model.named_parameters())
    start = dict(adapted().named_parameters())
    moved = sum((p - start[name]).norm() for name, p in named.items())
    own = dict(runs["own"].model.named_parameters())
    apart = sum((p - own[name]).norm() for name, p in named.items())
    assert moved > 0.01
    assert apart < 1e-5 * moved
    frozen = {k: p for k, p in own.items() if ".reference." in k}
    assert frozen
    for name, parameter in frozen.items():
        assert torch.equal(parameter, start[name.replace(".reference.", ".default.")])
        assert not parameter.requires_grad
    assert runs["own"].reference_words.startswith("the policy as it starts")
    assert runs["given"].reference_words == "a model of its own"
    assert not any("reference" in name for name in named), "no copy where a reference is given"


def test_r8_a_new_adapter_has_the_base_as_reference(tmp_path):
    assert trained_adapter(adapted(trained=False)) is None
    assert trained_adapter(tiny_llama()) is None
    run = trainer(tmp_path, model=adapted(trained=False))
    assert run.reference_words == "the base, its adapter off"
    assert "reference" not in run.model.peft_config


def test_r8_other_lora_options_are_refused(tmp_path, files, capsys, monkeypatch):
    adapter = tmp_path / "adapter"
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = str(files[0])
    model.save_pretrained(adapter)
    with pytest.raises(AssertionError, match="2"):
        align(monkeypatch, *arguments_for(adapter, files[1], tmp_path / "x", lora_r=8))
    assert "lora_r is 8, and the adapter" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", [n for n, s in OBJECTIVES.items() if not s.reference])
def test_r10_reference_free_objectives_have_rewards(name):
    """beta times the log-prob, per token in SimPO and ORPO: as TRL's trainers log them."""
    spec = OBJECTIVES[name]
    if spec.layout != "paired":
        return
    bound = bind(name, {"beta": 0.5} if "beta" in spec.options else {})
    chosen = CompletionLogProbs(torch.tensor([-4.0, -9.0]), torch.tensor([2, 3]))
    rejected = CompletionLogProbs(torch.tensor([-6.0, -8.0]), torch.tensor([2, 4]))
    sums = step_metrics(PairedLogProbs(chosen, rejected), bound)
    means = {key: float(total) / count for key, (total, count) in sums.items()}
    over = torch.tensor([2.0, 3.0]) if name in ("simpo", "orpo", "rrhf") else torch.ones(2)
    expected = bound.beta * (torch.tensor([-4.0, -9.0]) / over).mean()
    assert means["rewards/chosen"] == pytest.approx(float(expected))
    assert means["rewards/accuracies"] == 0.5, "right, wrong"
    assert means["rewards/margins"] == pytest.approx(
        means["rewards/chosen"] - means["rewards/rejected"]
    )


def test_r10_a_sum_tells_the_rewards_of_the_part_that_has_them():
    """SimPO is logged per token also where a likelihood term stands beside it."""
    alone = bind("simpo", {"beta": 2.0})
    both = Combined.of([alone, bind("sft")], [1.0, 1.0])
    chosen = CompletionLogProbs(torch.tensor([-4.0, -9.0]), torch.tensor([2, 3]))
    assert torch.equal(both.reward(chosen), alone.reward(chosen))
    assert both.beta == alone.beta


def test_r10_the_best_model_by_reward_accuracy(tmp_path):
    run = trainer(
        tmp_path, rows=pair_rows(16), loss_type="simpo", eval_dataset=pair_rows(8), max_steps=2,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_rewards/accuracies",
    )  # fmt: skip
    run.train()
    assert run.state.best_metric is not None


def test_r11_ties_count_one_half():
    policy = torch.tensor([-200.0, -200.0, -200.0, -200.0])
    noise = torch.tensor([0.0, 1e-5, -1e-5, 1.0])
    length = torch.full((4,), 50)
    chosen = CompletionLogProbs(policy + noise, length, policy)
    rejected = CompletionLogProbs(policy, length, policy)
    total, count = step_metrics(PairedLogProbs(chosen, rejected), bind("dpo"))["rewards/accuracies"]
    assert (float(total), count) == (0.5 * 3 + 1, 4)


def test_r11_before_training_every_pair_is_a_tie(tmp_path):
    run = trainer(tmp_path, eval_dataset=pair_rows(8))
    assert run.evaluate()["eval_rewards/accuracies"] == 0.5


def test_r12_a_log_says_what_is_done_what_is_left_and_the_pace(monkeypatch):
    out = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(terminal, "FIRST_LINE", 0.05)
    monkeypatch.setattr(terminal, "Console", lambda **_: out)
    with terminal.progress("reference log-probs", 40) as advance:
        advance(10)
        time.sleep(0.5)
        advance(30)
    lines = out.file.getvalue().splitlines()
    assert lines[0].startswith("reference log-probs: 10 of 40 (25%), 0 s so far")
    assert "/s" in lines[0]
    assert "left" in lines[0]
    assert lines[-1].startswith("reference log-probs: 40 of 40 (100%)")
    assert len(lines) <= 11, "ever more seldom"
    with terminal.progress("quiet", 40, quiet=True) as advance:
        time.sleep(0.2)
    monkeypatch.setenv("RANK", "1")
    with terminal.progress("another process", 40) as advance:
        time.sleep(0.2)
    assert len(out.file.getvalue().splitlines()) == len(lines)


def test_r14_a_limit_takes_a_share_of_each_category():
    items = [
        Item(f"{kind}-{n}", "p", harmful=kind >= 9, category=f"type {kind}")
        for kind in range(18) for n in range(25)
    ]  # fmt: skip
    hundred = limited(Benchmark(items), 100)
    taken = [item.category for item in hundred.items]
    assert len(taken) == 100
    assert {taken.count(f"type {kind}") for kind in range(18)} == {5, 6}
    assert "18 of 18" in hundred.notes[-1]
    few = limited(Benchmark(items), 8).items
    assert sum(item.harmful for item in few) == 4
    assert len({item.category for item in few}) == 8
    assert limited(Benchmark(items), 1000).notes == ()
    with pytest.raises(UserError, match="at least 1"):
        limited(Benchmark(items), 0)


def test_r12_what_counts_by_itself_is_looked_at(monkeypatch):
    out = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(terminal, "FIRST_LINE", 0.5)
    monkeypatch.setattr(terminal, "Console", lambda **_: out)
    with terminal.polled("reading rows", lambda: 7):
        time.sleep(0.9)
    assert out.file.getvalue().startswith("reading rows: 7 done, ")


@pytest.mark.parametrize(("float32", "bf16", "said"), [(1.0, 10.0, True), (1.0, 0.4, False)])
def test_r16_slow_bf16_is_said_by_how_much(monkeypatch, float32, bf16, said):
    from trueline.models import precision

    times = {torch.float32: float32, torch.bfloat16: bf16}
    calls = []
    monkeypatch.setattr(precision, "seconds", lambda dtype: calls.append(dtype) or times[dtype])
    precision.bf16_speed.cache_clear()
    try:
        line = precision.slow_bf16("bf16: true", "bf16: false")
        assert precision.slow_bf16("bf16: true", "bf16: false") == line
        assert len(calls) == 2, "timed once"
    finally:
        precision.bf16_speed.cache_clear()
    assert (line is not None) == said
    assert not said or "10.0 times slower than float32" in line


def test_r16_bf16_on_a_cpu_needs_no_other_option(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert AlignmentConfig(loss_type="dpo", bf16=True).device.type == "cpu"
    assert not AlignmentConfig(loss_type="dpo").bf16, "not on a CPU unless asked for"


def test_a_tokenizer_of_another_model_is_one_clear_error(tmp_path):
    tokenizer = tiny_tokenizer()
    check_vocabulary(tiny_llama(vocab_size=512), tokenizer)
    with pytest.raises(UserError, match="do not belong together"):
        trainer(tmp_path, model=tiny_llama(vocab_size=20))
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<another pad>"})
    check_vocabulary(tiny_llama(vocab_size=rows), tokenizer)
    assert Encoder(tokenizer, max_length=8)
