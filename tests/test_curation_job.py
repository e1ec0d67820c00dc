"""Curation jobs: killed and resumed, shared among ranks, nothing lost, everything said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tiny import tiny_llama, tiny_tokenizer
from trueline.curation.jobs import job as jobs
from trueline.curation.jobs.job import Job
from trueline.data import DataError, load_examples
from trueline.errors import UserError
from trueline.results import Finding
from trueline.runs.curate import curate


def write(path, n=20):
    rows = ({"prompt": f"question {i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(n))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(path)


def run(source, output, work, **options):
    job = Job("test", source, output, options, "preference")
    notes = job.map("working", work, key=options, size=4)
    if not job.leader:
        return None
    kept = (e for e, note in zip(job.examples(), notes, strict=True) if note["even"])
    rows = job.write(kept)
    return job.finish(Finding("test", f"{rows} rows"), {"kept": rows})


def even(chunk):
    return [{"even": int(e.prompt.split()[1][:-1]) % 2 == 0} for e in chunk.examples]


def test_an_interrupted_job_goes_on_where_it_was_and_ends_the_same(tmp_path):
    source = write(tmp_path / "in.jsonl")
    whole = run(source, tmp_path / "whole.jsonl", even)
    calls = []

    def failing(chunk):
        calls.append(chunk.index)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return even(chunk)

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out.jsonl", failing)
    assert not (tmp_path / "out.jsonl").exists()
    made = run(source, tmp_path / "out.jsonl", failing)
    assert calls == [0, 1, 2, 3, 3, 4]  # what was done is not done again
    assert made.manifest["resumed"] == 12
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert whole.manifest["inputs"]["source"]["content"] is not None
    assert not list(tmp_path.glob(".*"))  # the work folder is gone


def test_other_options_or_other_data_never_meet_old_notes(tmp_path):
    def once(chunk):
        if chunk.index == 4:
            raise KeyboardInterrupt
        return even(chunk)

    seen = []

    def recorded(chunk):
        seen.append(chunk.index)
        return even(chunk)

    source = write(tmp_path / "in.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out.jsonl", once, threshold=1)
    rows = (tmp_path / "in.jsonl").read_text().splitlines(keepends=True)
    rows[5] = rows[5].replace("question 5", "question 50")
    (tmp_path / "in.jsonl").write_text("".join(rows))
    run(load_examples(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", recorded, threshold=1)
    assert seen == [1, 4]  # the chunk that changed, and the one that was missing
    seen.clear()
    (tmp_path / "out.jsonl").unlink()
    run(source, tmp_path / "out.jsonl", recorded, threshold=2)
    assert seen == [0, 1, 2, 3, 4]


def test_ranks_share_the_chunks_and_the_output_is_that_of_one(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", 30)
    run(source, tmp_path / "one.jsonl", even)
    done = {}

    def as_rank(number):
        monkeypatch.setattr(jobs, "rank", lambda: number)

        def work(chunk):
            done.setdefault(number, []).append(chunk.index)
            return even(chunk)

        return run(source, tmp_path / "out.jsonl", work)

    monkeypatch.setattr(jobs, "started", lambda: 3)
    assert as_rank(2) is None
    assert as_rank(1) is None
    assert as_rank(0) is not None
    assert done == {0: [0, 3, 6], 1: [1, 4, 7], 2: [2, 5]}
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_the_manifest_says_what_went_in_and_what_came_out(tmp_path):
    source = write(tmp_path / "in.jsonl")
    (tmp_path / "in.jsonl").open("a").write("broken\n")
    source = load_examples(tmp_path / "in.jsonl", skip_bad=True)
    made = run(source, tmp_path / "out.jsonl", even, threshold=3)
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["options"] == {"threshold": 3}
    assert manifest["counts"] == {"kept": 10}
    [(file, digest)] = manifest["inputs"]["source"]["sha256"].items()
    assert (file, digest) == ("in.jsonl", jobs.sha256(tmp_path / "in.jsonl"))
    read = manifest["inputs"]["source"]["read"]
    assert (read["rows"], read["examples"]) == (21, 20)
    assert [drop["places"] for drop in read["dropped"].values()] == [["in.jsonl:21"]]
    assert manifest["outputs"]["out.jsonl"]["sha256"] == jobs.sha256(made.outputs[0])
    assert manifest["versions"]["trueline"]
    # A folder of curated data can be read back: the manifest is not taken for rows.
    (tmp_path / "in.jsonl").unlink()
    assert len(list(load_examples(tmp_path))) == 10


def test_bad_runs_are_refused_before_or_without_writing(tmp_path):
    source = write(tmp_path / "in.jsonl")
    with pytest.raises(DataError, match="no row is left"):
        run(source, tmp_path / "none.jsonl", lambda chunk: [{"even": False}] * 4)
    with pytest.raises(UserError, match="one result an example, got 1 for 4"):
        run(source, tmp_path / "short.jsonl", lambda chunk: [{"even": True}])
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(DataError, match="exists"):
        run(source, tmp_path / "there.jsonl", lambda chunk: pytest.fail("worked first"))
    assert (tmp_path / "there.jsonl").read_text() == "mine"

    def grow(chunk):
        with (tmp_path / "in.jsonl").open("a") as file:
            file.write('{"prompt": "more 1?", "chosen": "a", "rejected": "b"}\n')
        return even(chunk)

    job = Job("test", source, tmp_path / "grown.jsonl", {}, "preference")
    job.map("working", grow, size=100)
    with pytest.raises(DataError, match="changed while it was being read"):
        list(job.examples())


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_curation_job import run, even
from trueline.data import load_examples
def slow(chunk):
    time.sleep({pause})
    return even(chunk)
run(load_examples({source!r}), Path({output!r}), slow)
"""


