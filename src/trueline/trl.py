"""TRL's dialect: its words, its defaults and its reductions, in Trueline's options.

TRL keeps the objective in the script's name (``trl dpo``, ``orpo.py``, ``CPOConfig``); here it is
``loss_type``. A field of TRL's is honored, without meaning here, or refused with the reason and
the remedy; none is passed over in silence. The tables of docs/from-trl.md are made of these, which
is also why this file is long.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

import yaml

from trueline.errors import UserError

SCRIPTS = ("dpo", "kto", "orpo", "cpo", "bco", "sft")
"""TRL's preference scripts and fine-tuning; bco left TRL before 1.16 and is read as it was."""


@dataclass(frozen=True)
class Word:
    """A field of TRL's, or of transformers' TrainingArguments, that is not simply honored.

    Args:
        name: the field.
        fate: ``"nothing"`` where no value of it changes what is trained, else ``"refused"``.
        says: why, and for a refusal what to do instead.
        off: values that ask for nothing; these are accepted.
        scripts: of which scripts; every one, and ``trueline align``, where it names none.
    """

    name: str
    fate: Literal["nothing", "refused"]
    says: str
    off: tuple[Any, ...] = ()
    scripts: tuple[str, ...] = ("align", *SCRIPTS)

    def accept(self, key: str, value: Any) -> str:
        """The note for ``key: value``.

        Raises:
            UserError: it asks for what is not here.
        """
        if self.fate == "nothing":
            return f"{key} is not needed: {self.says}"
        if _plain(value) in self.off:
            return f"{key} asks for nothing"
        raise UserError(f"{key}: {self.says}")


def _plain(value: Any) -> Any:
    """A value of the command line as what it says."""
    words = {"null": None, "none": None, "false": False, "true": True}
    if isinstance(value, str):
        if value.lower() in words:
            return words[value.lower()]
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _nothing(name: str, says: str, scripts: str = "") -> Word:
    return Word(name, "nothing", says, (), tuple(scripts.split()) or ("align", *SCRIPTS))


def _refused(name: str, says: str, *off: Any, scripts: str = "") -> Word:
    given = tuple(scripts.split()) or ("align", *SCRIPTS)
    return Word(name, "refused", says, off or (None, False), given)


PLAN = "batches are made of ids that are in memory already"
MIXUP = "only sync_ref_model reads it"
EVALUATED = "evaluation takes its metrics from log-probs of all held-out data at once"
DENSITY = "it is read with an embedding function alone, which no configuration file can give"
NO_TPO = "TPO is not among the objectives; its nearest is loss_type: [dpo, sft]"
SETTING = "the tokenizer is taken as it is saved; change it there, save it with the model"

