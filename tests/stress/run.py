"""Run a part of the stress harness, or all of it, and keep what came of it.

    python tests/stress/run.py [kills] [damages] [options] [faults] [configs] [files] --work DIR

Each row is kept as soon as it is known, so the same command goes on after an interruption.
``summary.json`` in DIR is what docs/reliability.md is written from.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

FULL = {"kills": 200, "damages": 24, "options": 14, "faults": 12, "configs": 5000, "files": 5000}
SMALL = {"kills": 6, "damages": 4, "options": 3, "faults": 3, "configs": 60, "files": 60}


def parts():
    import damages
    import fuzz_configs
    import fuzz_files
    import kills

    return {"kills": kills.kills, "damages": damages.damages, "options": damages.options,
            "faults": damages.faults, "configs": fuzz_configs.configs,
            "files": fuzz_files.files}  # fmt: skip


def prepared(work):
    """The folder of inputs, made once, by a child, so that the parent has trained nothing."""
    from verbs import write_inputs

    folder = Path(work).resolve() / "inputs"
    if not (folder / "my_scores.py").exists():
        folder.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            write_inputs(folder)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    sys.path.insert(0, str(folder))
    return folder


def run(name, work, count):
    """One part: rows that are there are kept, the others are made."""
    import forked

    forked.warm()
    inputs = prepared(work)
    log = Path(work) / f"{name}.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not all(row["ok"] for row in done):  # after mending, the same again
        done = [row for row in done if row["ok"]]
        log.write_text("".join(json.dumps(row) + "\n" for row in done))
    with log.open("a") as file:

        def keep(row):
            file.write(json.dumps(row) + "\n")
            file.flush()

        return parts()[name](inputs, Path(work).resolve(), count, done, keep)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(FULL))
    parser.add_argument("--work", type=Path, default=Path(".cache/stress"))
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts:
        begin = time.process_time()
        rows = run(name, arguments.work, arguments.count or FULL[name])
        bad = [row for row in rows if not row["ok"]]
        print(f"{name}: {len(rows)} done, {len(bad)} not as they should be "
              f"({time.process_time() - begin:.0f} s of this process)")  # fmt: skip
        for row in bad[:20]:
            print("   ", json.dumps(row)[:600])


if __name__ == "__main__":
    main()
