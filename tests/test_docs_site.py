"""The documentation's site: complete, in step with the code, and built without a broken link."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments
from typer.main import get_command

import test_docs
import trueline
from trueline.cli.app import app
from trueline.config import (
    RENAMED,
    AlignmentConfig,
    DataArguments,
    ModelArguments,
    WatchArguments,
)
from trueline.objectives import OBJECTIVES
from trueline.reproduce.claim import OWN, PAPERS
from trueline.reproduce.claims.abstracts import ASSERTED, BEYOND, STATES
from trueline.reproduce.kept import rows_of
from trueline.reproduce.scales import FAST
from trueline.reproduce.study import choose
from trueline.reproduce.versions import VERSIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paper_claims, trl_words, measured = map(tool, ("paper_claims", "trl_words", "measured"))
judge_tables, process_figures = tool("judge_tables"), tool("process_figures")
mathml, docs_versions, demo_figures = map(tool, ("mathml", "docs_versions", "demo_figures"))
FROM_TRL = (DOCS / "from-trl.md").read_text("utf-8")


class Names(yaml.SafeLoader):
    """YAML whose names of Python functions stay names."""


Names.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, name, node: name)


def navigated(entries):
    for entry in entries:
        for value in entry.values():
            yield from navigated(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation():
    site = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Names)
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert pages == set(navigated(site["nav"]))


def test_trl_words_are_told_as_the_code_has_them():
    """`python tools/trl_words.py` writes them."""
    assert trl_words.written(FROM_TRL) == FROM_TRL
    for old, new in RENAMED.items():
        assert f"| `{old}` | `{new}` |" in FROM_TRL


@pytest.mark.parametrize("page", measured.PAGES, ids=lambda page: page.name)
def test_figures_of_the_real_model_are_those_that_are_kept(page):
    """`python tools/measured.py` writes them."""
    text = page.read_text("utf-8")
    assert measured.written(text) == text


def test_the_demo_over_worlds_is_told_as_its_runs_are_kept():
    """`python tools/demo_figures.py` writes the package's figures, the pages and the picture."""
    from PIL import Image

    kept = rows_of(VERSIONS)
    worlds = demo_figures.Worlds.read()
    assert demo_figures.FILE.read_text("utf-8") == demo_figures.packed(demo_figures.gathered(kept))
    for page in demo_figures.PAGES:
        assert page.read_text("utf-8") == demo_figures.written(page, worlds)
    assert demo_figures.PICTURE.exists() == bool(worlds.seeds)
    if worlds.seeds:
        seen = Image.open(demo_figures.PICTURE).text["page"]
        assert seen == demo_figures.mark(demo_figures.page(worlds))


def test_the_tables_of_judges_are_of_the_kept_counts():
    """`python tools/judge_tables.py` writes them."""
    page = (DOCS / "judges.md").read_text("utf-8")
    kept = json.loads(judge_tables.KEPT.read_text("utf-8"))
    counted = json.loads(judge_tables.SORTED.read_text("utf-8"))
    assert judge_tables.written(page, kept, counted) == page
    for reads in kept.values():  # what the specification of the learned judge asks of it
        gains = []
        for both in reads["tests"]["model left out"].values():
            phrases, learned = (
                judge_tables.quality(both[name]).finding["accuracy"].value
                for name in ("phrases", "learned")
            )
            gains.append(learned - phrases)
        assert min(gains) > -0.01
        assert sum(gains) / len(gains) > 0.08


def test_several_processes_are_told_as_they_were_measured():
    """`python tools/process_figures.py` writes them."""
    page = process_figures.PAGE.read_text("utf-8")
    assert process_figures.written(page) == page


def test_every_key_of_the_configuration_is_told_to_who_comes_from_trl():
    plain = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = {f.name for f in dataclasses.fields(AlignmentConfig)} - plain
    for part in (ModelArguments, DataArguments, WatchArguments):
        own |= {field.name for field in dataclasses.fields(part)}
    told = set(re.findall(r"`(\w+)`", FROM_TRL))
    assert own <= told


