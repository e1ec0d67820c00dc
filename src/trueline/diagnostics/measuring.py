"""What the verbs of `trueline diagnose` share: models, pairs, progress, the measuring itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trueline.config import ModelArguments
from trueline.data import load_examples
from trueline.data.chat import as_chat as chat
from trueline.diagnostics.ranking import (
    Difficulties,
    Scores,
    difficulties_of,
    ranking_of_scores,
    score_completions,
)
from trueline.diagnostics.ranking.scores import PairIndex
from trueline.errors import UserError
from trueline.models import check_vocabulary, load_model, load_tokenizer
from trueline.objectives import bind
from trueline.prompts import Progress
from trueline.records import Example
from trueline.results import Finding
from trueline.terminal import console, progress


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

    def model(self, name: str) -> Any:
        """A model on its device, ready to be measured."""
        import transformers

        transformers.utils.logging.disable_progress_bar()
        model = load_model(self._arguments(name))
        try:
            return model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        except (RuntimeError, AssertionError) as error:
            first = str(error).split("\n", 1)[0]
            raise UserError(f"cannot use device {self.device!r}: {first}") from None

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


def read_pairs(
    data: str,
    split: str,
    name: str | None,
    form: str | None,
    skip_bad: bool,
    limit: int | None,
    *,
    as_chat: bool,
) -> list[Example]:
    """The examples; what was dropped is said on stderr."""
    examples = load_examples(
        data, split=split, name=name, form=form, skip_bad=skip_bad, limit=limit
    )
    rows = [chat(example) if as_chat else example for example in examples]
    for reason, drop in examples.report.dropped.items():
        places = ", ".join(drop.places)
        console.print(f"dropped {drop.count} rows, {reason}: {places}", style="yellow")
    return rows


def note_plain_text(tokenizer: Any, example: Example) -> None:
    """Say it where a chat template is there and plain text passes it by."""
    if tokenizer.chat_template and not example.conversational:
        console.print(
            "note: the data is plain text, so the tokenizer's chat template is not applied; "
            "--as-chat makes a conversation of it",
            style="dim",
        )


def measure_ranking(
    loader: Loader,
    model: str,
    reference: str | None,
    examples: Sequence[Example],
    *,
    max_length: int | None,
    max_tokens: int = 8192,
    **options: Any,
) -> tuple[Finding, Difficulties]:
    """Ranking and difficulties; one model at a time is in memory."""
    tokenizer = loader.tokenizer(model)
    note_plain_text(tokenizer, examples[0])
    PairIndex.of(examples)  # refuses data without pairs before a model is loaded

    dtypes = set()

    def score(name: str, title: str, *, as_reference: bool) -> Scores:
        loaded = loader.model(name)
        check_vocabulary(loaded, tokenizer, name)
        dtypes.add(str(loaded.dtype).removeprefix("torch."))
        with loader.bar(title) as report:
            return score_completions(
                loaded,
                tokenizer,
                examples,
                as_reference=as_reference,
                max_length=max_length,
                max_tokens=max_tokens,
                progress=report,
            )

    policy = score(model, "log-probs", as_reference=False)
    start = None
    if reference is not None:
        start = score(reference, "reference log-probs", as_reference=True)
    if len(dtypes) > 1:
        console.print(
            f"note: policy and reference are kept as {' and '.join(sorted(dtypes))}, and their "
            "log-ratios hold the difference in rounding; --dtype loads both alike",
            style="yellow",
        )
    finding = ranking_of_scores(examples, policy, start, **options)
    return finding, difficulties_of(examples, start or policy)


def measure_entanglement(
    loader: Loader,
    model: str,
    reference: str | None,
    examples: Sequence[Example],
    *,
    objective: str | Sequence[str],
    options: Mapping[str, Any],
    **how: Any,
) -> Finding:
    """Entanglement; the reference is loaded where the objective reads one."""
    from trueline.diagnostics.entanglement import entanglement

    tokenizer = loader.tokenizer(model)
    note_plain_text(tokenizer, examples[0])
    PairIndex.of(examples)
    other = None
    if reference is not None and bind(objective, options).spec.reference:
        other = loader.model(reference)
        check_vocabulary(other, tokenizer, reference)
    policy = loader.model(model)
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        for name, parameter in policy.named_parameters():  # an adapter is loaded frozen
            parameter.requires_grad_(".lora_" in name)
    with loader.bar("entanglement") as report:
        return entanglement(
            policy,
            tokenizer,
            examples,
            objective=objective,
            options=options,
            reference=other,
            progress=report,
            **how,
        )
