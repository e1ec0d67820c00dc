"""Standard tasks by EleutherAI's lm-eval: its tasks, its way of asking and scoring, our model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.backends.base import Decoding, Request
from trueline.evaluation.harness.store import Store, digest
from trueline.evaluation.plugins import split_unless_escaped
from trueline.evaluation.utility.base import Measurement, UtilityContext, utility, write_log
from trueline.processes import started
from trueline.records import Message
from trueline.results import Finding, Metric
from trueline.stats import rate

NAME = "lm-eval"
KEPT = "tasks"
"""What each task came to is kept in the evaluation's folder, or in its cache, under this name."""
RESAMPLES = 1000
"""Of lm-eval's bootstrap, for measures that have no closed standard error."""
Z = 1.959963984540054


@utility("lm-eval")
def lm_eval(
    tasks: str,
    *,
    include: str | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> Measurement:
    """Tasks of lm-eval, with intervals: ``lm-eval=arc_easy+hellaswag``; extra ``lm-eval``.

    A local model is asked through lm-eval's own adapter, a server through its chat, where only
    tasks that generate text can be asked. What a task came to is kept: the same command measures
    only tasks that are missing. Published figures are mostly without ``chat``.

    Args:
        tasks: their names, joined with ``+``; groups of tasks, too.
        include: a folder with tasks of your own, as lm-eval's YAML files.
        fewshot: examples before each question; each task's own number where not given.
        limit: only so many questions of each task.
        chat: ask through the chat template, with the examples as turns.

    Raises:
        UserError: the extra is missing, an unknown task, or a folder that is not there.

    Source: Gao et al., "The Language Model Evaluation Harness", doi 10.5281/zenodo.12608602.
    """
    names = [name.strip() for name in split_unless_escaped(tasks, "+") if name.strip()]
    if fewshot is not None and fewshot < 0:
        raise UserError(f"lm-eval: fewshot must be at least 0, got {fewshot}")
    if limit is not None and limit < 1:
        raise UserError(f"lm-eval: limit must be at least 1, got {limit}")
    manager = _manager(names, include)
    how = {"fewshot": fewshot, "limit": limit, "chat": chat, "own": _own(include)}

    def measure(context: UtilityContext) -> Finding:
        if started() > 1:
            raise UserError("lm-eval runs in one process here; evaluate it apart")
        store = Store(context.cache, KEPT)
        facts = {**how, "version": _version(), **context.setup.model_facts}
        told, model = context.watch(NAME), None
        found: dict[str, Mapping[str, Any]] = {}
        for done, name in enumerate(names):
            key = digest([name, facts])
            if key not in store:
                model = model or _model(context, chat)
                store.add(key, _measured(model, name, manager, context, how))
            found[name] = store[key]
            told(done + 1, len(names))
        write_log(context.folder, NAME, [row for own in found.values() for row in own["rows"]])
        return _finding(found, how)

    return measure


def _manager(names: Sequence[str], include: str | None) -> Any:
    """What knows the tasks: those of the folder, and lm-eval's own only where they are asked for,
    since there are thousands to look through."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError("lm-eval needs the extra: pip install 'trueline[lm-eval]'") from None
    if include is not None and not Path(include).is_dir():
        raise UserError(f"lm-eval: {include} is no folder of tasks")
    unknown = list(names)
    for defaults in (False, True):
        manager = TaskManager(include_path=include, include_defaults=defaults)
        unknown = [name for name in names if name not in manager.all_tasks]
        if names and not unknown:
            return manager
    where = f" (nor in {include})" if include else "; include=FOLDER names your own"
    raise UserError(f"lm-eval knows no task {', '.join(unknown) or 'without a name'}{where}")


def _own(include: str | None) -> str | None:
    """The content of the user's own tasks, whatever the folder is called."""
    if include is None:
        return None
    files = sorted(path for path in Path(include).rglob("*") if path.is_file())
    return digest([[path.name, path.read_bytes().hex()] for path in files])


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")


def _measured(
    model: Any, name: str, manager: Any, context: UtilityContext, how: Mapping[str, Any]
) -> dict[str, Any]:
    """What lm-eval says of one task or group, as it is kept."""
    from lm_eval import simple_evaluate

    try:
        said = simple_evaluate(
            model=model,
            tasks=[name],
            num_fewshot=how["fewshot"],
            limit=how["limit"],
            bootstrap_iters=RESAMPLES,
            log_samples=True,
            system_instruction=context.setup.system,
            apply_chat_template=how["chat"],
            fewshot_as_multiturn=how["chat"],
            task_manager=manager,
            verbosity="ERROR",
        )
    except (OSError, ConnectionError, ValueError, KeyError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"lm-eval cannot measure {name}: {line}") from error
    assert said is not None
    rows = [_row(task, sample) for task, samples in said["samples"].items() for sample in samples]
    results = {task: _plain(values) for task, values in said["results"].items()}
    return {"results": results, "versions": _plain(said.get("versions", {})), "rows": rows}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _row(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """One question as the log has it: which it is, what was expected and said, its scores."""
    scores = {name: sample[name] for name in sample.get("metrics", ()) if name in sample}
    kept = {name: sample.get(name) for name in ("doc_id", "filter", "target", "filtered_resps")}
    row: dict[str, Any] = _plain({"task": task, **kept, "scores": scores})
    return row


def _finding(found: Mapping[str, Mapping[str, Any]], how: Mapping[str, Any]) -> Finding:
    metrics = [
        _metric(task, name, values, own["rows"])
        for own in found.values()
        for task, values in own["results"].items()
        for name in values
        if "," in name and "_stderr," not in name and isinstance(values[name], int | float)
    ]
    asked = "through the chat template" if how["chat"] else "in plain text"
    shots = "each task's own number of" if how["fewshot"] is None else str(how["fewshot"])
    some = "" if how["limit"] is None else f", the first {how['limit']} questions of each"
    said = "; ".join(f"{m.name} {m}" for m in metrics)
    return Finding(
        NAME,
        f"By lm-eval {_version()}, asked {asked} with {shots} examples{some}: {said}.",
        metrics,
    )


def _metric(
    task: str, name: str, values: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Metric:
    """A score with its interval: Wilson's where every question is right or wrong, else lm-eval's
    standard error on either side."""
    score, _, filtered = name.partition(",")
    title = f"{task}, {score}" + ("" if filtered == "none" else f", {filtered}")
    own = [
        row["scores"].get(score)
        for row in rows
        if row["task"] == task and row["filter"] == filtered
    ]
    value = float(values[name])
    right = sum(bool(one) for one in own)
    if own and all(one in (0, 1) for one in own) and math.isclose(value, right / len(own)):
        return rate(title, right, len(own))
    spread = values.get(f"{score}_stderr,{filtered}")
    known = isinstance(spread, int | float) and math.isfinite(spread)
    low, high = (value - Z * spread, value + Z * spread) if known else (None, None)  # type: ignore[operator]
    return Metric(title, value, low, high, len(own) or None)


def _model(context: UtilityContext, chat: bool) -> Any:
    """The evaluated model as lm-eval sees one."""
    backend = context.setup.backend
    if backend.local is None:
        return _served(context, chat)
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = backend.local
    size = getattr(backend, "batch_size", 8)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)


def _served(context: UtilityContext, chat: bool) -> Any:
    """A server as lm-eval sees a model: it generates, and tells no log-probs."""
    from lm_eval.api.model import LM

    if not chat:
        raise UserError("lm-eval: a chat server takes conversations; say chat=true")

    class Served(LM):
        """Asks the backend, and keeps its answers with the evaluation's own."""

        tokenizer_name = "served"

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return _answers(context, [request.args[:2] for request in requests])

        def apply_chat_template(self, chat_history: Any, **_: Any) -> str:
            return json.dumps(chat_history)

        def loglikelihood(self, requests: Any, **_: Any) -> Any:
            raise UserError(
                "this task compares log-probs, which a chat server does not tell; load the model "
                "locally, or take a task that generates"
            )

        loglikelihood_rolling = loglikelihood

    return Served()


def _answers(context: UtilityContext, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A server's answers, up to the first of the words that end one."""
    requests: dict[Decoding, list[int]] = {}
    for place, (_, how) in enumerate(asked):
        requests.setdefault(_decoding(context, how), []).append(place)
    found = [""] * len(asked)
    for decoding, places in requests.items():
        turns = [tuple(Message(**turn) for turn in json.loads(asked[i][0])) for i in places]
        said = context.ask(context.setup.backend, [Request(t) for t in turns], decoding, NAME)
        for place, answer in zip(places, said, strict=True):
            found[place] = _until(answer.text, asked[place][1].get("until") or [])
    return found


def _decoding(context: UtilityContext, how: Mapping[str, Any]) -> Decoding:
    limit = how.get("max_gen_toks") or how.get("max_new_tokens") or 256
    sampled = how.get("do_sample") and how.get("temperature")
    return Decoding(int(limit), float(how["temperature"]) if sampled else 0.0, context.setup.seed)


def _until(text: str, ends: str | Sequence[str]) -> str:
    places = [text.find(end) for end in ([ends] if isinstance(ends, str) else ends) if end]
    return text[: min([place for place in places if place >= 0], default=len(text))]
