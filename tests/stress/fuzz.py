"""Configurations and data files drawn at random, through the command line: taken as they say, or
refused in one line; nothing counted wrongly, nothing dropped silently, no traceback.

A configuration that is accepted stops where training would begin: options, data, model, tokenizer
and trainer have been read and built by then.
"""

import csv
import dataclasses
import functools
import gzip
import io
import json
import math
import os
import random
import shutil
import sys
import traceback
from pathlib import Path

import yaml

BATCH = 50
"""Cases that one forked child does, one after the other."""

# --- configurations -------------------------------------------------------------------------------

ODD = [
    "",
    " ",
    "{",
    "[",
    "]",
    "'",
    '"',
    ":",
    "a: b: c",
    "*x",
    "&x",
    "%",
    "@a",
    "`",
    "!!python/object:os.system",
    "null",
    "~",
    "true",
    "False",
    "yes",
    "no",
    "0",
    "1",
    "-1",
    "2",
    "3",
    "0.5",
    "1e-3",
    "1e400",
    "-1e400",
    ".nan",
    "nan",
    ".inf",
    "-.inf",
    "inf",
    "1_000",
    "0x10",
    "007",
    "1,2",
    "[1, 2]",
    "{a: 1}",
    "None",
    "x",
    "é",
    "\u202eabc",
    "a\x1b[31mb",
    "a\nb",
    "a\tb",
    "ü" * 300,
    "9" * 40,
    "-0",
    "1.5",
    "100000000000000000000",
    "dpo",
    "kto",
    "auto",
    "all-linear",
    "bfloat16",
    "float32",
    "steps",
    "epoch",
    "best",
    "cosine",
    "linear",
]
SAFE_PLACES = {"output_dir", "logging_dir", "reference_cache", "cache_dir", "encoded_cache"}
"""Keys whose value is a place: random text is kept below the working folder."""
LEFT_OUT = {
    "push_to_hub",
    "hub_model_id",
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "torch_compile",
    "debug",
    "dataloader_num_workers",
    "dataset_num_proc",
    "ddp_backend",
    "local_rank",
    "ddp_timeout",
}
"""Keys that begin other processes, or speak to the network."""


def known_keys():
    """Every key of `trueline align`: ours, the Trainer's, the model's, the data's, objectives'."""
    from trueline.config import AlignmentConfig, DataArguments, ModelArguments
    from trueline.objectives import OBJECTIVES

    keys = {
        field.name: field.type
        for config in (AlignmentConfig, ModelArguments, DataArguments)
        for field in dataclasses.fields(config)
        if field.init
    }
    keys |= {name: "float" for spec in OBJECTIVES.values() for name in spec.options}
    return {name: str(kind) for name, kind in keys.items() if name not in LEFT_OUT}


def sensible(key, kind, draw):
    """A value such as the key may well have."""
    if "bool" in kind:
        return draw.choice(["true", "false"])
    if "int" in kind and "float" not in kind:
        return str(draw.choice([1, 2, 3, 4, 8, 16, 64]))
    if "float" in kind:
        return str(draw.choice([0.0, 0.01, 0.1, 0.5, 0.9, 1.0, 2.0]))
    return draw.choice(["none", "no", "steps", "epoch", "linear", "cosine", "default", "x"])


