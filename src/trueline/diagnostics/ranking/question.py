"""The question of ranking: log-probs of policy and reference, one model at a time in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from trueline.diagnostics.question import (
    Asked,
    TrainedWith,
    note_plain_text,
    question,
    trained_with,
)
from trueline.diagnostics.ranking.data import check_output
from trueline.diagnostics.ranking.data import write_difficulty as write
from trueline.diagnostics.ranking.finding import (
    Scores,
    difficulties_of,
    ranking_of_scores,
    score_completions,
)
from trueline.diagnostics.ranking.scores import PairIndex
from trueline.errors import UserError
from trueline.results import Finding
from trueline.runs.record import Key
from trueline.terminal import console


@question(Key.RANKING, needs="pairs")
def ranking(
    asked: Asked,
    *,
    trained: Annotated[TrainedWith, trained_with],
    raters: Annotated[
        str, "Share who prefer the chosen answer, or 'scores': votes as scores."
    ] = "1",
    loss: Annotated[
        float | None, "A loss to compare thresholds with; else the one reached."
    ] = None,
    write_difficulty: Annotated[
        Path | None, "Copy the data to this .jsonl with a column 'difficulty'."
    ] = None,
    overwrite: Annotated[bool, "Replace that file where it exists."] = False,
    max_length: Annotated[int | None, "Tokens of prompt and completion, as in training."] = 1024,
    max_tokens: Annotated[int, "Tokens in a forward pass."] = 8192,
) -> Finding:
    """How well the model ranks chosen above rejected, how well it could, and how hard it is.

    Difficulty is measured under the reference, or under the model where none is given.
    """
    if write_difficulty is not None:
        check_output(write_difficulty, overwrite=overwrite)
    elif overwrite:
        raise UserError("--overwrite has no effect without --write-difficulty")
    tokenizer = asked.loader.tokenizer(asked.model)
    note_plain_text(tokenizer, asked.examples[0])
    PairIndex.of(asked.examples)  # refuses data without pairs before a model is loaded
    dtypes = set()

    def score(name: str, title: str, *, as_reference: bool) -> Scores:
        loaded = asked.loader.model(name, tokenizer)
        dtypes.add(str(loaded.dtype).removeprefix("torch."))
        with asked.loader.bar(title) as report:
            return score_completions(
                loaded, tokenizer, asked.examples, as_reference=as_reference,
                max_length=max_length, max_tokens=max_tokens, progress=report,
            )  # fmt: skip

    policy = score(asked.model, "log-probs", as_reference=False)
    start = None
    if asked.reference is not None:
        start = score(asked.reference, "reference log-probs", as_reference=True)
    if len(dtypes) > 1:
        console.print(
            f"note: policy and reference are kept as {' and '.join(sorted(dtypes))}, and their "
            "log-ratios hold the difference in rounding; --dtype loads both alike",
            style="yellow",
        )
    finding = ranking_of_scores(
        asked.examples, policy, start, objective=trained.objective,
        options=trained.options(asked), alpha=_alpha(raters), loss=loss,
    )  # fmt: skip
    if write_difficulty is not None:
        difficulties = difficulties_of(asked.examples, start or policy)
        how = {k: v for k, v in asked.reading.items() if k not in ("limit", "as_chat")}
        written = write(asked.source, difficulties, write_difficulty, overwrite=overwrite, **how)
        asked.told["written"] = {
            "file": str(write_difficulty),
            "rows": written.rows,
            "scored": written.scored,
            "unreadable": written.unreadable,
        }
        console.print(
            f"{written.scored} of {written.rows} rows with a difficulty: {write_difficulty}",
            highlight=False,
        )
    return finding


def _alpha(raters: str) -> float | Literal["scores"]:
    if raters == "scores":
        return "scores"
    try:
        return 1.0 if raters == "unanimous" else float(raters)
    except ValueError:
        raise UserError(f"--raters must be a share in [0, 1] or 'scores', got {raters!r}") from None
