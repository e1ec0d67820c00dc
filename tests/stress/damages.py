"""Damage of every kind, changed options, and faults of the machine: recovered, taken by name, or
refused in one line."""

import contextlib
import json
import os
import random
import shutil
import signal
import stat
import time
from pathlib import Path

import faults as points
from forked import call, start
from kills import go_on, reference
from verbs import VERBS, fresh, lines

# --- damage ---------------------------------------------------------------------------------------


def gone(path):
    path.unlink()


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 4
    path.write_bytes(content)


def garbage(path):
    path.write_bytes(b"\x00\xff{[" * 20)


def torn(path):
    with path.open("ab") as file:
        file.write(b'{"step": 99, "key": "x", "lo')


def broken_line(path):
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([content[0][:9] + b"\n", *content[1:]]))


KINDS = [
    ("align", "checkpoint-4/model.safetensors", gone),
    ("align", "checkpoint-4/model.safetensors", cut),
    ("align", "checkpoint-4/model.safetensors", flipped),
    ("align", "checkpoint-4/optimizer.pt", gone),
    ("align", "checkpoint-4/optimizer.pt", cut),
    ("align", "checkpoint-4/optimizer.pt", flipped),
    ("align", "checkpoint-4/scheduler.pt", cut),
    ("align", "checkpoint-4/rng_state.pth", gone),
    ("align", "checkpoint-4/trainer_state.json", cut),
    ("align", "checkpoint-4/identity.json", gone),
    ("align", "checkpoint-4/identity.json", flipped),
    ("align", "checkpoint-4/checksums.json", gone),
    ("align", "checkpoint-4/checksums.json", garbage),
    ("align", "checkpoint-*/optimizer.pt", cut),
    ("align", "run.json", cut),
    ("align", "run.json", gone),
    ("align", "config.yaml", garbage),
    ("align", "metrics.jsonl", torn),
    ("align", "before.json", cut),
    ("align", ".lock", garbage),
    ("align", "../cache/*/*.safetensors", cut),
    ("align", "../cache/*/*.safetensors", garbage),
    ("evaluate", "../cache/answers.jsonl", torn),
    ("evaluate", "../cache/answers.jsonl", broken_line),
    ("evaluate", "evaluation.json", cut),
    ("evaluate", "run.json", garbage),
    ("data difficulty", ".out.jsonl.work/*/*.json", cut),
    ("data difficulty", ".out.jsonl.work/run.json", cut),
    ("reproduce", "runs/*/result.json", cut),
    ("reproduce", "run.json", garbage),
    ("diffusion align", "checkpoint-2/weights.safetensors", flipped),
    ("diffusion align", "checkpoint-2/state.pt", cut),
    ("diffusion align", "../cache/*/*.safetensors", cut),
    ("diffusion evaluate", "images/*/00000.png", cut),
]
"""Verb, file below its folder, and what happens to it."""

SO_FAR = {
    "align": ("open", "checkpoint", "checkpoint-6"),
    "diffusion align": ("rename", "checkpoint", "checkpoint-4"),
    "evaluate": ("line", "cache", "verdicts"),
    "data difficulty": ("rename", "output", "out.jsonl"),
    "reproduce": ("open", "findings", "results.json"),
    "diffusion evaluate": ("rename", "findings", "scores.json"),
}
"""Where each verb is broken off before it is damaged: at the first such point."""


def broken_off(name, inputs, work):
    """A folder in which the verb was killed well on its way, and what an unkilled one gives."""
    verb, kept = VERBS[name], work / f"broken-{name.replace(' ', '-')}"
    expected, found = reference(verb, inputs, work / "reference")
    kind, _, file = SO_FAR[name]
    at = next(
        n
        for n, k, path in found
        if k == kind and (path.endswith(file) or (file in path and name != "data difficulty"))
    )
    watched = [fresh(kept) / folder for folder in verb.folders]
    assert call(verb.begin(inputs), kept, before=points.Points(watched, at=at)).killed
    return kept, expected