def configuration(seed, inputs, keys, objectives):
    """Words of a command line, a file for --config or None, and the options that were drawn."""
    draw = random.Random(seed)
    options = {
        "model_name_or_path": str(inputs / "model"),
        "dataset_name": str(inputs / "pairs.jsonl"),
        "loss_type": draw.choice(objectives),
        "output_dir": f"run{seed}",
        "max_steps": "1",
        "use_cpu": "true",
        "report_to": "none",
        "reference_cache": "none",
        "disable_tqdm": "true",
        "gradient_checkpointing": "false",
    }
    if draw.random() < 0.3:
        options["test_size"] = "0.25"
    drawn = {}
    for _ in range(draw.choice([1, 1, 2, 3, 5])):
        key = draw.choice(sorted(keys))
        value = sensible(key, keys[key], draw) if draw.random() < 0.5 else draw.choice(ODD)
        if key in SAFE_PLACES:
            value = f"place{value}".replace("/", "_").replace("\0", "")
        if draw.random() < 0.04:  # misspelled
            key = key[:-1] or "q"
        drawn[key] = value
    options |= drawn
    words = [w for key, value in options.items() for w in (f"--{key}", value)]
    file = None
    if draw.random() < 0.4:  # in a file, as YAML or broken
        kept = {key: options.pop(key) for key in list(options) if draw.random() < 0.7}
        words = [w for key, value in options.items() for w in (f"--{key}", value)]
        loose = {key: _yaml(value) for key, value in kept.items()}
        file = yaml.safe_dump(loose, allow_unicode=True).encode("utf-8", "surrogatepass")
        if draw.random() < 0.15:
            at = draw.randrange(len(file) + 1)
            file = (
                file[:at]
                + draw.choice([b"{", b"\xff", b"\t- a", b": :", b"\x00", b"'"])
                + file[at:]
            )
    if draw.random() < 0.03:
        words += draw.choice(
            [["--"], ["--beta"], ["stray"], ["--seed", "1", "--seed", "2"], ["-x"]]
        )
    return ["align", *words], file, drawn


def _yaml(text):
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str | int | float | bool | list | dict | None) else text


class Began(SystemExit):
    """Training would begin now."""


def stop_where_training_begins(seen):
    """The trainer raises when it is asked to begin; its arguments are left in ``seen``."""
    from trueline.training import AlignmentTrainer

    def begin(self, *_):
        seen.append(self)
        raise Began(0)

    AlignmentTrainer.begin = begin


def one_configuration(seed, inputs, keys, objectives, seen):
    """What came of one: {"ok", "outcome", "said"}."""
    words, file, drawn = configuration(seed, inputs, keys, objectives)
    if file is not None:
        Path("drawn.yaml").write_bytes(file)
        words = [*words, "--config", "drawn.yaml"]
    seen.clear()
    code, err = in_this_process(words)
    row = {"seed": seed, "outcome": "accepted" if seen else "refused"}
    if seen and code == 0:
        lost = ignored(seen[0], drawn, words, err)
        return {**row, "ok": not lost, "said": f"ignored: {lost}" if lost else ""}
    errors = [line for line in err.splitlines() if line.startswith(("error: ", "Error: "))]
    usage = "No such option" in err or "no such option" in err or "Usage:" in err
    ok = code == 2 and (len(errors) == 1 or usage) and "Traceback" not in err and not seen
    return {**row, "ok": ok, "said": "" if ok else f"exit {code}: {err[-500:]} {words}"}


def ignored(trainer, drawn, words, err):
    """Drawn options that are not what the trainer has, and of which nothing was said."""
    lost = []
    for key, text in drawn.items():
        if not hasattr(trainer.args, key) or key in CHANGED_BY_DESIGN or key in err:
            continue
        has, value = getattr(trainer.args, key), _yaml(text)
        has = getattr(has, "value", has)
        has = has[0] if isinstance(has, list) and len(has) == 1 else has
        same = has == value or str(has) in (text, str(value)) or WORDS.get(has, has) == value
        same = same or (_number(has) == _number(text) is not None)
        if not same and not (has is None and value in (None, "none", "None")):
            lost.append(f"{key}={text!r} is {has!r}")
    return lost


WORDS = {"no": False, "all": True}
"""The Trainer's words for switches that have become more."""
CHANGED_BY_DESIGN = {
    "gradient_accumulation_steps",
    "output_dir",
    "report_to",
    "loss_type",
    "logging_dir",
    "run_name",
}
"""The engine accumulates; places are made absolute; a list of one is its member."""


def _number(value):
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


@functools.cache
def built_once():
    """The command line's entry point; its parser, which hardly any case changes, is built once."""
    import typer

    from trueline.cli import app

    app.app = typer.main.get_command(app.app)
    return app.main


def in_this_process(words):
    """``trueline WORDS`` here: its exit code and what it said on stderr."""
    main = built_once()
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdout, sys.stderr, sys.argv
    sys.stdout, sys.stderr, sys.argv = out, err, ["trueline", *words]
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        code = 99
        err.write(traceback.format_exc())
    finally:
        sys.stdout, sys.stderr, sys.argv = before
    in_this_process.out = out.getvalue()
    return code, err.getvalue()


