"""What `trueline evaluate` does: options to a setup, one folder a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from trueline import plugins
from trueline.evaluation.harness.summarize import FIRST
from trueline.interrupts import Signals
from trueline.processes import rank
from trueline.runs import record, state
from trueline.runs.run import Run
from trueline.terminal import watching

if TYPE_CHECKING:
    from trueline.evaluation.backends import Backend
    from trueline.evaluation.harness.setup import Setup
    from trueline.evaluation.utility.base import Measurement
    from trueline.results import Finding

__all__ = ["DEFAULTS", "FIRST", "build_setup", "by_label", "evaluate", "export"]
__all__ += ["read_options", "run_evaluation"]

Show: TypeAlias = "Callable[[str, Sequence[Finding], Sequence[str], Path], None]"

DEFAULTS: Mapping[str, Any] = {
    "model": [],
    "benchmark": [],
    "attack": ["direct"],
    "judge": ["phrases"],
    "utility": [],
    "output": None,
    "cache": None,
    "backend": None,
    "base_url": None,
    "dtype": None,
    "batch_size": None,
    "max_new_tokens": 512,
    "temperature": 0.0,
    "system": None,
    "plain": False,
    "limit": None,
    "seed": 0,
    "import": [],
}
"""Every option, here and as a key of the configuration file."""

LISTS = ("model", "benchmark", "attack", "judge", "utility", "import")


def read_options(config: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults, under the file's options, under the command line's.

    Raises:
        UserError: no such file, no YAML mapping, or an unknown key.
    """
    import yaml

    from trueline.errors import UserError
    from trueline.registry import nearest

    from_file: Any = {}
    if config is not None:
        try:
            from_file = yaml.safe_load(config.read_text("utf-8")) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{config} cannot be read: {str(error).splitlines()[0]}") from None
        if not isinstance(from_file, dict):
            raise UserError(f"{config} must hold key: value lines")
    for key in from_file:
        if key not in DEFAULTS:
            raise UserError(f"{config}: unknown key {key!r}{nearest(str(key), DEFAULTS)}")
    options = {**DEFAULTS, **from_file, **given}
    for key in LISTS:
        if not isinstance(options[key], list):
            options[key] = [options[key]]
    if not options["model"]:
        raise UserError("give at least one --model")
    if not options["benchmark"] and not options["utility"]:
        raise UserError("give at least one --benchmark or --utility; --list shows them")
    return options


def evaluate(
    model: Any, *, config: str | Path | None = None, quiet: bool = True, **given: Any
) -> Run:
    """Evaluate a model: benchmark x attack x judge, and what it is still good for.

    Args:
        model: a folder, a hub id, a server's name for it, or a run, whose evaluation is then kept
            below it unless ``output`` says otherwise.
        config: a YAML file of options.
        quiet: keep progress back.
        given: the options of `trueline evaluate` by name: benchmark, attack, judge, utility, ...

    Returns:
        The evaluation's folder as a run.

    Example:
        >>> evaluate(run, benchmark="advbench=goals.csv", attack=["direct", "prefill"],
        ...          judge="phrases")  # doctest: +SKIP
    """
    if isinstance(model, record.Run):
        given = {"output": str(model.path / "evaluation"), **given}
    options = read_options(
        None if config is None else Path(config), {**given, "model": [os.fspath(model)]}
    )
    return Run(run_evaluation(options, quiet=quiet)["models"][0]["output"])


def run_evaluation(
    options: Mapping[str, Any], *, quiet: bool = False, show: Show | None = None
) -> dict[str, Any]:
    """Everything `trueline evaluate` does; returns what it prints as JSON.

    ``show`` is called for each model when it is done: name, findings, notes, folder.
    """
    import transformers

    from trueline.errors import UserError

    transformers.utils.logging.disable_progress_bar()
    plugins.load(options["import"])
    models = [str(name) for name in options["model"]]
    names = [name.rstrip("/").rsplit("/", 1)[-1] for name in models]
    if len(set(names)) < len(names):
        raise UserError(f"two models are called alike ({', '.join(names)}); evaluate them apart")
    root = Path(options["output"]) if options["output"] else None
    results = []
    with Signals("this batch"):
        for model, name in zip(models, names, strict=True):
            folder = root or Path("runs/evaluate") / name
            if root is not None and len(models) > 1:
                folder = root / name
            with contextlib.ExitStack() as stack:
                if rank() == 0:
                    stack.enter_context(state.held(folder))
                results.append(_one_model(model, name, folder, options, quiet=quiet, show=show))
    return {"models": results}


