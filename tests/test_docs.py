"""What README and docs say is true: commands exist, configurations parse, files are there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from trueline.cli.app import app
from trueline.config import load_run_config
from trueline.objectives import OBJECTIVES, bind
from trueline.trl import SCRIPTS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples/hh/README.md"]
OPTIONS = {name for spec in OBJECTIVES.values() for name in spec.options}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def commands():
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                command = line.split("#")[0].strip()
                if command:
                    yield pytest.param(command, id=f"{page.stem}: {command[:50]}")


@pytest.mark.parametrize("command", list(commands()))
def test_commands_exist_and_their_files_are_there(command):
    program, *arguments = command.split()
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python":
        done = subprocess.run(
            [sys.executable, str(ROOT / arguments[0]), "--help"], capture_output=True
        )
        assert done.returncode == 0
    elif program == "trueline":
        verb = get_command(app).commands[arguments[0]]
        if hasattr(verb, "commands"):
            verb = verb.commands[arguments[1]]
        if arguments[0] not in ("align", *SCRIPTS):  # whose options are the configuration's keys
            known = {option for parameter in verb.params for option in parameter.opts}
            assert {a for a in arguments if a.startswith("--")} <= known
    else:
        assert program in {"pip", "git"}, f"unknown program {program}"
    for argument in arguments:
        if argument.startswith("examples/"):
            assert (ROOT / argument).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_and_code_are_valid(page, tmp_path):
    for index, block in enumerate(blocks(page, "yaml")):
        file = tmp_path / f"{index}.yaml"
        file.write_text(block)
        run = load_run_config(file, {"use_cpu": "true"}, OPTIONS)
        assert bind(run.training.loss_type, run.training.options())
        assert yaml.safe_load(block)
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
        for line in re.findall(r"from trueline.* import .*", block):
            exec(line, {})
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_reliability_page_says_what_was_measured():
    sys.path.insert(0, str(ROOT / "tools"))
    import reliability

    found = json.loads(reliability.DATA.read_text("utf-8"))
    assert reliability.page(found) == reliability.PAGE.read_text("utf-8")


GENERATED = {"objectives.md", "real-text.md", "reproduction.md", "study.md"}
"""Pages whose counts a generator writes, and a test holds."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_counts_what_grows(page):
    """A number of objectives or judges in prose is soon wrong: only a generator says one."""
    kinds = "objectives|losses|attacks|judges|benchmarks|questions|claims|curation steps|verbs"
    found = re.findall(rf"\b\d+ (?:{kinds})\b", page.read_text("utf-8"))
    assert page.name in GENERATED or found == []


UNITS = (
    r"%|percent\b|points\b|times\b|[GMTk]i?B\b|(?:milli)?seconds?\b|minutes?\b|hours?\b|m?s\b|"
    r"nats\b|GFLOP"
)
FIGURE = re.compile(
    rf"\d[\d,.]*\s?(?:{UNITS})|\[[-+]?\d[\d.,%]*, [-+]?\d[\d.,%]*\]|\bp [<=] ?0?\.\d+|"
    r"\d\.\d+e-\d+|\d \(\d[\d.]* to \d[\d.]*\)"
)
RULE, SETTING, ARITHMETIC = "a threshold or a definition", "how it was measured", "bytes a value"
COMPUTED, DATA = "a worked example that a test computes", "of a published data set"
ALLOWED = {
    "docs/curation.md": dict.fromkeys(["2%", "1%"], RULE),
    "docs/diagnostics.md": dict.fromkeys(["5 points", "5%", "10 points", "100%"], RULE),
    "docs/diffusion.md": dict.fromkeys(["65.5 kB", "262 kB", "446 GB", "8.4 GB"], ARITHMETIC),
    "docs/entanglement.md": dict.fromkeys(["95%", "[0, 1]"], RULE),
    "docs/evaluation.md": {"95%": DATA},
    "docs/judges.md": {"70%": RULE},
    "docs/papers/ranking.md": {"100%": RULE},
    "docs/papers/real.md": {"35%": RULE},
    "docs/performance.md": {"0.2 seconds": SETTING},
    "docs/statistics.md": dict.fromkeys(
        ["0.73%", "80%", "97%", "20 points", "p = 0.030", "p = 0.026", "p = 0.084", "100%", "89%"],
        COMPUTED,
    ),
    "docs/tasks/align.md": {"5%": RULE},
    "docs/tasks/several-gpus.md": dict.fromkeys(
        ["15.0 GiB", "0.6 GiB", "5 GiB", "120 GiB", "15 GiB", "0.4 GiB", "1.0 GiB", "30 GiB",
         "131 GiB", "8.2 GiB", "3.7 GiB"],
        ARITHMETIC,
    ),
    "examples/hh/README.md": {"15%": RULE},
}  # fmt: skip
"""Figures that no run measured, by page, each with what it is instead."""
WRITTEN = {f"docs/{name}.md" for name in ("objectives", "real-text", "reliability",
                                          "reproduction", "study")}  # fmt: skip
"""Pages that a generator writes whole."""


def test_no_figure_stands_outside_what_a_generator_wrote():
    """In prose and tables; what stands between a generator's marks is held by its own test, and a
    block of code shows what a command prints."""
    found = {}
    for path in (*PAGES, *(ROOT / "examples").rglob("*.md")):
        page = str(path.relative_to(ROOT))
        text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
        text = re.sub(r"<!-- (\w+) -->.*?<!-- \1 -->|`[^`\n]*`", "", text, flags=re.DOTALL)
        figures = {match.group() for match in FIGURE.finditer(" ".join(text.split()))}
        if figures and page not in WRITTEN:
            found[page] = figures
    assert found == {page: set(figures) for page, figures in ALLOWED.items()}
