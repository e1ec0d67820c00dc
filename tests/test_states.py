"""A run is created, prepared, at work, finished or broken off; the record says which, and when."""

import json
import os
import signal
import subprocess
import sys

import pytest

import processes
import trueline as tl
from test_identity import begin
from test_training import StopAt
from tiny import pair_rows
from trueline import interrupts
from trueline.cli import main
from trueline.errors import UserError
from trueline.evaluation.harness.store import Store, complete
from trueline.files import LOCK, Owner
from trueline.interrupts import Interrupted, Signals, goes_on, note_command, piece_done
from trueline.results import Finding, Metric
from trueline.runs import state
from trueline.runs.listing import listed
from trueline.runs.record import STATE, Key, Run
from trueline.runs.state import State, created, held, reached, status


def names(run):
    return [name for name, _ in status(run).states]


def test_a_training_goes_through_its_states(tmp_path):
    run = begin(tmp_path / "dpo")
    run.add_callback(StopAt(5))
    run.train()
    kept = status(run.run)
    assert names(run.run) == ["created", "prepared", "training", "finished"]
    assert (kept.verb, kept.objective, kept.owner) == ("align", "dpo", Owner.here())
    assert kept.identity["objective"]["beta"] == 0.1
    assert not (run.run.path / LOCK).exists()


def test_one_that_is_broken_off_says_why_and_goes_on(tmp_path):
    class Break(StopAt):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.step:
                raise ZeroDivisionError("in step 5")

    run = begin(tmp_path / "dpo")
    run.add_callback(Break(5))
    with pytest.raises(ZeroDivisionError):
        run.train()
    kept = status(run.run)
    assert (kept.state, kept.why) == (State.BROKEN_OFF, "ZeroDivisionError: in step 5")
    begin(tmp_path / "dpo").train(resume_from_checkpoint=True)
    again = status(run.run)
    assert names(run.run)[3:] == ["broken off", "resumed", "prepared", "training", "finished"]
    assert again.id == kept.id


def test_a_run_broken_off_before_its_first_checkpoint_begins_again(tmp_path, capsys):
    run = begin(tmp_path / "dpo")
    run.add_callback(StopAt(1))
    run.train()
    record = json.loads((tmp_path / "dpo" / STATE).read_text())
    record["states"] = record["states"][:-1]  # as a kill leaves it
    record["owner"]["started"] -= 1000
    (tmp_path / "dpo" / STATE).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"objective.beta: 0.1 before, 0.3 now"):
        begin(tmp_path / "dpo", beta=0.3).train(resume_from_checkpoint=True)
    again = begin(tmp_path / "dpo", disable_tqdm=False)
    again.train(resume_from_checkpoint=True)
    assert "begun again with the first step" in capsys.readouterr().err
    steps = [row["step"] for row in Run(tmp_path / "dpo").rows if "loss" in row]
    assert steps == list(range(1, 9))


def test_i1_a_finished_run_is_kept_without_any_checkpoint(tmp_path):
    short = {"save_strategy": "no", "max_steps": 2}
    begin(tmp_path / "dpo", **short).train()
    with pytest.raises(UserError, match="its record says finished"):
        begin(tmp_path / "dpo", **short).train()
    with pytest.raises(UserError, match="there is no whole checkpoint"):
        begin(tmp_path / "dpo", **short).train(resume_from_checkpoint=True)