WORDS: tuple[Word, ...] = (
    # what only says how the same numbers are computed
    _nothing("dataloader_num_workers", PLAN),
    _nothing("dataloader_pin_memory", PLAN),
    _nothing("dataloader_persistent_workers", PLAN),
    _nothing("dataloader_prefetch_factor", PLAN),
    _nothing("dataloader_multiprocessing_context", PLAN),
    _nothing("dataloader_in_order", PLAN),
    _nothing("padding_free", "batches are always packed without padding"),
    _nothing("pad_to_multiple_of", "nothing is padded"),
    _nothing("pad_token", "nothing is padded"),
    _nothing("padding_value", "nothing is padded"),
    _nothing("label_pad_token_id", "nothing is padded"),
    _nothing("use_liger_kernel", "the LM head always runs in chunks without storing logits"),
    _nothing("liger_kernel_config", "the LM head always runs in chunks without storing logits"),
    _nothing("use_logits_to_keep", "the LM head only runs where a completion is scored"),
    _nothing("precompute_ref_batch_size", "reference batches are cut by a token budget"),
    _nothing("activation_offloading", "activations stay; gradient_checkpointing and "
             "max_tokens_per_micro_batch bound the memory"),
    _nothing("torch_empty_cache_steps", "memory is planned before the first step"),
    _nothing("use_cache", "training keeps no cache of keys and values"),
    _nothing("average_tokens_across_devices", "a loss is averaged over the whole effective batch, "
             "of all processes"),
    _nothing("remove_unused_columns", "columns are read by the detected form"),
    _nothing("label_names", "columns are read by the detected form"),
    _nothing("length_column_name", "lengths are those of the ids"),
    _nothing("prediction_loss_only", EVALUATED),
    _nothing("eval_accumulation_steps", EVALUATED),
    _nothing("eval_do_concat_batches", EVALUATED),
    _nothing("eval_use_gather_object", EVALUATED),
    _nothing("do_train", "the verb says it"),
    _nothing("do_eval", "eval_strategy says it"),
    _nothing("do_predict", "nothing is predicted during training"),
    _nothing("local_rank", "the launcher says it"),
    _nothing("ref_model_mixup_alpha", MIXUP),
    _nothing("ref_model_sync_steps", MIXUP),
    _nothing("packing_strategy", "only packing reads it"),
    _nothing("shuffle_dataset", "examples are shuffled in every epoch"),
    _nothing("prompt_sample_size", DENSITY),
    _nothing("min_density_ratio", DENSITY),
    _nothing("max_density_ratio", DENSITY),
    _nothing("max_completion_length", "TRL reads it for encoder-decoder models alone",
             "orpo cpo bco"),
    # what would change the numbers
    _refused("max_completion_length", "a completion has no limit of its own; max_length bounds "
             "prompt and completion together, max_prompt_length the prompt", None,
             scripts="align dpo kto sft"),
    _refused("label_smoothing_factor", "it smooths a classifier's labels; label_smoothing is the "
             "objective's", None, 0),
    _refused("neftune_noise_alpha", "no noise is added to embeddings; leave it out", None),
    _refused("auto_find_batch_size", "no batch size is searched for; max_tokens_per_micro_batch "
             "cuts micro-batches by memory and leaves the update as it is"),
    _refused("dataloader_drop_last", "the last, smaller batch of an epoch is trained on too; "
             "max_steps ends a run sooner"),
    _refused("train_sampling_strategy", "batches are shuffled, and balanced where completions are "
             "labeled; leave it out", None, "random", scripts="align dpo orpo cpo bco sft"),
    _refused("group_by_length", "batches are shuffled; nothing is padded, so nothing is saved by "
             "sorting by length. Leave it out"),
    _refused("include_num_input_tokens_seen", "tokens are not counted", None, False, "no"),
    _refused("include_for_metrics", EVALUATED, None, ()),
    _refused("batch_eval_metrics", EVALUATED),
    _refused("bf16_full_eval", "evaluation runs in the precision of training; set bf16"),
    _refused("fp16_full_eval", "evaluation runs in the precision of training; set fp16"),
    _refused("resume_from_checkpoint", "a run goes on from the last whole checkpoint of its "
             "output_dir: resume_from_checkpoint: true, or --resume", None, False, True),
    _refused("accelerator_config", "batches are made by the trainer's own plan; leave it out",
             None),
    _refused("parallelism_config", "a sequence is not split over devices; FSDP and DeepSpeed split "
             "the weights", None),
    _refused("sync_ref_model", "the reference does not follow the policy: its log-probs are kept "
             "from before the first step. Train in rounds, each with "
             "reference_model_name_or_path set to the round before"),
    _refused("ld_alpha", "log-probs past the shorter completion's length are not weighed down; "
             "r_dpo has a price for length and simpo an average per token", None, 1),
    _refused("use_weighting", "pairs are not weighed by the policy's probability (WPO); leave it "
             "out"),
    _refused("f_divergence_type", "the log-ratio is that of the reverse KL; fdo takes any "
             "f-divergence of labeled completions", None, "reverse_kl"),
    _refused("f_alpha_divergence_coef", "only f_divergence_type: alpha_divergence reads it, which "
             "is not here", None, 0.5),
    _refused("router_aux_loss_coef", "the load-balancing loss of a mixture of experts is not "
             "added; leave it out, or 0", None, 0),
    _refused("model_init_kwargs", "give dtype, model_revision, attn_implementation and "
             "trust_remote_code as keys of their own", None, {}, scripts="align"),
    _refused("ref_model_init_kwargs", "the reference is loaded like the policy; name another with "
             "reference_model_name_or_path", None, {}),
    _refused("rpo_alpha", "write loss_type: [dpo, sft] with loss_weights: [1, rpo_alpha]", None),
    _refused("reference_free", "a loss without a reference has a name of its own: cpo with "
             "cpo_alpha 0, or simpo"),
    _refused("force_use_ref_model", "name the reference: reference_model_name_or_path"),
    _refused("generate_during_eval", "nothing is generated during training; trueline evaluate "
             "asks the trained model"),
    _refused("is_encoder_decoder", "only decoder-only models are trained"),
    _refused("alpha", "AlphaPO's reward shape is not among the objectives; simpo is its limit at "
             "0", None, 0, scripts="cpo"),
    _refused("tpo_alpha", NO_TPO, None),
    _refused("tpo_l_gamma", NO_TPO, None),
    _refused("test_split_size", "test_size holds out a share of the prompts", None),
    _refused("env", "a file sets no environment variables; put them before the command", None, {}),
    _refused("ignore_bias_buffers", "buffers are left to DDP; ddp_broadcast_buffers: false keeps "
             "them from being sent"),
    _refused("lora_target_parameters", "adapters go on modules; name them in lora_target_modules",
             None),
    _refused("bnb_4bit_quant_storage", "quantized weights are stored as bitsandbytes does by "
             "itself; leave it out", None),
    _refused("chat_template_path", SETTING, None),
    _refused("eos_token", SETTING, None),
    _refused("dataset_text_field", "a text to imitate stands in the column text; rename it", None,
             "text"),
    _refused("assistant_only_loss", "of a conversation the last answer is scored; write a row for "
             "each answer that is to be"),
    _refused("dataset_kwargs", "rows are read by their columns; leave it out", None, {}),
    _refused("packing", "one step counts examples, and each is seen by itself; they are computed "
             "without padding already. Leave it out and set per_device_train_batch_size"),
    _refused("eval_packing", "examples are seen one by one; leave it out"),
    _refused("completion_only_loss", "no token of a prompt is scored; leave it out, or true", None,
             True),
)  # fmt: skip


