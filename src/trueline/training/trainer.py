"""AlignmentTrainer: transformers' Trainer around the step engine.

The Trainer gives the optimizer, schedule, logging, checkpoints and distribution. What it is not
asked for is accumulation: one batch of its loader is this rank's share of one whole effective
batch, and the engine walks through the micro-batches itself. The file is long because it is one
class whose methods the Trainer calls by name.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trueline.batching import Encoder, Recipe, TokenTree, Trees, encoded
from trueline.batching.arrow import BLOCK
from trueline.config import AlignmentConfig
from trueline.data import Examples, Mapped, Mixed, load_examples
from trueline.errors import UserError
from trueline.files import cache_folder, write_json
from trueline.identity import Identity
from trueline.interrupts import Interrupted, Signals, piece_done, shared
from trueline.models import (
    REFERENCE,
    check_vocabulary,
    disable_dropout,
    freeze_copy,
    frozen_copy,
    keep_gradients,
    trained_adapter,
    without_copy,
)
from trueline.models.fingerprint import shared_fingerprint
from trueline.objectives import bind, weight_warning
from trueline.objectives.base import BoundObjective
from trueline.records import Example
from trueline.runs.record import CARD, METRICS, Run
from trueline.runs.state import State, held, reached
from trueline.scoring import Scorer, Shortcuts, evaluating
from trueline.terminal import progress, say
from trueline.training import checkpoints, record
from trueline.training.callbacks import EntanglementCallback, ProgressBar
from trueline.training.coupling import everyones, on_first_rank
from trueline.training.distributed import (
    back,
    check_processes,
    check_saved,
    check_wrapped,
    kept_copy,
    load_spread,
    save_spread,
    shard_frozen,
    unsynced,
    whole_state,
)
from trueline.training.memory import MemoryEstimate, estimate
from trueline.training.metrics import MetricAccumulator, step_metrics
from trueline.training.pieces import has_pieces, load_pieces
from trueline.training.reference import Reference, ReferenceCache
from trueline.training.remedies import (
    PairNormalizer,
    check_remedies,
    masked,
    sparse_masks,
    training_mask,
)
from trueline.training.sampling import BatchPlan, Passes, StepBatch
from trueline.training.step import NonFiniteError, Rows, Shape, StepEngine
from trueline.training.streaming import StreamPlan, TreeStream

log = logging.getLogger(__name__)

STATE_FILE = "objective_state.json"
MASKS_FILE = "token_masks.safetensors"


class AlignmentTrainer(Trainer):
    """Aligns a model with any objective; a thin subclass of ``transformers.Trainer``.

    Args:
        model: a causal language model, or a PEFT model.
        ref_model: the reference; None takes the model as it starts (with an adapter: the base
            under it). Not needed by reference-free objectives, and then an error.
        args: :class:`trueline.AlignmentConfig`.
        train_dataset: examples: what :func:`trueline.load_examples` gives, a Hugging Face data
            set with TRL's columns, or a list of rows.
        eval_dataset: likewise, or a dictionary of them.
        processing_class: the tokenizer.
        peft_config: makes an adapter over ``model``.
        callbacks: transformers' callbacks.

    Raises:
        UserError: data that the objective cannot take, an option without effect, a reference
            given to a reference-free objective.

    Example:
        >>> trainer = AlignmentTrainer(model, args=AlignmentConfig(loss_type="kldo"),
        ...     train_dataset=load_examples("pairs.jsonl"), processing_class=tokenizer)
        ... # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any | None = None,
        args: AlignmentConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
    ) -> None:
        args = AlignmentConfig() if args is None else copy.copy(args)
        if processing_class is None:
            raise UserError("processing_class is missing: give the model's tokenizer")
        self.accumulation_steps = args.gradient_accumulation_steps
        args.gradient_accumulation_steps = 1  # the engine accumulates; see the module's docstring
        args._n_gpu = min(args.n_gpu, 1)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        self.objective: BoundObjective = bind(
            args.loss_type, args.options(), weights=args.loss_weights
        )
        if ref_model is not None and not self.objective.spec.reference:
            raise UserError(
                f"objective {self.objective.spec.name!r} reads no reference; leave ref_model out"
            )
        check_remedies(args, self.objective)
        self.encoder = Encoder(
            processing_class,
            max_length=args.max_length,
            max_prompt_length=args.max_prompt_length,
            truncation_mode=args.truncation_mode,
            allow_control_tokens=args.allow_control_tokens,
            append_eos=args.append_eos,
        )
        check_vocabulary(model, processing_class)
        keep_gradients(model)
        if args.disable_dropout:
            disable_dropout(model)
        self._live_reference = self._needs_live_reference(model, ref_model, args, peft_config)
        if self._live_reference and ref_model is None:
            ref_model = kept_copy(model)
        self.adapted = hasattr(model, "peft_config")
        if peft_config is not None:
            from peft import get_peft_model

            torch.manual_seed(args.seed)  # which draws the adapter: the Trainer seeds only later
            model = get_peft_model(model, peft_config)
        self._continued = trained_adapter(model)
        if self._continued and self.objective.spec.reference and ref_model is None:
            freeze_copy(model)
        self._quiet = bool(args.disable_tqdm)
        self.sources: dict[str, str] = {}
        self.accumulator = MetricAccumulator()
        self._last_ids: list[str] = []
        self._warned = self._wrapped = False
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._training_data(args, train_dataset),
            eval_dataset=self._encode_eval(args, eval_dataset),
            processing_class=processing_class,
            callbacks=[*(callbacks or ()), _EpochCallback(self)],
        )
        check_processes(self)
        if self.is_world_process_zero():
            for sentence in self.encoder.said():
                log.warning("%s", sentence)
        for printer in (PrinterCallback, ProgressCallback):  # they print on stdout
            self.remove_callback(printer)
        self._bar = ProgressBar(self.objective.spec.name, quiet=self._quiet)
        self.add_callback(self._bar)
        self._identity: Identity | None = None
        self._begun: tuple[str | bool | None, Path | None] | None = None
        self._logged = False
        self.facts: dict[str, Any] = {}
        self._signals = checkpoints.Signals()
        self.add_callback(self._signals)
        self.masks = sparse_masks(self.args, self.model)
        shortcuts = Shortcuts(share=args.share_prompts)
        self.scorer = Scorer(self.model, shortcuts=shortcuts, check=not self.sharded)
        self.reference = self._make_reference(ref_model) if self.objective.spec.reference else None
        self.engine = StepEngine(
            self.objective,
            self.scorer,
            self.reference,
            coupling=args.coupling,
            autocast=self.accelerator.autocast,
            shape=self._shape(),
            masks=self.masks,
        )
        self.entanglement = self._entanglement_callback() if args.entanglement_steps else None
        if self.entanglement is not None:
            self.add_callback(self.entanglement)
        self.plan = self._training_plan()

    def _shape(self) -> Shape | None:
        """What reshapes coefficients, if anything does."""
        if self.args.pair_weighting is None:
            return None
        return PairNormalizer(self.scorer, self.masks, self.accelerator.autocast)

    def _entanglement_callback(self) -> EntanglementCallback:
        evals = self.eval_dataset
        parts = list(evals.values()) if isinstance(evals, Mapping) else [evals or []]
        pairs = [tree for trees in parts for tree in trees if tree.desirable == (True, False)]
        return EntanglementCallback(
            self,
            masked(self.args, pairs),
            steps=self.args.entanglement_steps,
            count=self.args.entanglement_pairs,
        )

    # --- data -------------------------------------------------------------------------------------

    def _training_data(self, args: AlignmentConfig, dataset: Any) -> Trees | TreeStream | None:
        """Encoded rows, or with ``streaming`` a stream of rows that are encoded on the way."""
        if not args.streaming or dataset is None:
            return self._both_classes(args, self._encode(args, dataset, "train"))
        if args.max_steps < 1:
            raise UserError("a stream has no known end: say with max_steps how long to train")
        if self.objective.spec.reference and args.precompute_ref_log_probs:
            raise UserError(
                "the rows of a stream are not known beforehand; set precompute_ref_log_probs: "
                "false (a frozen copy of the policy, or its base under an adapter, is asked)"
            )
        examples = _examples(dataset)
        self.sources["train"] = str(getattr(examples, "source", None))
        recipe = Recipe(self.encoder, self.objective.layout, training_mask(args))
        seed = args.seed if args.data_seed is None else args.data_seed
        return TreeStream(examples, recipe, buffer=args.streaming_buffer, seed=seed)

    def _training_plan(self) -> BatchPlan | None:
        """What is trained on in which step."""
        if self.train_dataset is None:
            return None
        if not isinstance(self.train_dataset, TreeStream):
            return self._plan(self.train_dataset)
        args = self.args
        plan = StreamPlan(
            self.train_dataset,
            args.max_steps,
            args.per_device_train_batch_size * self.accumulation_steps * args.world_size,
            **self._splitting(args.per_device_train_batch_size),
        )
        self.objective.require({"reference_prompt"} if plan.trees.referenced else set())
        return plan

    def _encode(self, args: AlignmentConfig, dataset: Any, role: str = "") -> Trees | None:
        """The rows as token trees, encoded once and shared: the first process of each machine
        encodes what the others then find."""
        if dataset is None:
            return None
        source = getattr(dataset, "source", None)
        if role and isinstance(source, str):
            self.sources[role] = source
        examples = _examples(dataset)
        report = getattr(examples, "report", None)
        recipe = Recipe(
            self.encoder, self.objective.layout, training_mask(args) if role == "train" else None
        )
        with (
            args.main_process_first(desc="encoding"),
            progress("encoding", None, quiet=self._quiet) as advance,
        ):
            trees = encoded(
                examples,
                recipe,
                folder=_cache_folder(args.encoded_cache, "encoded"),
                name=getattr(examples, "name", None),
                about=lambda: {} if report is None else examples.report.to_dict(),
                processes=args.dataset_num_proc or 1,
                check=args.local_process_index == 0,
                progress=advance,
            )
        if not trees:
            raise UserError("the data set yields no example for this objective")
        self.objective.require({"reference_prompt"} if trees.referenced else set())
        return trees

    def _both_classes(self, args: AlignmentConfig, trees: Trees | None) -> Trees | None:
        """The data, unless an unpaired objective would see only one side of its contrast."""
        if trees is None or self.objective.layout != "unpaired" or args.allow_one_class:
            return trees
        labels = {label for pattern in trees.patterns[0] for label in pattern}
        if len(labels) < 2:
            side = "desirable" if True in labels else "undesirable"
            raise UserError(
                f"all completions are {side}, and objective {self.objective.spec.name!r} contrasts "
                "desirable with undesirable ones; add the others, or set allow_one_class: true"
            )
        return trees

    def _encode_eval(self, args: AlignmentConfig, dataset: Any) -> Any:
        if isinstance(dataset, Mapping):
            return {name: self._encode(args, part) for name, part in dataset.items()}
        return self._encode(args, dataset, "eval")

    @property
    def _mismatched(self) -> bool:
        statistic = self.objective.spec.statistic
        return statistic is not None and statistic.of == "mismatched"

    def _plan(self, trees: Sequence[TokenTree], *, evaluation: bool = False) -> BatchPlan:
        args = self.args
        micro = args.per_device_eval_batch_size if evaluation else args.per_device_train_batch_size
        return BatchPlan(
            trees,
            len(trees) if evaluation else micro * self.accumulation_steps * args.world_size,
            shuffle=not evaluation,
            drop_last=args.dataloader_drop_last and not evaluation,
            **self._splitting(micro),
        )

    def _splitting(self, micro: int) -> dict[str, Any]:
        """How every plan of this training cuts its batches."""
        args = self.args
        return {
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "paired": self.objective.layout == "paired",
            "micro_batch_size": micro,
            "max_tokens": args.max_tokens_per_micro_batch,
            "rank": args.process_index,
            "world_size": args.world_size,
            "mismatched": self._mismatched,
        }

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One batch is this rank's share of one effective batch."""
        if self.plan is None:
            raise UserError("there is no train_dataset to train on")
        return DataLoader(
            range(self.plan.size),  # type: ignore[arg-type]
            batch_sampler=self.plan,
            collate_fn=self.plan.share,
            generator=torch.Generator(),
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[StepBatch], None]:
        """The next effective batch; nothing to count in it for the Trainer. None where a run is
        resumed at its end, where the Trainer would take one step more."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return [next(epoch_iterator) for _ in range(num_batches)], None

    # --- reference --------------------------------------------------------------------------------

    def _needs_live_reference(
        self, model: Any, ref_model: Any, args: AlignmentConfig, peft_config: Any
    ) -> bool:
        """Whether a copy of the starting weights must stay at hand: values are not computed
        beforehand, and no adapter can be turned off."""
        if not self.objective.spec.reference or peft_config is not None:
            return False
        if hasattr(model, "peft_config") or ref_model is not None:
            return False
        return not args.precompute_ref_log_probs

    def _make_reference(self, ref_model: Any | None) -> Reference:
        folder = _cache_folder(self.args.reference_cache, "reference")
        cache = ReferenceCache(
            None if folder is None else folder / self._reference_id(ref_model),
            tokens=self.masks is not None,
        )
        if ref_model is not None:
            ref_model.requires_grad_(False).eval()
            if not self.sharded:
                ref_model.to(self.args.device)
            scorer = Scorer(ref_model, shortcuts=self.scorer.shortcuts, check=not self.sharded)
            return Reference(scorer, cache, autocast=self.accelerator.autocast)
        switch: Callable[[], Any] = contextlib.nullcontext
        if self._continued:
            switch = functools.partial(frozen_copy, self.model)
        elif hasattr(self.model, "peft_config"):
            switch = self.model.disable_adapter
        return Reference(self.scorer, cache, switch=switch, autocast=self.accelerator.autocast)

    def _reference_id(self, ref_model: Any | None) -> str:
        if ref_model is not None:
            return self._fingerprint(ref_model, adapters=True)
        if self._continued:
            return self._fingerprint(self.model, adapters=REFERENCE)
        return self._fingerprint(self.scorer.core)

    @property
    def reference_words(self) -> str | None:
        """What the reference is, for the manifest; None where the objective reads none."""
        if self.reference is None:
            return None
        if self.reference.scorer is not self.scorer:
            return "a model of its own"
        if self._continued:
            return "the policy as it starts: a frozen copy of its adapter"
        if hasattr(self.model, "peft_config"):
            return "the base, its adapter off"
        return "the policy as it starts"

    def _compute_dtype(self, model: Any) -> torch.dtype:
        if self.args.bf16:
            return torch.bfloat16
        return torch.float16 if self.args.fp16 else next(model.parameters()).dtype

    def _precompute(self, datasets: Iterable[Iterable[TokenTree]], *, first: bool = False) -> None:
        """Fill the reference cache, each rank its share, with progress. The ``first`` time, before
        there is a step to end with, a signal ends all ranks after a batch."""
        if self.reference is None or not self.args.precompute_ref_log_probs:
            return
        cache = self.reference.cache
        try:
            with progress("reference log-probs", None, quiet=self._quiet) as advance:
                total = 0

                def told(done: int, more: int = 0) -> None:
                    nonlocal total
                    total += more
                    advance(done, total)
                    if first and done:
                        piece_done()

                for dataset in datasets:
                    name = getattr(dataset, "name", None)  # of trees that are made on the way
                    if not all(everyones(cache.holds(name))):
                        cache.list(name, self._filled(dataset, told, first))
        finally:
            cache.flush()  # an interrupted pass goes on where it stopped
        cache.exchange()

    def _filled(
        self, dataset: Iterable[TokenTree], told: Callable[..., None], first: bool
    ) -> Iterator[np.ndarray[Any, Any]]:
        """The keys of trees, block by block, whose reference log-probs are there by then; ``told``
        how many are done, and how many more there are to do."""
        assert self.reference is not None
        rank, world = self.args.process_index, self.args.world_size
        for trees in map(Trees.of, _blocks(dataset)):
            found = everyones(self.reference.missing_at(trees))
            missing = np.unique(np.concatenate(found))  # machines may have own caches
            told(0, -(-len(missing) // world))
            for start in range(0, len(missing), BLOCK * world):
                todo = missing[start : start + BLOCK * world]
                mine = todo[rank::world].tolist() or todo[:1].tolist()
                with shared() if first else contextlib.nullcontext():
                    self.reference.fill([trees[index] for index in mine], told)
            yield trees.keys

    # --- several processes ------------------------------------------------------------------------

    @property
    def sharded(self) -> bool:
        """Whether FSDP or DeepSpeed spreads the weights, or what belongs to them, over ranks."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Wrap the model; with sharded weights, the check of the fast path and the reference's
        log-probs come here, through the wrapper and before a checkpoint changes the weights."""
        if not self.sharded:
            return super()._prepare_for_training(
                max_steps, train_dataloader, resume_from_checkpoint
            )
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._wrapped = True
        check_wrapped(self)
        self.scorer.verify_through(self.model_wrapped)
        if self.reference is not None:
            self.reference.together = True
            if self.reference.scorer is self.scorer:
                self.reference.through = self.model_wrapped
            else:
                self.reference.through = shard_frozen(self, self.reference.scorer.model)
                self.reference.scorer.verify_through(self.reference.through)
        self._precompute(self._read_in_training())
        self._freeze_reference()
        if resume_from_checkpoint is not None:
            load_spread(self, Path(resume_from_checkpoint))
        return prepared

    # --- training ---------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` takes the last whole checkpoint of output_dir.

        Raises:
            NonFiniteError: a log-prob, a coefficient or a gradient is NaN or infinite.
            UserError: nothing to resume from; a checkpoint of a run that was begun with other
                settings; an output_dir that holds another run, or that another process trains in.
            Interrupted: a signal came; the last whole step is in a checkpoint.
        """
        if self.plan is None:
            raise UserError("there is no train_dataset to train on")
        with contextlib.ExitStack() as stack:
            if self.is_world_process_zero():
                stack.enter_context(held(self.args.output_dir))
            return self._train(resume_from_checkpoint or None, **kwargs)

    def _train(self, resume: str | bool | None, **kwargs: Any) -> Any:
        resumed = self.begin(resume)
        self._begun = None
        self.memory = self._estimate_memory()
        if self.memory is not None:
            say(str(self.memory), quiet=self._quiet or not self.is_world_process_zero())
            self.memory.check()
        if not self.sharded:
            with Signals("this batch of the reference"):
                self._precompute(self._read_in_training(), first=True)
            self._freeze_reference()
        self._reached(State.PREPARED)
        try:
            with self._signals:
                self._reached(State.TRAINING)
                result = super().train(
                    resume_from_checkpoint=None if resumed is None else str(resumed), **kwargs
                )
        finally:
            self._bar.close()
            if self.reference is not None:
                self.reference.cache.flush()
        if self._signals.caught is not None:
            found = checkpoints.checkpoints(self.args.output_dir)
            last = found[-1] if found else None
            raise Interrupted(self._signals.caught, self.state.global_step, last)
        return result

    def begin(self, resume_from_checkpoint: str | bool | None = None) -> Path | None:
        """Claim output_dir for this run, or go on with the run in it, and write the run's record.

        :meth:`train` does it itself; begun before :meth:`evaluate`, a run keeps what was measured
        before its first step.

        Returns:
            The checkpoint that :meth:`train` goes on from; None where it begins with the first
            step, as a resumed run does that was broken off before its first checkpoint.

        Raises:
            UserError: as :meth:`train` does; nothing has been written then.
        """
        resume = resume_from_checkpoint or None
        if self._begun is not None and self._begun[0] == resume:
            return self._begun[1]
        resumed = on_first_rank(lambda: self._begin_at(resume))
        self._identify(resumed, again=bool(resume))
        if self.is_world_process_zero():
            run = self.run
            if resumed is not None:
                checkpoints.cut_back(self._metrics_file, resumed)
            elif not self._logged:
                run.begin_log()
            record.created(self, run, again=bool(resume))
            record.write(self, run)
        self._begun = (resume, resumed)
        return resumed

    def _reached(self, now: State) -> None:
        if self.is_world_process_zero():
            reached(self.run, now)

    @property
    def run(self) -> Run:
        """The run's folder."""
        return Run.create(self.args.output_dir)

    def _begin_at(self, resume: str | bool | None) -> Path | None:
        """The checkpoint to go on from; without one, a folder that holds no other run."""
        if resume is True:
            return checkpoints.resume_point(self.args.output_dir)
        if resume:
            return checkpoints.check_whole(str(resume))
        if self._identity is None:
            aside = checkpoints.claim(self.args.output_dir, overwrite=self.args.overwrite)
            if aside is not None:
                say(f"set aside: {aside}", quiet=self._quiet)
        return None

    def _identify(self, resumed: Path | None, *, again: bool) -> None:
        """Work out what this run is, and compare with the run it goes on from."""
        if self._identity is None:
            self._identity = checkpoints.identity(self, self._fingerprints())
        if not again:
            return
        quiet = self._quiet or not self.is_world_process_zero()
        kept = checkpoints.kept_identity(self.args.output_dir, resumed)
        for line in self._identity.take_over(
            kept, self.args.output_dir if resumed is None else resumed.parent
        ):
            say(f"resumed with another {line}", quiet=quiet)
        if resumed is None:
            say(checkpoints.FROM_THE_START, quiet=quiet)

    @property
    def identity(self) -> Identity:
        """What decides the weights that this run ends with; known when it has begun."""
        assert self._identity is not None
        return self._identity

    def _fingerprints(self) -> dict[str, str]:
        """Content hashes of the models a run begins with; an adapter is a fact of its own."""
        begun = self._continued or False
        found = {"policy": self._fingerprint(self.model if begun else self.scorer.core, begun)}
        if self.reference is not None and self.reference.scorer is not self.scorer:
            found["reference"] = self._fingerprint(self.reference.scorer.model, adapters=True)
        return found

    def _fingerprint(self, model: Any, adapters: bool | str = False) -> str:
        return shared_fingerprint(model, str(self._compute_dtype(model)), adapters=adapters)

    def _read_in_training(self) -> list[Sequence[TokenTree]]:
        """All data whose reference log-probs training and its evaluations read."""
        assert self.plan is not None
        evals = self.eval_dataset
        parts = list(evals.values()) if isinstance(evals, Mapping) else [evals] if evals else []
        plans = [self._plan(part, evaluation=True) for part in parts]
        return [
            self.train_dataset,
            self.plan.mismatched_trees(self._steps()),
            *parts,
            *(plan.mismatched_trees(len(plan)) for plan in plans),
            [] if self.entanglement is None else self.entanglement.trees,
        ]

    def _freeze_reference(self) -> None:
        """From here on the policy moves, and is no reference any more where it was its own."""
        if self.reference is not None and self._policy_is_reference:
            self.reference.moved = (
                "the policy that was the reference has been trained since; give ref_model, or set "
                "precompute_ref_log_probs: false to keep a frozen copy"
            )

    def _steps(self) -> int:
        """Optimizer steps of the whole run."""
        assert self.plan is not None
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return math.ceil(self.args.num_train_epochs * len(self.plan))

    def _estimate_memory(self) -> MemoryEstimate | None:
        """What training will take; None where the weights are spread over processes, or the
        rows are not known."""
        if self.sharded or isinstance(self.train_dataset, TreeStream):
            return None
        assert self.plan is not None
        tokens, scored = self.plan.largest()
        kept = None if self.reference is None else self.reference.scorer.core
        return estimate(
            self.scorer,
            tokens=tokens,
            scored=scored,
            reference=None if kept is self.scorer.core else kept,
            optimizer=str(getattr(self.args.optim, "value", self.args.optim)),
            checkpointing=bool(
                self.args.gradient_checkpointing
                or getattr(self.args, "activation_checkpointing", False)
            ),
            autocast=self.accelerator.autocast,
        )

    @property
    def _policy_is_reference(self) -> bool:
        """Whether the reference is the policy's own weights before training, with no copy kept."""
        return (
            self.reference is not None
            and self.reference.scorer is self.scorer
            and not hasattr(self.model, "peft_config")
        )

    def training_step(self, model: Any, inputs: StepBatch, *_: Any) -> torch.Tensor:
        """One effective batch: gradients of its loss, accumulated and averaged over ranks."""
        model.train()
        self._last_ids = inputs.ids
        self._fill_live([*inputs.micro_batches, *inputs.mismatched])
        result = self.engine.step(
            inputs, model=model, backward=back(self), no_sync=lambda: unsynced(self, model)
        )
        if self.is_deepspeed_enabled:
            model.step()  # the optimizer's: DeepSpeed has made the Trainer's own a no-op
        batch = self.engine.assemble(result.rows)
        pairs = self.engine.pairs(result.rows, inputs.micro_batches.trees)
        self.accumulator.add(step_metrics(batch, self.objective, pairs))
        self._record_weights(result.whole)
        for name, value in ({} if self.masks is None else self.masks.update()).items():
            self.accumulator.add_value(name, value)
        for name, value in result.statistics.items():
            self.accumulator.add_value(_METRIC_NAMES.get(name, f"statistics/{name}"), value)
        return result.loss.to(self.args.device, torch.float32)

    def _fill_live(self, passes: Iterable[Sequence[TokenTree]]) -> None:
        """Reference log-probs that were not computed beforehand, all ranks together where weights
        are sharded."""
        if self.reference is None or not self.reference.together:
            return
        if not self.args.precompute_ref_log_probs:
            self.reference.fill([tree for trees in passes for tree in trees])

    def _record_weights(self, whole: Rows) -> None:
        """The objective's own metrics, of the whole effective batch; once, what they warn of."""
        if self.objective.spec.metrics is None:
            return
        metrics = self.objective.metrics(self.engine.assemble(whole))
        for name, metric in metrics.items():
            self.accumulator.add_value(name, metric)
        warning = None if self._warned else weight_warning(metrics)
        if warning is not None:
            self._warned = True
            log.warning("step %d: %s", self.state.global_step + 1, warning)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16 and norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise NonFiniteError(
                f"the gradient is not finite in step {self.state.global_step + 1}, on rows "
                f"{', '.join(self._last_ids[:8])}{' and others' if len(self._last_ids) > 8 else ''}"
                "; training stopped before the update. Lower the learning rate or train in float32"
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the metrics of the steps since the last time, and append metrics.jsonl."""
        due = self.control.should_log
        if "loss" in logs:
            logs.update(self.accumulator.read(self.args.device))
        super().log(logs, start_time)
        if "loss" not in logs:  # what a callback logs is no reason to leave the step's own out
            self.control.should_log = due
        if self.is_world_process_zero() and self.args.output_dir:
            self._logged = True
            self.run.log({"step": self.state.global_step, **logs})

    @property
    def _metrics_file(self) -> Path:
        return Path(self.args.output_dir) / METRICS

    def floating_point_ops(self, inputs: StepBatch) -> int:
        """6 operations for each trained parameter and token that the packed rows hold."""
        tokens = sum(
            len(tree.prompt) + sum(len(branch.ids) for branch in tree.branches)
            for tree in inputs.micro_batches.trees
        )
        return (
            6 * self.model.num_parameters() * tokens if hasattr(self.model, "num_parameters") else 0
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """transformers' model card, unless the run has written its own with its findings."""
        if not (Path(self.args.output_dir) / CARD).exists():
            super().create_model_card(*args, **kwargs)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with without_copy(self.model):
            super()._save(*args, **kwargs)

    # --- checkpoints ------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint that is sealed last, and older ones removed only then."""
        folder = Path(self._get_output_dir(trial=trial))
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save and checkpoint.exists():  # what a kill left there
            shutil.rmtree(checkpoint)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.finish(checkpoint, self.identity, self._metrics_file)
            checkpoints.rotate(str(folder), limit, self.state.best_model_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model, or its adapter, for ``from_pretrained``; whole, however it was sharded.

        Raises:
            Unfinished: no model came of it, as where DeepSpeed was told to keep it in pieces.
        """
        folder = Path(output_dir or self.args.output_dir)
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None:
            super().save_model(output_dir, _internal_call)
        elif not _internal_call or "FULL" in str(plugin.state_dict_type):
            state = whole_state(self.model)
            if self.args.should_save:
                self._save(str(folder), state_dict=state)
            self.accelerator.wait_for_everyone()
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        if not _internal_call and self.sharded:
            on_first_rank(lambda: check_saved(folder))
        elif not _internal_call and self.args.should_save:
            check_saved(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharded:
            save_spread(self, Path(output_dir))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if has_pieces(Path(resume_from_checkpoint)):  # of a run with sharded weights
            load_pieces(self, Path(resume_from_checkpoint), optimizer=False)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and has_pieces(Path(checkpoint)):
            load_spread(self, Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        if self.sharded:
            load_pieces(self, Path(str(self.state.best_model_checkpoint)), optimizer=False)
        else:
            super()._load_best_model()

    def _save_rng_state(self, output_dir: str) -> None:
        """Also learned masks and the objective's moving average: written before trainer_state.json,
        whose presence says that a checkpoint is whole."""
        super()._save_rng_state(output_dir)
        if self.args.should_save and self.masks is not None:
            save_file(self.masks.state_dict(), Path(output_dir) / MASKS_FILE)
        if self.args.should_save and self.engine.average is not None:
            write_json(Path(output_dir) / STATE_FILE, self.engine.average.state_dict())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.masks is not None:
            self.masks.load_state_dict(load_file(Path(checkpoint) / MASKS_FILE))
        if checkpoint is None or self.engine.average is None:
            return
        path = Path(checkpoint) / STATE_FILE
        if not path.exists():
            raise UserError(f"{checkpoint} lacks {STATE_FILE}: it was written by another objective")
        self.engine.average.load_state_dict(json.loads(path.read_text("utf-8")))

    # --- evaluation -------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The objective and all metrics on held-out data: normalizers and baselines are taken over
        all of it at once, and the training's moving averages stay as they are."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(given, str):
            given = self.eval_dataset[given]
        if given is None:
            raise UserError("there is no eval_dataset to evaluate on")
        if self.sharded and not self._wrapped:
            raise UserError(
                "with FSDP or DeepSpeed the model is spread over processes when training begins; "
                "evaluate() during or after train()"
            )
        if isinstance(given, Mapping):
            metrics: dict[str, float] = {}
            for name, part in given.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        trees = given if isinstance(given, Trees) else self._encode(self.args, given)
        assert trees is not None
        metrics = {
            f"{metric_key_prefix}_{key}": value
            for key, value in self._evaluate_trees(trees).items()
        }
        self.log(metrics)
        if eval_dataset is None and (metric_key_prefix == "base" or not self.is_in_train):
            self._keep_measures(
                {k.removeprefix(f"{metric_key_prefix}_"): v for k, v in metrics.items()}
            )
        handler, control = self.callback_handler, getattr(self, "control", None)
        self.control = handler.on_evaluate(self.args, self.state, control, metrics)
        return metrics

    def evaluate_first(self, metric_key_prefix: str = "base") -> dict[str, float]:
        """The metrics before training. Sharded weights are spread when training begins, so there
        the dictionary is filled then."""
        if not self.sharded:
            return self.evaluate(metric_key_prefix=metric_key_prefix)
        found: dict[str, float] = {}
        self.add_callback(
            _AtStart(lambda: found.update(self.evaluate(None, None, metric_key_prefix)))
        )
        return found

    def _keep_measures(self, metrics: dict[str, float]) -> None:
        """Held-out measures are the run's: those before the first step, and what they became."""
        if not self.is_world_process_zero():
            return
        if self.state.global_step == 0:
            self.run.write_before(metrics)
        else:
            reference = self.reference is not None
            found = record.held_out_finding(metrics, self.run.before, reference=reference)
            self.run.keep([found])

    def _evaluate_trees(self, trees: Sequence[TokenTree]) -> dict[str, float]:
        plan = self._plan(trees, evaluation=True)
        if self.reference is not None and not self.reference.moved:
            self._precompute([trees, plan.mismatched_trees(len(plan))])
        batch = plan.share(range(len(trees)))
        self._fill_live([*batch.micro_batches, *batch.mismatched])
        model = self.model_wrapped
        average = copy.copy(self.engine.average)
        with torch.no_grad(), evaluating(model), self.engine.whole():
            rows, everyone = self._score(batch.micro_batches, model)
            whole = self.engine.assemble(everyone)
            statistics: dict[str, torch.Tensor] = {}
            spec = self.objective.spec
            if spec.statistic is not None and not spec.coupled:
                measured = whole
                if self._mismatched:
                    _, others = self._score(batch.mismatched, model)
                    measured = self.engine.assemble(others, layout="completion")
                value = self.objective.measure(measured)
                if average is not None and average.decay and average.value is not None:
                    value = torch.as_tensor(average.value)
                statistics[spec.statistic.argument] = value
            loss = self.objective.loss(whole, total=None, **statistics)
        accumulator = MetricAccumulator()
        pairs = self.engine.pairs(rows, batch.micro_batches.trees)
        accumulator.add(step_metrics(self.engine.assemble(rows), self.objective, pairs))
        metrics = {"loss": float(loss), **accumulator.read(self.args.device)}
        return {**metrics, "samples": len(trees)}

    def _score(self, passes: Passes, model: Any) -> tuple[Rows, Rows]:
        """This rank's rows and all ranks', with progress."""
        total = sum(map(len, passes))
        with progress("evaluating", total, quiet=self._quiet) as advance:
            return self.engine.score(passes, model, advance)


_METRIC_NAMES = {"baseline": "kl", "shift": "rewards/shift", "log_normalizer": "log_normalizer"}


class _AtStart(TrainerCallback):
    """Does one thing when training begins."""

    def __init__(self, do: Callable[[], None]) -> None:
        self.do = do

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.do()


class _EpochCallback(TrainerCallback):
    """Tells the plan which epoch it is, so that resuming in any of them finds its order."""

    def __init__(self, trainer: AlignmentTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        plan = self.trainer.plan
        if plan is not None:
            plan.epoch = int(state.global_step // len(plan))


def _blocks(trees: Iterable[TokenTree]) -> Iterator[Sequence[TokenTree]]:
    """Trees as they are, where they are there; of a stream as many as a block holds at a time."""
    if isinstance(trees, Sequence):
        yield trees
        return
    stream = iter(trees)
    while block := list(itertools.islice(stream, BLOCK)):
        yield block


def _examples(dataset: Any) -> Any:
    """A stream of examples, or a list of them."""
    if isinstance(dataset, Examples | Mapped | Mixed):
        return dataset
    if isinstance(dataset, list) and dataset and isinstance(dataset[0], Example):
        return dataset
    return load_examples(dataset)


def _cache_folder(setting: str | None, kind: str) -> Path | None:
    if setting == "none":
        return None
    return cache_folder(kind) if setting is None else Path(setting)
