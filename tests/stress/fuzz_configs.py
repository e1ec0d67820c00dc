"""Configurations drawn at random, of `trueline align`, of TRL's scripts in their dialect and of
`trueline diffusion align`. One that is accepted stops where training would begin: options, data,
model, tokenizer and trainer have been read and built by then."""

import dataclasses
import math
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from fuzz import (
    ODD,
    begin_again,
    in_batches,
    in_this_process,
    kind_of,
    one_line,
    stop_where_training_begins,
)
from verbs import lines, rows_of

SHARES = {"align": 0.88, "diffusion align": 0.06, "trl": 0.06}
SAFE_PLACES = {"output_dir", "logging_dir", "reference_cache", "cache_dir", "encoded_cache"}
"""Keys whose value is a place: random text is kept below the working folder."""
LEFT_OUT = {
    "push_to_hub", "hub_model_id", "deepspeed", "fsdp", "fsdp_config", "torch_compile", "debug",
    "dataloader_num_workers", "dataset_num_proc", "ddp_backend", "local_rank", "ddp_timeout",
}  # fmt: skip
"""Keys that begin other processes, or speak to the network."""


@dataclass
class Case:
    """What is drawn: how the command line begins, options that make it whole, and what the keys
    that more are drawn from take; ``head`` is a file's first line."""

    words: list
    options: dict
    keys: dict
    head: str = ""
    drawn: dict = field(default_factory=dict)


def keys_of(*configs):
    return {f.name: str(f.type) for config in configs for f in dataclasses.fields(config) if f.init}


def known_keys():
    """Every key of `trueline align`: ours, the Trainer's, the model's, the data's, objectives'."""
    from trueline.config import AlignmentConfig, DataArguments, ModelArguments
    from trueline.objectives import OBJECTIVES

    keys = keys_of(AlignmentConfig, ModelArguments, DataArguments)
    return keys | {name: "float" for spec in OBJECTIVES.values() for name in spec.options}


def aligned(seed, inputs, draw):
    from trueline.objectives import OBJECTIVES

    options = {
        "model_name_or_path": str(inputs / "model"),
        "dataset_name": str(inputs / "pairs.jsonl"),
        "loss_type": draw.choice(sorted(OBJECTIVES)),
        "output_dir": f"run{seed}",
        "max_steps": "1",
        "use_cpu": "true",
        "report_to": "none",
        "reference_cache": "none",
        "disable_tqdm": "true",
        "gradient_checkpointing": "false",
    }
    if draw.random() < 0.3:
        options["test_size"] = "0.25"
    return Case(["align"], options, known_keys())


def in_trls_words(seed, inputs, draw):
    """A file or a command line for one of TRL's scripts, with TRL's fields beside ours."""
    from trueline import trl

    script = draw.choice(trl.SCRIPTS)
    case = aligned(seed, inputs, draw)
    case.keys |= {w.name: "bool" for w in trl.WORDS} | dict.fromkeys(trl.HONORED, "float")
    del case.options["loss_type"]
    if draw.random() < 0.7:
        case.options["loss_type"] = draw.choice(sorted(trl.LOSSES[script]))
    if script in ("kto", "bco", "sft") and draw.random() < 0.7:
        case.options["dataset_name"] = str(inputs / f"{script}.jsonl")
    if draw.random() < 0.5:
        case.head = draw.choice([f"# trl {script} --config this.yaml", f"# python {script}.py",
                                 f"trl: {script}"])  # fmt: skip
    else:
        case.words = [script]
    return case


def painted(seed, inputs, draw):
    from trueline.diffusion.bind import DIFFUSION_OBJECTIVES, carried_over
    from trueline.diffusion.config import DiffusionConfig

    specs = list(DIFFUSION_OBJECTIVES.values())
    keys = keys_of(DiffusionConfig) | {name: "float" for spec in specs for name in spec.options}
    options = {
        "model_name_or_path": str(inputs / "pipeline"),
        "dataset_name": str(inputs / "pictures"),
        "loss_type": draw.choice(sorted([*DIFFUSION_OBJECTIVES, *carried_over()])),
        "output_dir": f"run{seed}",
        "max_steps": "1",
        "cache_dir": "none",
        "dataloader_num_workers": "0",
        "disable_tqdm": "true",
    }
    return Case(["diffusion", "align"], options, keys)


KINDS = {"align": aligned, "trl": in_trls_words, "diffusion align": painted}


def sensible(key, kind, draw):
    """A value such as the key may well have."""
    if "bool" in kind:
        return draw.choice(["true", "false"])
    if "int" in kind and "float" not in kind:
        return str(draw.choice([1, 2, 3, 4, 8, 16, 64]))
    if "float" in kind:
        return str(draw.choice([0.0, 0.01, 0.1, 0.5, 0.9, 1.0, 2.0]))
    return draw.choice(["none", "no", "steps", "epoch", "linear", "cosine", "default", "x"])


