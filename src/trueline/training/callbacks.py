"""During training: diagnostics, each under a metric namespace of its own, and the progress bar."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import Progress
from transformers import TrainerCallback

from trueline.batching import TokenTree
from trueline.diagnostics.entanglement.ghost import GradientProducts
from trueline.diagnostics.entanglement.measure import batch_change, triples
from trueline.diagnostics.entanglement.pairs import Array, Entangled, pulls
from trueline.errors import UserError
from trueline.logprobs import PairedLogProbs
from trueline.terminal import counted_bar
from trueline.training.coupling import gather
from trueline.training.step import Rows

if TYPE_CHECKING:
    from trueline.training.trainer import AlignmentTrainer

PAIRS = 16
"""Held-out pairs to measure on, where not said otherwise."""


class EntanglementCallback(TrainerCallback):
    """Measures gradient entanglement on held-out pairs every so many steps, as ``entangle/*``.

    One forward and one backward pass over the same few pairs each time, dropout off, with the
    objective's present pulls, normalizers and baselines; ranks share the batches. The metrics are
    means of what :func:`trueline.diagnostics.entanglement` reports, of those tokens that training
    looks at; a batch is one of ``per_device_eval_batch_size`` pairs.

    Args:
        trainer: that trains.
        pairs: held-out pairs, as training would see them; at most ``count`` of them are drawn.
        steps: between two measurements.
        count: pairs to measure on.

    Raises:
        UserError: there is no held-out pair.
    """

    def __init__(
        self,
        trainer: AlignmentTrainer,
        pairs: Sequence[TokenTree],
        *,
        steps: int,
        count: int | None = None,
    ) -> None:
        if not pairs:
            raise UserError(
                "entanglement_steps measures on held-out preference pairs, and there are none; "
                "give an eval_dataset with pairs, or leave it out"
            )
        if steps < 1 or (count is not None and count < 1):
            raise UserError(
                "entanglement_steps and entanglement_pairs must be positive, got "
                f"{steps} and {count}"
            )
        order = np.random.default_rng(trainer.args.seed).permutation(len(pairs))
        self.trainer = trainer
        self.steps = steps
        self.trees = [pairs[i] for i in order[: count or PAIRS]]
        self._products: GradientProducts | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and log, where it is time to."""
        if state.global_step % self.steps == 0:
            self.trainer.log(self.measure())

    def measure(self) -> dict[str, float]:
        """The metrics of the present weights, the same on every rank."""
        args = self.trainer.args
        size = args.per_device_eval_batch_size
        batches = [self.trees[k : k + size] for k in range(0, len(self.trees), size)]
        parts = [self._part(batch) for batch in batches[args.process_index :: args.world_size]]
        columns, mine = self._gathered([part for part, _ in parts], 3 + 2 * 4)
        inner, chosen, rejected = columns[:, :3].T
        pulls = self._pulls(torch.from_numpy(columns[:, 3:]).reshape(-1, 4))
        starts = itertools.accumulate((len(part) for part, _ in parts), initial=mine.start)
        changes = [
            torch.from_numpy(batch_change(gram, pulls, start))
            for (_, gram), start in zip(parts, starts, strict=False)
        ]
        change, _ = self._gathered(changes, 2)
        entangled = Entangled(inner, chosen, rejected, *pulls)
        values = {
            **entangled.columns(),
            **entangled.flags(),
            "batch_change_chosen": change[:, 0],
            "batch_change_rejected": change[:, 1],
            "batch_chosen_falls": change[:, 0] < 0,
        }
        return {
            f"entangle/{name}": float(np.mean(column[np.isfinite(column)]))
            for name, column in values.items()
            if np.isfinite(column).any()
        }

    def _gathered(self, parts: Sequence[torch.Tensor], width: int) -> tuple[Array, slice]:
        """All ranks' rows, and where this rank's are; a rank may have none."""
        device = self.trainer.args.device
        empty = torch.zeros(0, width, dtype=torch.float64, device=device)
        rows, mine = gather(torch.cat([empty, *(part.to(device) for part in parts)]))
        return rows.cpu().numpy(), mine

    def _part(self, trees: Sequence[TokenTree]) -> tuple[torch.Tensor, Array]:
        """Some pairs' inner products, squared norms and log-probs, (B, 11), and their Gram
        matrix."""
        engine = self.trainer.engine
        if self._products is None:
            self._products = GradientProducts(engine.scorer)
        packed = engine.scorer.pack(trees)
        labels = [label for tree in trees for label in tree.desirable]
        weights = None if engine.masks is None else engine.masks.weights(packed, labels)
        with engine.autocast():
            products = self._products(trees, weights=weights)
        with torch.no_grad():
            rows = engine.rows(trees, packed, products.tokens).to_matrix()
        gram: Array = products.total[0].cpu().numpy()
        columns = [torch.from_numpy(triples(gram)), rows.cpu().reshape(len(trees), -1)]
        return torch.cat(columns, dim=1), gram

    def _pulls(self, matrix: torch.Tensor) -> tuple[Array, Array]:
        """d_w and d_l of all pairs, with the baseline or normalizer of the last step."""
        engine = self.trainer.engine
        like = torch.zeros(0)
        rows = Rows.from_matrix(
            matrix, like=Rows(like, None if engine.reference is None else like, like, like)
        )
        pairs = engine.assemble(rows, layout="paired")
        assert isinstance(pairs, PairedLogProbs)
        statistics: dict[str, torch.Tensor] = {}
        if engine.average is not None and engine.average.value is not None:
            assert engine.objective.spec.statistic is not None
            argument = engine.objective.spec.statistic.argument
            statistics[argument] = torch.tensor(engine.average.value)
        return pulls(engine.objective, pairs, statistics)


SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "kl")


class ProgressBar(TrainerCallback):
    """The training's bar, with the metrics of the last logging step beside it."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title = title
        self.quiet = quiet
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._bar = counted_bar(self.quiet)
        self._bar.start()
        self._task = self._bar.add_task(
            self.title, total=state.max_steps, completed=state.global_step, status="",
            begun=state.global_step,
        )  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if self._bar is not None and logs and "loss" in logs:
            parts = [f"{name} {logs[name]:.3g}" for name in SHOWN if name in logs]
            self._bar.update(self._task, status="  ".join(parts[:4]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back, also where training was interrupted."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
