"""The report: all that was given is there, nothing in it runs or loads, and gaps are said."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report_pages import BASE, HOSTILE, RATE, everything
from trueline.errors import UserError
from trueline.files import write_json
from trueline.report import (
    RateChart,
    Report,
    Scatter,
    ScatterPanel,
    Section,
    Table,
    Text,
    render_html,
    render_report,
    report_from_run,
    report_from_runs,
)
from trueline.report.drawing.figures import scatter_ranges
from trueline.report.drawing.numbers import change, common_scale, number, span
from trueline.report.drawing.style import DARK, MODELS
from trueline.report.drawing.tables import table_view
from trueline.results import Finding, Metric
from trueline.runs.record import Run


class Page(HTMLParser):
    """The page's own markup: elements with attributes, and the scripts' texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and not self.scripts[-1][1]:
            self.scripts[-1] = (self.scripts[-1][0], data)
        elif self.elements and self.elements[-1][0] != "style":
            self.text += data


@pytest.fixture(scope="module")
def hostile() -> Page:
    return Page(render_html(everything(HOSTILE)))


# -- safety -----------------------------------------------------------------------------------


def test_hostile_text_adds_no_element(hostile: Page) -> None:
    tame = Page(render_html(everything("tame")))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in tame.elements]
    assert {name for _, attrs in hostile.elements for name in attrs} == {
        name for _, attrs in tame.elements for name in attrs
    }
    assert "49" not in re.findall(r"\{\{.*?\}\}|49", hostile.text)
    assert "</script><script>alert(1)</script>" in hostile.text  # shown as the text it is


def test_hostile_text_cannot_leave_the_data(hostile: Page) -> None:
    assert len(hostile.scripts) == 3
    (attrs, data), *_ = hostile.scripts
    assert attrs["type"] == "application/json"
    assert not set("<>&") & set(data)
    figures = json.loads(data)["figures"]
    shown = json.dumps(figures)
    assert "alert(1)" in shown
    assert "<script" not in shown  # plotly reads a little HTML in labels: escaped there as well
    assert "<a " not in shown


def test_the_page_loads_nothing(hostile: Page) -> None:
    loads = [
        (tag, name, value)
        for tag, attrs in hostile.elements
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
    ]
    assert all(value.startswith("#") or value == "data:," for _, _, value in loads)
    css = "".join((Path(__file__).parents[1] / "src/trueline/report/page.css").read_text("utf-8"))
    assert "url(" not in css
    assert "@import" not in css


