"""The question of separation: one model, every layer, or a model against its start."""

from __future__ import annotations

from typing import Annotated, Any

from trueline.diagnostics.question import Asked, Loader, question
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
from trueline.models import check_vocabulary
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
    return measure(
        asked.loader,
        asked.model,
        asked.reference,
        asked.prompts,
        layer=layer,
        position=position,
        batch_size=batch_size,
        preset=preset,
        shrinkage=shrinkage,
        n_bootstrap=n_bootstrap,
        seed=asked.seed,
    )


def measure(
    loader: Loader,
    model: str,
    reference: str | None,
    prompts: LabeledPrompts,
    *,
    layer: str = "-1",
    position: Any = "last_prompt_token",
    batch_size: int = 32,
    **protocol: Any,
) -> list[Finding]:
    """The separation of one model; with a reference also its, and the change between the two.

    Each model is loaded alone, and only its vectors stay.
    """
    _tell(prompts)
    tokenizer = loader.tokenizer(model)
    if layer == "all":
        return _profiles(loader, model, reference, tokenizer, prompts, position=position,
                         batch_size=batch_size, **protocol)  # fmt: skip
    try:
        number = int(layer)
    except ValueError:
        raise UserError(f"--layer must be a whole number or 'all', got {layer!r}") from None
    check_preset(protocol.get("preset"), number, position)

    def states(name: str, title: str) -> Any:
        loaded = loader.model(name)
        check_vocabulary(loaded, tokenizer, name)
        with loader.bar(title) as report:
            return hidden_states(
                loaded,
                tokenizer,
                prompts.prompts,
                layer=number,
                position=position,
                batch_size=batch_size,
                progress=report,
            ).numpy()

    texts = short_texts(prompts.prompts)
    after = states(model, "hidden states")
    now = separation_of(after, prompts.harmful, texts=texts, **protocol)
    if reference is None:
        return [now]
    before = states(reference, "reference hidden states")
    start = separation_of(
        before, prompts.harmful, texts=texts, name=Key.SEPARATION_BEFORE, **protocol
    )
    return [start, now, separation_change_of(before, after, prompts.harmful, **protocol)]


def _profiles(
    loader: Loader,
    model: str,
    reference: str | None,
    tokenizer: Any,
    prompts: LabeledPrompts,
    *,
    preset: str | None = None,
    **how: Any,
) -> list[Finding]:
    """The profile of the model and, where there is one, of the reference."""
    if preset is not None:
        raise UserError(f"--preset {preset} is of the last layer; leave it or --layer all out")
    findings = []
    for name, title in ((reference, Key.PROFILE_BEFORE), (model, Key.PROFILE)):
        if name is None:
            continue
        loaded = loader.model(name)
        check_vocabulary(loaded, tokenizer, name)
        with loader.bar(title) as report:
            findings.append(
                separation_profile(
                    loaded,
                    tokenizer,
                    prompts.prompts,
                    prompts.harmful,
                    name=title,
                    progress=report,
                    **how,
                )
            )
    return findings


def _tell(prompts: LabeledPrompts) -> None:
    for count, what in (
        (prompts.repeated, "repeated prompts were left out: each is measured once"),
        (prompts.unlabeled, "prompts without a safety label were left out"),
    ):
        if count:
            console.print(f"{count} {what}", style="yellow", highlight=False)
