"""A diagnostic question: one decorated function, asked of a model and of data.

    @question("length", needs="pairs")
    def length(asked: Asked, *, top: Annotated[int, "So many pairs."] = 10) -> Finding:
        ...

Its keyword-only arguments are its options. `trueline diagnose length`, its help, `diagnose all`,
the report and :func:`trueline.diagnose` know it from then on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import torch

from trueline.config import ModelArguments
from trueline.data import load_examples
from trueline.data.mapped import as_chat as chat
from trueline.errors import UserError
from trueline.models import check_vocabulary, load_model, load_tokenizer
from trueline.options import arguments, opening
from trueline.prompts import Progress
from trueline.records import Example
from trueline.registry import Registry
from trueline.results import Finding
from trueline.terminal import console, progress

if TYPE_CHECKING:
    from trueline.diagnostics.separation.data import LabeledPrompts

Needs: TypeAlias = Literal["pairs", "prompts", "examples"]
"""What a question measures on: preference pairs, prompts with a safety label, or any examples."""


@dataclass(frozen=True)
class Loader:
    """Loads models alike.

    Args:
        dtype: of the weights; None is each model's own.
        device: a GPU if there is one, where it is None.
        trust_remote_code: run a model's own code.
        quiet: keep progress bars back.
        revisions: of hub models by name; ``main`` where none is given.
    """

    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    quiet: bool = False
    revisions: Mapping[str, str] = field(default_factory=dict)

    def model(self, name: str, tokenizer: Any = None) -> Any:
        """A model on its device, ready to be measured; with a tokenizer, one that reads its ids."""
        import transformers

        transformers.utils.logging.disable_progress_bar()
        model = load_model(self._arguments(name))
        try:
            model = model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        except (RuntimeError, AssertionError) as error:
            first = str(error).split("\n", 1)[0]
            raise UserError(f"cannot use device {self.device!r}: {first}") from None
        if tokenizer is not None:
            check_vocabulary(model, tokenizer, name)
        return model

    def tokenizer(self, name: str) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(self._arguments(name))

    def _arguments(self, name: str) -> ModelArguments:
        path = Path(name)
        if path.exists() and not path.is_dir():
            raise UserError(f"{name} is a file; give the folder of a model, or a hub id")
        if not path.exists() and (name.startswith((".", "/")) or name.count("/") > 1):
            raise UserError(f"no model folder at {name!r} (a hub id is written org/name)")
        files = ("config.json", "adapter_config.json")
        if path.is_dir() and not any((path / file).is_file() for file in files):
            raise UserError(f"{name} holds no model: there is no config.json in it")
        return ModelArguments(
            model_name_or_path=name,
            model_revision=self.revisions.get(name, "main"),
            dtype=self.dtype or "auto",
            trust_remote_code=self.trust_remote_code,
        )

    @contextmanager
    def bar(self, title: str) -> Iterator[Progress]:
        """A progress bar that takes (done, all)."""
        with progress(title, None, quiet=self.quiet) as advance:
            before = 0

            def report(done: int, total: int) -> None:
                nonlocal before
                advance(done - before if done >= before else done, total)
                before = done

            yield report


@dataclass
class Asked:
    """What a question is asked of.

    Args:
        model: a folder or a hub id.
        source: of the data.
        reference: the model that training started from, where there is one to compare with.
        loader: loads models alike.
        seed: of splits, draws and intervals.
        reading: how the data are read: split, name, form, skip_bad, limit, as_chat.
        objective_options: the objective's options, where a run tells them all.
        told: what the question has to say beside its findings, JSON-ready; it may add to it.
    """

    model: str
    source: str = ""
    reference: str | None = None
    loader: Loader = field(default_factory=Loader)
    seed: int = 0
    reading: Mapping[str, Any] = field(default_factory=dict)
    objective_options: Mapping[str, Any] | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def examples(self) -> list[Example]:
        """The data; what was dropped is said."""
        how = dict(self.reading)
        turns = how.pop("as_chat", False)
        examples = load_examples(self.source, **how)
        rows = [chat(example) if turns else example for example in examples]
        for reason, drop in examples.report.dropped.items():
            places = ", ".join(drop.places)
            console.print(f"dropped {drop.count} rows, {reason}: {places}", style="yellow")
        return rows

    @cached_property
    def prompts(self) -> LabeledPrompts:
        """The data's prompts with their safety labels."""
        from trueline.diagnostics.separation.data import read_prompts

        return read_prompts(self.source, **self.reading)


@dataclass(frozen=True)
class TrainedWith:
    """What a model is, or would be, trained with."""

    objective: Any
    given: Mapping[str, Any]

    def options(self, asked: Asked) -> dict[str, Any]:
        """The objective's options: a run's own, or those that were given."""
        run = asked.objective_options
        return dict(self.given if run is None else run)


def trained_with(
    *,
    objective: Annotated[str, "What the model is (or would be) trained with."] = "dpo",
    beta: Annotated[float | None, "The objective's beta (IPO's tau)."] = None,
    gamma: Annotated[float | None, "The gamma of gamma_dpo."] = None,
) -> TrainedWith:
    """Opens the argument of a question that reads an objective."""
    given = {"beta": beta, "gamma": gamma}
    return TrainedWith(objective, {k: v for k, v in given.items() if v is not None})


@dataclass(frozen=True)
class Question:
    """A registered question: what it measures on, and which findings it gives."""

    name: str
    ask: Callable[..., Finding | Sequence[Finding]]
    needs: Needs
    gives: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Its docstring."""
        return inspect.getdoc(self.ask) or ""

    def __call__(self, asked: Asked, **options: Any) -> list[Finding]:
        """Ask, with options checked by the function's signature."""
        call = arguments(f"question {self.name!r}", self.ask, None, options, skip=1)
        found = self.ask(asked, **call)
        return [found] if isinstance(found, Finding) else list(found)


QUESTIONS: Registry[Question] = Registry("question")
Ask = TypeVar("Ask", bound=Callable[..., Any])


def question(name: str, *, needs: Needs, gives: Sequence[str] = ()) -> Callable[[Ask], Ask]:
    """Register a function of :class:`Asked` as a diagnostic question.

    Args:
        name: what `trueline diagnose` calls it.
        needs: what it measures on; `diagnose all` asks it where a run has that.
        gives: names of its findings, the last one the one that `diagnose all` looks for; its own
            name unless said.
    """

    def add(function: Ask) -> Ask:
        QUESTIONS.add(
            str(name), Question(str(name), opening(function), needs, tuple(gives) or (name,))
        )
        return function

    return add


def note_plain_text(tokenizer: Any, example: Example) -> None:
    """Say it where a chat template is there and plain text passes it by."""
    if tokenizer.chat_template and not example.conversational:
        console.print(
            "note: the data is plain text, so the tokenizer's chat template is not applied; "
            "--as-chat makes a conversation of it",
            style="dim",
        )
