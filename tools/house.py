"""The house from its own imports: the picture in docs/design.md, and how large it is.

python tools/house.py            writes docs/img/house.svg, and what is kept into docs/design.md
python tools/house.py --figures  prints files, lines of code and modules a folder
python tools/house.py --keep WHEN [COMMIT]
                                 measures the tree, or a commit, and keeps it in studies/results
"""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "trueline"
PICTURE = ROOT / "docs" / "img" / "house.svg"
PAGE = ROOT / "docs" / "design.md"
KEPT = ROOT / "studies" / "results" / "house.json"
BEGIN, END = "<!-- house: begin -->\n", "<!-- house: end -->\n"
MOST = 15
"""Modules that a folder holds at most."""
APART = ("runs.record", "runs.state")
"""Modules that stand in another storey than the package around them."""


# --- what imports what ----------------------------------------------------------------------------


def dotted(path: Path) -> str:
    """A file's module."""
    parts = ("trueline", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def files() -> dict[str, Path]:
    """All modules of Trueline with their files."""
    return {dotted(path): path for path in sorted(SOURCE.rglob("*.py"))}


@cache
def graph() -> dict[str, frozenset[str]]:
    """Each module with those it imports, at its top or inside a function; what only annotations
    read (TYPE_CHECKING) does not count."""
    return {
        name: frozenset(_imported(ast.parse(path.read_text("utf-8")))) - {name}
        for name, path in files().items()
    }


def _imported(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (name.name for name in child.names if name.name in files())
        elif isinstance(child, ast.ImportFrom) and child.module in files():
            for name in child.names:
                inner = f"{child.module}.{name.name}"
                yield inner if inner in files() else child.module
        yield from _imported(child)


def circle() -> list[str]:
    """A way over imports that leads back to where it began; empty where there is none."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph()[name]):
            if found := visit(other, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph() if (found := visit(name, []))), [])


# --- the picture ----------------------------------------------------------------------------------


def room(module: str) -> str:
    """The part of the house that a module stands in."""
    inner = module.removeprefix("trueline.")
    return next((part for part in APART if inner == part), inner.split(".")[0])


def rooms() -> dict[str, set[str]]:
    """Each room with those it imports from; the package's own lazy names are no room."""
    found: dict[str, set[str]] = {}
    for module, others in graph().items():
        if module in ("trueline", "trueline.__main__"):
            continue
        own = found.setdefault(room(module), set())
        own.update(room(other) for other in others if other != "trueline")
        own.discard(room(module))
    return found


def storeys(of: Mapping[str, set[str]]) -> list[list[str]]:
    """The rooms from the ground up: each stands just above the highest that it imports from."""

    @cache
    def height(name: str) -> int:
        return 1 + max((height(other) for other in of[name]), default=-1)

    levels = [[n for n in sorted(of) if height(n) == k] for k in range(1 + max(map(height, of)))]
    place: dict[str, float] = {}
    for level in levels:  # above what it stands on, so that few lines cross
        level.sort(key=lambda n: (sum(place[o] for o in of[n]) / max(len(of[n]), 1), n))
        place |= {name: (k + 1) / (len(level) + 1) for k, name in enumerate(level)}
    return levels


def needed(of: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The imports between rooms that do not follow from longer ways."""

    @cache
    def below(name: str) -> frozenset[str]:
        return frozenset(of[name]).union(*map(below, of[name]))

    return [
        (name, other)
        for name in sorted(of)
        for other in sorted(of[name])
        if not any(other in below(between) for between in of[name])
    ]


WIDTH, ROW, BOX, LETTER = 980, 58, 26, 7.4
_STYLE = (
    "rect{fill:#f3f5f7;stroke:#8a97a6;rx:5}text{font:13px ui-monospace,monospace;fill:#1f2a37;"
    "text-anchor:middle}path{fill:none;stroke:#b8c2cc;stroke-width:1.1}"
    "@media(prefers-color-scheme:dark){rect{fill:#222b36}text{fill:#e6ebf0}path{stroke:#4a5866}}"
)


def picture() -> str:
    """The rooms as an SVG: a line down is an import, and none goes up."""
    of = rooms()
    levels = storeys(of)
    place: dict[str, tuple[float, float, float]] = {}
    for height, level in enumerate(levels):
        widths = [LETTER * len(name) + 18 for name in level]
        gap = (WIDTH - sum(widths)) / (len(level) + 1)
        x, y = gap, ROW * (len(levels) - 1 - height) + 12
        for name, width in zip(level, widths, strict=True):
            place[name] = (x, y, width)
            x += width + gap
    lines = []
    for name, other in needed(of):
        (x, y, w), (a, b, v) = place[name], place[other]
        top, foot = (x + w / 2, y + BOX), (a + v / 2, b)
        bend = (foot[1] - top[1]) / 2
        lines.append(
            f'<path d="M{top[0]:.0f} {top[1]:.0f}C{top[0]:.0f} {top[1] + bend:.0f} '
            f'{foot[0]:.0f} {foot[1] - bend:.0f} {foot[0]:.0f} {foot[1]:.0f}"/>'
        )
    boxes = [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{BOX}"/>'
        f'<text x="{x + w / 2:.0f}" y="{y + 17:.0f}">{name}</text>'
        for name, (x, y, w) in sorted(place.items())
    ]
    tall = ROW * len(levels)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" role="img">'
    title = "<title>The rooms of Trueline; a line down is an import, and none goes up</title>"
    return "\n".join([head, title, f"<style>{_STYLE}</style>", *lines, *boxes, "</svg>\n"])


# --- how large it is ------------------------------------------------------------------------------

_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(text: str) -> int:
    """Lines that hold code: without blank lines, comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        said = first.value if isinstance(first, ast.Expr) else None
        if isinstance(said, ast.Constant) and isinstance(said.value, str):
            lines.difference_update(range(said.lineno, (said.end_lineno or 0) + 1))
    return len(lines)


def folders(source: Path = SOURCE) -> Counter[str]:
    """Modules a folder, its ``__init__`` aside."""
    modules = (path for path in source.rglob("*.py") if path.name != "__init__.py")
    return Counter(str(path.parent.relative_to(source)) for path in modules)


def measured(source: Path = SOURCE) -> dict[str, int]:
    """How large a tree is."""
    every = list(source.rglob("*.py"))
    found = folders(source)
    return {
        "files": len(every),
        "lines of code": sum(code_lines(path.read_text("utf-8")) for path in every),
        "modules in the fullest folder": max(found.values()),
        f"folders of more than {MOST}": sum(count > MOST for count in found.values()),
        "modules straight in diagnostics": found["diagnostics"],
        "modules straight in cli": found["cli"],
    }


def keep(when: str, commit: str | None) -> None:
    """Measure the tree, or a commit's, and keep it under ``when``."""
    found = measured()
    if commit is not None:
        command = ["git", "-C", str(ROOT), "archive", commit, "src/trueline"]
        packed = subprocess.run(command, capture_output=True, check=True).stdout
        with (
            tempfile.TemporaryDirectory() as folder,
            tarfile.open(fileobj=io.BytesIO(packed)) as tar,
        ):
            tar.extractall(folder, filter="data")
            found = measured(Path(folder) / "src" / "trueline")
    kept = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
    KEPT.write_text(json.dumps({**kept, when: found}, indent=1) + "\n", "utf-8")


def page() -> str:
    """The page with the sizes that are kept."""
    kept = json.loads(KEPT.read_text("utf-8"))
    lines = ["| | " + " | ".join(kept) + " |", "|---|" + "---|" * len(kept)]
    for name in next(iter(kept.values())):
        lines.append(f"| {name} | " + " | ".join(f"{one[name]:,}" for one in kept.values()) + " |")
        if name == "lines of code":
            means = [f"{one[name] / one['files']:.0f}" for one in kept.values()]
            lines.append("| of them in a file, on average | " + " | ".join(means) + " |")
    head, rest = PAGE.read_text("utf-8").split(BEGIN)
    table = "\n".join(lines)
    return f"{head}{BEGIN}\n{table}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write picture and page, print the figures, or keep them."""
    if "--figures" in sys.argv:
        total = sum(code_lines(path.read_text("utf-8")) for path in files().values())
        print(f"{len(files())} files, {total:,} lines of code, {total / len(files()):.0f} a file")
        for folder, count in folders().most_common():
            print(f"{count:4}  {folder}")
        return
    if sys.argv[1:2] == ["--keep"]:
        keep(sys.argv[2], next(iter(sys.argv[3:]), None))
    PICTURE.write_text(picture(), "utf-8")
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