def test_a_killed_process_leaves_nothing_half_done(tmp_path):
    write(tmp_path / "in.jsonl", 40)
    output = tmp_path / "out.jsonl"
    names = {"tests": str(Path(__file__).parent), "source": str(tmp_path / "in.jsonl")}
    code = KILLED.format(pause=0.3, output=str(output), **names)
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".*.work/*/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    made = run(load_examples(tmp_path / "in.jsonl"), output, even)
    assert made.manifest["resumed"] >= 12
    run(load_examples(tmp_path / "in.jsonl"), tmp_path / "whole.jsonl", even)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


LAUNCHED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_curation_job import run, even
from trueline.curation.jobs import job
from trueline.data import load_examples
def counted(chunk):
    Path({folder!r}, f"rank{{job.rank()}}-chunk{{chunk.index}}").touch()
    return even(chunk)
made = run(load_examples({source!r}), Path({output!r}), counted)
assert (made is None) == (job.rank() > 0)
"""


@pytest.mark.slow
def test_two_launched_processes_share_the_work(tmp_path):
    write(tmp_path / "in.jsonl", 40)
    script = tmp_path / "script.py"
    script.write_text(
        LAUNCHED.format(
            tests=str(Path(__file__).parent), folder=str(tmp_path),
            source=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out.jsonl"),
        )
    )  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, str(script)], check=True, env=environment, timeout=240)
    assert {p.name[:5] for p in tmp_path.glob("rank*")} == {"rank0", "rank1"}
    assert len(list(tmp_path.glob("rank*"))) == 10
    run(load_examples(tmp_path / "in.jsonl"), tmp_path / "one.jsonl", even)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def shared_out(step, source, tmp_path, **options):
    """What one machine writes, and what three shards and a merge write."""
    alone = tmp_path / "alone" / "out.jsonl"
    merged = tmp_path / "merged" / "out.jsonl"
    assert curate(step, str(source), alone, **options) is not None
    for shard in ("2/3", "1/3", "3/3", "1/3", "2/3"):  # what has two stages takes each share twice
        assert curate(step, str(source), merged, shard=shard, **options) is None
        assert not merged.exists()
    made = curate(step, str(source), merged, merge=True, **options)
    assert made is not None
    assert not merged.with_name(".out.jsonl.work").exists()
    facts = [json.loads((p.parent / "out.manifest.json").read_text()) for p in (alone, merged)]
    for name in ("outputs", "counts", "dropped", "finding", "options"):
        assert facts[0][name] == facts[1][name]
    assert merged.read_bytes() == alone.read_bytes()
    return merged


def many_rows(path, count=2100):
    rows = [
        {"prompt": f"how do i find the way to house {i % 1700}, please?", "chosen": f"left {i}",
         "rejected": f"right {i % 40}", "safety": ("safe", "harmful")[i % 2]}
        for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_shards_merged_equal_one_machine(tmp_path):
    source = many_rows(tmp_path / "a.jsonl")
    shared_out("dedup", source, tmp_path / "dedup", by="prompt", near=0.9)
    vectors = np.random.default_rng(0).normal(size=(4200, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    shared_out("select", source, tmp_path / "select", vectors=tmp_path / "v.npy", fraction=0.3)


@pytest.mark.parametrize(
    ("step", "rows", "options"),
    [
        ("difficulty", 150, {"low": 0.2}),
        ("select", 300, {"fraction": 0.3}),
        ("preference", 150, {"max_new_tokens": 2}),
    ],
)
def test_shards_of_what_a_model_does_equal_one_machine(step, rows, options, tmp_path):
    """Log-probs, embeddings and candidates."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    role = {"difficulty": "model", "select": "policy", "preference": "second"}[step]
    options = {**options, role: str(tmp_path / "model")}
    shared_out(step, many_rows(tmp_path / "a.jsonl", rows), tmp_path, **options)


def test_a_merge_without_all_shards_and_shards_of_nothing_are_refused(tmp_path, capsys):
    source = many_rows(tmp_path / "a.jsonl", 40)
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="1 chunks of the stage 'signatures' are not there"):
        curate("dedup", str(source), out, near=0.9, merge=True)
    assert curate("dedup", str(source), out, near=0.9, shard="2/2") is None
    assert "1 chunks of other shards are not there yet" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="leave --shard out"):
        curate("dedup", str(source), out, shard="1/2")
    for bad in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(UserError, match="shard must be i/n"):
            curate("dedup", str(source), out, near=0.9, shard=bad)
    with pytest.raises(UserError, match="one of the two"):
        curate("dedup", str(source), out, near=0.9, shard="1/2", merge=True)