def outcome(row, ended, verb, work, expected):
    """Recovered, or refused in one line; anything else is not as it should be."""
    if ended.code == 0:
        found = verb.result(work)
        wrong = [name for name in expected if found[name] != expected[name]]
        return {
            **row,
            "ok": not wrong,
            "outcome": "recovered",
            "said": f"differs: {wrong}" if wrong else "",
        }
    errors = [line for line in ended.lines if line.startswith("error: ")]
    one = ended.code == 2 and len(errors) == 1 and not ended.trace
    said = errors[0] if one else f"exit {ended.code}: {ended.err[-600:]}"
    return {**row, "ok": one, "outcome": "one line", "said": said}


def damages(inputs, work, count, done=(), keep=lambda row: None):
    """Each kind of damage on a fresh copy of a run that was broken off."""
    rows, kinds = list(done), KINDS if count >= 24 else KINDS[:: len(KINDS) // count][:count]
    had = {(row["verb"], row["file"], row["how"]) for row in rows}
    bases = {}
    for name, pattern, how in kinds:
        if (name, pattern, how.__name__) in had:
            continue
        if name not in bases:
            bases[name] = broken_off(name, inputs, Path(work))
        kept, expected = bases[name]
        copy = Path(work) / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(kept, copy)
        found = sorted((copy / "run").glob(pattern))
        row = {"verb": name, "file": pattern, "how": how.__name__, "files": len(found)}
        for path in found:
            how(path)
        if found:
            row = outcome(row, go_on(VERBS[name], inputs, copy), VERBS[name], copy, expected)
        else:
            row |= {"ok": False, "said": "no such file"}
        rows.append(row)
        keep(row)
    return rows


# --- options --------------------------------------------------------------------------------------

CHANGED = [
    ("loss_type", "ipo", "objective.name"),
    ("beta", "0.3", "objective.beta"),
    ("label_smoothing", "0.1", "objective.label_smoothing"),
    ("seed", "7", "seed: "),
    ("learning_rate", "1e-3", "learning_rate: "),
    ("max_length", "9", "max_length: "),
    ("dataset_name", "{}/swapped.jsonl", "data: "),
    ("model_name_or_path", "{}/weaker", "model.policy: "),
    ("per_device_train_batch_size", "2", "effective batch: "),
    ("warmup_steps", "3", "warmup_steps: "),
    ("max_grad_norm", "0.5", "max_grad_norm: "),
    ("max_steps", "8", None),
    ("save_steps", "3", None),
    ("logging_steps", "2", None),
]
"""Option, another value, and what the refusal names; None where it is taken, and said."""


def options(inputs, work, count, done=(), keep=lambda row: None):
    """Each option changed on resuming: refused by name with nothing written, or taken and said."""
    pairs = [json.loads(line) for line in (inputs / "pairs.jsonl").read_text().splitlines()]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs]
    lines(inputs / "swapped.jsonl", swapped)
    kept, _ = broken_off("align", inputs, Path(work))
    rows, had = list(done), {row["option"] for row in done}
    for key, value, named in CHANGED[:count]:
        if key in had:
            continue
        copy = Path(work) / "changed"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(kept, copy)
        command = [str(word) for word in VERBS["align"].begin(inputs)]
        for name, other in ((key, value.format(inputs)), ("disable_tqdm", "false")):
            place = command.index(f"--{name}") if f"--{name}" in command else len(command)
            command[place : place + 2] = [f"--{name}", other]
        before = content(copy)
        ended = call([*command, "--resume"], copy)
        if named is None:
            ok = ended.code == 0 and f"resumed with another {key}: " in ended.err
        else:
            ok = ended.code == 2 and named in ended.err and content(copy) == before
        row = {
            "option": key,
            "outcome": "taken by name" if named is None else "refused by name",
            "ok": ok,
            "said": ended.err[-400:] if not ok else "",
        }
        rows.append(row)
        keep(row)
    return rows


def content(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock" and "cache" not in path.parts
    }


# --- the machine ----------------------------------------------------------------------------------


