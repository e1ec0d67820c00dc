"""Lay a built site into the folder of all versions, as the theme's version menu knows it.

    python tools/docs_versions.py site pages 0.2.0

puts ``site`` into ``pages/0.2``, has ``pages/latest`` lead to the newest release, ``pages`` to
``latest``, and lists every version in ``pages/versions.json``. The pages of other versions stay as
they are. Patches of a minor version share its pages; a pre-release has pages and is never latest.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)((?:a|b|rc)\d+)?")
LEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Trueline</title>
<meta http-equiv="refresh" content="0; url={to}">
<link rel="canonical" href="{to}"><a href="{to}">Trueline's documentation</a></html>
"""


def lay(site: Path, pages: Path, version: str) -> Path:
    """Put the site into its version's folder and bring the list of versions up to date.

    Raises:
        SystemExit: the version is no ``1.2.3`` or ``1.2.3rc1``, or there is no site.
    """
    found = VERSION.fullmatch(version.removeprefix("v"))
    if found is None:
        raise SystemExit(f"expected a version such as 1.2.3 or 1.2.3rc1, got {version!r}")
    if not (site / "index.html").is_file():
        raise SystemExit(f"{site} holds no site; build it first: make docs")
    name = f"{found[1]}.{found[2]}{found[4] or ''}"
    target = pages / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(site, target)
    known = {path.name for path in pages.iterdir() if (path / "index.html").is_file()} - {"latest"}
    names = sorted(known, key=_order, reverse=True)
    released = [one for one in names if _order(one)[2] == _order("0.0")[2]]
    newest = (released or names)[0]
    versions = [
        {"version": one, "title": one, "aliases": ["latest"] if one == newest else []}
        for one in names
    ]
    (pages / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", "utf-8")
    (pages / "latest").mkdir(exist_ok=True)
    (pages / "latest" / "index.html").write_text(LEAD.format(to=f"../{newest}/"), "utf-8")
    (pages / "index.html").write_text(LEAD.format(to="latest/"), "utf-8")
    (pages / ".nojekyll").touch()
    return target


def _order(name: str) -> tuple[int, int, tuple[int, int]]:
    """Versions in their order; a release after its pre-releases."""
    found = re.fullmatch(r"(\d+)\.(\d+)(?:(a|b|rc)(\d+))?", name)
    if found is None:
        return (-1, 0, (0, 0))
    stage = (3, 0) if found[3] is None else (("a", "b", "rc").index(found[3]), int(found[4]))
    return (int(found[1]), int(found[2]), stage)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("site", type=Path, help="the built site")
    parser.add_argument("pages", type=Path, help="the folder of all versions")
    parser.add_argument("version", help="such as 0.2.0 or v0.2.0rc1")
    given = parser.parse_args()
    print(lay(given.site, given.pages, given.version))