def snapshot(folder):
    """Content and time of every file below a folder."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_i3_a_refused_command_writes_nothing(tmp_path):
    run = begin(tmp_path / "dpo")
    run.add_callback(StopAt(5))
    run.train()
    before = snapshot(tmp_path)
    for changes, resume in (({"beta": 0.3}, True), ({"beta": 0.3}, None), ({"seed": 7}, True)):
        with pytest.raises(UserError):
            begin(tmp_path / "dpo", **changes).train(resume_from_checkpoint=resume)
        assert snapshot(tmp_path) == before


def test_a_dead_owners_run_is_broken_off_whatever_the_clock_says(tmp_path, monkeypatch):
    with held(tmp_path / "a") as run:
        created(run, "evaluate", data="x")
        monkeypatch.setattr(state, "_now", lambda: "1970-01-01T00:00:00+0000")
        reached(run, State.WORKING)
        assert status(run).state is State.WORKING
        record = json.loads((run.path / STATE).read_text())
    assert status(run).state is State.FINISHED
    dead = {**record, "owner": {**record["owner"], "started": 1.0}}
    run.write(STATE, dead)
    assert (status(run).state, status(run).why) == (
        State.BROKEN_OFF,
        "its process ended while it was working",
    )
    reached(run, State.FINISHED)  # it is not this process's
    assert names(run) == ["created", "working"]
    run.write(STATE, {**record, "owner": {**record["owner"], "host": "elsewhere"}})
    assert status(run).state is State.BROKEN_OFF  # with no lock that it touches
    (run.path / LOCK).touch()
    assert status(run).state is State.WORKING
    os.utime(run.path / LOCK, (1, 1))
    assert status(run).state is State.BROKEN_OFF
    for damaged in ("", "{", "[]", '{"states": []}', '{"states": [["odd", ""]], "id": ""}', "\xff"):
        (run.path / STATE).write_text(damaged, "latin-1")
        assert status(run) is None


def test_the_outermost_block_decides(tmp_path):
    def work():
        with held(tmp_path) as run:
            created(run, "align")
            with held(tmp_path):
                pass
            assert names(run) == ["created"]
            raise UserError("no more rows")

    with pytest.raises(UserError, match="no more rows"):
        work()
    run = Run(tmp_path)
    assert (names(run), status(run).why) == (["created", "broken off"], "no more rows")


def test_runs_are_listed_with_state_and_figures(tmp_path, monkeypatch, capsys):
    for name, end in (("done", State.FINISHED), ("cut", None)):
        with held(tmp_path / name) as run:
            created(run, "align", objective="dpo", data="pairs.jsonl")
            reached(run, State.TRAINING)
            metric = Metric("reward accuracy, after", 0.75, n=8, unit="rate")
            run.save([Finding(Key.HELD_OUT, "Well.", [Metric("eval_loss", 1.0), metric])])
            record = json.loads((run.path / STATE).read_text())
        if end is None:
            run.write(STATE, {**record, "owner": {**record["owner"], "started": 1.0}})
    with held(tmp_path / "study") as run:
        created(run, "reproduce", data="3 claims")
        inner = Run.create(run.path / "runs" / "one")
        created(inner, "align")
    (tmp_path / "done" / "checkpoint-2").mkdir()
    (tmp_path / "done" / "checkpoint-2" / STATE).write_text("{}")
    rows = "".join(json.dumps(row) + "\n" for row in pair_rows(6))
    (tmp_path / "pairs.jsonl").write_text(rows)
    tl.data.dedup(tmp_path / "pairs.jsonl", tmp_path / "data" / "less.jsonl")
    found = tl.runs(tmp_path)
    assert [entry.name for entry in found] == ["cut", "data/less.jsonl", "done", "study"]
    assert [entry.state for entry in found] == ["broken off", "finished", "finished", "finished"]
    assert found[2].figures == "reward accuracy, after 75.0%"
    assert found[2].run.finding(Key.HELD_OUT).summary == "Well."
    frame = found.to_frame()
    assert list(frame["state"]) == [entry.state for entry in found]
    assert "broken off" in found._repr_html_()
    monkeypatch.setattr(sys, "argv", ["trueline", "runs", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told[0]["reason"] == "its process ended while it was training"
    assert told[2]["headline"][0]["value"] == 0.75
    monkeypatch.setattr(sys, "argv", ["trueline", "runs", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert "less.jsonl" in out
    assert not err
    with pytest.raises(UserError, match="there is no folder"):
        listed(tmp_path / "nothing")


def test_a_run_without_states_is_listed_by_its_verb_and_sum_of_objectives(tmp_path):
    (tmp_path / "config.yaml").write_text("loss_type: [dpo, sft]\n")
    (tmp_path / "manifest.json").write_text('{"command": "trueline align --config my.yaml"}')
    [entry] = listed(tmp_path)
    assert (entry.verb, entry.objective, entry.state) == ("align", "dpo + sft", None)
    assert entry.command == "trueline align --config my.yaml"


@pytest.mark.parametrize("number", interrupts.HANDLED)
def test_i6_the_first_signal_ends_at_a_whole_piece(number, capfd):
    done = []
    before = signal.getsignal(number)

    def work():
        with Signals("this piece"):
            for piece in range(5):
                if piece == 2:
                    with Signals():  # a part of the work leaves it to the whole
                        os.kill(os.getpid(), number)
                done.append(piece)
                piece_done()

    with pytest.raises(Interrupted) as stopped:
        work()
    assert done == [0, 1, 2]
    assert stopped.value.number == number
    assert signal.getsignal(number) is before
    assert "ending after this piece; once more ends at once" in capfd.readouterr().err
    piece_done()


def end_here():
    os.kill(os.getpid(), signal.SIGTERM)


def test_i6_processes_that_share_work_end_together(tmp_path):
    """A signal to one of two: both end after a piece, and what both did is there to go on with."""

    def work(rank):
        def pieces(indices, keep):
            for done, index in enumerate(indices):
                if rank == 1 and done == 2:
                    end_here()
                keep(index, {"by": rank})
                piece_done()

        store = Store(tmp_path, "rows", rank)
        with pytest.raises(Interrupted) as stopped, Signals("this piece"):
            complete(store, [str(i) for i in range(10_000)], pieces)
        assert stopped.value.number == signal.SIGTERM
        with (tmp_path / f"seen-{rank}").open("x"):
            pass

    processes.spread(work, tmp_path / "logs", 2)
    done = [row["by"] for row in Store(tmp_path, "rows").rows()]
    assert done.count(1) == 3
    assert done.count(0) < 5000
    assert len(list(tmp_path.glob("seen-*"))) == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_i6_a_signal_in_the_reference_pass_keeps_what_is_scored(ranks, tmp_path, monkeypatch):
    def work(rank):
        run = begin(tmp_path / "dpo", reference_cache=str(tmp_path / "cache"), use_cpu=True)
        score = run.reference._score

        def scored(trees):
            if rank == ranks - 1:
                end_here()
            score(trees)

        run.reference._score = scored
        with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
            run.train()
        assert len(run.reference.cache) > 0

    if ranks == 1:
        work(0)
    else:
        processes.spread(work, tmp_path / "logs", ranks)
    shards = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(shards) == ranks
    assert status(tmp_path / "dpo").why == "interrupted by SIGTERM"


def test_i6_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            piece_done()
        assert signals.caught is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_i6_the_line_that_goes_on(monkeypatch):
    monkeypatch.delenv(interrupts.COMMAND, raising=False)
    assert goes_on(True) is None
    for words, begun, line in (
        (["align", "-c", "a b.yaml"], True, "trueline align -c 'a b.yaml' --resume"),
        (["align", "--resume"], True, "trueline align --resume"),
        (["align", "--beta", "1"], False, "trueline align --beta 1"),
        (["diffusion", "align"], True, "trueline diffusion align --resume"),
        (["evaluate", "-m", "x"], True, "trueline evaluate -m x"),
        (["align", "--hub_token", "s", "--x_key=s"], False,
         "trueline align --hub_token ... --x_key=..."),
        (["report", "x"], True, None),
    ):  # fmt: skip
        note_command(words)
        assert goes_on(begun) == line


HOLD = """
import sys, time
from trueline.runs.state import held
with held(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_i7_every_long_verb_has_its_folder_alone(tmp_path):
    """Another process is at work there: an evaluation, a curation, a study, pictures."""
    from trueline.curation.jobs.job import alone
    from trueline.reproduce.scales import FAST
    from trueline.reproduce.study import choose, reproduce
    from trueline.runs.diffusion.evaluate import evaluate as paint

    output = tmp_path / "less.jsonl"
    folders = [tmp_path / "f", tmp_path / ".less.jsonl.work"]
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(f)], stdout=subprocess.PIPE, text=True)
        for f in folders
    ]
    try:
        for holder in holders:
            assert holder.stdout.readline() == "held\n"
        inside = f"in use by process {holders[0].pid} on "
        (tmp_path / "pairs.jsonl").write_text(json.dumps(pair_rows(1)[0]))
        with pytest.raises(UserError, match=inside):
            tl.evaluate("model", benchmark="x=y.csv", output=str(folders[0]))
        with pytest.raises(UserError, match=inside):
            reproduce(choose([])[:1], FAST, folders[0], seeds=1, jobs=0)
        with pytest.raises(UserError, match=inside):
            paint("b", [], prompts=["p"], scorer="x", output=folders[0])
        with pytest.raises(UserError, match=f"in use by process {holders[1].pid} on "):
            tl.data.dedup(tmp_path / "pairs.jsonl", output)
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
    with alone(output):
        assert folders[1].exists()
    assert not output.exists()
