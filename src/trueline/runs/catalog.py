"""What there is to choose from: objectives, and what an evaluation is made of, as plain rows."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from trueline.objectives import OBJECTIVES, find
from trueline.objectives.describe import (
    HEADINGS,
    LAYOUTS,
    catalog,
    coupling,
    describe,
    group,
    help_of,
)
from trueline.processes import OPTIONS

__all__ = [
    "HEADINGS",
    "LAYOUTS",
    "align_options",
    "catalog",
    "coupling",
    "describe",
    "diffusion_objectives",
    "evaluation_parts",
    "find",
    "group",
    "help_of",
]


def evaluation_parts() -> dict[str, dict[str, str]]:
    """Every registered benchmark, attack, judge and utility measure with its first sentence."""
    import trueline.reproduce.truth  # noqa: F401  (registers the sandbox's exact judge)
    from trueline.evaluation.attacks import ATTACKS
    from trueline.evaluation.benchmarks import BENCHMARKS
    from trueline.evaluation.judges import JUDGES
    from trueline.evaluation.utility import UTILITIES

    groups: dict[str, Any] = {
        "benchmarks": BENCHMARKS, "attacks": ATTACKS, "judges": JUDGES, "utilities": UTILITIES,
    }  # fmt: skip
    return {
        kind: {name: plugin.summary for name, plugin in registry.items()}
        for kind, registry in groups.items()
    }


def diffusion_objectives() -> dict[str, Any]:
    """The objectives on images, and the names of those on pairs that carry over to them."""
    from trueline.diffusion import DIFFUSION_OBJECTIVES
    from trueline.diffusion.bind import carried_over

    names = ("name", "summary", "layout", "reference", "epsilon_only", "equation", "source")
    rows = [
        {name: getattr(spec, name) for name in names} | {"options": dict(spec.options)}
        for spec in DIFFUSION_OBJECTIVES.values()
    ]
    return {"diffusion": rows, "carried_over": carried_over()}


class Told(NamedTuple):
    """An option of the configuration: its name, its default in words, and what it does."""

    name: str
    default: str
    help: str


OTHER = "Other options of transformers"
PARTS = (
    ("Processes and devices", r"fsdp|deepspeed|ddp|local_rank|parallel|accelerator|use_cpu|torch_|"
     r"dataloader|auto_find|full_determinism|jit|liger|tpu|device|ddp_"),
    ("Precision and memory", r"fp16|bf16|tf32|precision|gradient_checkpointing|activation_|half|"
     r"empty_cache|memory"),
    ("Optimizer and schedule", r"optim|adam|lr_|learning_rate|warmup|weight_decay|max_grad|sgd|"
     r"galore|neftune|lomo"),
    ("Steps and batches", r"batch_size|accumulation|num_train_epochs|max_steps|seed|drop_last|"
     r"group_by|length_column|train_sampling"),
    ("Evaluation while training", r"eval|metric_for|greater_is|prediction|metrics|load_best"),
    ("Saving and resuming", r"save|output_dir|resume|checkpoint"),
    ("Logging and trackers", r"log|report|run_name|tqdm|project|trackio"),
    ("Hub", r"hub|push_to"),
)  # fmt: skip
"""Of transformers' options: the heading of those whose names match, the first that does."""


def align_options() -> dict[str, list[Told]]:
    """Every key of the configuration of `trueline align`, by group, ours first."""
    from transformers import TrainingArguments

    from trueline.config import (
        NOT_NEEDED,
        AlignmentConfig,
        DataArguments,
        ModelArguments,
        WatchArguments,
    )

    theirs = {f.name: f for f in dataclasses.fields(TrainingArguments)}
    ours = [f for f in dataclasses.fields(AlignmentConfig) if f.name not in theirs]
    named = {name for spec in OBJECTIVES.values() for name in spec.options}
    own = [f for f in ours if f.name not in named]
    found = {
        "Model and adapter": list(_told(dataclasses.fields(ModelArguments), ModelArguments)),
        "Data": list(_told(dataclasses.fields(DataArguments), DataArguments)),
        "How to align": list(_told(own, AlignmentConfig)),
        "Options of the objectives": sorted(_objective_options()),
        "Its own answers, read while it trains": list(
            _told(dataclasses.fields(WatchArguments), WatchArguments)
        ),
    }
    found["Several processes"] = [Told(name, "", said) for name, said in OPTIONS.items()]
    defaults = {f.name: f for f in dataclasses.fields(AlignmentConfig)}
    for heading, _ in (*PARTS, (OTHER, "")):
        found[heading] = []
    for name in theirs:
        if name not in NOT_NEEDED and theirs[name].init:
            said = str(theirs[name].metadata.get("help") or "")
            row = Told(name, _default(defaults[name]), " ".join(said.split()))
            found[_part(name)].append(row)
    return {heading: rows for heading, rows in found.items() if rows}


def _part(name: str) -> str:
    return next(
        (h for h, names in PARTS if re.search(names, name)), "Other options of transformers"
    )


def _told(fields: Sequence[Any], owner: type) -> Iterator[Told]:
    said = _arguments(inspect.getdoc(owner) or "")
    for f in fields:
        if f.init:
            yield Told(f.name, _default(f), said.get(f.name, ""))


def _default(f: Any) -> str:
    value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    value = getattr(value, "value", value)
    return "" if value in (None, "", dataclasses.MISSING) or value == {} else str(value)


def _arguments(text: str) -> Mapping[str, str]:
    """What a docstring's ``Args:`` say of each name; several may share a line."""
    body = text.partition("Args:\n")[2]
    entries = re.split(r"\n(?=    \S)", "\n" + body)
    found: dict[str, str] = {}
    for entry in entries:
        names, colon, said = " ".join(entry.split()).partition(": ")
        if colon:
            plain = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", said).replace("``", "`")
            found |= {name.strip(): plain for name in names.split(",")}
    return found


def _objective_options() -> Iterator[Told]:
    """Each option of any objective, with the objectives that have it."""
    every: dict[str, list[str]] = {}
    for spec in OBJECTIVES.values():
        for name in spec.options:
            every.setdefault(name, []).append(spec.name)
    for name, names in every.items():
        spec = OBJECTIVES[names[0]]
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        default = {str(OBJECTIVES[n].options[name]) for n in names}
        yield Told(
            name, default.pop() if len(default) == 1 else "", f"{help_of(spec, name)} ({some})"
        )
