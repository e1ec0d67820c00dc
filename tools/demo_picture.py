"""Photograph the first screen of the demo's page into docs/demo.png, in a headless Chromium.

python tools/demo_picture.py                     # of the verdicts that are kept, as the page is now
trueline demo && python tools/demo_picture.py --keep runs/demo

The picture carries the hash of the page that it is of, so that a test sees a page that has changed
since.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trueline.report import Report, render_html
from trueline.report.blocks import Decision, Price
from trueline.results import Metric

ROOT = Path(__file__).parents[1]
PICTURE, KEPT = ROOT / "docs" / "demo.png", ROOT / "studies" / "results" / "demo.json"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1280, 930
PARTS = ("title", "subtitle", "decisions", "bounds", "models")


def keep(run: Path) -> None:
    """Keep the verdicts of a demo's folder."""
    from trueline.evaluation.comparison import load_judged_run
    from trueline.runs.demo.story import TITLES, first_screen

    judged = [replace(load_judged_run(run / name), name=name) for name in TITLES]
    told = asdict(first_screen(judged, seed=0))
    KEPT.write_text(json.dumps({part: told[part] for part in PARTS}, indent=1) + "\n", "utf-8")


def page() -> str:
    """The first screen of what is kept, as the page's code draws it now."""
    told = json.loads(KEPT.read_text("utf-8"))
    told["decisions"] = [
        Decision(**{**one, "prices": [_price(price) for price in one["prices"]]})
        for one in told["decisions"]
    ]
    return render_html(Report(summary="", **told))


def _price(told: dict[str, Any]) -> Price:
    moved = told["change"]
    return Price(**{**told, "value": Metric(**told["value"]),
                    "change": None if moved is None else Metric(**moved)})  # fmt: skip


def mark(text: str) -> str:
    """The hash of what is seen of a page: all but its scripts and their policy."""
    seen = re.sub(r"<script.*?</script>|<meta http-equiv[^>]*>", "", text, flags=re.DOTALL)
    return hashlib.sha256(seen.encode()).hexdigest()


def photograph(picture: Path = PICTURE) -> Path:
    """Take the picture.

    Raises:
        SystemExit: there is no Chromium.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        raise SystemExit("no Chromium or Chrome found; set CHROMIUM to its path")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        file, shot = Path(home) / "page.html", Path(home) / "page.png"
        file.write_text(page(), "utf-8")
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={home}/profile", f"--window-size={WIDTH},{HEIGHT}",
             f"--screenshot={shot}", file.as_uri()],
            check=True, stderr=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        noted = PngInfo()
        noted.add_text("page", mark(page()))
        Image.open(shot).save(picture, pnginfo=noted, optimize=True)
    return picture


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--keep", type=Path, metavar="RUN", help="the demo's folder")
    if run := parser.parse_args().keep:
        keep(run)
    print(photograph())