def test_options_named_by_the_paper_pages_exist():
    named = set()
    for page in (DOCS / "papers").glob("*.md"):
        text = page.read_text("utf-8")
        for name in re.findall(r"`trueline align --loss_type (\w+)`", text):
            assert name in OBJECTIVES, f"{page.name}: {name}"
            named.add(name)
    assert {"kldo", "e_dpo", "gamma_dpo", "dil"} <= named


def test_the_measured_page_tells_every_claim_of_the_abstracts_and_its_history():
    """`python tools/paper_claims.py` writes that, too."""
    page = (DOCS / "reproduction.md").read_text("utf-8")
    assert paper_claims.pages()[DOCS / "reproduction.md"] == page
    assert {row.paper for row in ASSERTED} == set(PAPERS) - {OWN}
    assert len({row.words for row in ASSERTED}) == len(ASSERTED) == 35
    named = {name for row in ASSERTED for name in row.by}
    assert named | set(BEYOND) == {claim.name for claim in choose([])}
    for row in ASSERTED:
        assert row.state in STATES
        assert bool(row.by) == (row.state in ("measured", "weakened"))
        assert row.how.endswith(".")


def test_the_fast_scales_seeds_are_told_as_they_are():
    number = {2: "two", 3: "three"}[FAST.seeds]
    assert f"\n{number} seeds each" in (DOCS / "papers" / "index.md").read_text("utf-8")
    assert f"all, {number} seeds" in (DOCS / "reproduction.md").read_text("utf-8")


def test_paper_pages_state_the_claims_that_are_measured():
    """`python tools/paper_claims.py` writes them."""
    should = paper_claims.pages()
    assert [path.name for path, text in should.items() if path.read_text("utf-8") != text] == []
    pages = [path.read_text("utf-8") for path in (DOCS / "papers").glob("*.md")]
    for claim in choose([]):
        assert sum(f"| `{claim.name}` | {claim.statement} |" in page for page in pages) == 1


def test_functions_named_by_the_paper_pages_exist():
    packages = "objectives diagnostics curation evaluation diffusion training".split()
    found = 0
    for page in (DOCS / "papers").glob("*.md"):
        for package, path in re.findall(
            rf"`(?:trueline\.)?({'|'.join(packages)})\.([\w.]+)`", page.read_text("utf-8")
        ):
            thing = importlib.import_module(f"trueline.{package}")
            for name in path.split("."):
                submodule = f"{thing.__name__}.{name}"
                thing = getattr(thing, name, None) or importlib.import_module(submodule)
            found += 1
    assert found > 20


def test_commands_in_tables_exist():
    pages = [*(DOCS / "papers").glob("*.md"), *(DOCS / "tasks").glob("*.md"), ROOT / "README.md"]
    told = {
        command
        for page in pages
        for command in re.findall(r"^\|.*`(trueline [^`]+)`", page.read_text("utf-8"), re.MULTILINE)
    }
    assert len(told) > 25
    for command in told:
        _, verb, *rest = command.split()
        assert verb in get_command(app).commands
        if rest and (verb, rest[0]) != ("diffusion", "align"):  # whose options are keys
            test_docs.test_commands_exist_and_their_files_are_there(command)


def test_every_version_keeps_its_pages_and_latest_is_the_newest_release(tmp_path):
    site, pages = tmp_path / "site", tmp_path / "pages"
    site.mkdir()
    pages.mkdir()
    for version in ("0.1.0", "0.10.0", "v0.2.0", "0.11.0rc1", "0.2.1"):
        (site / "index.html").write_text(version)
        docs_versions.lay(site, pages, version)
    told = json.loads((pages / "versions.json").read_text())
    assert [one["version"] for one in told] == ["0.11rc1", "0.10", "0.2", "0.1"]
    assert [one["version"] for one in told if one["aliases"]] == ["0.10"]
    assert (pages / "0.2" / "index.html").read_text() == "0.2.1"
    assert 'url=../0.10/"' in (pages / "latest" / "index.html").read_text()
    with pytest.raises(SystemExit, match="expected a version"):
        docs_versions.lay(site, pages, "next")


