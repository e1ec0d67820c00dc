"""The training's progress bar: one line on stderr that says how far, how long, how it goes."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress
from transformers import TrainerCallback

from trueline.terminal import counted_bar

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