def test_the_policy_names_exactly_the_pages_scripts(hostile: Page) -> None:
    policy = next(
        attrs["content"] for tag, attrs in hostile.elements
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    assert policy.startswith("default-src 'none'")
    library, *own = hostile.scripts[1:]
    assert library[0] == {"type": "text/plain", "id": "plotly"}  # run later, and by its hash
    for attrs, script in [({}, library[1]), *own]:
        assert not attrs
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.count("sha256-") == 2


def test_a_page_without_figures_is_small() -> None:
    text = render_html(Report("t", "s", [Section("a", "b", [Text("c")])]))
    assert len(text) < 40_000
    assert text.startswith("<!doctype html>")


# -- content ----------------------------------------------------------------------------------


def test_every_section_and_block_is_there(tmp_path: Path) -> None:
    path = render_report(everything("needle"), tmp_path / "deep" / "report.html")
    page = Page(path.read_text("utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("section") == 2
    assert tags.count("table") == 6  # in each section two tables and the chart's numbers
    assert tags.count("article") == 2
    assert tags.count("details") == 6
    plots = [attrs for _, attrs in page.elements if attrs.get("class") == "plot"]
    assert len(plots) == 12
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_ids_are_unique_and_links_arrive(hostile: Page) -> None:
    ids = [attrs["id"] for _, attrs in hostile.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in hostile.elements:
        for name in ("aria-controls", "aria-labelledby"):
            assert attrs.get(name, ids[0]) in ids
        if (attrs.get("href") or "").startswith("#"):
            assert attrs["href"][1:] in ids


def test_sensitive_answers_are_veiled_behind_a_button(hostile: Page) -> None:
    veiled = [attrs for _, attrs in hostile.elements if "veiled" in (attrs.get("class") or "")]
    buttons = [attrs for tag, attrs in hostile.elements if tag == "button"]
    assert all("inert" in attrs for attrs in veiled)
    assert {attrs["id"] for attrs in veiled} == {
        attrs["aria-controls"] for attrs in buttons if attrs["class"] == "reveal"
    }


def test_numbers_read_well() -> None:
    assert (number(0.5, "rate"), number(3), number(-2.0), number(1e-9)) == (
        "50.0%", "3", "−2", "1e−09",
    )  # fmt: skip
    assert span(RATE) == "1.0 to 8.5%"
    assert span(Metric("x", 1.0)) == ""
    assert change(-0.85, "rate") == "−85.0 pts"
    assert (number(float("nan")), number(float("inf"))) == ("not a number", "∞")


def test_scales() -> None:
    assert common_scale([RATE, BASE]) == (0.0, 1.0)
    assert common_scale([Metric("d", 3.0, 2.0, 4.0), Metric("d", 1.0)]) == (0.0, 4.0)
    assert common_scale([Metric("d", None)]) is None
    table = table_view(
        Table(
            ("", "a", "change"),
            [["r", RATE, Metric("d", -0.5, -0.6, -0.4, unit="rate")]],
            changes=["change"],
        )
    )
    _, value, moved = table["rows"][0]
    assert value["bar"]["zero"] is None
    assert moved["bar"]["zero"] == 50.0
    assert moved["bar"]["low"] < moved["bar"]["dot"] < moved["bar"]["high"] < 50.0


def test_panels_share_a_scale_where_they_are_alike() -> None:
    def panel(width: float) -> ScatterPanel:
        return ScatterPanel("p", [0, width, width / 2], [0, width, 0], [True, False, True])

    near, far = Scatter([panel(1), panel(2)]), Scatter([panel(1), panel(9)])
    assert len(set(scatter_ranges(near))) == 1
    assert len(set(scatter_ranges(far))) == 2
    forced = Scatter(far.panels, same_scale=True)
    assert len(set(scatter_ranges(forced))) == 1
    assert len(set(scatter_ranges(Scatter(near.panels, same_scale=False)))) == 2


def test_every_color_has_a_dark_form_and_enough_contrast() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    from trueline.report.drawing.style import BAD, GOOD, GROUND, INK, MUTED

    for color, least in (
        (INK, 7),
        (MUTED, 4.5),
        (GOOD, 4.5),
        (BAD, 4.2),
        *((m, 3) for m in MODELS),
    ):
        assert contrast(color, GROUND) >= least, color
        assert contrast(DARK[color], DARK[GROUND]) >= least, color


@pytest.mark.parametrize(
    "block",
    [
        lambda: Table(("a", "b"), [["x"]]),
        lambda: Table(("a",), [], changes=["b"]),
        lambda: RateChart(["a", "b"], {"m": [None]}),
        lambda: ScatterPanel("p", [1.0], [1.0, 2.0], [True]),
    ],
)
def test_blocks_that_do_not_fit_are_refused(block) -> None:
    with pytest.raises(UserError):
        block()


def test_unscored_is_said_and_never_zero() -> None:
    text = render_html(
        Report("t", "s", [Section("a", "", [Table(("", "m"), [["asr", Metric("asr", None)]])])])
    )
    assert "unscored" in text


# -- run directories --------------------------------------------------------------------------


def scatter_finding(name: str = "separation") -> Finding:
    data = {
        "x": [0.0, 1, 2, 3],
        "y": [0.0, 1, 0, 1],
        "harmful": [True, False] * 2,
        "text": ["t"] * 4,
    }
    metrics = (Metric("bhattacharyya_distance", 2.5, 2.0, 3.0, 4),)
    return Finding(name, "Far apart.", metrics, "Give more prompts.", {"scatter": data})


def full_run(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("objective: kldo\nbeta: 0.1\n")
    write_json(
        path / "manifest.json", {"versions": {"torch": "2"}, "command": ["trueline", "align"]}
    )
    rows = [
        {
            "step": s,
            "loss": 1 / s,
            "rewards/chosen": -s,
            "logps/chosen": -s,
            "logps/rejected": -2 * s,
        }
        for s in (1, 2, 3)
    ]
    rows += [{"step": 3, "eval_loss": 0.4, "eval_logps/chosen": -3.5}, {"step": 3, "loss": None}]
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Run(path).save([scatter_finding(), Finding("over_refusal", "Rare.", (RATE,))])
    samples = [
        {"prompt": "p", "answers": {"base": "x", "kldo": {"text": "y", "verdict": "refused"}}},
        {"prompt": [{"role": "user", "content": "q"}], "answer": "z", "sensitive": True},
    ]
    (path / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    return path


def test_a_full_run(tmp_path: Path) -> None:
    report = report_from_run(full_run(tmp_path / "kldo"))
    titles = [section.title for section in report.sections]
    assert titles == ["Separation", "Training", "Over refusal", "Samples", "Run it again"]
    assert report.title == "Run kldo"
    assert "Far apart." in report.summary
    assert "from 1 to 0.33" in report.summary
    (curves,) = report.sections[1].blocks
    assert [panel.title for panel in curves.panels] == [
        "Loss", "Log-probability of the answers", "Implicit reward",
    ]  # fmt: skip
    lines = curves.panels[1].lines
    assert [(line.name, line.dashed) for line in lines] == [
        ("chosen", False), ("chosen, evaluation", True), ("rejected", False),
    ]  # fmt: skip
    assert lines[0].y == [-1, -2, -3]
    assert "trueline align" in render_html(report)


def test_an_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    report = report_from_run(tmp_path)
    assert report.sections[-1].title == "What is missing"
    for name in ("config.yaml", "manifest.json", "metrics.jsonl", "findings.json", "samples.jsonl"):
        assert name in report.sections[-1].text
    assert "There are no findings" in render_html(report)


def test_broken_pieces_are_counted_and_left_out(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    (run / "config.yaml").write_text("a: [")
    (run / "manifest.json").write_text("[1]")
    (run / "findings.json").write_text('{"name": 3}')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 4, "lo\n17\n{"step": 5, "loss": NaN}\n')
    report = report_from_run(run)
    said = report.sections[-1].text
    assert "config.yaml cannot be read" in said
    assert "manifest.json cannot be read" in said
    assert "findings.json cannot be read" in said
    assert "metrics.jsonl: 2 lines" in said
    render_html(report)


def test_a_scatter_that_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    Run(run).save([Finding("separation", "s", figures={"scatter": {"x": [1]}})])
    report = report_from_run(run)
    assert "the scatter of separation cannot be drawn" in report.sections[-1].text
    render_html(report)


def test_runs_side_by_side(tmp_path: Path) -> None:
    a, b = full_run(tmp_path / "a" / "run"), full_run(tmp_path / "b" / "run")
    report = report_from_runs([a, b])
    scatter, said, table = report.sections[0].blocks[:3]
    assert said.text.count("Far apart.") == 2
    assert [panel.title for panel in scatter.panels] == ["a/run", "b/run"]
    assert len(table.columns) == 3
    training = next(s for s in report.sections if s.title == "Training")
    assert [block.title for block in training.blocks] == ["a/run", "b/run"]
    render_html(report)


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run directory"):
        report_from_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="at least one"):
        report_from_runs([])


def test_the_command(tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from trueline.cli.report import report

    app = typer.Typer()
    app.command()(report)
    run = full_run(tmp_path / "run")
    done = CliRunner().invoke(app, [str(run), "--json"])
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed["report"] == str(run / "report.html")
    assert printed["missing"] == {str(run): []}
    assert (run / "report.html").exists()
    done = CliRunner().invoke(app, [str(run), str(run), "--out", str(tmp_path / "x.html")])
    assert done.exit_code == 0
    assert done.stdout == ""
    assert (tmp_path / "x.html").exists()
