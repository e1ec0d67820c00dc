"""The question of separation: one model, every layer, or a model against its start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from trueline.diagnostics.question import Asked, question
from trueline.diagnostics.separation.data import LabeledPrompts
from trueline.diagnostics.separation.finding import (
    separation_change_of,
    separation_of,
    separation_profile,
    short_texts,
)
from trueline.diagnostics.separation.fit import check_preset
from trueline.diagnostics.separation.hidden import hidden_states
from trueline.errors import UserError
from trueline.results import Finding
from trueline.runs.record import Key
from trueline.terminal import console


@question(
    Key.SEPARATION,
    needs="prompts",
    gives=(Key.SEPARATION_BEFORE, Key.SEPARATION, Key.SEPARATION_CHANGE),
)
def separation(
    asked: Asked,
    *,
    layer: Annotated[str, "-1 the last, 0 the embeddings, or 'all' for a profile."] = "-1",
    position: Annotated[str, "last_prompt_token, generation_prompt or mean."] = "last_prompt_token",
    preset: Annotated[str | None, "'paper': plane fitted and measured on the same prompts."] = None,
    shrinkage: Annotated[
        float | None, "Of the covariances in the plane; 0.01 unless given."
    ] = None,
    n_bootstrap: Annotated[int, "Resamples for an interval; 0 for none."] = 1000,
    batch_size: Annotated[int, "Prompts in a forward pass."] = 32,
) -> list[Finding]:
    """How far apart the model holds harmful and safe prompts.

    The data needs the columns prompt and safety ('harmful' or 0, 'safe' or 1).
    """
    loader, prompts = asked.loader, asked.prompts
    _tell(prompts)
    tokenizer = loader.tokenizer(asked.model)
    how: dict[str, Any] = {"position": position, "batch_size": batch_size}
    protocol: dict[str, Any] = {
        "preset": preset, "shrinkage": shrinkage, "n_bootstrap": n_bootstrap, "seed": asked.seed
    }  # fmt: skip
    if layer == "all":
        if protocol.pop("preset") is not None:
            raise UserError(f"--preset {preset} is of the last layer; leave it or --layer all out")
        return list(_profiles(asked, tokenizer, **how, **protocol))
    try:
        number = int(layer)
    except ValueError:
        raise UserError(f"--layer must be a whole number or 'all', got {layer!r}") from None
    check_preset(protocol["preset"], number, how["position"])

    def states(name: str, title: str) -> Any:
        """Each model is loaded alone, and only its vectors stay."""
        loaded = loader.model(name, tokenizer)
        with loader.bar(title) as report:
            return hidden_states(
                loaded, tokenizer, prompts.prompts, layer=number, progress=report, **how
            ).numpy()

    told = {"texts": short_texts(prompts.prompts), **protocol}
    after = states(asked.model, "hidden states")
    now = separation_of(after, prompts.harmful, **told)
    if asked.reference is None:
        return [now]
    before = states(asked.reference, "reference hidden states")
    start = separation_of(before, prompts.harmful, name=Key.SEPARATION_BEFORE, **told)
    return [start, now, separation_change_of(before, after, prompts.harmful, **protocol)]


def _profiles(asked: Asked, tokenizer: Any, **how: Any) -> Iterator[Finding]:
    """The profile of the reference, where there is one, and of the model."""
    prompts = asked.prompts
    for name, title in ((asked.reference, Key.PROFILE_BEFORE), (asked.model, Key.PROFILE)):
        if name is not None:
            loaded = asked.loader.model(name, tokenizer)
            with asked.loader.bar(title) as report:
                yield separation_profile(
                    loaded, tokenizer, prompts.prompts, prompts.harmful,
                    name=title, progress=report, **how,
                )  # fmt: skip


def _tell(prompts: LabeledPrompts) -> None:
    for count, what in (
        (prompts.repeated, "repeated prompts were left out: each is measured once"),
        (prompts.unlabeled, "prompts without a safety label were left out"),
    ):
        if count:
            console.print(f"{count} {what}", style="yellow", highlight=False)