def configuration(kind, seed, inputs):
    """Words of a command line, a file for --config or None, and the options that were drawn."""
    draw = random.Random(seed)
    case = KINDS[kind](seed, inputs, draw)
    options, drawn = case.options, case.drawn
    names = sorted(case.keys.keys() - LEFT_OUT)
    for _ in range(draw.choice([1, 1, 2, 3, 5])):
        key = draw.choice(names)
        value = sensible(key, case.keys[key], draw) if draw.random() < 0.5 else draw.choice(ODD)
        if key in SAFE_PLACES:
            value = f"place{value}".replace("/", "_").replace("\0", "")
        if draw.random() < 0.04:  # misspelled
            key = key[:-1] or "q"
        drawn[key] = value
    options |= drawn
    file = None
    if draw.random() < 0.4 or case.head:  # in a file, as YAML or broken
        kept = {key: options.pop(key) for key in list(options) if draw.random() < 0.7}
        loose = {key: _yaml(value) for key, value in kept.items()}
        text = yaml.safe_dump(loose, allow_unicode=True) if loose or not case.head else ""
        file = (f"{case.head}\n" * bool(case.head) + text).encode("utf-8", "surrogatepass")
        if draw.random() < 0.15:
            at = draw.randrange(len(file) + 1)
            broken = draw.choice([b"{", b"\xff", b"\t- a", b": :", b"\x00", b"'"])
            file = file[:at] + broken + file[at:]
    words = [w for key, value in options.items() for w in (f"--{key}", value)]
    if draw.random() < 0.03:
        words += draw.choice(
            [["--"], ["--beta"], ["stray"], ["--seed", "1", "--seed", "2"], ["-x"]]
        )
    return [*case.words, *words], file, drawn


def _yaml(text):
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str | int | float | bool | list | dict | None) else text


def one_configuration(kind, seed, inputs, seen):
    """What came of one: {"ok", "outcome", "said"}."""
    words, file, drawn = configuration(kind, seed, inputs)
    if file is not None:
        Path("drawn.yaml").write_bytes(file)
        words = [*words, "--config", "drawn.yaml"]
    seen.clear()
    begin_again()
    code, err = in_this_process(words)
    row = {"seed": seed, "kind": kind, "outcome": "accepted" if seen else "refused"}
    if seen and code == 0:
        lost = ignored(kind, seen[0], drawn, err)
        return {**row, "ok": not lost, "said": f"ignored: {lost} {words}" if lost else ""}
    ok = code == 2 and one_line(err) and not seen
    return {**row, "ok": ok, "said": "" if ok else f"exit {code}: {err[-500:]} {words}"}


def ignored(kind, trainer, drawn, err):
    """Drawn options that are nowhere as they were given, and of which nothing was said."""
    if kind == "diffusion align":
        config = trainer.config
        places = {**vars(config), **config.objective_options}
    else:
        places = {**trainer.facts, **vars(trainer.args), **trainer.args.options()}
    lost = []
    for key, text in drawn.items():
        if key in CHANGED_BY_DESIGN or key in err or (kind == "trl" and key in TRANSLATED):
            continue
        if key not in places:
            lost.append(f"{key}={text!r} is nowhere")
            continue
        has, value = places[key], _yaml(text)
        has = getattr(has, "value", has)
        has = has[0] if isinstance(has, list) and len(has) == 1 else has
        same = has == value or str(has) in (text, str(value)) or WORDS.get(has, has) == value
        same = same or (_number(has) == _number(text) is not None)
        if not same and not (has is None and value in (None, "none", "None")):
            lost.append(f"{key}={text!r} is {has!r}")
    return lost


WORDS = {"no": False, "all": True}
"""The Trainer's words for switches that have become more."""
CHANGED_BY_DESIGN = {"gradient_accumulation_steps", "output_dir", "report_to", "loss_type",
                     "logging_dir", "run_name"}  # fmt: skip
"""The engine accumulates; places are made absolute; a list of one is its member."""
TRANSLATED = {"beta", "loss_weights", "label_smoothing", "cpo_alpha", "simpo_gamma", "datasets",
              "discopop_tau", "model_init_kwargs"}  # fmt: skip
"""TRL's fields that are something else here, as tests/test_trl.py holds them to TRL's losses."""


def _number(value):
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def write_inputs(inputs):
    """Data in the forms that TRL's scripts read."""
    rows = rows_of(inputs / "pairs.jsonl")
    singles = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    for name in ("kto", "bco"):
        lines(inputs / f"{name}.jsonl", singles)
    lines(inputs / "sft.jsonl", [{k: row[k] for k in ("prompt", "completion")} for row in singles])


def configs(inputs, work, count, done=(), keep=lambda row: None):
    """So many configurations, in batches of a forked child each."""
    write_inputs(inputs)

    def batch(seeds):
        seen = []
        stop_where_training_begins(seen)
        for seed in seeds:
            yield one_configuration(kind_of(seed, count, SHARES), seed, inputs, seen)
            shutil.rmtree(f"run{seed}", ignore_errors=True)

    return in_batches(batch, Path(work) / "configs", count, done, keep)
