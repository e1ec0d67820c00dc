"""TRL's dialect: what its files and commands train here, or the exact refusal; nothing between.

Where TRL is installed (``pip install trl==1.16.0``), its own commands and configurations are held
to the same.
"""

import contextlib
import dataclasses
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from trueline.cli import main
from trueline.config import (
    AlignmentConfig,
    DataArguments,
    ModelArguments,
    load_run_config,
    parse_overrides,
)
from trueline.config.arguments import RENAMED
from trueline.errors import UserError
from trueline.objectives import OBJECTIVES, bind
from trueline.trl import HONORED, LOSSES, SCRIPTS, WORDS, script_of, translate, word

OPTIONS = {name for spec in OBJECTIVES.values() for name in spec.options}


def read(script, given):
    return load_run_config(None, {"use_cpu": True, **given}, OPTIONS, script=script)


def meaning(script, given):
    """The objective that results, with its weights and options."""
    training = read(script, given).training
    objective = bind(training.loss_type, training.options(), weights=training.loss_weights)
    return objective.spec.name, dict(objective.options)


MEANT = {
    "dpo": ("dpo", {"beta": 0.1, "label_smoothing": 0.0, "dpo_reduction": "sum"}),
    "dpo loss_type=sigmoid_norm": ("dpo", {"dpo_reduction": "mean"}),
    "dpo loss_type=ipo": ("ipo", {"beta": 0.1, "reduction": "mean"}),
    "dpo loss_type=robust": ("robust_dpo", {"label_smoothing": 0.0}),
    "dpo loss_type=robust label_smoothing=0.2": ("robust_dpo", {"label_smoothing": 0.2}),
    "dpo loss_type=exo_pair": ("exo", {"label_smoothing": 0.001}),
    "dpo loss_type=discopop": ("discopop", {"beta": 0.1, "discopop_tau": 0.05}),
    "dpo loss_type=hinge discopop_tau=0.05 label_smoothing=0.0": ("hinge", {"beta": 0.1}),
    "dpo loss_type=bco_pair beta=0.3": ("2 bco", {"beta": 0.3}),
    "dpo loss_type=sppo_hard": ("2 sppo", {}),
    "dpo loss_type=aot": ("aot", {}),
    "dpo loss_type=[sigmoid,bco_pair,sft] loss_weights=[0.8,0.2,1.0]": (
        "0.8 dpo + 0.4 bco + sft", {"sft_reduction": "tokens", "beta": 0.1}),
    "dpo loss_type=[sigmoid] loss_weights=[0.5]": ("0.5 dpo", {"beta": 0.1}),
    "dpo loss_type=[sigmoid,ipo]": ("dpo + ipo", {"dpo_reduction": "sum", "reduction": "mean"}),
    "kto desirable_weight=1.5": ("kto", {"desirable_weight": 1.5, "undesirable_weight": 1.0}),
    "kto loss_type=apo_zero_unpaired": ("apo_zero_unpaired", {}),
    "orpo": ("orpo", {"beta": 0.1}),
    "cpo": ("cpo + sft", {"cpo_alpha": 0.0, "sft_reduction": "tokens", "beta": 0.1}),
    "cpo cpo_alpha=0.5 simpo_gamma=0.5": ("cpo + 0.5 sft", {}),
    "cpo loss_type=hinge beta=0.5": ("0.5 slic + sft", {"slic_delta": 2.0, "slic_lambda": 0.0}),
    "cpo loss_type=simpo": ("simpo + sft", {"beta": 0.1, "simpo_gamma": 0.5}),
    "cpo loss_type=alphapo alpha=0.0": ("simpo", {"beta": 0.1}),
    "bco": ("bco", {"beta": 0.1}),
    "sft": ("sft", {"sft_reduction": "tokens"}),
    "sft loss_type=chunked_nll": ("sft", {"sft_reduction": "tokens"}),
}  # fmt: skip


def given_by(line):
    script, *options = line.split()
    return script, {k: yaml.safe_load(v) for k, v in (option.split("=") for option in options)}


