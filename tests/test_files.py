"""Files that survive: kills while writing, damage of every kind, living and dead locks."""

import json
import os
import random
import subprocess
import sys
import time

import pytest

from trueline import files
from trueline.errors import UserError
from trueline.files import LOCK, SEAL, Lock, append, fault, mend, seal, umask, whole, write_json


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError), whole(path) as part:
        json.dump({"a": {1}}, part.open("w"))
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_i8_permissions_follow_the_umask(tmp_path):
    with whole(tmp_path / "a") as part:
        part.write_text("x")
        part.chmod(0o600)  # as libraries that write through temporary files do
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask()


def test_i4_lines_are_whole_after_any_cut(tmp_path):
    path = tmp_path / "rows.jsonl"
    for i in range(3):
        append(path, {"i": i, "text": "two\nlines\u2028"})
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        mend(path)
        append(path, {"i": "new"})
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["i"] for row in rows] == [*range(content[:cut].count(b"\n")), "new"]


def test_i5_a_seal_sees_every_damage(tmp_path):
    random.seed(0)
    (tmp_path / "inner").mkdir()
    files = {"a.bin": random.randbytes(5000), "inner/b.bin": random.randbytes(300), "c.txt": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert fault(tmp_path) == "it was not finished"
    seal(tmp_path)
    assert fault(tmp_path) is None
    (tmp_path / "later.txt").write_text("came later")
    assert fault(tmp_path) is None
    for name, content in files.items():
        path = tmp_path / name
        for _ in range(20):
            damaged = bytearray(content)
            if damaged:
                damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
            path.write_bytes(bytes(damaged) if damaged else b"x")
            assert name in fault(tmp_path)
        path.write_bytes(content[:-1] + b"" if content else b"y")
        assert name in fault(tmp_path)
        path.unlink()
        assert name in fault(tmp_path)
        path.write_bytes(content)
    for text in ("", "{", "[]", '{"a.bin": 3}', '{"a.bin": {"size": "many"}}', "\x00\xff"):
        (tmp_path / SEAL).write_text(text)
        assert fault(tmp_path) == f"{SEAL} cannot be read"


HOLD = "import sys, time\nfrom trueline.files import Lock\nwith Lock(sys.argv[1]):\n"
HOLD += "    print('held', flush=True)\n    time.sleep(60)"


def test_i7_a_living_lock_refuses_and_a_dead_one_is_taken_over(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"in use by process {holder.pid} on "), Lock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with Lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with Lock(tmp_path):  # a part of the same work
            pass
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_i7_what_a_lock_may_hold(tmp_path):
    here = {"pid": os.getpid(), "host": os.uname().nodename}
    for text in ("", "{", "[]", '{"pid": "x"}', json.dumps({**here, "started": time.time() - 9e6})):
        (tmp_path / LOCK).write_text(text)  # damaged, or of another process that had this number
        with Lock(tmp_path):
            pass


def test_i7_another_hosts_lock_holds_while_it_is_touched(tmp_path, monkeypatch, capfd):
    other = json.dumps({"pid": 1, "host": "elsewhere", "started": 0.0})
    lock = tmp_path / LOCK
    lock.write_text(other)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the file system's clock counts, not ours
    with pytest.raises(UserError, match=r"1 on elsewhere.* wait \(5 minutes, where it "):
        Lock(tmp_path).__enter__()
    monkeypatch.undo()
    silent = time.time() - files.SILENT - 1
    os.utime(lock, (silent, silent))
    with Lock(tmp_path):
        os.utime(lock, (silent, silent))
        assert files._touching[0].is_alive()
        files.touch()
        assert lock.stat().st_mtime > silent
        lock.write_text(other)  # taken over while this process stood still
        with pytest.raises(KeyboardInterrupt):
            files.touch()
    assert lock.read_text() == other
    assert f"{tmp_path} was taken over by process 1 on elsewhere" in capfd.readouterr().err


def test_i7_a_forked_process_has_no_say_in_its_parents_lock(tmp_path):
    with Lock(tmp_path / "parents"):
        child = os.fork()
        if child == 0:  # a lock of its own is touched; the parent's is not mistaken for lost
            with Lock(tmp_path / "childs"), Lock(tmp_path / "parents"):
                os.utime(tmp_path / "parents" / LOCK, (1, 1))
                files.touch()
            told = (tmp_path / "parents" / LOCK).stat().st_mtime == 1
            os._exit(0 if told and not (tmp_path / "childs" / LOCK).exists() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