def test_the_version_is_one():
    version = importlib.metadata.version("trueline")
    own = {
        "pyproject.toml": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "version"
        ],
        "CITATION.cff": str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]),
        "__version__": trueline.__version__,
    }
    assert set(own.values()) == {version}, own


def test_the_workflows_are_whole_and_run_what_there_is():
    """Every claimed Python on Linux and macOS; jobs that are needed and targets that exist."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    claimed = [word.split()[-1] for word in told if re.search(r":: 3\.\d+$", word)]
    made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("test", "release"):
        jobs = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]
        first = jobs["test" if name == "test" else "clean"]["strategy"]["matrix"]
        assert first == {"os": ["ubuntu-latest", "macos-latest"], "python": claimed}
        assert {job["needs"] for job in jobs.values() if "needs" in job} <= set(jobs)
        steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
        assert set(re.findall(r"\bmake ([\w-]+)", " ".join(steps))) <= made
        tools = re.findall(r"\btools/\w+\.py", " ".join(steps))
        assert all((ROOT / tool).exists() for tool in tools)
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(form.read_text())


CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3}


@pytest.mark.parametrize("spec", OBJECTIVES.values(), ids=lambda spec: spec.name)
def test_every_equation_is_drawn_whole(spec):
    """MathML that is well formed, and holds every letter and number of the equation."""
    tree = ElementTree.fromstring(mathml.mathml(f"L = {spec.equation}"))
    for element in tree.iter():
        assert len(element) == CHILDREN.get(element.tag, len(element))
    spelled = {name: letter for letter, name in mathml.GREEK.items()}
    drawn = "".join(spelled.get(text, text) for text in tree.itertext()).replace("σ(", "s(")
    drawn = re.sub(r"[^A-Za-z0-9]", "", drawn.replace("sigma", "s"))
    assert drawn == "L" + re.sub(r"[^A-Za-z0-9]", "", spec.equation)


def test_an_equations_parts():
    half = "<mfrac><mn>1</mn><mrow><mn>2</mn><mi>β</mi></mrow></mfrac>"
    assert half in mathml.mathml("1 / (2 beta)")
    assert "mfrac" not in mathml.mathml("-ln pi(y|x) / |y|")  # over what would the bar go?
    assert mathml.mathml("a <b>").count("<b>") == 0


@pytest.mark.skipif(shutil.which("zensical", path=str(Path(sys.executable).parent)) is None,
                    reason="needs the extra docs (`make docs` installs it)")  # fmt: skip
def test_the_site_builds_without_a_broken_link(tmp_path):
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)  # the site is built beside it
    for name in ("docs", "src", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("zensical")), "build", "--strict"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "tools")},
    )  # fmt: skip
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert re.findall(r"Warning: .*|[\w/.-]+\.md:\d+", plain) == []
    assert done.returncode == 0, plain
    page = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert "fonts.googleapis.com" not in page
    pages = [path.read_text("utf-8") for path in (tmp_path / "site").rglob("*.html")]
    assert sum(text.count("<math") for text in pages) > len(OBJECTIVES)
    assert not [text for text in pages if "language-equation" in text or "```equation" in text]
    asked = {
        url for text in pages for url in re.findall(r"""(?:src|srcset)=["']?(http[^"' >]+)""", text)
    }
    assert asked == set()  # nothing is loaded from outside
    assert [
        m for text in pages for m in re.findall(r":(?:func|class|meth|mod|data):`?\S+", text)
    ] == []
