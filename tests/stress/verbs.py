"""The long verbs on tiny models: how each is begun, how it goes on, and what came of it."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file

from tiny import pair_rows, tiny_llama, tiny_tokenizer

TRAIN = {
    "loss_type": "dpo", "test_size": 0.25, "max_steps": 6, "save_steps": 2, "logging_steps": 1,
    "learning_rate": 1e-2, "per_device_train_batch_size": 4, "gradient_checkpointing": "false",
    "use_cpu": "true", "report_to": "none", "disable_tqdm": "true", "save_total_limit": 2,
    "reference_cache": "cache", "output_dir": "run",
}  # fmt: skip


def write_inputs(folder):
    """Models, data and prompts that all runs read."""
    folder = Path(folder)
    for name, seed in (("model", 0), ("weaker", 1)):
        tiny_llama(seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    rows = pair_rows(24)
    lines(folder / "pairs.jsonl", rows)
    safe = [{**row, "safety": "harmful" if i % 3 == 0 else "safe"} for i, row in enumerate(rows)]
    lines(folder / "labeled.jsonl", safe)
    asks = [{"prompt": f"what color is {what} ?", "harmful": what != "sea"}
            for what in ("sky", "sea", "grass", "the sky", "a sea", "blue grass")]  # fmt: skip
    lines(folder / "asks.jsonl", asks)
    (folder / "prompts.txt").write_text("a red square\na cross\na green cross\n")
    from tiny_diffusion import tiny_sd, write_folder

    tiny_sd().save_pretrained(folder / "pipeline")
    tiny_sd(seed=1).save_pretrained(folder / "other")
    write_folder(folder / "pictures", 6)
    (folder / "my_scores.py").write_text(
        "def red(images, captions):\n"
        "    return [float(i.resize((1, 1)).getpixel((0, 0))[0]) for i in images]\n"
    )
    for path in folder.rglob("*"):  # safetensors writes files that their owner alone may read
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def words(options):
    return [str(x) for key, value in options.items() for x in (f"--{key}", value)]


@dataclass(frozen=True)
class Verb:
    """One long verb.

    Args:
        name: of it.
        begin: from the folder of inputs to the command line.
        result: from the working folder to what came of it, compared by ``==``.
        resumes: whether it goes on by --resume, rather than by the same command.
        folders: what is watched, below the working folder.
        done: what it says where all was done before; what came of it must be there then, too.
    """

    name: str
    begin: object
    result: object
    resumes: bool = False
    folders: tuple = field(default=("run", "cache"))
    done: str = ""


def weights(folder):
    """All tensors of a folder's safetensors files, as bytes by name."""
    return {
        f"{path.relative_to(folder)}:{name}": tensor.contiguous().numpy().tobytes()
        for path in sorted(Path(folder).rglob("*.safetensors"))
        if not any(part.startswith("checkpoint-") for part in path.parts)
        for name, tensor in load_file(path).items()
    }


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def findings(folder):
    return json.loads((folder / "findings.json").read_text("utf-8"))


TIMES = ("runtime", "_per_second", "flos", "input_tokens")


def log_of(folder):
    """The metrics without times; a step that stands twice is seen by its rows."""
    return [
        {k: v for k, v in row.items() if not any(part in k for part in TIMES)}
        for row in rows_of(folder / "metrics.jsonl")
        if "train_runtime" not in row
    ]


def trained(work):
    run = work / "run"
    log = [row for row in log_of(run) if "loss" in row]
    steps = [row["step"] for row in log]
    assert steps == sorted(set(steps)), f"steps {steps}"
    return {
        "weights": weights(run),
        "log": log,
        "findings": findings(run),
        "before": (run / "before.json").read_text() if (run / "before.json").exists() else "",
    }


def evaluated(work):
    rows = rows_of(work / "run" / "judgements.jsonl")
    keys = [(r["benchmark"], r["id"], r["attack"], r["judge"], r["measure"]) for r in rows]
    assert len(keys) == len(set(keys)), "judged twice"
    return {
        "rows": sorted(map(json.dumps, rows)),
        "findings": findings(work / "run"),
        "samples": (work / "run" / "samples.jsonl").read_text(),
    }


def curated(work):
    manifest = json.loads((work / "run" / "out.manifest.json").read_text())
    return {"rows": (work / "run" / "out.jsonl").read_text(), "finding": manifest["finding"],
            "counts": manifest["counts"], "dropped": manifest["dropped"]}  # fmt: skip


def studied(work):
    found = json.loads((work / "run" / "results.json").read_text())
    return {"claims": found["claims"], "page": (work / "run" / "report.html").exists()}


def painted(work):
    run = work / "run"
    return {"scores": (run / "scores.json").read_text(), "findings": findings(run)}


def _align(inputs):
    place = {"model_name_or_path": inputs / "model", "dataset_name": inputs / "pairs.jsonl"}
    return ["align", *words({**TRAIN, **place})]


def _evaluate(inputs):
    return ["evaluate", "--model", inputs / "model", "--benchmark", f"table={inputs}/asks.jsonl",
            "--attack", "direct", "--attack", "prefill", "--judge", "phrases", "--output", "run",
            "--cache", "cache", "--batch-size", "2", "--max-new-tokens", "4"]  # fmt: skip


def _curate(inputs):
    return ["data", "difficulty", inputs / "pairs.jsonl", "run/out.jsonl", "--model",
            inputs / "model", "--no-html"]  # fmt: skip


def _reproduce(inputs):
    return ["reproduce", "jailbreak-bound", "--fast", "--seeds", "2", "--jobs", "0",
            "--output", "run"]  # fmt: skip


def _diffuse(inputs):
    options = {"model_name_or_path": inputs / "pipeline", "dataset_name": inputs / "pictures",
               "output_dir": "run", "cache_dir": "cache", "per_device_train_batch_size": 2,
               "loss_type": "dpo", "use_peft": "true", "save_steps": 2, "logging_steps": 1,
               "max_steps": 4, "learning_rate": "1e-2", "disable_tqdm": "true"}  # fmt: skip
    return ["diffusion", "align", *words(options)]


def _paint(inputs):
    return ["diffusion", "evaluate", "--base", inputs / "pipeline", "--aligned", inputs / "other",
            "--prompts", inputs / "prompts.txt", "--scorer", "my_scores:red", "--steps", "2",
            "--guidance", "2", "--batch-size", "1", "--output", "run"]  # fmt: skip


VERBS = {
    verb.name: verb
    for verb in (
        Verb("align", _align, trained, resumes=True),
        Verb("evaluate", _evaluate, evaluated),
        Verb("data difficulty", _curate, curated, done="out.jsonl: the file exists"),
        Verb("reproduce", _reproduce, studied),
        Verb("diffusion align", _diffuse, trained, resumes=True),
        Verb("diffusion evaluate", _paint, painted),
    )
}


def fresh(folder):
    """An empty working folder."""
    shutil.rmtree(folder, ignore_errors=True)
    Path(folder).mkdir(parents=True)
    return Path(folder)
