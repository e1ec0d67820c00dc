"""Data files drawn at random, of texts and of pictures: good and spoiled rows in known numbers;
what is read, dropped and written adds up, and no good row is lost."""

import csv
import gzip
import io
import json
import random
import shutil
from pathlib import Path

from fuzz import (
    begin_again,
    in_batches,
    in_this_process,
    kind_of,
    one_line,
    stop_where_training_begins,
)

SHARES = {"texts": 0.88, "pictures": 0.12}
TEXTS = [
    "why ?", "yes", "no", "the sea is blue", "é ü 漢字", "a\nb", "a\u2028b", "  x ", "0", "null",
    "</s>", '"quoted"', "a,b;c\td", "\U0001f600", "\u202egnp", "<b>x</b>", "NaN", "-",
]  # fmt: skip
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
    if code not in (0, 2) or (code == 2 and not one_line(err)):
        wrong.append(f"inspect: exit {code}: {err[-300:]}")
    strict = code
    code, err = in_this_process(
        ["data", "convert", str(path), str(out), "--to", "example", "--skip-bad", "--json"]
    )
    if code == 0:
        wrong += _miscounted(json.loads(in_this_process.out), out, count, good, strict)
    elif code != 2 or not one_line(err):
        wrong.append(f"convert: exit {code}: {err[-300:]}")
    elif count and 2 * len(good or ()) > count:  # the form is that of most rows
        wrong.append(f"convert refused {len(good)} good rows: {err[-200:]}")
    path.unlink()
    out.unlink(missing_ok=True)
    return {
        "seed": seed,
        "ok": not wrong,
        "outcome": "read" if code == 0 else "refused",
        "said": "; ".join(wrong),
    }


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
    if good and 2 * len(good) > (count or 0):
        text = out.read_text("utf-8")
        kept = json.dumps([json.loads(line) for line in text.split("\n")[:-1]])
        lost = [prompt for prompt in good if json.dumps(prompt)[1:-1] not in kept]
        if lost:
            wrong.append(f"good rows lost: {lost[:2]}")
    return wrong


# --- pictures -------------------------------------------------------------------------------------

FORMS = {
    "pick": ("jpg_0", "jpg_1", "label_0"),
    "pairs": ("chosen", "rejected"),
    "labeled": ("image", "label"),
}


def picture_row(form, number, draw, folder, pictures):
    """A row that is right; its pictures lie beside the table. Captions are told apart by a
    number."""
    row = {draw.choice(["caption"] * 9 + ["prompt"]): f"{draw.choice(TEXTS)} {number}"}
    for column in FORMS[form]:
        if column == "label":
            row[column] = draw.choice([True, False, 1, 0, -1])
        elif column == "label_0":
            row[column] = draw.choice([0, 1, 0.0, 1.0, 0.5])
        else:
            name = f"{number}-{column}.png"
            (folder / name).write_bytes(draw.choice(pictures))
            row[column] = draw.choice([name, {"path": name}])
    return row


