"""Configuration: four dataclasses, one flat YAML file, command-line overrides on top.

Keys are those TRL users know. An unknown key is an error with the nearest name; a TRL key that
Trueline does not need is accepted and reported, never silently ignored.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import TrainingArguments

import trueline.trl as trl
from trueline.config.ranges import check_ranges
from trueline.errors import UserError
from trueline.options import scalar
from trueline.processes import started
from trueline.registry import nearest


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the key and the remedy."""


NOT_NEEDED = trl.not_needed()
"""TRL's and transformers' keys without an effect here, and why none is needed."""

RENAMED = {
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "dataset_streaming": "streaming",
}


@dataclass
class ModelArguments:
    """The policy, its reference and its adapter.

    Args:
        model_name_or_path: a local folder or a hub id. An adapter's folder is trained further
            with its own settings.
        model_revision: branch, tag or commit of a hub model.
        reference_model_name_or_path: the reference; None takes the policy as it starts (with an
            adapter: the base under it).
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``: of the weights.
        attn_implementation: transformers' attention outside the packed path.
        trust_remote_code: run model code from the hub; off unless asked for.
        load_in_4bit, load_in_8bit: quantize the base (QLoRA); needs the extra ``bitsandbytes``.
        bnb_4bit_quant_type, use_bnb_nested_quant: how, as in transformers' BitsAndBytesConfig.
        use_peft: train a LoRA adapter instead of all weights.
        merge_adapter: also write the adapter merged into its base, as plain weights, in the
            folder ``merged`` of ``output_dir``.
        lora_r, lora_alpha, lora_dropout, lora_target_modules, lora_modules_to_save,
            lora_task_type, use_rslora, use_dora: as in peft; target modules default to all
            linear layers.
    """

    model_name_or_path: str | None = None
    model_revision: str = "main"
    reference_model_name_or_path: str | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = False
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: list[str] | str | None = None
    lora_modules_to_save: list[str] | None = None
    lora_task_type: str = "CAUSAL_LM"
    use_rslora: bool = False
    use_dora: bool = False
    merge_adapter: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass
class DataArguments:
    """The preference data.

    Args:
        dataset_name: a file, a folder or a hub id; every form of ``trueline data inspect``.
        datasets: several instead, each ``{path: ..., name: ..., split: ..., weight: ...}``. Without
            weights they are read one after the other, each row once; with weights rows are drawn
            in those proportions until a source ends.
        dataset_config: the hub data set's configuration.
        dataset_train_split, dataset_test_split: splits to train and to evaluate on.
        eval_dataset_name: a separate file or id to evaluate on.
        test_size: share of the training rows held out for evaluation, whole prompts at a time,
            where there is no test split. 0 holds out none.
        dataset_form: the form by name, where detection should not decide.
        as_chat: wrap plain-text prompts and answers as a user's and an assistant's turn, so that
            the tokenizer's chat template applies to them.
        skip_bad: drop broken rows and report them, rather than stop.
        max_samples: only the first so many rows.
    """

    dataset_name: str | None = None
    datasets: list[Any] | None = None
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    dataset_test_split: str = "test"
    eval_dataset_name: str | None = None
    test_size: float = 0.0
    dataset_form: str | None = None
    as_chat: bool = False
    skip_bad: bool = False
    max_samples: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass
class WatchArguments:
    """Reading the model's own answers while it trains (:mod:`trueline.evaluation.watching`).

    Args:
        answers_steps: answer a few held-out prompts every so many steps and log as ``answers/*``
            how far the answers are from the reference and whether they still are answers; 0 never.
            Without an adapter a copy of the starting weights stays in memory for it.
        answers_prompts: so many prompts; up to 8 unless given.
        answers_tokens: tokens of an answer, at most; 48 unless given.
        answers_most_kl: sound the alarm above so many nats a token; None for no such bound.
        answers_stop: end the training at the first alarm.
    """

    answers_steps: int = 0
    answers_prompts: int | None = None
    answers_tokens: int | None = None
    answers_most_kl: float | None = None
    answers_stop: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.answers_steps:
            return
        for f in dataclasses.fields(self):
            if getattr(self, f.name) != f.default:
                raise ConfigError(f"{f.name} has no effect without answers_steps")


_PLAIN_DEFAULTS = {
    f.name: f.default for f in dataclasses.fields(TrainingArguments) if f.default is not MISSING
}


