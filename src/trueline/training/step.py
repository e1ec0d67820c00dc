"""One optimizer step: log-probs, objective, coefficients, one backward of sum c_i log pi_i.

    batch -> log-probs -> objective -> coefficients -> backward of sum_i c_i log pi(y_i|x_i)

The coefficients c_i = dL/dlog pi_i are those of the whole effective batch, over all micro-batches
and ranks, whatever the split: only scalars have to meet. The engine knows no trainer.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from trueline.batching import PackedBatch, TokenTree, View, onto
from trueline.errors import UserError
from trueline.logprobs import PairedLogProbs
from trueline.objectives.base import BoundObjective, LogProbs, assemble, coefficients
from trueline.scoring import Scorer
from trueline.training.coupling import MovingAverage, gather, world_size
from trueline.training.reference import Reference
from trueline.training.remedies import SparseMasks
from trueline.training.sampling import Passes, StepBatch

Coupling: TypeAlias = Literal["exact", "ema"]
Shape: TypeAlias = Callable[[Sequence[TokenTree], Tensor], Tensor]
"""From a micro-batch's trees and their coefficients to other coefficients."""

EMA_DECAY = 0.9
"""Decay of a moving average in ``ema`` coupling where the objective names none."""


class NonFiniteError(UserError):
    """A log-prob, a coefficient or a gradient is NaN or infinite; the message names the rows."""