def _one_model(
    model: str,
    name: str,
    folder: Path,
    options: Mapping[str, Any],
    *,
    quiet: bool,
    show: Show | None,
) -> dict[str, Any]:
    from trueline.evaluation.backends import open_backend
    from trueline.evaluation.harness.run import evaluate as run
    from trueline.evaluation.harness.setup import claim_folder
    from trueline.evaluation.harness.summarize import findings, write_samples
    from trueline.evaluation.utility import UtilityContext

    def backend() -> Backend:
        return open_backend(
            model,
            options["backend"],
            base_url=options["base_url"],
            dtype=options["dtype"],
            batch_size=options["batch_size"],
        )

    measurements = _measurements(options)  # before any work: bad input must not come late
    setup = build_setup(backend, options)
    cache = Path(options["cache"]) if options["cache"] else None
    found: list[Finding] = []
    notes: Sequence[str] = ()
    with watching(quiet or rank() > 0) as watch:
        if rank() == 0:
            claim_folder(folder, setup)
            what = [*setup.benchmarks, *(str(value) for value in options["utility"])]
            facts = {**setup.model_facts, **setup.part_facts}
            state.created(Run(folder), "evaluate", data=", ".join(what), identity=facts)
            state.reached(Run(folder), state.State.WORKING)
        if setup.benchmarks:
            evaluation = run(setup, folder, cache=cache, watch=watch)
            found = findings(evaluation, seed=setup.seed)
            notes = evaluation.notes
            if rank() == 0:
                write_samples(folder, evaluation.rows, name)
        context = UtilityContext(setup, folder, cache or folder, watch)
        found += [measure(context) for measure in measurements]
    if rank() == 0:
        Run.create(folder).save(found)
        _write_facts(folder, model, setup, options)
        if show is not None:
            show(name, found, notes, folder)
    return {
        "model": model,
        "output": str(folder),
        "findings": [finding.to_dict() for finding in found],
        "notes": list(notes),
    }


def export(run: str | Path, output: str | Path) -> tuple[Path, int]:
    """Write an evaluation's log as an Inspect .eval file; its path, and how many rows it holds."""
    from trueline.evaluation.comparison import load_judged_run
    from trueline.evaluation.inspect_log import export_inspect

    judged = load_judged_run(Path(run))
    return export_inspect(judged, Path(output)), len(judged.judgements)


def build_setup(backend: Callable[[], Backend], options: Mapping[str, Any]) -> Setup:
    """Benchmarks, attacks and judges by the names and options given; the model is opened last."""
    import trueline.reproduce.truth  # noqa: F401  (registers the sandbox's exact judge)
    from trueline.evaluation.attacks import open_attack
    from trueline.evaluation.backends import Decoding
    from trueline.evaluation.benchmarks import BENCHMARKS, limited
    from trueline.evaluation.harness.setup import Setup
    from trueline.evaluation.judges import JUDGES

    benchmarks = by_label("benchmark", BENCHMARKS, options["benchmark"])
    limit = options["limit"]
    if limit is not None:
        benchmarks = {label: limited(b, int(limit)) for label, b in benchmarks.items()}
    attacks = [open_attack(value) for value in options["attack"]]
    judges = by_label("judge", JUDGES, options["judge"]) if benchmarks else {}
    return Setup(
        backend(),
        benchmarks,
        judges,
        attacks,
        Decoding(options["max_new_tokens"], options["temperature"], options["seed"]),
        options["system"],
        bool(options["plain"]),
        options["seed"],
    )


def by_label(kind: str, registry: Any, values: Sequence[Any]) -> dict[str, Any]:
    from trueline.errors import UserError
    from trueline.evaluation.plugins import parse_spec

    made: dict[str, Any] = {}
    for value in values:
        spec = parse_spec(value)
        if spec.label in made:
            raise UserError(f"two {kind}s are called {spec.label!r}; give one a label=...")
        made[spec.label] = registry[spec.name].of(spec)
    return made


def _measurements(options: Mapping[str, Any]) -> list[Measurement]:
    """The utility measures by the names and options given."""
    from trueline.evaluation.plugins import parse_spec
    from trueline.evaluation.utility import UTILITIES

    specs = [parse_spec(value) for value in options["utility"]]
    return [UTILITIES[spec.name].of(spec) for spec in specs]


def _write_facts(folder: Path, model: str, setup: Setup, options: Mapping[str, Any]) -> None:
    """Configuration and manifest: what it takes to do this again."""
    run, facts = Run(folder), setup.model_facts
    run.write_config({**options, "model": model})
    run.write_manifest(
        command="trueline evaluate",
        model=facts["model"],
        system_prompt=facts["system"],
        template_hash=facts["template_hash"],
        decoding=facts["decoding"],
        seed=setup.seed,
        judges={label: dict(judge.facts) for label, judge in setup.judges.items()},
    )