@dataclass
class AlignmentConfig(TrainingArguments):
    """How to train: transformers' TrainingArguments with the objective's options.

    Options of the objective are None unless given; giving one that the objective does not have is
    an error. ``per_device_train_batch_size`` counts examples (pairs, or prompts with their labeled
    completions); the effective batch is that times ``gradient_accumulation_steps`` times
    processes, and the update does not depend on how it is split.

    Args:
        loss_type: an objective's name (see ``trueline objectives``), a function of your own as
            ``my_package.losses:mine``, or a list of them. It has no default: which objective is
            trained is always said.
        loss_weights: one weight for each of a list.
        beta, label_smoothing, desirable_weight, undesirable_weight, simpo_gamma: its options.
        objective_options: any other of its options by name.
        coupling: ``"exact"`` or ``"ema"``; see :class:`trueline.training.step.StepEngine`.
        max_length: tokens of prompt and completion together.
        max_prompt_length: tokens of the prompt; None for no limit of its own.
        truncation_mode: what a row that is too long keeps: ``"keep_start"`` cuts its answers at
            their right, ``"keep_end"`` the prompt and the answers at their left.
        append_eos: close a conversation's answer with EOS where its chat template ends with
            something else, as TRL's older trainers do; plain text is closed with EOS in any case.
        allow_control_tokens: read control tokens that the text of a row spells (``</s>``) as
            control tokens; without it they are text.
        precompute_ref_log_probs: fill the reference cache before training. If False, values are
            computed in the step that first needs them.
        reference_cache: folder of the reference cache; ``"none"`` keeps values in memory only.
        encoded_cache: folder where encoded rows are kept and found again; ``"none"`` keeps them in
            memory. Up to 4,096 rows are never kept.
        dataset_num_proc: processes that encode rows at once; 1 unless given.
        streaming: read and encode rows on the way instead of all beforehand; ``max_steps`` says
            how long. A resumed run goes on at the next row.
        streaming_buffer: rows of a stream that wait in memory, of which a random one comes next.
        disable_dropout: train without dropout in the base model, as preference losses assume.
        share_prompts: compute a prompt shared by several completions once; exact.
        max_tokens_per_micro_batch: cut micro-batches by tokens rather than by examples: what one
            forward pass holds at most (a longer example goes alone). The effective batch, and so
            the update, stays what ``per_device_train_batch_size`` says.
        pair_weighting: ``"normalized"`` balances a pair's two pushes by their gradients' norms, so
            that neither drags the other completion along
            (:func:`trueline.objectives.weighting.normalized`); about 2.5 times a step.
        token_mask: ``"difference"`` looks only at tokens that chosen and rejected do not share,
            ``"sparse"`` learns which tokens count (:mod:`trueline.training.remedies`). Training
            and its metrics see those alone, evaluation whole completions.
        token_mask_penalty, token_mask_learning_rate: of ``"sparse"``; 0.01 nats a token and 1.
        entanglement_steps: measure gradient entanglement on held-out pairs every so many steps and
            log it as ``entangle/*``; 0 never.
        entanglement_pairs: on so many pairs; 16 unless given.
        overwrite: begin a new run in a folder that holds one; the old folder is renamed, not
            removed. Without it such a folder is refused.
        allow_one_class: train an unpaired objective on desirable completions alone, or on
            undesirable ones alone; otherwise such data is refused.
    """

    output_dir: str | None = "runs/align"
    learning_rate: float = 1e-6
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False
    gradient_checkpointing: bool | None = True
    bf16: bool | None = None
    loss_type: str | list[str] = ""
    loss_weights: list[float] | None = None
    beta: float | None = None
    label_smoothing: float | None = None
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    simpo_gamma: float | None = None
    objective_options: dict[str, Any] = field(default_factory=dict)
    coupling: Literal["exact", "ema"] = "exact"
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    allow_control_tokens: bool = False
    append_eos: bool = False
    precompute_ref_log_probs: bool = True
    reference_cache: str | None = None
    encoded_cache: str | None = None
    dataset_num_proc: int | None = None
    streaming: bool = False
    streaming_buffer: int = 10_000
    disable_dropout: bool = True
    share_prompts: bool = True
    max_tokens_per_micro_batch: int | None = None
    pair_weighting: Literal["normalized"] | None = None
    token_mask: Literal["difference", "sparse"] | None = None
    token_mask_penalty: float | None = None
    token_mask_learning_rate: float | None = None
    entanglement_steps: int = 0
    entanglement_pairs: int | None = None
    overwrite: bool = False
    allow_one_class: bool = False

    def __post_init__(self) -> None:
        self._given = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.init and getattr(self, f.name) != _default(f)
        }
        if not self.loss_type:
            raise ConfigError(
                "loss_type is missing: name the objective to train, such as dpo, kto, orpo or "
                "kldo (`trueline objectives` lists all). TRL says it with its script's name"
            )
        if started() > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # or accelerate takes each of several processes for the only one
        if self.bf16 is None:
            self.bf16 = (
                not self.fp16
                and not self.use_cpu
                and torch.cuda.is_available()
                and torch.cuda.is_bf16_supported()
            )
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # where there is nothing else, transformers wants it said
        if "activation_checkpointing" in {f.name for f in dataclasses.fields(TrainingArguments)}:
            # newer transformers renamed the key and warn about the old one
            if getattr(self, "activation_checkpointing", None) is None:
                self.activation_checkpointing = self.gradient_checkpointing
            self.gradient_checkpointing = None
        check_ranges(self)
        try:
            trl.refuse_without_effect(vars(self), _PLAIN_DEFAULTS)
        except UserError as error:
            raise ConfigError(str(error)) from None
        super().__post_init__()
        if self.coupling not in ("exact", "ema"):
            raise ConfigError(f"coupling must be 'exact' or 'ema', got {self.coupling!r}")
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < 1:
            raise ConfigError(
                "max_tokens_per_micro_batch must be positive or left out, got "
                f"{self.max_tokens_per_micro_batch}"
            )

    def given(self) -> dict[str, Any]:
        """What was set to another value than its default; no secrets."""
        return {name: value for name, value in self._given.items() if not name.endswith("token")}

    def options(self) -> dict[str, Any]:
        """The objective's options that were given."""
        named = ("beta", "label_smoothing", "desirable_weight", "undesirable_weight", "simpo_gamma")
        given = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        return {**given, **self.objective_options}