@dataclass(frozen=True)
class Rows:
    """Scalars of C completions: what has to meet across micro-batches and ranks."""

    policy: Tensor
    reference: Tensor | None
    length: Tensor
    desirable: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Rows:
        """Apply ``function`` to every column."""
        reference = None if self.reference is None else function(self.reference)
        return Rows(
            function(self.policy), reference, function(self.length), function(self.desirable)
        )

    def detach(self) -> Rows:
        """The same values without a graph."""
        return self.map(torch.Tensor.detach)

    def to_matrix(self) -> Tensor:
        """(C, 4) float64, for gathering."""
        reference = torch.zeros_like(self.policy) if self.reference is None else self.reference
        columns = (self.policy.detach(), reference, self.length, self.desirable)
        return torch.stack([column.double() for column in columns], dim=1)

    @classmethod
    def from_matrix(cls, matrix: Tensor, *, like: Rows) -> Rows:
        """What :meth:`to_matrix` wrote, in the types of ``like``."""
        policy, reference, length, desirable = matrix.unbind(1)
        return cls(
            policy.to(like.policy.dtype),
            None if like.reference is None else reference.to(like.policy.dtype),
            length.long(),
            desirable.bool(),
        )

    @classmethod
    def cat(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of all parts, in order."""
        references = [part.reference for part in parts if part.reference is not None]
        return cls(
            torch.cat([part.policy for part in parts]),
            torch.cat(references) if references else None,
            torch.cat([part.length for part in parts]),
            torch.cat([part.desirable for part in parts]),
        )


@dataclass(frozen=True)
class StepResult:
    """What a step saw, with its graph gone.

    Args:
        loss: of the effective batch; every rank has the whole.
        rows: this rank's completions; ``whole``: all ranks'.
        coefficients: of this rank's completions.
        statistics: of the batch, by the objective's argument.
    """

    loss: Tensor
    rows: Rows
    whole: Rows
    coefficients: Tensor
    statistics: Mapping[str, float]


class StepEngine:
    """Turns a :class:`StepBatch` into gradients.

    Args:
        objective: what to minimize.
        scorer: log-probs of the policy.
        reference: log-probs of the reference, or None for a reference-free objective.
        coupling: ``"exact"`` takes normalizers, baselines and shifts of the present effective
            batch, at the price of one more forward pass without gradient where it has several
            micro-batches; ``"ema"`` takes a moving average of earlier steps (and is exact in the
            first, which has none).
        autocast: the forward pass's precision context.
        shape: reshapes coefficients; what it does to a tree must depend on that tree alone.
        masks: token weights to learn; the reference's cache must keep per-token values.

    Raises:
        UserError: ``"ema"`` on an objective that has no statistic to average.
    """

    def __init__(
        self,
        objective: BoundObjective,
        scorer: Scorer,
        reference: Reference | None,
        *,
        coupling: Coupling = "exact",
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        shape: Shape | None = None,
        masks: SparseMasks | None = None,
    ) -> None:
        self.objective = objective
        self.scorer = scorer
        self.reference = reference
        self.coupling = coupling
        self.autocast = autocast
        self.shape = shape
        self.masks = masks
        self.average: MovingAverage | None = None
        statistic = objective.spec.statistic
        if statistic is not None:
            decay = statistic.decay if coupling == "exact" else statistic.decay or EMA_DECAY
            self.average = MovingAverage(decay, statistic.log_space)
        elif coupling == "ema":
            raise UserError(
                f"coupling 'ema' has no effect on objective {objective.spec.name!r}: it takes no "
                "statistic of the batch; leave coupling at 'exact'"
            )

    def step(
        self,
        batch: StepBatch,
        *,
        model: nn.Module | None = None,
        backward: Callable[[Tensor], Any] = torch.Tensor.backward,
        no_sync: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> StepResult:
        """Accumulate the gradient of the effective batch's loss in the model's parameters.

        Args:
            batch: this rank's share of the effective batch.
            model: the wrapper to call (DDP, FSDP), where it is not the scorer's model itself.
            backward: called with a scalar, once a micro-batch.
            no_sync: entered for all micro-batches but the last (gradients meet once a step).

        Raises:
            NonFiniteError: a log-prob or a coefficient is not finite.
        """
        run = _Run(batch, model, backward, no_sync)
        past = self._past()
        if self._mismatched:
            now = self._observe(self._mismatched_rows(run), batch.counts)
            result = self._parts(run, now if past is None else past)
        elif self._reads_batch and past is None:
            result = self._whole(run)
        else:
            result = self._parts(run, past or {})
            if self._reads_batch:
                self._observe(result.whole, batch.counts)
        _check(batch, result)
        return result

    @property
    def _mismatched(self) -> bool:
        statistic = self.objective.spec.statistic
        return statistic is not None and statistic.of == "mismatched"

    @property
    def _reads_batch(self) -> bool:
        """Whether a coefficient depends on other completions of the batch."""
        return self.objective.spec.coupled or self.average is not None

    def _past(self) -> dict[str, float] | None:
        """The statistic of earlier steps, where this one is to be taken with it."""
        if self.coupling == "exact" or self.average is None or self.average.value is None:
            return None
        assert self.objective.spec.statistic is not None
        return {self.objective.spec.statistic.argument: self.average.value}

    def _observe(self, rows: Rows, counts: tuple[int, int]) -> dict[str, float]:
        """Measure the statistic on all rows of an effective batch, with its ``counts`` of desirable
        and undesirable completions, and take it into the average."""
        statistic = self.objective.spec.statistic
        if statistic is None or self.average is None:
            return {}
        layout: View | None = "completion" if self._mismatched else None
        value = float(self.objective.measure(self.assemble(rows, layout=layout)))
        if self._mismatched or all(counts):
            return {statistic.argument: self.average.update(value)}
        past = self.average.value  # one class alone says nothing of the two
        return {statistic.argument: value if past is None else past}

    def _parts(self, run: _Run, statistics: Mapping[str, float]) -> StepResult:
        """One pass: each micro-batch's loss is a part of the effective batch's."""
        batch = run.batch
        parts, gradients, losses = [], [], []
        for trees, filler, sync in run.micro_batches():
            with sync:
                part = self.forward(trees, run.model, filler=filler)
                loss, gradient = self._coefficients(
                    part, statistics, counts=batch.counts, total=batch.losses, tokens=batch.tokens
                )
                gradient = self._shaped(trees, gradient, batch.losses)
                run.backward((gradient * part.policy).sum() * world_size())
            parts.append(part.detach())
            gradients.append(gradient)
            losses.append(loss)
        rows = Rows.cat(parts)
        whole, loss = self._with_loss(rows, torch.stack(losses).sum(), batch.micro_batches.sizes)
        return StepResult(loss, rows, whole, torch.cat(gradients), statistics)

    def _whole(self, run: _Run) -> StepResult:
        """Log-probs of everything first, coefficients of the whole, then the backward passes.

        A single micro-batch needs no second forward: its graph waits for the coefficients. Several
        are scored without gradient first, and again, with the same dropout, for the backward.
        """
        passes = run.batch.micro_batches
        single = len(passes) == 1
        parts, states = [], []
        for trees, filler in passes.marked():
            states.append(_rng_state())
            with torch.set_grad_enabled(single):
                parts.append(self.forward(trees, run.model, filler=filler))
        rows = Rows.cat([part.detach() for part in parts])
        whole, mine = self.gathered(rows, passes.sizes)
        statistics = self._observe(whole, run.batch.counts)
        if self.objective.spec.coupled:
            statistics = {}  # it takes its own from the whole, exactly
        loss, gradient = self._coefficients(whole, statistics)
        gradient = gradient[mine]
        pieces = gradient.split([len(part.policy) for part in parts])
        shaped = []
        loop = zip(run.micro_batches(), parts, states, pieces, strict=True)
        for (trees, filler, sync), first, state, piece in loop:
            with sync:
                if not single:
                    _set_rng_state(state)
                part = first if single else self.forward(trees, run.model, filler=filler)
                shaped.append(self._shaped(trees, piece, run.batch.losses))
                run.backward((shaped[-1] * part.policy).sum() * world_size())
        return StepResult(loss, rows, whole, torch.cat(shaped), statistics)

    def _shaped(self, trees: Sequence[TokenTree], gradient: Tensor, losses: int) -> Tensor:
        """The coefficients that go backward; masks learn from the objective's own."""
        if self.masks is not None:
            self.masks.learn(gradient, losses)
        return gradient if self.shape is None else self.shape(trees, gradient)

    def forward(
        self, trees: Sequence[TokenTree], model: nn.Module | None, *, filler: bool = False
    ) -> Rows:
        """The rows of these trees under the policy; none, with a graph, where they only fill."""
        packed = self.scorer.pack(trees)
        with self.autocast():
            tokens = self.scorer(trees, packed, through=model)
        rows = self.rows(trees, packed, tokens)
        return rows.map(lambda column: column[:0]) if filler else rows

    def score(
        self,
        passes: Passes,
        model: nn.Module | None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> tuple[Rows, Rows]:
        """This rank's rows and all ranks' rows of these passes."""
        parts = []
        for trees, filler in passes.marked():
            parts.append(self.forward(trees, model, filler=filler))
            advance(len(trees))
        rows = Rows.cat(parts)
        return rows, self.gathered(rows, passes.sizes)[0]

    def rows(self, trees: Sequence[TokenTree], packed: PackedBatch, tokens: Tensor) -> Rows:
        """The scalars of these trees' completions, reference included, from per-token log-probs."""
        labels = [label for tree in trees for label in tree.desirable]
        policy, reference = packed.sums(tokens), None
        if self.masks is not None and self.reference is not None:
            under = self.reference.tokens(trees).to(tokens)
            policy, reference = self.masks.sums(packed, labels, tokens, under)
        elif self.reference is not None:
            reference = onto(policy.device, self.reference(trees)).to(policy)
        return Rows(policy, reference, packed.length, onto(policy.device, torch.tensor(labels)))

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Without learned masks: whole completions, as evaluation looks at them."""
        masks, self.masks = self.masks, None
        try:
            yield
        finally:
            self.masks = masks

    def _mismatched_rows(self, run: _Run) -> Rows:
        """Log-probs of all ranks' mismatched completions, without gradient."""
        with torch.no_grad():
            return self.score(run.batch.mismatched, run.model)[1]

    def _coefficients(
        self,
        rows: Rows,
        statistics: Mapping[str, float],
        *,
        counts: tuple[int, int] | None = None,
        total: int | None = None,
        tokens: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and coefficients of rows that are the whole effective batch, or, with its counts,
        total and tokens, a part of it."""
        given = {key: rows.policy.new_full((), value) for key, value in statistics.items()}

        def loss(policy: Tensor) -> Tensor:
            batch = self.assemble(replace(rows, policy=policy), counts=counts, tokens=tokens)
            return self.objective.loss(batch, total=total, **given)

        return coefficients(loss, rows.policy)

    def assemble(
        self,
        rows: Rows,
        *,
        counts: tuple[int, int] | None = None,
        tokens: int | None = None,
        layout: View | None = None,
    ) -> LogProbs:
        """The rows as the objective takes them."""
        values = (rows.policy, rows.length, rows.reference, rows.desirable)
        return assemble(layout or self.objective.layout, *values, counts, tokens)

    def pairs(self, rows: Rows, trees: Iterable[TokenTree]) -> PairedLogProbs | None:
        """The rows as pairs, where every tree is one: (chosen, rejected) in that order."""
        if any(tree.desirable != (True, False) for tree in trees):
            return None
        pairs = self.assemble(rows, layout="paired")
        assert isinstance(pairs, PairedLogProbs)
        return pairs

    def gathered(self, rows: Rows, sizes: Sequence[int] | None = None) -> tuple[Rows, slice]:
        """All ranks' rows, and where this rank's are; ``sizes`` are their numbers where known."""
        matrix, mine = gather(rows.to_matrix(), sizes)
        return Rows.from_matrix(matrix, like=rows), mine

    def _with_loss(self, rows: Rows, loss: Tensor, sizes: Sequence[int]) -> tuple[Rows, Tensor]:
        """All ranks' rows and the sum of their losses, which travel as one more row of each."""
        if world_size() == 1:
            return rows, loss
        last = torch.zeros(1, 4, dtype=torch.float64, device=loss.device)
        last[0, 0] = loss
        matrix, _ = gather(torch.cat([rows.to_matrix(), last]), [size + 1 for size in sizes])
        ends = list(itertools.accumulate(size + 1 for size in sizes))
        parts = [matrix[end - size - 1 : end - 1] for end, size in zip(ends, sizes, strict=True)]
        total = torch.stack([matrix[end - 1, 0] for end in ends]).sum()
        return Rows.from_matrix(torch.cat(parts), like=rows), total


@dataclass(frozen=True)
class _Run:
    """One step's batch with the ways to call the model and to go backward."""

    batch: StepBatch
    model: nn.Module | None
    backward: Callable[[Tensor], Any]
    no_sync: Callable[[], AbstractContextManager[Any]]

    def micro_batches(
        self,
    ) -> Iterator[tuple[list[TokenTree], bool, AbstractContextManager[Any]]]:
        """Each micro-batch, whether it only fills, and its context: gradients meet across ranks
        after the last one."""
        last = len(self.batch.micro_batches) - 1
        for index, (trees, filler) in enumerate(self.batch.micro_batches.marked()):
            yield trees, filler, contextlib.nullcontext() if index == last else self.no_sync()


def _rng_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return states


def _set_rng_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


def _check(batch: StepBatch, result: StepResult) -> None:
    bad = ~(result.rows.policy.isfinite() & result.coefficients.isfinite())
    if not bool(bad.any()):
        return
    owners = [tree.id for tree in batch.micro_batches.trees for _ in tree.branches]
    names = list(dict.fromkeys(owners[i] or "an unnamed row" for i in bad.nonzero()[:, 0].tolist()))
    raise NonFiniteError(
        f"log-probs or coefficients are not finite for {', '.join(names[:8])}"
        f"{' and others' if len(names) > 8 else ''}; training stopped before the update. Look at "
        "these rows, lower the learning rate, or train in float32"
    )
