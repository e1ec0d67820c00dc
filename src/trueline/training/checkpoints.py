"""Checkpoints that are whole and know their run, and signals that end a run with one.

A checkpoint is sealed when everything in it is written: its files' checksums come last. It holds
the identity of the run that wrote it and how long the run's metrics were. Resuming takes the newest
whole one, says which it passed over, and refuses another run's.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trueline import interrupts
from trueline.errors import UserError
from trueline.files import LOCK, SEAL, fault, mend, read_json, seal, write_json
from trueline.identity import Identity, May, freely, upwards
from trueline.runs.state import State, status
from trueline.training.coupling import world_size

if TYPE_CHECKING:
    from trueline.training.trainer import AlignmentTrainer

log = logging.getLogger(__name__)

IDENTITY_FILE = "identity.json"
METRICS_MARK = "metrics_written.json"

FROM_THE_START = "begun again with the first step: it was broken off before its first checkpoint"

NO_PART = set(
    "output_dir per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
    "max_tokens_per_micro_batch activation_checkpointing activation_checkpointing_kwargs "
    "gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps share_prompts "
    "dataset_num_proc encoded_cache precompute_ref_log_probs reference_cache loss_type "
    "loss_weights beta label_smoothing "
    "desirable_weight undesirable_weight simpo_gamma objective_options local_rank "
    "resume_from_checkpoint debug do_train do_eval do_predict disable_tqdm hub_token "
    "overwrite".split()
)
"""Arguments that are no part of a run's identity: how a batch is split (the effective batch is a
fact of its own), places, caches that are keyed by content, and the objective, which is a fact as it
was bound."""

FREE: dict[str, May] = {
    "max_steps": upwards,
    "num_train_epochs": upwards,
    "processes": freely,
    "device": freely,
    **dict.fromkeys(
        "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter "
        "include_num_input_tokens_seen log_level log_level_replica report_to run_name project "
        "trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps "
        "eval_delay eval_on_start prediction_loss_only save_strategy save_steps save_on_each_node "
        "save_only_model save_total_limit enable_jit_checkpoint push_to_hub hub_private_repo "
        "hub_model_id hub_strategy hub_always_push hub_revision skip_memory_metrics use_cpu "
        "accelerator_config parallelism_config ddp_find_unused_parameters ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed "
        "torch_compile torch_compile_backend torch_compile_mode dataloader_num_workers "
        "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order entanglement_steps "
        "entanglement_pairs".split(),
        freely,
    ),
}
"""Facts that may change when a run is resumed: how long it goes on, and what it tells on its way
and where it runs, which leaves its weights as they would be."""


def identity(trainer: AlignmentTrainer, fingerprints: Mapping[str, str]) -> Identity:
    """What decides the weights that a training ends with.

    Every argument is a fact unless it is named in ``NO_PART``, so that one which comes with a later
    release of transformers is compared before anybody thinks of it.

    Args:
        trainer: ready to train.
        fingerprints: of the models it begins with, by role.
    """
    args, plan = trainer.args, trainer.plan
    assert plan is not None
    own = {
        f.name: getattr(value, "value", value)
        for f in dataclasses.fields(args)
        if f.init and f.name not in NO_PART
        for value in (getattr(args, f.name),)
    }
    adapters = getattr(trainer.model, "peft_config", {})
    spec = trainer.objective.spec
    evals = trainer.eval_dataset
    parts = evals if isinstance(evals, Mapping) else {"": evals}
    return Identity.of(
        {
            "objective": {"name": spec.name, **dict(trainer.objective.options)},
            "data": trainer.train_dataset.content,
            "held-out data": {name: trees.content for name, trees in parts.items() if trees},
            "effective batch": plan.batch_size,
            "model": dict(fingerprints),
            "adapter": {name: _adapter_facts(config) for name, config in adapters.items()},
            "processes": args.world_size,
            "device": str(args.device.type),
            **own,
        },
        FREE,
    )


def _adapter_facts(config: Any) -> dict[str, Any]:
    """What an adapter's configuration says, without where its base was found."""
    facts = config.to_dict()
    for noise in ("base_model_name_or_path", "inference_mode", "revision", "peft_version"):
        facts.pop(noise, None)
    return {
        name: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for name, value in facts.items()
        if value is not None
    }


# --- on disk --------------------------------------------------------------------------------------


def finish(folder: Path, kept: Identity, metrics: Path) -> None:
    """The last that is written into a checkpoint: whose it is, how long the metrics were, the
    checksums."""
    kept.write(folder / IDENTITY_FILE)
    size = metrics.stat().st_size if metrics.exists() else 0
    write_json(folder / METRICS_MARK, {"bytes": size})
    seal(folder)


def cut_back(metrics: Path, checkpoint: Path) -> None:
    """Take out of the metrics what was logged after a checkpoint: it is logged again."""
    mend(metrics)
    mark = checkpoint / METRICS_MARK
    if not metrics.exists() or not mark.exists():
        return
    size = int(read_json(mark, "resume from another checkpoint")["bytes"])
    if metrics.stat().st_size > size:
        os.truncate(metrics, size)


def checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """A run's checkpoint folders, whole or not, by step."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = Path(output_dir).glob(f"{prefix}*")
    steps = {p: p.name.removeprefix(prefix) for p in found if p.is_dir()}
    numbered = [path for path, step in steps.items() if step.isdigit()]
    return sorted(numbered, key=lambda path: int(steps[path]))


def claim(
    output_dir: str | os.PathLike[str], *, overwrite: bool, also: Sequence[str] = ()
) -> Path | None:
    """Have a folder for a new run: one that holds a run is refused, or set aside by another name.

    Args:
        output_dir: the new run's folder.
        overwrite: rename a folder that holds a run, rather than refuse it.
        also: names of files that, like a checkpoint, tell of a run.

    Returns:
        The name that the old folder has got; None where there was no run in it.

    Raises:
        UserError: it holds a run.
    """
    folder = Path(output_dir)
    kept = status(folder)
    signs = ["its record says finished"] if kept and kept.state is State.FINISHED else []
    signs += [*(p.name for p in checkpoints(folder)), *(n for n in also if (folder / n).exists())]
    if not signs:
        return None
    if not overwrite:
        raise UserError(
            f"{folder} holds a run already ({signs[-1]}); go on with it by --resume "
            "(resume_from_checkpoint=True), set it aside by --overwrite (overwrite=True), or give "
            "another output_dir"
        )
    names = (folder.with_name(f"{folder.resolve().name}.old-{n}") for n in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    aside.mkdir()
    for entry in list(folder.iterdir()):
        if entry.name != LOCK:
            os.rename(entry, aside / entry.name)
    return aside


def last_checkpoint(output_dir: str | os.PathLike[str]) -> Path:
    """The newest whole checkpoint of a run; those passed over are said.

    Raises:
        UserError: there is none.
    """
    passed = []
    for path in reversed(checkpoints(output_dir)):
        wrong = fault(path)
        if wrong is None:
            return path
        log.warning("%s is passed over: %s", path, wrong)
        passed.append(f"{path.name}: {wrong}")
    why = f" ({'; '.join(passed)})" if passed else ""
    raise UserError(f"there is no whole checkpoint in {output_dir} to resume from{why}")


def resume_point(output_dir: str | os.PathLike[str]) -> Path | None:
    """What a resumed run goes on from: its newest whole checkpoint; None where it was broken off
    before its first was whole, so that it begins again.

    Raises:
        UserError: there is no run, or its checkpoints are damaged.
    """
    kept = status(output_dir)
    unended = kept is not None and kept.state is not State.FINISHED
    if unended and not any((path / SEAL).exists() for path in checkpoints(output_dir)):
        return None
    return last_checkpoint(output_dir)


def kept_identity(output_dir: str | os.PathLike[str], checkpoint: Path | None) -> Identity:
    """What a resumed run was: by its checkpoint, or by the record of one that has none."""
    if checkpoint is not None:
        return Identity.read(checkpoint / IDENTITY_FILE)
    kept = status(output_dir)
    return Identity({} if kept is None else kept.identity)


def check_whole(checkpoint: str | os.PathLike[str]) -> Path:
    """A checkpoint asked for by name.

    Raises:
        UserError: it is damaged or was not finished.
    """
    wrong = fault(checkpoint) if Path(checkpoint).is_dir() else "there is no such folder"
    if wrong is not None:
        raise UserError(f"{checkpoint} cannot be resumed from: {wrong}")
    return Path(checkpoint)


def rotate(output_dir: str, limit: int | None, best: str | None) -> None:
    """Keep the last ``limit`` checkpoints and the best one, once the newest is sealed."""
    if limit is None or limit <= 0:
        return
    kept = {Path(best).resolve()} if best else set()
    newest_first = list(reversed(checkpoints(output_dir)))
    for path in newest_first:
        if len(kept) < limit or path == newest_first[0]:
            kept.add(path.resolve())
    for path in newest_first:
        if path.resolve() not in kept:
            shutil.rmtree(path, ignore_errors=True)


# --- signals --------------------------------------------------------------------------------------


class Signals(interrupts.Signals, TrainerCallback):
    """While training: the first SIGINT, SIGTERM or SIGHUP saves at the end of the step and stops;
    the second ends at once. Ranks agree: one that is signaled stops all of them."""

    def __init__(self) -> None:
        super().__init__("this step, with a checkpoint")

    def agreed(self, device: torch.device) -> int | None:
        """The signal that came, to this rank or another; None where none did."""
        caught = self.caught or 0
        if world_size() > 1:
            everyone = torch.tensor(caught, device=device)
            dist.all_reduce(everyone, op=dist.ReduceOp.MAX)
            caught = int(everyone)
        self.caught = caught or None
        return self.caught

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop after this step, where any rank was signaled."""
        if self.agreed(args.device) is not None:
            control.should_save = control.should_training_stop = True
