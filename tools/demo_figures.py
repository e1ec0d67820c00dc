"""Write what the demo's models do over many worlds, from the kept lines of the study's judged runs:
into the package (worlds.json), into the pages that tell it, and into their picture.

python tools/demo_figures.py                 # all of it; the picture by a headless Chromium
python tools/demo_figures.py --no-picture    # where there is none

While not all runs of these models are kept, the pages say how many are, and there is no picture.
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
from pathlib import Path
from typing import Any

from trueline.report import Report, Section, render_html
from trueline.reproduce.kept import rows_of
from trueline.reproduce.versions import VERSIONS
from trueline.runs.demo.models import MODELS
from trueline.runs.demo.story import worlds_chart
from trueline.runs.demo.worlds import FILE, Worlds, gathered

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "demo.png"
PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1280, 1150
MARK = "<!-- demo -->"


def written(page: Path, worlds: Worlds) -> str:
    """A page with its present sentences, and the picture where there is one, between two marks."""
    text = "\n".join(worlds.sentences()) + "\n"
    if worlds.seeds:
        seen = "Rates of the demo's four models over the study's worlds, with their intervals"
        text = f"![{seen}]({PICTURE.relative_to(page.parent)})\n\n{_listed(worlds.sentences())}"
    return re.sub(f"(?<={MARK}).*?(?={MARK})", lambda _: f"\n{text}", page.read_text("utf-8"),
                  flags=re.DOTALL)  # fmt: skip


def _listed(sentences: list[str]) -> str:
    head, *rest = sentences
    return "\n".join([head, "", *(f"- {one}" for one in rest)]) + "\n"


def page(worlds: Worlds) -> str:
    """What the picture is of."""
    seeds = worlds.seeds
    return render_html(
        Report(
            f"The demo's models in {len(seeds)} worlds",
            "",
            sections=[Section("", "", [worlds_chart(worlds)])],
            subtitle=f"Seeds {seeds[0]} to {seeds[-1]}: each another invented world, other data, "
            "another base model. All figures are on things no alignment data named.",
            models=[model.name for model in MODELS],
        )
    )


def mark(text: str) -> str:
    """The hash of what is seen of a page: all but its scripts and their policy."""
    seen = re.sub(r"<script.*?</script>|<meta http-equiv[^>]*>", "", text, flags=re.DOTALL)
    return hashlib.sha256(seen.encode()).hexdigest()


def photograph(text: str, picture: Path = PICTURE) -> Path:
    """Take the picture of a page.

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
        file.write_text(text, "utf-8")
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={home}/profile", f"--window-size={WIDTH},{HEIGHT}",
             "--virtual-time-budget=8000", f"--screenshot={shot}", file.as_uri()],
            check=True, stderr=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        noted = PngInfo()
        noted.add_text("page", mark(text))
        Image.open(shot).save(picture, pnginfo=noted, optimize=True)
    return picture


def packed(value: dict[str, Any]) -> str:
    """The text of worlds.json: a line for each model's measure."""
    text = json.dumps(value, indent=1)
    return re.sub(r"\[[^\[\]]*\]", lambda m: " ".join(m[0].split()), text) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--no-picture", action="store_true")
    given = parser.parse_args()
    FILE.write_text(packed(gathered(rows_of(VERSIONS))), "utf-8")
    found = Worlds.read()
    for place in PAGES:
        place.write_text(written(place, found), "utf-8")
    if found.seeds and not given.no_picture:
        print(photograph(page(found)))
    print(found.sentences()[0])
