"""The stress harness in small; ``TRUELINE_STRESS=full`` runs the counts of docs/reliability.md.

Each part runs in a process of its own, which forks: pytest's has trained by then.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run import FULL, SMALL

RUN = Path(__file__).with_name("run.py")


@pytest.mark.slow
@pytest.mark.parametrize("part", FULL)
def test_stress(part, tmp_path):
    counts = FULL if os.environ.get("TRUELINE_STRESS") == "full" else SMALL
    work = Path(os.environ.get("TRUELINE_STRESS_WORK", tmp_path))
    command = [sys.executable, str(RUN), part, "--work", str(work), "--count", str(counts[part])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = [json.loads(line) for line in (work / f"{part}.jsonl").read_text().splitlines()]
    assert len(rows) >= counts[part]
    assert not [row for row in rows if not row["ok"]]
