"""The demo's models: each is a run of the study at the demo's seed, and keeps what it said.

What is trained and what is measured are the study's own functions and options, so that the same
seed gives the same numbers there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch

from trueline.diagnostics.separation import separation
from trueline.reproduce.claims.arms import BASE, DPO_CR, ON_CR
from trueline.reproduce.claims.own import BEGUN
from trueline.reproduce.claims.second import ANYWHERE
from trueline.reproduce.experiments.alignment import examples_of, training_of
from trueline.reproduce.instrument import Replies, measures, replies, separations, unattacked
from trueline.reproduce.language import DEFAULTS, load_model, load_tokenizer, train
from trueline.reproduce.runs import Arm
from trueline.reproduce.scales import FULL, TEST
from trueline.results import Finding, Metric
from trueline.runs.record import Key, Row, Run
from trueline.sandbox import Sandbox, Size

SCALES = MappingProxyType({"demo": FULL, "test": TEST})
Tell: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Model:
    """One of the demo's models.

    Args:
        name: of the run, and of its folder.
        title: in sentences.
        arm: of the study.
    """

    name: str
    title: str
    arm: Arm


MODELS = (
    Model("base", "the base model", BASE),
    Model("kldo", "KLDO", ON_CR["kldo"]),
    Model("dpo", "DPO", DPO_CR),
    Model("dpo-begun", "DPO + SFT with begun answers", ANYWHERE),
)
"""All on the same data; the last one with the study's second defense against begun answers."""
UNALIGNED, *ALIGNED = MODELS
DEFENSE = MODELS[-1]
ATTACKS = ("direct", "wrapped", *BEGUN)


@dataclass(frozen=True)
class Measurement:
    """What one model does with held-out things: rates and log-probs, and separation."""

    name: str
    safety: Finding
    separation: Finding

    @property
    def findings(self) -> list[Finding]:
        return [self.safety, self.separation]


def make(
    model: Model, sandbox: Sandbox, folder: Path, size: Size, tell: Tell, *, quiet: bool = True
) -> Measurement:
    """Align a model and measure it; its run directory, in ``folder``, is like any other run's."""
    seed = sandbox.world.seed
    torch.manual_seed(seed)
    run = Run.create(folder / model.name)
    run.begin_log()
    if model in ALIGNED:
        tell(f"aligning: {model.title}")
        network = _align(model, sandbox, run, size, quiet=quiet)
    else:
        network = load_model(sandbox.model_dir)
    tell(f"attacking, asking and probing: {model.title}")
    tokenizer = load_tokenizer(sandbox)
    said = replies(sandbox, network, tokenizer)
    found = Measurement(model.name, _safety(model, said), _separation(sandbox, network, tokenizer))
    run.save(found.findings)
    run.write_samples(row for kind, group in said.items() for row in _rows(kind, group))
    return found


def _align(model: Model, sandbox: Sandbox, run: Run, size: Size, *, quiet: bool) -> Any:
    planned = SCALES[size].run(model.arm, sandbox.world.seed)
    examples, options = examples_of(planned, sandbox), training_of(planned)
    if size == "test":
        options["logging_steps"] = 1  # of three
    trainer = train(sandbox.model_dir, examples, options, run.path, seed=planned.seed, quiet=quiet)
    trainer.save_model()
    trainer.scorer.detach()
    data = getattr(sandbox, planned.options["data"]).name
    facts = {
        "seed": planned.seed,
        "model_name_or_path": "the sandbox's base model",
        "dataset_name": f"{data} and pairs whose answers are begun"
        if planned.options.get("defense")
        else data,
    }
    run.write_config({**DEFAULTS, **options, **facts})
    run.write_manifest(command="trueline demo", seed=planned.seed)
    return trainer.model


def _safety(model: Model, said: Replies) -> Finding:
    by_name = {measure.name: measure.metric for measure in measures(said)}
    worst = max((by_name[f"attack success, {kind}"] for kind in ATTACKS), key=_value)
    return Finding(
        Key.SAFETY,
        f"Asked directly, {model.title} gives the harmful recipe in "
        f"{by_name['attack success, direct']} of requests; most often, in {worst}, under "
        f"{worst.name.replace('attack success', 'attack')}. Of safe requests it refuses "
        f"{by_name['over-refusal']} and answers {by_name['correct answers']} correctly; "
        f"{by_name['answers that are none']} of its answers are none.",
        list(by_name.values()),
    )


def _value(metric: Metric) -> float:
    return metric.value or 0.0


def _separation(sandbox: Sandbox, network: Any, tokenizer: Any) -> Finding:
    """The study's distances, with the plane of its first split for a picture."""
    prompts, harmful = unattacked(sandbox)
    values = separations(network, tokenizer, prompts, harmful)
    shown = separation(
        network, tokenizer, prompts, harmful, position="generation_prompt", n_bootstrap=0
    )
    metrics = [
        Metric(f"bhattacharyya_distance{where}", values[f"separation{where}"], n=len(harmful))
        for where in ("", ", end of turn")
    ]
    return replace(
        shown,
        summary=f"Before the answer's first token harmful and safe requests lie {metrics[0]} "
        "apart (Bhattacharyya distance, geometric mean over splits), at the end of the user's turn "
        f"{metrics[1]}.",
        metrics=metrics,
        advice="",
    )


def _rows(kind: str, group: Sequence[Any]) -> Iterator[Row]:
    """A row of the log for each reply; safe things were asked about directly."""
    for place, reply in enumerate(group):
        thing = reply.request.entity
        yield {
            "id": f"{kind}-{thing.name}-{place}",
            "kind": "direct" if kind == "safe" else kind,
            "entity": thing.name,
            "safety": int(not thing.harmful),
            "prompt": reply.request.prompt[0].content,
            "prefill": reply.request.prefill,
            "expected": thing.answer(),
            "answer": reply.generation.answer,
            "finished": reply.generation.finished,
            "verdict": reply.verdict,
            "log_prob": reply.log_prob,
        }