def _default(f: dataclasses.Field[Any]) -> Any:
    made = f.default_factory
    return f.default if made is dataclasses.MISSING else made()


@dataclass
class RunConfig:
    """Everything one `trueline align` run is made of, and the notes its reading left."""

    model: ModelArguments
    data: DataArguments
    training: AlignmentConfig
    watch: WatchArguments
    notes: list[str]
    given: dict[str, Any]


def load_run_config(
    path: str | Path | None,
    overrides: Mapping[str, Any],
    objective_options: Iterable[str] = (),
    *,
    script: str | None = None,
) -> RunConfig:
    """Read a flat YAML file and lay command-line overrides over it.

    A file of TRL's is read in its dialect, where ``script``, a key ``trl: orpo`` or its first
    comment (``# trl orpo ...``, ``orpo.py``) says which of its scripts it is for.

    Args:
        path: the YAML file, or None.
        overrides: keys and values of the command line; strings are read as YAML scalars.
        objective_options: names of options that any objective has; given flat, they go to it.
        script: TRL's script, whose words these are.

    Raises:
        ConfigError: an unknown key, with the nearest name; a value of the wrong type.
    """
    values = {**(read_yaml(path) if path is not None else {}), **overrides}
    if script is None and path is not None:
        script = trl.script_of(Path(path).read_text("utf-8"))
    script = values.pop("trl", None) or script
    groups: dict[str, type[Any]] = {
        "model": ModelArguments,
        "data": DataArguments,
        "training": AlignmentConfig,
        "watch": WatchArguments,
    }
    hints = {key: typing.get_type_hints(cls) for key, cls in groups.items()}
    fields = {
        f.name: group for group, cls in groups.items() for f in dataclasses.fields(cls) if f.init
    }
    chosen: dict[str, dict[str, Any]] = {group: {} for group in groups}
    notes: list[str] = []
    options = set(objective_options) - set(fields)
    extra: dict[str, Any] = {}
    known = [*fields, *options, *NOT_NEEDED, *RENAMED]
    words = {*known, *(w.name for w in trl.WORDS)}
    values = dict(_without_no(key, value, words) for key, value in values.items())
    trl.refuse_foreign(values, words)
    if script is not None:
        values, notes = trl.translate(script, values)
    for key, value in values.items():
        name = RENAMED.get(key, key)
        theirs = trl.word(name)
        if name in fields and name not in NOT_NEEDED:
            group = fields[name]
            chosen[group][name] = coerce(key, value, hints[group][name])
        elif name in options:
            extra[name] = scalar(value)
        elif theirs is not None:
            notes.append(theirs.accept(key, value))
        else:
            trl.refuse_launch([name], script or "align")
            raise ConfigError(f"unknown configuration key {key!r}{nearest(key, known)}")
    if extra:
        chosen["training"].setdefault("objective_options", {}).update(extra)
    if isinstance(chosen["training"].get("loss_type"), list):
        names = chosen["training"]["loss_type"]
        if len(names) == 1 and set(chosen["training"].get("loss_weights") or [1]) == {1}:
            chosen["training"]["loss_type"] = names[0]
            chosen["training"].pop("loss_weights", None)
    try:
        training = AlignmentConfig(**chosen["training"])
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError) as error:  # the Trainer's, of a value's kind
        raise ConfigError(str(error)) from None
    model, data = ModelArguments(**chosen["model"]), DataArguments(**chosen["data"])
    watch = WatchArguments(**chosen["watch"])
    return RunConfig(model, data, training, watch, notes, values)