def spoiled_picture(row, draw, folder):
    """The row with one thing wrong: in the table, or in a file that it names."""
    row = dict(row)
    key = draw.choice(list(row))
    if key not in ("caption", "prompt", "label", "label_0") and draw.random() < 0.7:
        path = folder / (row[key]["path"] if isinstance(row[key], dict) else row[key])
        content = path.read_bytes()
        at = draw.randrange(8, len(content) // 2)  # a cut within the last chunk is readable
        path.write_bytes(draw.choice([b"", b"no picture", content[:at], content[at:]]))
    elif draw.random() < 0.4:
        del row[key]
    else:
        row[key] = draw.choice([None, "x\0", {}, [], {"a": 1}, 7, float("nan"), {"bytes": 3}])
        if isinstance(row[key], str) and key in ("caption", "prompt"):
            row[key] = 3
    return row


def picture_table(seed, pictures):
    """A folder of pictures with a table; how many rows it has, the good ones' captions, and which
    of those are ties."""
    draw = random.Random(seed)
    folder = Path(f"drawn{seed}")
    folder.mkdir()
    form = draw.choice(list(FORMS))
    text, good, ties, names = [], [], [], set()
    for number in range(draw.choice([0, 1, 2, 4, 6])):
        row = picture_row(form, f"{seed}-{number}", draw, folder, pictures)
        names |= row.keys() & {"caption", "prompt"}
        caption = row.get("caption", row.get("prompt"))
        if draw.random() < 0.25:
            row = spoiled_picture(row, draw, folder)
        else:
            (ties if row.get("label_0") == 0.5 else good).append(caption)
        text.append(json.dumps(row, ensure_ascii=draw.random() < 0.5))
    while draw.random() < 0.2:
        line = draw.choice(["{", "[1]", "3", "null", '"x"', "\x00", "NaN"])
        text.insert(draw.randrange(len(text) + 1), line)
    count = len(text)
    if draw.random() < 0.1:
        text.insert(draw.randrange(len(text) + 1), "")
    content = (draw.choice(["\n", "\n", "\r\n"]).join(text) + "\n").encode()
    if draw.random() < 0.05:
        content = b"\xef\xbb\xbf" + content
    (folder / "table.jsonl").write_bytes(content)
    if len(names) > 1:  # the first of the two that any row has is read
        good = ties = None
    return folder, form, count, good, ties


def as_parquet(folder, draw):
    """The table as Parquet, its pictures inside; sometimes cut off. Whether it is whole."""
    import pyarrow
    import pyarrow.parquet

    lines = (folder / "table.jsonl").read_text("utf-8-sig").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    for row in rows:
        for key in row.keys() - {"caption", "prompt", "label", "label_0"}:
            name = row[key]["path"] if isinstance(row[key], dict) else row[key]
            row[key] = {"bytes": (folder / name).read_bytes(), "path": name}
    path = folder / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (folder / "table.jsonl").unlink()
    whole = draw.random() < 0.7
    if not whole:
        content = path.read_bytes()
        path.write_bytes(content[: draw.randrange(len(content))])
    return whole


def one_table(seed, inputs, pictures, seen):
    """What came of one table of pictures: strict, then with bad rows left out and counted."""
    folder, form, count, good, ties = picture_table(seed, pictures)
    draw, whole = random.Random(-seed), True
    all_good = good is not None and good and len(good) + len(ties) == count
    if all_good and form != "labeled" and draw.random() < 0.5:
        whole = as_parquet(folder, draw)
    loss = "diffusion_kto" if form == "labeled" else "dpo"
    words = ["diffusion", "align", "--model_name_or_path", inputs / "pipeline", "--dataset_name",
             folder, "--loss_type", loss, "--output_dir", f"run{seed}", "--max_steps", "1",
             "--cache_dir", f"run{seed}-cache", "--encode_first", "true", "--disable_tqdm", "true",
             "--dataloader_num_workers", "0", "--per_device_train_batch_size", "1"]  # fmt: skip
    wrong, strict = [], None
    for skip in ("false", "true"):
        seen.clear()
        begin_again()
        code, err = in_this_process([*map(str, words), "--skip_bad", skip])
        if code == 0 and len(seen) == 2:
            wrong += _pictures_miscounted(*seen, count, good, ties, strict)
        elif code != 2 or not one_line(err):
            wrong.append(f"skip_bad {skip}: exit {code}: {err[-300:]}")
        elif good and whole and (skip == "true" or all_good):
            wrong.append(f"skip_bad {skip} refused {len(good)} good rows: {err[-300:]}")
        strict = code
    for place in (folder, f"run{seed}", f"run{seed}-cache"):
        shutil.rmtree(place, ignore_errors=True)
    outcome = "read" if code == 0 else "refused"
    return {"seed": seed, "kind": "pictures", "ok": not wrong, "outcome": outcome,
            "said": "; ".join(wrong)}  # fmt: skip


def _pictures_miscounted(data, trainer, count, good, ties, strict):
    """What does not add up, once all pictures were asked for."""
    dropped, wrong = sum(data.dropped.values()), []
    if len(data.examples) + dropped != count:
        wrong.append(f"{count} rows are not {len(data.examples)} examples and {dropped} dropped")
    encodings = trainer.encodings
    used = [e.caption for i, e in enumerate(encodings.examples) if i not in encodings.bad]
    if good is None:
        return wrong
    if sorted(used) != sorted(good):
        wrong.append(f"{len(good)} good rows, used: {used}")
    if data.dropped.get("a tie", 0) < len(ties):  # one that is spoiled may be seen as a tie
        wrong.append(f"{len(ties)} ties, told: {data.notes()}")
    if strict == 0 and (encodings.bad or dropped > data.dropped.get("a tie", 0)):
        wrong.append("rows dropped where the strict reading took all")
    return wrong


def see_pictures(seen):
    """What was read, and the trainer that is asked to begin, are left in ``seen``."""
    import trueline.diffusion as diffusion

    read = diffusion.load_image_examples

    def load(*args, **how):
        seen.append(read(*args, **how))
        return seen[-1]

    diffusion.load_image_examples = load
    stop_where_training_begins(seen)


# --- both -----------------------------------------------------------------------------------------


def files(inputs, work, count, done=(), keep=lambda row: None):
    """So many data files, in batches of a forked child each."""

    def batch(seeds):
        pictures, seen = [path.read_bytes() for path in (inputs / "pictures").glob("*.png")], []
        see_pictures(seen)
        for seed in seeds:
            if kind_of(seed, count, SHARES) == "texts":
                yield one_file(seed)
            else:
                yield one_table(seed, inputs, pictures, seen)

    return in_batches(batch, Path(work) / "files", count, done, keep)
