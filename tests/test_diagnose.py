"""The verdict's every branch, and `trueline diagnose` as a user runs it."""

import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline import AlignmentConfig, AlignmentTrainer
from trueline.cli.diagnose import app
from trueline.data import Mapped, load_examples
from trueline.data.mapped import as_chat, split_by_prompt
from trueline.diagnostics import ranking, verdict, verdict_finding
from trueline.diagnostics.question import Question
from trueline.errors import UserError
from trueline.results import Finding, Metric
from trueline.runs.diagnose import diagnose_run
from trueline.runs.record import Run
from trueline.stats import rate

# -- the verdict ------------------------------------------------------------------------------


def metric(name, value, low=None, high=None, unit="rate", n=200):
    return Metric(name, value, low, high, n, unit=unit)


def finding(name, metrics, **figures):
    return Finding(name, "", metrics, figures=figures)


def changes(chosen, rejected=(-5.0, -6.0, -4.0)):
    return finding(
        "ranking",
        [
            metric("gap/chosen_change", *chosen, unit="nats"),
            metric("gap/rejected_change", *rejected, unit="nats"),
        ],
    )


def entangled(own, batch=(0.3, 0.2, 0.4)):
    return finding(
        "entanglement",
        [
            metric("entangle/chosen_falls", *own),
            metric("entangle/batch_chosen_falls", *batch),
            metric("entangle/cosine", 0.6, 0.5, 0.7, unit=""),
        ],
    )


def answers(*findings, log=(), **how):
    found = {s.question: s for s in verdict(findings, log, **how)}
    return lambda word: next(s for q, s in found.items() if word in q)


FALLS, RISES, OPEN = (-2.0, -2.5, -1.5), (1.0, 0.5, 1.5), (-0.2, -0.8, 0.4)


def answered(none, babble, n=16):
    kl = Metric("answers/kl", 0.5, 0.25, 0.75, n, unit="nats")
    return finding(
        "answers", [rate("answers/none", none, n), rate("answers/babble", babble, n), kl]
    )


@pytest.mark.parametrize(
    ("none", "babble", "answer", "said"),
    [
        (0, 1, "yes", "still answers: 0.0%"),
        (0, 15, "no", "This model no longer answers"),  # babble that no rule catches
        (14, 0, "no", "This model no longer answers"),
        (8, 0, "undecided", "undecided: 50.0%"),
    ],
)
def test_whether_the_model_still_answers_comes_first(none, babble, answer, said):
    first = verdict([changes(FALLS), answered(none, babble)])[0]
    assert (first.question, first.answer) == ("Does the model still answer?", answer)
    assert said in first.text
    assert ("answers_steps" in first.advice) is (answer == "no")
    assert verdict([changes(FALLS)])[0].answer == "undecided"


@pytest.mark.parametrize(
    ("chosen", "answer", "said"),
    [
        (FALLS, "yes", "Chosen answers lost log-prob: -2 [-2.5, -1.5] nats"),
        (RISES, "no", "Chosen answers gained log-prob: 1 [0.5, 1.5] nats"),
        (OPEN, "undecided", "-0.2 [-0.8, 0.4] nats on 200 pairs, an interval that holds 0"),
    ],
)
def test_whether_chosen_answers_fall(chosen, answer, said):
    found = answers(changes(chosen))("falling")
    assert found.answer == answer
    assert said in found.text
    assert [m.name for m in found.evidence] == ["gap/chosen_change", "gap/rejected_change"]


def test_a_log_alone_decides_nothing():
    log = [{"step": 1, "logps/chosen": -50.0}, {"step": 9, "logps/chosen": -80.0}]
    found = answers(log=log)("falling")
    assert (found.answer, found.evidence) == ("undecided", ())
    assert "from -50.0 to -80.0 nats over different training batches" in found.text
    held_out = [{"base_logps/chosen": -40.0}, *log, {"eval_logps/chosen": -41.0}]
    assert "from -40.0 to -41.0 nats on held-out pairs" in answers(log=held_out)("falling").text
    assert "not measured" in answers()("falling").text