HONORED: Mapping[str, tuple[str, ...]] = {
    "max_length": SCRIPTS,
    "trust_remote_code": SCRIPTS,
    "model_init_kwargs": SCRIPTS,
    "dataset_num_proc": SCRIPTS,
    "loss_type": ("dpo", "kto", "cpo", "sft"),
    "loss_weights": ("dpo",),
    "beta": ("dpo", "kto", "orpo", "cpo", "bco"),
    "truncation_mode": ("dpo", "bco", "sft"),
    "disable_dropout": ("dpo", "kto", "orpo", "cpo", "bco"),
    "precompute_ref_log_probs": ("dpo", "kto", "bco"),
    "label_smoothing": ("dpo", "cpo"),
    "discopop_tau": ("dpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "cpo_alpha": ("cpo",),
    "simpo_gamma": ("cpo",),
}
"""Fields of TRL's own configurations that are honored, and of which scripts. Those of its
ModelConfig and ScriptArguments are, but for WORDS, options here under the same names."""


@dataclass(frozen=True)
class Loss:
    """What a loss of TRL's is here.

    Args:
        name: the objective; with ``weight``, because TRL adds a pair's two terms where the
            objective takes their mean.
        options: of the objective, where TRL's convention is not its default.
        differs: what stays different, and why, in one line.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    differs: str = ""


BATCHES = "over the whole effective batch, where TRL takes each micro-batch by itself"
LOSSES: Mapping[str, Mapping[str, Loss]] = {
    "dpo": {
        "sigmoid": Loss("dpo"),
        "sigmoid_norm": Loss("dpo", {"dpo_reduction": "mean"}),
        "hinge": Loss("hinge"),
        "ipo": Loss("ipo", {"reduction": "mean"}),
        "exo_pair": Loss("exo", differs="exo_pair's label_smoothing is 0.001 where none is given, "
                         "as published; TRL's default of 0 stops its script"),
        "nca_pair": Loss("nca"),
        "robust": Loss("robust_dpo", {"label_smoothing": 0.0}),
        "bco_pair": Loss("bco", weight=2, differs="bco_pair centers rewards by BCO's shift, as "
                         "published; TRL's has lost it"),
        "sppo_hard": Loss("sppo", weight=2),
        "aot": Loss("aot", differs=f"aot sorts {BATCHES}"),
        "aot_unpaired": Loss("aot_unpaired", differs=f"aot_unpaired sorts {BATCHES}"),
        "apo_zero": Loss("apo_zero"),
        "apo_down": Loss("apo_down"),
        "discopop": Loss("discopop"),
        "sft": Loss("sft", {"sft_reduction": "tokens"},
                    differs=f"sft averages {BATCHES}"),
    },
    "kto": {
        "kto": Loss("kto", differs="kto draws batches that hold both labels and takes its baseline "
                    f"{BATCHES}, from other pairs of prompt and completion"),
        "apo_zero_unpaired": Loss("apo_zero_unpaired", differs="batches are shuffled and hold both "
                                  "labels; TRL takes the rows in order"),
    },
    "orpo": {
        "orpo": Loss("orpo", differs="orpo's likelihood is each chosen completion's mean per "
                     "token, as the paper's; TRL's is the mean of all tokens, the prompts' too"),
    },
    "cpo": {
        "sigmoid": Loss("cpo", {"cpo_alpha": 0.0}),
        "hinge": Loss("slic", {"slic_lambda": 0.0}, differs="hinge logs log-probs as rewards, "
                      "which TRL multiplies by beta"),
        "simpo": Loss("simpo"),
        "alphapo": Loss("simpo"),
    },
    "bco": {
        "bco": Loss("bco", differs="bco's shift is a moving average of the two labels' midpoint, "
                    "weighing the last ten batches, TRL's the mean of all rewards seen; prompts "
                    "are not weighed by their density, as its example script does"),
    },
    "sft": {name: Loss("sft", {"sft_reduction": "tokens"}, differs="of a conversation sft scores "
                       "the last answer; TRL's scores every turn, unless assistant_only_loss")
            for name in ("nll", "chunked_nll")},
}  # fmt: skip
"""Every script's losses; orpo and bco have the one of their name."""

DEFAULT_LOSS = {"dpo": "sigmoid", "kto": "kto", "orpo": "orpo", "cpo": "sigmoid", "bco": "bco",
                "sft": "nll"}  # fmt: skip

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    **{script: {"learning_rate": 1e-6} for script in ("dpo", "kto")},
    **{script: {"learning_rate": 1e-6, "append_eos": True} for script in ("orpo", "cpo")},
    "bco": {"learning_rate": 5e-5, "truncation_mode": "keep_end", "append_eos": True},
    "sft": {"learning_rate": 2e-5, "disable_dropout": False},
}
"""TRL's defaults that are not Trueline's, besides the losses' own."""