@pytest.mark.parametrize("line", MEANT)
def test_a_script_trains_its_own_objective_with_trls_conventions(line):
    name, options = meaning(*given_by(line))
    wanted, told = MEANT[line]
    assert name == wanted
    assert {key: options[key] for key in told} == told


REFUSED = {
    "dpo sync_ref_model=true": "Train in rounds",
    "dpo f_divergence_type=js_divergence": "that of the reverse KL",
    "dpo use_weighting=true": "WPO",
    "dpo ld_alpha=0.5": "r_dpo has a price for length",
    "dpo loss_type=hinge label_smoothing=0.1": "has no effect on objective 'hinge'",
    "dpo loss_type=aot_pair": "loss_type: 'aot_pair' of TRL's dpo script",
    "dpo cpo_alpha=1.0": "has no effect on objective 'dpo'",
    "dpo loss_type=[sigmoid,hinge] loss_weights=[1.0]": "one of loss_weights for each loss",
    "dpo max_completion_length=512": "a completion has no limit of its own",
    "dpo num_processes=4": "accelerate launch --num_processes ... $(which trueline) dpo",
    "dpo accelerate_config=zero2": "accelerate launch --config_file",
    'dpo model_init_kwargs={"device_map":"auto"}': "'device_map' is not known",
    "cpo loss_type=ipo": "loss_type: 'ipo' of TRL's cpo script",
    "cpo loss_type=alphapo alpha=0.25": "AlphaPO's reward shape",
    "cpo label_smoothing=0.1": "CPO's losses have none",
    "cpo is_encoder_decoder=true": "decoder-only",
    "orpo generate_during_eval=true": "trueline evaluate",
    "sft loss_type=dft": "loss_type: 'dft' of TRL's sft script",
    "sft packing=true": "set per_device_train_batch_size",
    "sft eos_token=</s>": "the tokenizer is taken as it is saved",
    "sft assistant_only_loss=true": "of a conversation the last answer is scored",
    "sft chat_template_path=x": "the tokenizer is taken as it is saved",
    "dpo beta=strong": "beta must be a number",
    "tpo tpo_alpha=1.0": "TRL's script 'tpo' is not among those",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_not_here_is_refused_with_its_reason(line):
    script, given = given_by(line)
    with pytest.raises(UserError, match=re.escape(REFUSED[line])):
        meaning(script, given)


LEARN = "gradient_accumulation_steps=1 logging_steps=10 eval_steps=500 logging_first_step=true"
LORA = "use_peft=true lora_r=16 lora_alpha=16"
DOCUMENTED = {
    # configurations of its index of papers, per_device_train_batch_size as `batch`
    "dpo loss_type=sigmoid batch=64 learning_rate=1.0e-6 beta=0.1": "dpo",
    "dpo loss_type=ipo batch=90 learning_rate=1.0e-2": "ipo",
    "dpo loss_type=hinge batch=512 learning_rate=1.0e-4": "hinge",
    "dpo loss_type=exo_pair batch=64 learning_rate=1.0e-6 beta=0.1": "exo",
    "dpo loss_type=nca_pair batch=32 learning_rate=5.0e-6 beta=0.01": "nca",
    "dpo loss_type=robust batch=16 learning_rate=1.0e-3 beta=0.01 max_prompt_length=128 "
    "max_length=512 label_smoothing=0.1": "robust_dpo",
    "dpo loss_type=bco_pair batch=128 learning_rate=5.0e-7 beta=0.01 max_prompt_length=1536 "
    "max_completion_length=512": "refused: a completion has no limit",
    "dpo loss_type=sppo_hard batch=64 learning_rate=5.0e-7": "2 sppo",
    "dpo loss_type=aot": "aot",
    "dpo loss_type=aot_pair": "refused: is not among the objectives",  # its name before 1.0
    "dpo loss_type=discopop batch=64 learning_rate=5.0e-7 beta=0.05 discopop_tau=0.05": "discopop",
    "dpo loss_type=apo_zero batch=64 beta=0.1 max_prompt_length=512 max_completion_length=512":
        "refused: a completion has no limit",
    "dpo loss_type=apo_down batch=64 beta=0.1 max_prompt_length=512 max_completion_length=512":
        "refused: a completion has no limit",
    "dpo loss_type=[sigmoid,bco_pair,sft] loss_weights=[0.8,0.2,1.0]": "0.8 dpo + 0.4 bco + sft",
    "kto": "kto",
    "sft loss_type=dft": "refused: is not among the objectives",
    "sft loss_type=dft learning_rate=5.0e-5 max_length=2048 batch=8": "refused: is not among",
    "cpo loss_type=alphapo alpha=0.25 beta=2.5 simpo_gamma=0.1": "refused: AlphaPO's reward shape",
    "orpo output_dir=Qwen2-0.5B-ORPO": "orpo",
    "bco beta=0.1": "bco",
    "bco beta=0.1 prompt_sample_size=512": "bco",
    # commands of its pages and of its examples' headers
    "sft dataset_name=stanfordnlp/imdb": "sft",
    "dpo dataset_name=anthropic/hh-rlhf": "dpo",
    "sft dataset_name=stanfordnlp/imdb num_processes=4": "refused: stands before the command",
    "dpo dataset_name=anthropic/hh-rlhf num_processes=4": "refused: stands before the command",
    "sft dataset_name=a accelerate_config=zero2": "refused: stands before the command",
    "dpo dataset_name=a accelerate_config=zero2": "refused: stands before the command",
    "orpo dataset_name=trl-lib/ultrafeedback_binarized num_train_epochs=1": "orpo",
    f"orpo batch=4 max_steps=1000 learning_rate=8.0e-6 {LEARN} no_remove_unused_columns=true":
        "orpo",
    f"orpo batch=4 optim=rmsprop warmup_steps=150 {LEARN} {LORA}": "orpo",
    f"cpo batch=4 max_steps=1000 learning_rate=8.0e-6 {LEARN} no_remove_unused_columns=true":
        "cpo + sft",
    f"cpo batch=4 optim=rmsprop warmup_steps=150 {LEARN} {LORA}": "cpo + sft",
    "bco trust_remote_code=true batch=16 gradient_checkpointing=true logging_steps=0.01 "
    "eval_steps=0.2 save_strategy='no' max_length=2048 max_prompt_length=1536 "
    "max_completion_length=1024 no_remove_unused_columns=true warmup_ratio=0.1": "bco",
    f"bco batch=16 max_length=2048 load_in_4bit=true lora_target_modules=all-linear {LORA}": "bco",
}  # fmt: skip
"""What TRL's documentation gives, and what it is here: an objective, or the refusal."""


@pytest.mark.parametrize("line", DOCUMENTED)
def test_what_trls_documentation_gives_is_as_meant_or_refused(line):
    script, given = given_by(line.replace("batch=", "per_device_train_batch_size="))
    outcome = DOCUMENTED[line]
    if outcome.startswith("refused: "):
        with pytest.raises(UserError, match=re.escape(outcome.removeprefix("refused: "))):
            meaning(script, given)
        return
    assert meaning(script, given)[0] == outcome
    run = read(script, given)
    for key in given:
        parts = (run.training, run.model, run.data)
        honored = any(hasattr(part, key) for part in parts) or key == "warmup_ratio"
        honored |= key in run.training.objective_options
        assert honored or key.removeprefix("no_") in " ".join(run.notes), key


@pytest.mark.parametrize("script", SCRIPTS)
def test_i9_whatever_a_field_is_given_it_is_taken_or_refused(script):
    """Of any kind, from a file or from the command line: no fault but the user's."""
    fields = {*HONORED, "objective_options", "datasets", "test_split_size", "simpo_gamma", "trl"}
    odd = [3, 0, -1, True, [], {}, {"a": 1}, [1, None], [[1]], "{a: 1}", "[1, 2]", "[", "{", "",
           "x", float("nan"), 1e400, None, "none", "nan"]  # fmt: skip
    losses = LOSSES[script]
    for key in sorted(fields):
        for value in odd:
            for loss in losses if key in ("beta", "objective_options") else [next(iter(losses))]:
                with contextlib.suppress(UserError):
                    translate(script, {"loss_type": loss, key: value})
    with pytest.raises(UserError, match="give one of loss_weights for each loss"):
        translate(script, {"loss_weights": [1, 2]})
    with pytest.raises(UserError, match="objective_options must be keys and values"):
        translate("sft", {"objective_options": "x"})


def test_defaults_are_trls():
    rates = {script: read(script, {}).training.learning_rate for script in SCRIPTS}
    assert rates == {"dpo": 1e-6, "kto": 1e-6, "orpo": 1e-6, "cpo": 1e-6, "bco": 5e-5, "sft": 2e-5}
    assert not read("sft", {}).training.disable_dropout
    assert read("bco", {}).training.truncation_mode == "keep_end"
    run = read("dpo", {"model_init_kwargs": '{"dtype": "bfloat16", "revision": "v2"}'})
    assert (run.model.dtype, run.model.model_revision) == ("bfloat16", "v2")
    run = read("dpo", {"datasets": [{"path": "here", "split": "first"}], "test_split_size": 0.1})
    assert (run.data.dataset_name, run.data.dataset_train_split) == ("here", "first")
    assert run.data.test_size == 0.1


def test_every_difference_is_said_before_training():
    for script, losses in LOSSES.items():
        for name, loss in losses.items():
            notes = translate(script, {"loss_type": name} if len(losses) > 1 else {}).notes
            assert loss.differs in [*notes, ""]
    assert "which TRL passes over" in "".join(translate("dpo", {"label_smoothing": 0.1}).notes)


def test_a_file_says_which_script_it_is_for(tmp_path):
    heads = {
        "# trl orpo --config orpo.yaml\n": "orpo",
        "# accelerate launch examples/scripts/cpo.py --config this\n---\n": "cpo",
        "trl: kto\n": "kto",
        "# Ours: trueline align --config this; made from dpo.py\n": None,
        "# The last run was better than the one with sft\n": None,
    }
    for index, (head, script) in enumerate(heads.items()):
        file = tmp_path / f"{index}.yaml"
        file.write_text(head + "beta: 0.3\nmax_steps: 1\n")
        if script is None:
            with pytest.raises(UserError, match="loss_type is missing"):
                load_run_config(file, {"use_cpu": True}, OPTIONS)
            continue
        run = load_run_config(file, {"use_cpu": True}, OPTIONS)
        assert script in str(run.training.loss_type)
        assert f"trl {script}" in run.notes[0]
    assert script_of("# trl grpo --config x.yaml") == "grpo"
    with pytest.raises(UserError, match="'grpo' is not among those"):
        load_run_config(None, {"trl": "grpo"})


@pytest.mark.parametrize("arguments", [["orpo.yaml"], ["--config", "orpo.yaml"]], ids=len)
def test_the_verbs_take_a_file_or_options(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    Path("orpo.yaml").write_text("model_name_or_path: nowhere\nuse_cpu: true\n")
    monkeypatch.setattr(sys, "argv", ["trueline", "orpo", *arguments, "--beta", "0.2"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "as the paper's; TRL's is the mean of all tokens" in said
    assert "dataset_name is missing" in said


def test_other_trainers_files_are_refused_by_name():
    theirs = {"stage": "dpo", "pref_beta": 0.1, "cutoff_len": 2048, "output_dir": "x"}
    with pytest.raises(UserError, match=r"LLaMA-Factory's.*pref_beta: beta.*cutoff_len: max_len"):
        load_run_config(None, theirs, OPTIONS)
    with pytest.raises(UserError, match=r"axolotl's.*base_model: model_name_or_path; rl: trueline"):
        load_run_config(None, {"base_model": "m", "rl": "dpo", "datasets": []}, OPTIONS)


# --- held to TRL's own package ----------------------------------------------------------------

TRL = importlib.util.find_spec("trl")
installed = pytest.mark.skipif(TRL is None, reason="TRL is not installed: pip install trl==1.16.0")


def configurations():
    import trl
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    own = {"dpo": trl.DPOConfig, "kto": trl.KTOConfig, "orpo": ORPOConfig, "cpo": CPOConfig}
    shared = (trl.ModelConfig, trl.ScriptArguments, trl.DatasetMixtureConfig)
    return {**own, "sft": trl.SFTConfig}, shared


@pytest.mark.slow
@installed
def test_every_field_of_trls_configurations_has_a_fate():
    own, shared = configurations()
    plain = {field.name for field in dataclasses.fields(TrainingArguments)}
    kinds = (ModelArguments, DataArguments, AlignmentConfig)
    ours = {f.name for kind in kinds for f in dataclasses.fields(kind)} - plain | set(RENAMED)
    for script, kind in own.items():
        for field in {f.name for k in (kind, *shared) for f in dataclasses.fields(k)}:
            fates = [
                word(field, script) is not None,
                script in HONORED.get(field, ()) or field in ours - set(HONORED),
                field in plain and word(field, script) is None,
            ]
            assert sum(fates) == 1 or field == "model_init_kwargs", f"{script}: {field} {fates}"
        fields = {f.name for f in dataclasses.fields(kind)}
        for name, scripts in HONORED.items():
            assert (name in fields) == (script in scripts), f"{script}: {name}"
    known = plain | {f.name for k in (*own.values(), *shared) for f in dataclasses.fields(k)}
    assert {w.name for w in WORDS} - known <= OLD


OLD = set(
    "label_pad_token_id use_logits_to_keep prompt_sample_size min_density_ratio max_density_ratio "
    "ref_model_init_kwargs rpo_alpha reference_free force_use_ref_model tpo_alpha tpo_l_gamma env "
    "group_by_length".split()
)
"""Words of TRL's earlier releases, of its parser, and of trainers that Trueline has none for."""


@pytest.mark.slow
@installed
def test_trls_losses_are_all_known():
    own, _ = configurations()
    for script in ("dpo", "kto", "cpo", "sft"):
        field = own[script].__dataclass_fields__["loss_type"]
        names = field.metadata.get("choices") or re.findall(r"`'(\w+)'`", field.metadata["help"])
        assert set(names) - set(LOSSES[script]) == {"cpo": {"ipo"}, "sft": {"dft"}}.get(
            script, set()
        )


def commands(folder):
    """Every training command in code blocks and headers of a folder of TRL's."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".md", ".yaml") and path.is_file():
            text = path.read_text("utf-8").replace("\\\n", " ")
            for line in re.findall(r"^\s*(?:accelerate launch .*|python |trl )\S.*$", text, re.M):
                found = re.search(r"(?:^\s*trl |/)(\w+)(?:\.py)?\s+(--.*)", line)
                if found:
                    yield path.name, found[1], shlex.split(found[2], comments=True)


@pytest.mark.slow
@installed
def test_trls_own_commands_mean_the_same_or_are_refused():
    """TRL 1.16's wheel holds eight: DPO's and KTO's train, SFT's pack and distillation is none of
    ours."""
    outcomes = {}
    for name, script, arguments in commands(Path(TRL.origin).parent):
        given = {**parse_overrides(arguments), "use_cpu": "true", "bf16": "false"}
        try:
            run = load_run_config(None, given, OPTIONS, script=script)
        except UserError as error:
            outcomes.setdefault(name, []).append(str(error))
            continue
        bind(run.training.loss_type, run.training.options(), weights=run.training.loss_weights)
        said = " ".join(run.notes)
        for key, value in given.items():
            known = hasattr(run.training, key) or hasattr(run.model, key) or hasattr(run.data, key)
            assert known or key in said or key.removeprefix("no_") in said, f"{key}: {value}"
        outcomes.setdefault(name, []).append(run.training.loss_type)
    assert outcomes["dpo.py"] == ["dpo", "dpo"]
    assert outcomes["kto.py"] == ["kto", "kto"]
    assert all("packing" in reason for reason in outcomes["sft.py"])
    assert all("'distillation' is not among" in reason for reason in outcomes["distillation.py"])
    assert {name: len(found) for name, found in outcomes.items()} == dict.fromkeys(outcomes, 2)