@pytest.mark.parametrize(
    ("chosen", "own", "batch", "answer"),
    [
        (FALLS, (0.8, 0.7, 0.9), (0.9, 0.8, 0.95), "yes"),
        (FALLS, (0.2, 0.1, 0.3), (0.9, 0.8, 0.95), "partly"),
        (FALLS, (0.2, 0.1, 0.3), (0.3, 0.2, 0.4), "no"),
        (FALLS, (0.5, 0.4, 0.6), (0.9, 0.8, 0.95), "undecided"),
        (FALLS, (0.2, 0.1, 0.3), (0.5, 0.4, 0.6), "undecided"),
        (RISES, (0.8, 0.7, 0.9), (0.9, 0.8, 0.95), "no"),
        (OPEN, (0.8, 0.7, 0.9), (0.9, 0.8, 0.95), "undecided"),
    ],
)
def test_whether_entanglement_is_the_cause(chosen, own, batch, answer):
    found = answers(changes(chosen), entangled(own, batch))("entanglement")
    assert found.answer == answer
    if chosen == FALLS:
        assert f"{100 * own[0]:.1f}%" in found.text
        assert len(found.evidence) == 3
    assert ("pair_weighting" in found.advice) == (answer == "yes")


@pytest.mark.parametrize(("peak", "answer"), [(0.75, "partly"), (0.25, "no")])
def test_the_log_tells_of_entanglement_on_the_way(peak, answer):
    log = [{"step": s, "entangle/chosen_falls": x} for s, x in ((10, 0.1), (20, peak), (30, 0.0))]
    calm = entangled((0.1, 0.05, 0.2), (0.1, 0.05, 0.2))
    found = answers(changes(FALLS), calm, log=log)("entanglement")
    assert found.answer == answer
    assert f"it was {100 * peak:.1f}% of pairs at most, at step 20" in found.text


def test_entanglement_that_was_not_measured_explains_nothing():
    found = answers(changes(FALLS))("entanglement")
    assert (found.answer, found.evidence) == ("undecided", ())


def rewards(reward, right, gain, flipped=0.02):
    return finding(
        "ranking",
        [
            metric("gap/reward_accuracy", *reward),
            metric("gap/ranking_accuracy", *right),
            metric("gap/reference_ranking_accuracy", 0.4, 0.33, 0.47),
            metric("gap/ranking_gain", *gain),
            metric("gap/flipped", flipped, 0.01, 0.06, n=90),
        ],
    )


@pytest.mark.parametrize(
    ("reward", "right", "gain", "answer"),
    [
        ((0.95, 0.9, 0.98), (0.42, 0.4, 0.45), (0.01, -0.01, 0.03), "no"),
        ((0.66, 0.6, 0.7), (0.6, 0.55, 0.65), (-0.01, -0.02, 0.01), "no"),
        ((0.95, 0.9, 0.98), (0.6, 0.5, 0.7), (0.2, 0.1, 0.3), "partly"),
        ((0.8, 0.75, 0.85), (0.78, 0.7, 0.85), (0.3, 0.2, 0.4), "yes"),
        ((0.8, 0.75, 0.85), (0.5, 0.4, 0.6), (0.05, -0.1, 0.2), "undecided"),
        ((0.55, 0.45, 0.65), (0.7, 0.6, 0.8), (0.2, 0.1, 0.3), "undecided"),
    ],
)
def test_whether_reward_accuracy_means_preference(reward, right, gain, answer):
    found = answers(rewards(reward, right, gain))("reward accuracy")
    assert found.answer == answer
    assert "of 90 pairs that the reference ranks wrong it ranks 2.0% [1.0%, 6.0%] right" in (
        found.text
    )
    assert f"a change of {100 * gain[0]:.1f} points" in found.text
    assert answers()("reward accuracy").answer == "undecided"


@pytest.mark.parametrize(
    ("out", "answer"),
    [((0.3, 0.2, 0.4), "yes"), ((0.0, 0.0, 0.02), "no"), ((0.06, 0.02, 0.11), "undecided")],
)
def test_which_share_is_out_of_reach(out, answer):
    metrics = [
        metric("gap/out_of_reach", *out),
        metric("gap/out_of_reach_of_misranked", 0.6, 0.5, 0.7, n=80),
        metric("gap/alignment_gap", 0.1, 0.0, 0.2),
        metric("gap/loss", 0.6, 0.5, 0.7, unit="nats"),
        metric("gap/needs_lower_loss", 0.4, 0.3, 0.5),
    ]
    reach = {"title": "DPO at beta 0.1", "stands_in": "", "limit": 69.08}
    found = answers(finding("ranking", metrics, reach=reach))("flipped")
    assert found.answer == answer
    assert found.text.startswith("Even the optimum of DPO at beta 0.1, unanimous raters counted ")
    assert "beyond that optimum" not in found.text
    assert "more than 69.1 nats" in found.text
    assert "40.0% [30.0%, 50.0%] need a loss below the mean of 0.6 [0.5, 0.7] nats" in found.text
    beyond = [*metrics[:2], metric("gap/alignment_gap", -0.3, -0.4, -0.2)]
    found = answers(finding("ranking", beyond, reach=reach))("flipped")
    assert "went beyond that optimum, by 30.0 points [20.0, 40.0]" in found.text
    for_kto = {**reach, "stands_in": "kto"}
    found = answers(finding("ranking", metrics, reach=for_kto))("flipped")
    assert found.text.startswith("For kto no bound is known; to go by DPO at beta 0.1, even the")
    assert answers()("flipped").answer == "undecided"


