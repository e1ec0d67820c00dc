"""The structure holds: imports go down in rank, packages hand names on, start-up is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "trueline"
RANKS = {
    -1: ("errors", "verbs"),
    0: ("records", "registry", "files", "terminal", "trl", "plugins"),
    0.5: ("results", "identity", "options"),
    0.7: ("runs.record",),  # whatever makes a run writes through its record
    1: ("config", "logprobs", "prompts", "stats"),
    2: ("divergences", "data", "batching"),
    3: ("objectives", "models", "scoring"),
    4: ("diagnostics",),
    5: ("training", "evaluation", "sandbox"),
    6: ("curation", "diffusion", "report"),
    7: ("reproduce",),
    8: ("runs",),
    9: ("cli",),
    10: ("__main__",),
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def home(path):
    return room(".".join(path.relative_to(SOURCE).with_suffix("").parts))


def room(dotted):
    """The part of the house that a module belongs to."""
    two = ".".join(dotted.split(".")[:2])
    return two if two in RANK else dotted.split(".")[0]


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trueline."):
            yield room(node.module.removeprefix("trueline."))
        elif isinstance(node, ast.Import):
            yield from (
                room(n.name.removeprefix("trueline."))
                for n in node.names
                if n.name.startswith("trueline.")
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_to_lower_ranks_only(path):
    own = home(path)
    if own == "__init__":
        return
    assert own in RANK, f"give {own} a rank"
    for other in imported(ast.parse(path.read_text("utf-8"))):
        assert other == own or RANK[other] < RANK[own], f"{own} imports {other}"


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=str)
def test_packages_hand_names_on_and_nothing_more(path):
    if path.parent == SOURCE:
        return
    allowed = (ast.ImportFrom, ast.Import, ast.Assign, ast.AnnAssign, ast.Expr)
    assert all(isinstance(node, allowed) for node in ast.parse(path.read_text("utf-8")).body)


def test_help_needs_no_heavy_import():
    code = (
        "import sys, trueline.cli; heavy = {'torch', 'transformers', 'plotly', 'scipy', 'pandas'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"imported by the command line: {done.stderr}"


def test_help_lists_the_verbs():
    command = [str(Path(sys.executable).with_name("trueline")), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    for verb in ("align", "data", "demo", "objectives", "report"):
        assert verb in done.stdout


def test_public_names():
    import trueline

    for name in trueline.__all__:
        assert getattr(trueline, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trueline.nothing  # noqa: B018


def test_tables_are_printed_on_stdout():
    """A table on stderr is empty in a pipe: results go through `out`, remarks through `console`."""
    for path in [*(SOURCE / "cli").glob("*.py"), *(SOURCE / "runs").glob("*.py")]:
        assert "console.print(table" not in path.read_text("utf-8"), path
