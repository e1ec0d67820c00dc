"""The structure holds: imports go down in rank, packages hand names on, start-up is light."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import house

SOURCE = Path(__file__).parents[1] / "src" / "trueline"
RANKS = {
    -1: ("errors", "verbs"),
    -0.5: ("processes",),
    0: ("records", "registry", "files", "interrupts", "terminal", "trl", "plugins"),
    0.5: ("results", "identity", "options"),
    0.7: ("runs.record",),  # whatever makes a run writes through its record
    0.8: ("runs.state",),
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
    for path in [*(SOURCE / "cli").glob("*.py"), *(SOURCE / "runs").rglob("*.py")]:
        assert "console.print(table" not in path.read_text("utf-8"), path


# --- the command line holds options and tables ---------------------------------------------------

OFFERS = {
    "errors",
    "results",
    "terminal",
    "processes",
    "plugins",
    "interrupts",
    "trl",
    "config",
    "runs",
    "cli",
}
"""What the command line may import of Trueline, at the top of a file or inside a function: the
verbs, and how words are read and refused. No model, objective, trainer, judge or page."""
ANNOTATES = {"results", "data", "evaluation", "objectives", "curation", "diagnostics"}
"""And what its annotations may name under TYPE_CHECKING, to print it."""
LIBRARIES = {"typer", "rich"}
WORKS = {"open", "exec", "eval", "compile", "__import__"}


@pytest.mark.parametrize("path", sorted((SOURCE / "cli").glob("*.py")), ids=lambda p: p.stem)
def test_the_command_line_holds_options_and_tables_alone(path):
    """A file of cli imports, beside the standard library, typer and rich, only what OFFERS names
    (and for annotations what ANNOTATES names), and neither opens nor writes a file: it reads
    options, calls a function of trueline.runs, and prints."""
    tree = ast.parse(path.read_text("utf-8"))
    for module, typed in modules_imported(tree):
        first, _, rest = module.partition(".")
        if first == "trueline":
            allowed = OFFERS | (ANNOTATES if typed else {"options"})
            assert not rest or rest.split(".")[0] in allowed, f"{path.name} imports {module}"
        else:
            assert first in LIBRARIES or first in sys.stdlib_module_names, module
    if path.stem == "app":  # the boundary of errors: it keeps the trace of our own faults
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert name not in WORKS, f"{path.name} calls {name}"
            assert name == "write_page" or not name.startswith("write"), f"{path.name}: {name}"


def modules_imported(tree, typed=False):
    """Each module that is imported anywhere, and whether only for annotations."""
    for node in ast.iter_child_nodes(tree):
        only = typed or is_for_types(node)
        if isinstance(node, ast.Import):
            yield from ((name.name, only) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "trueline":
            yield from ((f"trueline.{name.name}", only) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, only
        yield from modules_imported(node, only)


def is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


# --- a stranger finds a thing at the second look -------------------------------------------------


def test_no_folder_holds_more_than_fifteen_modules():
    """Modules a folder, its ``__init__`` aside."""
    assert {name: count for name, count in house.folders().items() if count > house.MOST} == {}


def test_no_file_imports_itself_in_a_circle():
    """By file: imports, at the top or inside a function, never lead back over any number of files.
    What only annotations read (TYPE_CHECKING) does not count; nor does what trueline.verbs hands on
    by name, which is how a run has the verbs' names and a verb returns a run."""
    assert not house.circle(), " > ".join(house.circle())


def test_the_picture_of_the_house_is_current():
    told = "run python tools/house.py: what imports what has changed"
    assert house.PICTURE.read_text("utf-8") == house.picture(), told
    assert house.PAGE.read_text("utf-8") == house.page(), "run python tools/house.py"


def test_each_dependency_is_imported():
    """What is installed with Trueline is used by it; what tests alone read is a need of theirs."""
    told = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text("utf-8"))
    names = {re.split(r"[<>=!~ ;\[]", need)[0] for need in told["project"]["dependencies"]}
    known = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
    text = "\n".join(path.read_text("utf-8") for path in FILES)
    unused = {n for n in names if not re.search(rf"(import|from) {known.get(n, n)}\b", text)}
    assert unused == set()