def apart(low, high):
    names = ("before", "after")
    ends = [metric(f"bhattacharyya_distance, {w}", 1.0, unit="") for w in names]
    change = metric("bhattacharyya_distance, change", (low + high) / 2, low, high, unit="")
    return finding("separation change", [*ends, change])


@pytest.mark.parametrize(
    ("change", "answer"), [((0.5, 1.5), "yes"), ((-0.5, -0.1), "no"), ((-0.5, 0.3), "undecided")]
)
def test_whether_prompts_separated(change, answer):
    found = answers(apart(*change))("separate")
    assert found.answer == answer
    assert f"[{change[0]:.2f}, {change[1]:.2f}]" in found.text


def test_separation_needs_a_start_and_labels():
    alone = finding("separation", [metric("bhattacharyya_distance", 2.0, 1.5, 2.5, unit="")])
    found = answers(alone)("separate")
    assert (found.answer, len(found.evidence)) == ("undecided", 1)
    assert "was not measured" in found.text
    assert "--prompts" in answers()("separate").text


@pytest.mark.parametrize(
    ("longer", "shorter", "answer", "said"),
    [
        ((0.9, 0.85, 0.95), (0.4, 0.3, 0.5), "yes", "the longer answer is favored"),
        ((0.4, 0.3, 0.5), (0.9, 0.85, 0.95), "yes", "the shorter answer is favored"),
        ((0.9, 0.85, 0.95), (0.7, 0.6, 0.78), "partly", "better than chance against it"),
        ((0.8, 0.77, 0.83), (0.81, 0.78, 0.84), "no", "It is not length"),
        ((0.8, 0.6, 0.9), (0.7, 0.5, 0.85), "undecided", "undecided"),
    ],
)
def test_whether_it_is_length(longer, shorter, answer, said):
    found = answers(
        finding(
            "ranking",
            [
                metric("gap/reward_accuracy", 0.7, 0.6, 0.8),
                metric("gap/reward_accuracy_chosen_longer", *longer),
                metric("gap/reward_accuracy_chosen_shorter", *shorter),
                metric("gap/longer_wins", 0.55, 0.5, 0.6),
                metric("gap/margin_length_correlation", 0.3, 0.2, 0.4, unit=""),
            ],
        )
    )("length")
    assert found.answer == answer
    assert said in found.text
    assert "'the longer one wins' is right in 55.0% [50.0%, 60.0%]" in found.text
    assert answers()("length").answer == "undecided"


def test_every_number_of_a_sentence_is_in_its_evidence():
    """A sentence may state only what it rests on."""
    accuracies = rewards((0.95, 0.9, 0.98), (0.45, 0.4, 0.5), (0.2, 0.1, 0.3))
    findings = [
        finding("ranking", [*changes(FALLS).metrics, *accuracies.metrics]),
        entangled((0.8, 0.7, 0.9)),
        apart(0.5, 1.5),
        answered(3, 1),
    ]
    for sentence in verdict(findings):
        known = " ".join(
            f"{m} {m.n} " + " ".join(f"{x:.2f}" for x in (m.value, m.low, m.high) if x is not None)
            for m in sentence.evidence
        )
        for number in re.findall(r"-?\d+(?:\.\d+)?", sentence.text):
            assert number in known, (number, sentence.text)


def test_the_verdict_as_a_finding_survives_json_and_old_verdicts(tmp_path):
    sentences = verdict([changes(FALLS), entangled((0.8, 0.7, 0.9))])
    kept = verdict_finding(sentences)
    Run(tmp_path).save([kept])
    assert Run(tmp_path).own == [kept]
    assert {m.name for m in kept.metrics} >= {"gap/chosen_change", "entangle/chosen_falls"}
    assert verdict([kept]) == verdict([])  # it is no evidence for itself