def configs(inputs, work, count, done=(), keep=lambda row: None):
    """So many configurations, in batches of a forked child each."""
    from trueline.objectives import OBJECTIVES

    keys, objectives = known_keys(), sorted(OBJECTIVES)

    def batch(seeds):
        seen = []
        stop_where_training_begins(seen)
        for seed in seeds:
            yield one_configuration(seed, inputs, keys, objectives, seen)
            shutil.rmtree(f"run{seed}", ignore_errors=True)

    return in_batches(batch, Path(work) / "configs", count, done, keep)


def in_batches(batch, folder, count, done, keep):
    """Rows of all seeds, each batch of them in a child and a folder of its own."""
    rows = list(done)
    had = {row["seed"] for row in rows}
    left = [seed for seed in range(count) if seed not in had]
    while left:
        seeds, left = left[:BATCH], left[BATCH:]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log = folder.parent / f"{folder.name}.rows"
        log.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            with log.open("w") as file:
                for row in batch(seeds):
                    file.write(json.dumps(row) + "\n")
                    file.flush()
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        made = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if status != 0 and len(made) < len(seeds):  # the child itself fell over at that one
            made.append(
                {"seed": seeds[len(made)], "ok": False, "said": f"the process ended: {status}"}
            )
            left = [*seeds[len(made) :], *left]
        for row in made:
            rows.append(row)
            keep(row)
    return rows


# --- data files -----------------------------------------------------------------------------------

TEXTS = [
    "why ?",
    "yes",
    "no",
    "the sea is blue",
    "é ü 漢字",
    "a\nb",
    "a\u2028b",
    "  x ",
    "0",
    "null",
    "</s>",
    '"quoted"',
    "a,b;c\td",
    "\U0001f600",
    "\u202egnp",
    "<b>x</b>",
    "NaN",
    "-",
]
BAD_VALUES = ["", None, 3, 1.5, True, [], {}, [1], {"a": 1}, "   "]


def good_row(form, draw):
    """A row that is right, of a form; prompts are told apart by a number."""
    prompt = f"{draw.choice(TEXTS)} {draw.randrange(10**9)}"
    a = f"yes {draw.choice(TEXTS)}"
    b = f"{draw.choice(['no', 'never', 'sorry'])} {draw.choice(TEXTS)}"
    if form == "preference":
        return {"prompt": prompt, "chosen": a, "rejected": b}
    if form == "unpaired":
        return {"prompt": prompt, "completion": a, "label": draw.random() < 0.5}
    if form == "sft":
        return {"prompt": prompt, "completion": a}
    turn = {"role": "user", "content": prompt}
    return {
        "prompt": [turn],
        "chosen": [{"role": "assistant", "content": a}],
        "rejected": [{"role": "assistant", "content": b}],
    }


def spoiled(row, draw):
    """The row with one thing wrong."""
    row = dict(row)
    key = draw.choice(list(row))
    how = draw.randrange(4)
    if how == 0:
        del row[key]
    elif how == 1:
        row[key] = draw.choice(BAD_VALUES)
    elif how == 2 and isinstance(row[key], list):
        row[key] = [{**row[key][0], "role": draw.choice(["sys", "", None, "tool"])}]
    else:
        row[key] = "" if isinstance(row[key], str) else draw.choice(BAD_VALUES)
    return row