def disk_full(name, inputs, work):
    """From the middle of its writes on there is no room; with room again it goes on."""
    verb = VERBS[name]
    expected, found = reference(verb, inputs, work / "reference")
    copy = fresh(work / "full")
    watched = [copy / folder for folder in verb.folders]
    full = points.Points(watched, at=len(found) // 2, do="full")
    ended = call(verb.begin(inputs), copy, before=full)
    row = outcome({}, ended, verb, copy, expected)
    if ended.code == 0:
        return {"ok": True, "said": "what found no room was a cache, and is not needed"}
    if not row["ok"]:
        return row
    return outcome({}, go_on(verb, inputs, copy), verb, copy, expected)


def read_only(name, inputs, work):
    """Another user's folder, which only may be read."""
    copy = fresh(work / "read-only")
    (copy / "run").mkdir()
    (copy / "run").chmod(0o555)
    ended = call(VERBS[name].begin(inputs), copy, before=lambda: nobody(copy))
    return outcome({}, ended, VERBS[name], copy, {})


def nobody(work):
    """Become a user who may write in a folder, and read what all may read."""
    os.environ.update(HOME=str(work), USER="nobody", LOGNAME="nobody")
    os.chmod(work, 0o777)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def others_cache(name, inputs, work):
    """Another user's cache: what may not be read is made again, and nothing there is touched."""
    verb = VERBS[name]
    expected, _ = reference(verb, inputs, work / "reference")
    copy = fresh(work / "cached")
    assert call(verb.begin(inputs), copy).code == 0
    shutil.rmtree(copy / "run")
    for path in (copy / "cache").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o600)
    before = content(copy / "cache") | {
        p: stat.S_IMODE(p.stat().st_mode) for p in copy.rglob("*.safetensors")
    }
    ended = call(verb.begin(inputs), copy, before=lambda: nobody(copy))
    after = content(copy / "cache") | {
        p: stat.S_IMODE(p.stat().st_mode) for p in copy.rglob("*.safetensors") if p in before
    }
    if any(after.get(path) != value for path, value in before.items()):
        return {"ok": False, "said": "the other's cache was touched"}
    return outcome({}, ended, verb, copy, expected)


def two_at_once(name, inputs, work):
    """The second is refused by the first's process; the first is not disturbed."""
    verb = VERBS[name]
    expected, _ = reference(verb, inputs, work / "reference")
    copy = fresh(work / "two")
    first = start(verb.begin(inputs), copy)
    lock = copy / "run" / (".out.jsonl.work" if name.startswith("data") else "") / ".lock"
    until = time.monotonic() + 60
    while not lock.exists() and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = call(verb.begin(inputs), copy, said="second")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    ended = first.wait()
    told = f"in use by process {first.pid} on " in second.err and second.code == 2
    if not told:
        return {"ok": False, "said": f"second: exit {second.code} {second.err[-400:]}"}
    return outcome({}, ended, verb, copy, expected)


def clock_back(name, inputs, work):
    """Killed, and gone on with a clock that is a day behind."""
    kept, expected = broken_off(name, inputs, work)

    def earlier():
        now, show = time.time, time.strftime
        time.time = lambda: now() - 86_400
        time.strftime = lambda form, at=None: show(form, at or time.localtime(now() - 86_400))

    ended = go_on(VERBS[name], inputs, kept, before=earlier)
    return outcome({}, ended, VERBS[name], kept, expected)


def cases():
    yield from ((disk_full, name) for name in VERBS)
    yield from ((two_at_once, name) for name in VERBS)
    yield from ((read_only, name) for name in ("align", "evaluate", "diffusion align"))
    yield from ((others_cache, name) for name in ("align", "diffusion align"))
    yield from ((clock_back, name) for name in ("align", "evaluate", "diffusion align"))


def faults(inputs, work, count, done=(), keep=lambda row: None):
    """Each fault of the machine for the verbs that it may meet."""
    rows, every = list(done), list(cases())
    some = every if count >= 12 else every[:: max(1, len(every) // count)][:count]
    had = {(row["fault"], row["verb"]) for row in rows}
    for fault, name in some:
        row = {"fault": fault.__name__.replace("_", " "), "verb": name}
        if (row["fault"], name) in had:
            continue
        try:
            row |= fault(name, inputs, Path(work))
        except (OSError, ValueError, KeyError, AssertionError, StopIteration) as error:
            row |= {"ok": False, "said": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(FileNotFoundError):
            os.chmod(Path(work) / "read-only" / "run", 0o755)
        rows.append(row)
        keep(row)
    return rows