def test_pairs_of_the_training_are_said_to_be_so():
    assert "none were held out" in answers(changes(FALLS), held_out=False)("unseen").text
    assert not any("unseen" in s.question for s in verdict([], held_out=False))


# -- the command line -------------------------------------------------------------------------


def run(*arguments):
    """As the console entry point has it: a UserError is one line and exit code 2."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(result.exception, UserError):
        message = str(result.exception)
        assert "\n" not in message
        return 2, message
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, pairs, prompts and a run, in one folder."""
    root = tmp_path_factory.mktemp("diagnose")
    for name, seed in (("base", 0), ("model", 1)):
        tiny_llama(seed).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    rows = pair_rows(40)
    for i, row in enumerate(rows):
        row["safety"] = i % 2
        row["prompt"] += " sorry" * (i % 2) + " one two"[: 4 * (i % 3)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (root / "pairs.jsonl").write_text("".join(lines))
    words = "one two three four five six seven blue green red sea grass".split()
    rng = np.random.default_rng(0)
    prompts = {" ".join(rng.permutation(words)[: 2 + i % 4]): i % 2 for i in range(60)}
    lines = [json.dumps({"prompt": p, "safety": s}) + "\n" for p, s in prompts.items()]
    (root / "prompts.jsonl").write_text("".join(lines))
    return root


def test_ranking_of_files(folder, tmp_path):
    code, out = run(
        "ranking", "--model", folder / "model", "--reference", folder / "base",
        "--data", folder / "pairs.jsonl", "--beta", 0.3, "--json",
        "--write-difficulty", tmp_path / "d.jsonl",
    )  # fmt: skip
    assert code == 0
    result = json.loads(out)
    found = Finding.from_dict(result["findings"][0])
    examples = list(load_examples(folder / "pairs.jsonl"))
    direct = ranking(
        tiny_llama(1), tiny_tokenizer(), examples, reference=tiny_llama(0), options={"beta": 0.3}
    )
    assert [m.name for m in found.metrics] == [m.name for m in direct.metrics]
    for a, b in zip(found.metrics, direct.metrics, strict=True):
        assert a.value == pytest.approx(b.value, abs=1e-4)
    assert result["written"]["scored"] == 40
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 40


def test_separation_of_files(folder):
    arguments = ["separation", "--model", folder / "model", "--data", folder / "prompts.jsonl",
                 "--as-chat", "--n-bootstrap", 20, "--json"]  # fmt: skip
    code, out = run(*arguments, "--reference", folder / "base", "--position", "mean")
    assert code == 0
    names = [found["name"] for found in json.loads(out)["findings"]]
    assert names == ["separation before", "separation", "separation change"]
    code, out = run(*arguments, "--layer", "all", "--position", "mean")
    assert json.loads(out)["findings"][0]["name"] == "separation profile"
    code, out = run(*arguments, "--layer", "1", "--preset", "paper")
    assert (code, "preset='paper' means" in out) == (2, True)


def test_entanglement_of_files(folder, tmp_path):
    code, out = run(
        "entanglement", "--model", folder / "model", "--reference", folder / "base",
        "--data", folder / "pairs.jsonl", "--max-pairs", 8, "--json", "--save", folder,
    )  # fmt: skip
    assert code == 0
    found = Finding.from_dict(json.loads(out)["findings"][0])
    assert found["entangle/cosine"].n == 8
    assert Run(folder).own[0].name == "entanglement"
    cause = answers(changes(FALLS), found)("entanglement")
    assert cause.answer in ("yes", "partly", "no", "undecided")
    assert "measured" not in cause.text  # it reads these metrics


@pytest.mark.parametrize(
    ("verb", "changes", "said"),
    [
        ("ranking", {"--model": "{}/nothing"}, "no model folder at"),
        ("ranking", {"--model": "{}/pairs.jsonl"}, "is a file"),
        ("ranking", {"--model": "{}"}, "holds no model"),
        ("ranking", {"--data": "{}/nothing.jsonl"}, "no such file"),
        ("ranking", {"--data": "{}/prompts.jsonl"}, "unknown columns"),
        ("ranking", {"--gamma": "0.5"}, "option 'gamma' has no effect on objective 'dpo'"),
        ("ranking", {"--raters": "many"}, "--raters must be a share"),
        ("ranking", {"--raters": "scores"}, "no score"),
        ("ranking", {"--dtype": "half-hearted"}, "dtype must be"),
        ("ranking", {"--device": "nonsense"}, "cannot use device"),
        ("ranking", {"--write-difficulty": "{}/d.csv"}, "end it in .jsonl"),
        ("ranking", {"--save": "{}/nothing"}, "no run directory"),
        ("entanglement", {"--objective": "dppo"}, "did you mean"),
        ("separation", {"--data": "{}/unlabeled.jsonl"}, "no safety label"),
        ("separation", {"--data": "{}/prompts.jsonl", "--layer": "9"}, "layer must be between"),
        ("separation", {"--data": "{}/prompts.jsonl", "--layer": "last"}, "--layer must be"),
    ],
)
def test_wrong_input_is_one_clear_line(folder, verb, changes, said):
    (folder / "unlabeled.jsonl").write_text(json.dumps(pair_rows(1)[0]) + "\n")
    given = {"--model": "{}/model", "--data": "{}/pairs.jsonl", **changes}
    arguments = [x.format(folder) for pair in given.items() for x in pair]
    code, message = run(verb, *arguments)
    assert code == 2
    assert said in message


def a_run(root, name, **changes):
    """A run as align leaves it: configuration, log, findings, model."""
    path = root / name
    options = {"loss_type": "dpo", "beta": 0.2, "test_size": "0.4", "seed": 7, "as_chat": True,
               "model_name_or_path": str(root / "base"), "max_length": 64,
               "dataset_name": str(root / "pairs.jsonl"), **changes}  # fmt: skip
    tiny_llama(1).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    (path / "config.yaml").write_text(
        "".join(f"{k}: {json.dumps(v)}\n" for k, v in options.items())
    )
    (path / "metrics.jsonl").write_text('{"step": 1, "logps/chosen": -9.0}\n')
    Run(path).save([Finding("held-out", "As it was.")])
    return path


def held_out(root):
    """The pairs that a training with the run's configuration would not have seen."""
    rows = Mapped(load_examples(root / "pairs.jsonl"), as_chat, "as_chat")
    return list(split_by_prompt(rows, 0.4, 7)[1])


def test_a_run_is_read_measured_judged_and_kept(folder):
    from trueline.report import report_from_run

    path = a_run(folder, "run")
    code, out = run("all", "--run", path, "--prompts", folder / "prompts.jsonl", "--json")
    assert code == 0
    result = json.loads(out)
    assert len(result["verdict"]) == 7
    names = [found["name"] for found in result["findings"]]
    assert names[:2] == ["verdict", "held-out"]
    assert {"answers", "ranking", "entanglement", "separation", "separation change"} <= set(names)
    assert result["verdict"][0]["question"] == "Does the model still answer?"
    chat = held_out(folder)
    found = {finding.name: finding for finding in Run(path).own}
    assert found["ranking"]["gap/reward_accuracy"].n == len(chat)
    direct = ranking(
        tiny_llama(1), tiny_tokenizer(), chat, reference=tiny_llama(0), options={"beta": 0.2}
    )
    assert found["ranking"]["gap/loss"].value == pytest.approx(direct["gap/loss"].value, abs=1e-5)
    report = report_from_run(path)
    assert "What training did, and why" in [section.title for section in report.sections]
    assert found["verdict"].summary in report.summary


def test_what_a_run_has_is_not_measured_again(folder, monkeypatch):
    path = a_run(folder, "again")
    diagnose_run(path, quiet=True, prompts=str(folder / "prompts.jsonl"))
    before = {finding.name: finding for finding in Run(path).own}

    def fail(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(Question, "__call__", fail)
    diagnose_run(path, quiet=True)
    assert {finding.name: finding for finding in Run(path).own} == before
    with pytest.raises(AssertionError, match="measured again"):
        diagnose_run(path, quiet=True, again=True)


def test_an_unpaired_objective_without_held_out_data_is_told(folder):
    path = a_run(folder, "kldo", loss_type="kldo", test_size=0.0)
    sentences = diagnose_run(path, quiet=True, max_pairs=6).sentences
    told = {sentence.question: sentence.text for sentence in sentences}
    assert "none were held out" in told["Are these numbers of unseen data?"]
    assert told["Which share of pairs cannot be flipped at this beta?"].startswith("For kldo no")
    again = diagnose_run(path, quiet=True).sentences
    assert again == sentences  # also what it remembers of the data


def test_a_run_is_measured_in_the_precision_it_was_trained_in(folder):
    found = {}
    for dtype in ("float32", "bfloat16"):
        path = a_run(folder, dtype, dtype=dtype)
        findings = diagnose_run(path, quiet=True, max_pairs=2).findings
        found[dtype] = next(f for f in findings if f.name == "ranking")["gap/loss"].value
    assert found["float32"] != pytest.approx(found["bfloat16"], abs=1e-6)
    assert found["float32"] == pytest.approx(found["bfloat16"], abs=0.05)


def test_an_adapters_run(folder):
    from peft import LoraConfig, get_peft_model

    path = a_run(folder, "lora")
    for file in path.glob("*.safetensors"):
        file.unlink()
    (path / "config.json").unlink()
    base = type(tiny_llama()).from_pretrained(folder / "base")
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(base, config)
    model.save_pretrained(path)
    findings = diagnose_run(path, quiet=True, max_pairs=6).findings
    found = {finding.name: finding for finding in findings}
    direct = ranking(
        model, tiny_tokenizer(), held_out(folder),
        reference=tiny_llama(0), options={"beta": 0.2},
    )  # fmt: skip
    assert found["ranking"]["gap/margin"].value == pytest.approx(
        direct["gap/margin"].value, abs=1e-4
    )
    assert found["entanglement"]["entangle/cosine"].n == 6


@pytest.mark.parametrize(
    ("remove", "changes", "said"),
    [
        ("config.yaml", {}, "has no config.yaml"),
        ("config.json", {}, "holds no model; say with --model"),
        (None, {"dataset_name": "gone.jsonl"}, "give --data"),
        (None, {"model_name_or_path": "./gone"}, "no model folder at './gone'"),
    ],
)
def test_a_broken_run_is_told_clearly(folder, tmp_path, remove, changes, said):
    path = a_run(folder, "broken", **changes)
    if remove:
        (path / remove).unlink()
    with pytest.raises(UserError, match=said):
        diagnose_run(path, quiet=True)
    with pytest.raises(UserError, match="no run directory"):
        diagnose_run(tmp_path / "nothing", quiet=True)


# -- in the sandbox ---------------------------------------------------------------------------


@pytest.mark.slow
def test_alignment_separates_and_closes_the_gap_as_beta_and_loss_say(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trueline.diagnostics import separation_change
    from trueline.diagnostics.separation.data import read_prompts
    from trueline.sandbox import build_sandbox

    sandbox = build_sandbox(tmp_path / "sandbox", size="demo")
    tokenizer = AutoTokenizer.from_pretrained(sandbox.model_dir)
    load = lambda: AutoModelForCausalLM.from_pretrained(sandbox.model_dir)  # noqa: E731
    rows = Mapped(load_examples(sandbox.compliance_refusal), as_chat, "as_chat")
    train, test = map(list, split_by_prompt(rows, 0.2, 0))

    def aligned(beta, epochs):
        trainer = AlignmentTrainer(
            load(),
            args=AlignmentConfig(
                output_dir=str(tmp_path / f"{beta} {epochs}"), loss_type="dpo", beta=beta,
                per_device_train_batch_size=32, learning_rate=3e-4, num_train_epochs=epochs,
                lr_scheduler_type="cosine", warmup_steps=10, max_length=128, disable_tqdm=True,
                gradient_checkpointing=False, save_strategy="no", reference_cache="none",
                report_to="none",
            ),
            train_dataset=train,
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        return trainer.model

    def measured(model, beta):
        options = {"beta": beta}
        found = ranking(model, tokenizer, test, reference=load(), options=options)
        return {m.name.removeprefix("gap/"): m for m in found.metrics}

    short, long = aligned(0.1, 1), aligned(0.1, 4)
    few, many = measured(short, 0.1), measured(long, 0.1)
    stiff = measured(aligned(5.0, 4), 5.0)

    # a lower loss flips more pairs and closes the gap
    assert many["loss"].high < few["loss"].low
    assert many["flipped"].low > few["flipped"].high
    assert many["alignment_gap"].value < 0.05 < few["alignment_gap"].low
    # where beta is large even the optimum leaves pairs wrong, and training flips no more than that
    assert many["out_of_reach"].high < 0.05 < stiff["out_of_reach"].low
    assert stiff["flipped"].high < many["flipped"].low
    assert abs(stiff["alignment_gap"].value) < 0.05  # that optimum is reached
    assert min(few["reward_accuracy"].low, stiff["reward_accuracy"].low) > 0.8  # and tells nothing
    assert max(few["ranking_accuracy"].high, stiff["ranking_accuracy"].high) < 0.6

    prompts = read_prompts(sandbox.evaluation["separation"], as_chat=True)
    change = separation_change(load(), short, tokenizer, prompts.prompts, prompts.harmful)
    assert change["bhattacharyya_distance, change"].low > 0