def data_file(seed, folder):
    """A file; how many rows it has, where that is plain, and the prompts of its good ones."""
    draw = random.Random(seed)
    form = draw.choice(["preference", "unpaired", "sft", "conversation"])
    rows, good = [], []
    for _ in range(draw.choice([0, 1, 2, 5, 9, 12])):
        row = good_row(form, draw)
        bad = draw.random() < 0.2
        rows.append(spoiled(row, draw) if bad else row)
        if not bad:
            prompt = row["prompt"]
            good.append(prompt if isinstance(prompt, str) else prompt[0]["content"])
    kind = draw.choice(["jsonl", "jsonl", "jsonl", "json", "csv", "jsonl.gz"])
    if form == "conversation" and kind == "csv":
        kind = "jsonl"
    path, count = folder / f"drawn{seed}.{kind}", len(rows)
    if kind == "csv":
        path.write_bytes(_csv(rows, form).encode("utf-8", "surrogatepass"))
        return path, None, [] if any(set(r) != set(rows[0]) for r in rows) else None
    if kind == "json":
        path.write_bytes(json.dumps(rows, ensure_ascii=draw.random() < 0.5).encode())
        return path, count, good
    ascii_only, end = draw.random() < 0.5, draw.choice(["\n", "\n", "\n", "\r\n"])
    text = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    broken = 0
    while draw.random() < 0.2:
        line = draw.choice(
            ["{", "[1]", "3", '{"prompt": ', "null", '"x"', "{'a': 1}", "\x00", "NaN"]
        )
        text.insert(draw.randrange(len(text) + 1), line)
        broken += 1
    while draw.random() < 0.1:
        text.insert(draw.randrange(len(text) + 1), "")
    content = (end.join(text) + (end if draw.random() < 0.8 else "")).encode(
        "utf-8", "surrogatepass"
    )
    if draw.random() < 0.05:
        content = b"\xef\xbb\xbf" + content
    spoilt = draw.random() < 0.06
    if spoilt:
        at = draw.randrange(len(content) + 1)
        content = draw.choice([content[:at], content[:at] + b"\xff\xfe" + content[at:]])
    path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    return path, None if spoilt else count + broken, None if spoilt else good


def _csv(rows, form):
    names = list(good_row(form, random.Random(0)))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def one_file(seed):
    """What came of one file: strict, then with bad rows left out and counted."""
    path, count, good = data_file(seed, Path())
    out = Path(f"out{seed}.jsonl")
    wrong = []
    code, err = in_this_process(["data", "inspect", str(path), "--json"])
    if code not in (0, 2) or "Traceback" in err or (code == 2 and not _one_line(err)):
        wrong.append(f"inspect: exit {code}: {err[-300:]}")
    strict = code
    code, err = in_this_process(
        ["data", "convert", str(path), str(out), "--to", "example", "--skip-bad", "--json"]
    )
    if code == 0:
        wrong += _miscounted(json.loads(in_this_process.out), out, count, good, strict)
    elif code != 2 or not _one_line(err) or "Traceback" in err:
        wrong.append(f"convert: exit {code}: {err[-300:]}")
    elif good and "no common prompt" not in err:  # the first row, which says the form, has none
        wrong.append(f"convert refused {len(good)} good rows: {err[-200:]}")
    path.unlink()
    out.unlink(missing_ok=True)
    return {
        "seed": seed,
        "ok": not wrong,
        "outcome": "read" if code == 0 else "refused",
        "said": "; ".join(wrong),
    }


def _one_line(err):
    return sum(line.startswith("error: ") for line in err.splitlines()) == 1


def _miscounted(told, out, count, good, strict):
    """What does not add up: rows read, dropped and written, and the good rows among them."""
    read, wrong = told["read"], []
    dropped = sum(drop["count"] for drop in read["dropped"].values())
    if read["rows"] != read["examples"] + dropped:
        wrong.append(
            f"{read['rows']} rows are not {read['examples']} examples and {dropped} dropped"
        )
    if count is not None and read["rows"] != count:
        wrong.append(f"{count} rows in the file, {read['rows']} read")
    written = [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]]
    if len(written) != told["rows"]:
        wrong.append(f"{told['rows']} rows told, {len(written)} written")
    if strict == 0 and dropped:
        wrong.append(f"{dropped} rows dropped where the strict reading took all")
    if good is not None and good:
        text = out.read_text("utf-8")
        kept = json.dumps([json.loads(line) for line in text.split("\n")[:-1]])
        lost = [prompt for prompt in good if json.dumps(prompt)[1:-1] not in kept]
        if lost:
            wrong.append(f"good rows lost: {lost[:2]}")
    return wrong


def files(inputs, work, count, done=(), keep=lambda row: None):
    """So many data files, in batches of a forked child each."""
    return in_batches(lambda seeds: map(one_file, seeds), Path(work) / "files", count, done, keep)
