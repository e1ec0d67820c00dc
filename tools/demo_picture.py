"""Photograph the demo's page into docs/demo.png: the first screen, in a headless Chromium.

trueline demo
python tools/demo_picture.py runs/demo
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PICTURE = Path(__file__).parents[1] / "docs" / "demo.png"
WIDTH, HEIGHT = 1280, 860


def photograph(run: Path, picture: Path = PICTURE) -> Path:
    """The first screen of the run's ``report.html`` as a picture.

    Raises:
        SystemExit: there is no report, or no Chromium.
    """
    page = run / "report.html"
    if not page.is_file():
        raise SystemExit(f"{page} is not there; run `trueline demo` first")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        raise SystemExit("no Chromium or Chrome found; set CHROMIUM to its path")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={home}", f"--window-size={WIDTH},{HEIGHT}",
             "--virtual-time-budget=4000", f"--screenshot={picture.resolve()}",
             page.resolve().as_uri()],
            check=True, stderr=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
    return picture


if __name__ == "__main__":
    print(photograph(Path(sys.argv[1])))
