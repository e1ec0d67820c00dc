"""How long `trueline reproduce --fast` takes from an empty cache: written to results/fast.json.

    python studies/fast.py          # over half an hour; on a machine with nothing else to do

The command of this Python runs in a folder of its own, with a cache that it begins empty.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "fast.json"
JOBS = 2


def measured() -> dict[str, float]:
    """Minutes by the clock and of processor time, and how many runs there were."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "trueline", "reproduce", "--fast", "--jobs", str(JOBS),
                   "--output", f"{folder}/out"]  # fmt: skip
        begin = time.monotonic()
        subprocess.run(command, check=True, env={**os.environ, "TRUELINE_CACHE": f"{folder}/cache"})
        minutes = (time.monotonic() - begin) / 60
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        runs = len(list(Path(folder).glob("out/runs/*/result.json")))
    processor = (used.ru_utime + used.ru_stime) / 60
    return {"jobs": JOBS, "minutes": round(minutes, 1), "processor_minutes": round(processor, 1),
            "runs": runs}  # fmt: skip


if __name__ == "__main__":
    RESULT.write_text(json.dumps(measured(), indent=1) + "\n", "utf-8")
    print(RESULT.read_text("utf-8"))
