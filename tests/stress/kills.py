"""Kills at the moments of writing: what goes on afterwards ends as if it had never been killed."""

import pickle
import random
from itertools import zip_longest
from pathlib import Path

import faults
from forked import call
from verbs import VERBS, fresh

import trueline

SHARES = {"align": 0.3, "diffusion align": 0.25, "evaluate": 0.15, "data difficulty": 0.1,
          "reproduce": 0.1, "diffusion evaluate": 0.1}  # fmt: skip
"""Of all kills, by verb."""
AGAIN = 4
"""Every so many kills, what goes on is killed too."""


def kind_of(path):
    """What a file is, by where it lies."""
    parts, name = Path(path).parts, Path(path).name.lstrip(".")
    if any(part.lstrip(".").startswith("checkpoint-") for part in parts):
        return "checkpoint"
    if "cache" in parts:
        return "cache"
    if name.startswith((".lock", "lock")) or ".lock" in path:
        return "lock"
    if any(part.endswith(".work") for part in parts):
        return "chunk"
    for kind, names in {
        "record": ("run.json", "config.yaml", "manifest.json", "out.manifest", "evaluation.json"),
        "findings": ("findings.json", "before.json", "results.json", "scores.json", "report."),
        "log": ("metrics.jsonl", "judgements", "answers", "prompts", "verdicts", "samples"),
    }.items():
        if name.startswith(names):
            return kind
    return "output"


def reference(verb, inputs, work):
    """An unkilled run: what came of it, and its points of writing."""
    kept = work.parent / f"{verb.name.replace(' ', '-')}.reference"
    newest = max(path.stat().st_mtime for path in Path(trueline.__file__).parent.rglob("*.py"))
    if kept.exists() and kept.stat().st_mtime > newest:  # what was interrupted goes on at once
        return pickle.loads(kept.read_bytes())
    log = work.parent / f"{work.name}.points"
    watched = [fresh(work) / name for name in verb.folders]
    ended = call(verb.begin(inputs), work, before=faults.Points(watched, log))
    assert ended.code == 0, ended.err
    found = faults.read(log)
    again = call(verb.begin(inputs), fresh(work))
    assert again.code == 0, again.err
    result = verb.result(work)
    kept.write_bytes(pickle.dumps((result, found)))
    return result, found


def chosen(points, count, seed=0):
    """So many points, spread over what is written and how; the first of each kind first."""
    groups = {}
    for point in points:
        groups.setdefault(point[1:], []).append(point)
    draw = random.Random(seed)
    for group in groups.values():
        draw.shuffle(group)
    turns = zip_longest(*(groups[name] for name in sorted(groups)))
    return [point for turn in turns for point in turn if point is not None][:count]


def go_on(verb, inputs, work, before=None):
    """What a user does after a kill: --resume once there is a record, else the same command."""
    command = verb.begin(inputs)
    if verb.resumes and (work / "run" / "run.json").exists():
        command = [*command, "--resume"]
    return call(command, work, before=before)


def one(verb, inputs, work, expected, point, number):
    """One kill and what came of it: {"ok": ..., "said": ...}."""
    at, kind, what = point
    watched = [fresh(work) / name for name in verb.folders]
    ended = call(verb.begin(inputs), work, before=faults.Points(watched, at=at))
    row = {"verb": verb.name, "kind": kind, "what": what, "at": at, "kills": int(ended.killed)}
    if ended.code not in (0, -9):
        return {**row, "ok": False, "said": f"exit {ended.code}: {ended.err[-500:]}"}
    if number % AGAIN == AGAIN - 1:
        second = faults.Points(watched, at=1 + at % 23)
        row["kills"] += int(go_on(verb, inputs, work, before=second).killed)
    last = go_on(verb, inputs, work)
    if last.code != 0 and not (verb.done and verb.done in last.err):
        return {**row, "ok": False, "said": f"exit {last.code}: {last.err[-800:]}"}
    try:
        found = verb.result(work)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        return {**row, "ok": False, "said": f"{type(error).__name__}: {error}"}
    wrong = [name for name in expected if found[name] != expected[name]]
    return {**row, "ok": not wrong, "said": f"differs: {wrong}" if wrong else ""}


def plan(total):
    """How many kills of each verb."""
    return {name: max(1, round(share * total)) for name, share in SHARES.items()}


def kills(inputs, work, total, done=(), keep=lambda row: None, verbs=VERBS):
    """All kills that are not done yet, of all verbs by turns; each row is kept when it is known."""
    rows, left = list(done), []
    for name, count in plan(total).items():
        had = {row["at"] for row in rows if row["verb"] == name}
        if name in verbs and len(had) < count:
            expected, found = reference(VERBS[name], inputs, Path(work) / "reference")
            points = chosen([(at, kind, kind_of(path)) for at, kind, path in found], count)
            left += [
                ((number + 1) / count, name, number, point, expected)
                for number, point in enumerate(points)
                if point[0] not in had
            ]
    for _, name, number, point, expected in sorted(left, key=lambda one: one[:2]):
        row = one(VERBS[name], inputs, Path(work) / "killed", expected, point, number)
        rows.append(row)
        keep(row)
    return rows