ALWAYS = (
    "a prompt that would leave an answer fewer than 32 tokens of max_length is cut, by whole turns "
    "from the oldest; TRL drops such a row, or scores nothing of it",
    "turns of the user inside a completion are not scored; TRL scores them",
    "an implied prompt ends with a turn; TRL cuts it at the first differing character",
)
"""What differs for every script."""


def word(name: str, script: str = "align") -> Word | None:
    """What is to say of this field in this script; None where it is simply honored or unknown."""
    return next((w for w in WORDS if w.name == name and script in w.scripts), None)


def not_needed() -> Mapping[str, str]:
    """Fields without an effect in ``trueline align``, and why none is needed."""
    return {w.name: w.says for w in WORDS if w.fate == "nothing" and "align" in w.scripts}


def refuse_without_effect(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check transformers' own arguments that Trueline's training would pass over.

    Raises:
        UserError: one has another value than its default, and asks for what is not here.
    """
    for w in WORDS:
        if w.fate == "refused" and "align" in w.scripts and w.name in defaults:
            value = given[w.name]
            if value != defaults[w.name]:
                w.accept(w.name, value)


def script_of(text: str) -> str | None:
    r"""The script of TRL's that a YAML file says it is for in its first comment; None if it does
    not, or says it is for Trueline.

    Example:
        >>> script_of("# trl orpo --config this.yaml\nbeta: 0.1"), script_of("beta: 0.1")
        ('orpo', None)
    """
    lines = []
    for line in text.splitlines():
        if line.strip() and not line.startswith(("#", "---")):
            break
        lines.append(line)
    head = "\n".join(lines)
    if "trueline" in head.lower():
        return None
    found = re.search(rf"\btrl\s+({_NAMES})\b|\b({_NAMES})\.py\b", head, re.IGNORECASE)
    return (found[1] or found[2]).lower() if found else None


_NAMES = "dpo|kto|orpo|cpo|bco|sft|tpo|grpo|rloo|ppo|reward|online_dpo|xpo|nash_md|gkd|prm|simpo"


class Translation(NamedTuple):
    """Trueline's options for a file of TRL's, and what is to be said before training."""

    values: dict[str, Any]
    notes: list[str]


def translate(script: str, given: Mapping[str, Any]) -> Translation:
    """Options of one of TRL's scripts as Trueline's, with TRL's defaults and reductions.

    Args:
        script: one of :data:`SCRIPTS`.
        given: TRL's options, as its YAML or its command line has them.

    Raises:
        UserError: no such script, or an option that asks for what is not here.

    Example:
        >>> translate("dpo", {"loss_type": "ipo"}).values["objective_options"]
        {'reduction': 'mean'}
    """
    if script not in SCRIPTS:
        raise UserError(
            f"TRL's script {script!r} is not among those Trueline speaks for: {', '.join(SCRIPTS)}"
        )
    values: dict[str, Any] = dict(DEFAULTS[script])
    notes = [f"read as `trl {script}`: TRL's defaults and reductions"]
    for key, value in given.items():
        known = word(key, script)
        if key == "model_init_kwargs":
            values.update(_of_model(value))
        elif key == "test_split_size" and _plain(value) is not None:
            values["test_size"] = value
            notes.append("test_split_size is test_size: whole prompts are held out")
        elif key == "datasets" and isinstance(_structure(value), list) and _structure(value):
            values.update(_of_mixture(_structure(value)))
        elif known is not None:
            notes.append(known.accept(key, value))
        else:
            values[key] = value
    return _objective(script, values, notes)


def _objective(script: str, values: dict[str, Any], notes: list[str]) -> Translation:
    """TRL's loss and its options as an objective, or a weighted sum."""
    names = _structure(values.pop("loss_type", None))
    names = DEFAULT_LOSS[script] if _plain(names) is None else names
    names = names if isinstance(names, list) and names else [names]
    weights = _structure(values.pop("loss_weights", None))
    weights = [1.0] * len(names) if _plain(weights) is None else weights
    weights = weights if isinstance(weights, list) else [weights]
    weights = [_number("loss_weights", weight) for weight in weights]
    if len(weights) != len(names):
        raise UserError(f"give one of loss_weights for each loss: {names}, got {weights}")
    parts = [
        (_loss(script, str(name)), weight) for name, weight in zip(names, weights, strict=True)
    ]
    options = {k: v for part, _ in parts for k, v in part.options.items()}
    losses = [(part.name, weight * part.weight) for part, weight in parts]
    beta = _number("beta", values.get("beta"), 0.1)
    if {"discopop", "simpo"} & {name for name, _ in losses}:
        values["beta"] = beta
    if script == "cpo":
        losses += _imitation(values, options, losses, names[0], beta)
    notes += [part.differs for part, _ in parts if part.differs]
    smoothed = _number("label_smoothing", values.get("label_smoothing"), 0)
    if "label_smoothing" in values and not smoothed and not {"exo"} & {n for n, _ in losses}:
        del values["label_smoothing"]  # TRL's default, which every loss may be given
    elif smoothed:
        options.pop("label_smoothing", None)
        if "sigmoid" in names and script == "dpo":
            notes.append("sigmoid honors label_smoothing, which TRL passes over")
    for name, default, reader in (
        ("discopop_tau", 0.05, "discopop"),
        ("simpo_gamma", 0.5, "simpo"),
    ):
        if reader not in dict(losses) and _plain(values.get(name)) == default:
            del values[name]
    kinds = [name for name, _ in losses]
    if len(losses) == 1 and losses[0][1] == 1:
        values["loss_type"] = kinds[0]
    else:
        values["loss_type"], values["loss_weights"] = kinds, [weight for _, weight in losses]
    if options:
        given = _structure(values.get("objective_options", {}))
        if not isinstance(given, Mapping):
            raise UserError(f"objective_options must be keys and values, got {given!r}")
        values["objective_options"] = {**options, **given}
    return Translation(values, [*notes, *ALWAYS])


def _imitation(
    values: dict[str, Any],
    options: dict[str, Any],
    losses: list[tuple[str, float]],
    name: str,
    beta: float,
) -> list[tuple[str, float]]:
    """CPO's likelihood term, with what else its losses need."""
    alpha = _number("cpo_alpha", values.pop("cpo_alpha", None), 1.0)
    if _number("label_smoothing", values.get("label_smoothing"), 0):
        raise UserError("label_smoothing: CPO's losses have none here; leave it out, or 0")
    if name == "hinge":
        if not 0 < beta < math.inf:
            raise UserError(f"beta must be a number > 0, got {beta}")
        values.pop("beta", None)
        options["slic_delta"] = 1 / beta
        losses[0] = ("slic", beta)  # max(0, 1 - beta d) = beta max(0, 1 / beta - d)
    if not alpha or name == "alphapo":
        return []
    options["sft_reduction"] = "tokens"
    return [("sft", alpha)]


def _loss(script: str, name: str) -> Loss:
    if name in LOSSES[script]:
        return LOSSES[script][name]
    known = ", ".join(LOSSES[script])
    raise UserError(
        f"loss_type: {name!r} of TRL's {script} script is not among the objectives (its losses "
        f"here: {known}); `trueline objectives` lists Trueline's own, for `trueline align`"
    )


def _number(key: str, value: Any, default: float = 1.0) -> float:
    plain = _plain(value)
    if plain is None:
        return default
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise UserError(f"{key} must be a number, got {value!r}")
    return float(plain)


def _structure(value: Any) -> Any:
    """A list or keys and values of the command line as what they say."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with contextlib.suppress(yaml.YAMLError):
            return yaml.safe_load(value)
    return value


def _of_model(value: Any) -> dict[str, Any]:
    """``model_init_kwargs`` as keys of their own."""
    names = {"dtype": "dtype", "torch_dtype": "dtype", "revision": "model_revision",
             "attn_implementation": "attn_implementation",
             "trust_remote_code": "trust_remote_code"}  # fmt: skip
    given = _structure(value) or {}
    if not isinstance(given, Mapping):
        raise UserError(f"model_init_kwargs must be keys and values, got {value!r}")
    for key in given:
        if key not in names:
            raise UserError(
                f"model_init_kwargs: {key!r} is not known; dtype, revision, attn_implementation "
                "and trust_remote_code are"
            )
    return {names[key]: entry for key, entry in given.items()}


def _of_mixture(entries: list[Any]) -> dict[str, Any]:
    """A mixture of one data set as its name, configuration and split; of several as it is."""
    names = {"path": "dataset_name", "name": "dataset_config", "split": "dataset_train_split"}
    if len(entries) > 1 or not isinstance(entries[0], Mapping) or "weight" in entries[0]:
        return {"datasets": entries}
    for key in entries[0]:
        if key not in (*names, "columns", "fraction"):
            raise UserError(f"datasets: {key!r} is not known; path, name and split are")
    return {names[k]: v for k, v in entries[0].items() if k in names and v is not None}


FOREIGN: Mapping[str, Mapping[str, str]] = {
    "LLaMA-Factory": {
        "stage": "trueline dpo, kto or sft", "finetuning_type": "use_peft", "lora_rank": "lora_r",
        "lora_target": "lora_target_modules", "pref_loss": "loss_type", "pref_beta": "beta",
        "pref_ftx": "loss_type: [sigmoid, sft] with loss_weights", "dataset": "dataset_name",
        "dataset_dir": "dataset_name", "cutoff_len": "max_length", "val_size": "test_size",
        "template": "the tokenizer's own chat template",
        "quantization_bit": "load_in_4bit or load_in_8bit",
    },
    "axolotl": {
        "rl": "trueline dpo, kto or orpo", "base_model": "model_name_or_path", "rl_beta": "beta",
        "adapter": "use_peft", "micro_batch_size": "per_device_train_batch_size",
        "num_epochs": "num_train_epochs", "sequence_len": "max_length",
        "val_set_size": "test_size", "sample_packing": "nothing: batches are always packed",
        "lr_scheduler": "lr_scheduler_type", "optimizer": "optim",
    },
}  # fmt: skip
"""Keys by which other trainers' files are known, and what to write for each."""


def refuse_foreign(keys: Iterable[str], known: Iterable[str]) -> None:
    """Say whose file it is and what to write instead.

    Raises:
        UserError: two or more of ``keys`` are another trainer's, and none of ``known``.
    """
    strange = [key for key in keys if key not in set(known)]
    for trainer, words in FOREIGN.items():
        told = [f"{key}: {words[key]}" for key in strange if key in words]
        if len(told) > 1:
            raise UserError(
                f"this is a file of {trainer}'s, which is not read; write for {'; '.join(told)}. "
                "Its preference data are read as they are (trueline data inspect)"
            )


@cache
def _launch_options() -> frozenset[str]:
    from accelerate.commands.launch import launch_command_parser

    options = {o for action in launch_command_parser()._actions for o in action.option_strings}
    return frozenset({"accelerate_config"} | {o.lstrip("-").replace("-", "_") for o in options})


def refuse_launch(keys: Iterable[str], verb: str = "align") -> None:
    """Say how options of ``accelerate launch`` are given.

    Raises:
        UserError: one of ``keys`` is an option of the launcher, not of training.
    """
    named = [key for key in keys if key in _launch_options()]
    if named:
        said = " ".join(f"--{'config_file' if n == 'accelerate_config' else n} ..." for n in named)
        raise UserError(
            f"{', '.join(named)}: an option of the launcher, which stands before the command: "
            f"accelerate launch {said} $(which trueline) {verb} ..."
        )