def _without_no(key: str, value: Any, known: Collection[str]) -> tuple[str, Any]:
    """``--no_x``, as transformers' parser has it for what is on by itself, as ``x: false``."""
    if key in known or not key.startswith("no_") or key[3:] not in known:
        return key, value
    if scalar(value) is not True:
        raise ConfigError(f"{key} stands alone, got {value!r}; write {key[3:]}: {value}")
    return key[3:], False


def read_yaml(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold key: value lines, got a {type(value).__name__}")
    return {str(key): entry for key, entry in value.items()}


def coerce(key: str, value: Any, hint: Any) -> Any:
    """``value`` as the field's type; a clear error where it is none of them."""
    kinds = set(typing.get_args(hint)) if _is_union(hint) else {hint}
    if value is None or (value in ("null", "None") and types.NoneType in kinds):
        if types.NoneType in kinds:
            return None
        raise ConfigError(f"{key} must not be empty")
    plain = scalar(value)
    if bool in kinds and isinstance(plain, bool):
        return plain
    number = isinstance(plain, int | float) and not isinstance(plain, bool)
    if int in kinds and number and float(plain).is_integer():
        return int(plain)
    if float in kinds and number:
        return float(plain)
    origins = {typing.get_origin(kind) or kind for kind in kinds}
    only_lists = origins <= {list, types.NoneType}
    if list in origins and not isinstance(plain, dict) and (isinstance(plain, list) or only_lists):
        each = [part for kind in kinds for part in typing.get_args(kind) if part in (float, str)]
        items = plain if isinstance(plain, list) else [plain]
        return [coerce(key, item, each[0]) for item in items] if each else items
    if dict in origins and isinstance(plain, dict):
        return plain
    numeric = {bool, int, float} & kinds
    if isinstance(value, list | dict):
        numeric = {float}  # several where one is meant
    if isinstance(value, str) and (str in kinds or not (numeric or dict in origins)):
        return value
    text = kinds <= {str, types.NoneType} and key != "resume_from_checkpoint"
    if not numeric and not {list, dict} & origins and not (text and isinstance(value, bool)):
        return value if isinstance(value, str | bool) else str(value)
    kinds -= {types.NoneType}
    wanted = " or ".join(sorted(getattr(kind, "__name__", str(kind)) for kind in kinds))
    raise ConfigError(f"{key} must be {wanted}, got {value!r}")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value``, ``--key one two`` (a list) and bare ``--flag`` (true).

    Example:
        >>> parse_overrides(["--beta", "0.2", "--use_peft", "--max-length=512"])
        {'beta': '0.2', 'use_peft': 'true', 'max_length': '512'}
        >>> parse_overrides(["--loss_type", "dpo", "sft"])
        {'loss_type': ['dpo', 'sft']}
    """
    values: dict[str, list[str]] = {}
    key: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            key, separator, value = argument[2:].partition("=")
            key = key.replace("-", "_")
            if key in values:
                raise ConfigError(f"--{key} is given twice; give it once")
            values[key] = [value] if separator else []
        elif key is not None:
            values[key].append(argument)
        else:
            raise ConfigError(f"expected --key value, got {argument!r}")
    return {k: v if len(v) > 1 else (v or ["true"])[0] for k, v in values.items()}
