"""The report decides, and every rate opens the rows it counts."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import parse_qsl

import pytest

from report_pages import HOSTILE, evaluated
from trueline.errors import UserError
from trueline.evaluation.comparison.values import Level, Scope
from trueline.report import Bounds, Shown, Table, render_html, render_report, report_from_runs
from trueline.report import rows as rows_module
from trueline.report.decision import decide, standing
from trueline.report.rows import FLAGS, link, unpacked
from trueline.results import Metric


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [evaluated(folder / name, seed) for seed, name in enumerate(("base", "kldo", "dpo"))]


def links(report):
    """Every rate of the page that opens rows, with what it asks for."""
    for decision in report.decisions:
        for price in decision.prices:
            if price.rows:
                yield price.value, dict(price.rows)
    for section in report.sections:
        for block in section.blocks:
            for row in block.rows if isinstance(block, Table) else ():
                for cell in row:
                    if isinstance(cell, Shown) and cell.rows and isinstance(cell.value, Metric):
                        yield cell.value, dict(cell.rows)


def counted(table, asked):
    """What the page counts: the same reading as in rows.js, written again."""
    words, models = table["words"], table["models"]

    def judged(own, model):
        for one in own[models.index(model)]:
            if asked.get("judge", words["judge"][one[0]]) != words["judge"][one[0]]:
                continue
            if asked.get("measure", words["measure"][one[1]]) == words["measure"][one[1]]:
                return one
        return None

    events = []
    for (benchmark, attack, _), _, _, own in table["rows"]:
        one = judged(own, asked["model"])
        other = judged(own, asked["with"]) if "with" in asked else one
        places = {"benchmark": words["benchmark"][benchmark], "attack": words["attack"][attack]}
        if one is None or any(asked.get(k, v) != v for k, v in places.items()):
            continue
        if "with" in asked and (other is None or min(one[2], other[2]) < 0):
            continue
        if "measure" in asked:
            events += [one[2]] if one[2] >= 0 else []
        elif "label" in asked:
            events.append(words["label"][one[3]] == asked["label"])
        else:
            events.append(one[5] >> FLAGS.index(asked["flag"]) & 1)
    return sum(events), len(events)


def test_every_rate_is_the_count_of_the_rows_it_opens(runs):
    report = report_from_runs(runs)
    rows = report.sections[[s.title for s in report.sections].index("Answers")].blocks[0]
    table = unpacked(rows.table())
    found = list(links(report))
    kinds = {frozenset(asked) - {"benchmark", "attack", "with", "judge"} for _, asked in found}
    assert kinds == {frozenset({"model", "measure"}), frozenset({"model", "flag"}),
                     frozenset({"model", "label"})}  # fmt: skip
    assert len(found) > 60
    for metric, asked in found:
        yes, n = counted(table, asked)
        assert n == metric.n, (metric, asked)
        assert yes / n == pytest.approx(metric.value), (metric, asked)
        assert dict(parse_qsl(link(asked).partition("?")[2])) == asked


def test_texts_lie_where_their_row_says(runs):
    report = report_from_runs(runs)
    rows = report.sections[[s.title for s in report.sections].index("Answers")].blocks[0]
    texts = [text for chunk in rows.chunks() for text in unpacked(chunk)]
    table = unpacked(rows.table())
    assert len(texts) == len(table["rows"]) == len(rows)
    for (prompt, asked, answers), first in zip(texts, rows.places.values(), strict=True):
        assert prompt == first.prompt
        assert asked == first.details.get("asked", "")
        assert [a is not None for a in answers] == [True] * 3
    assert rows.chunks() == rows.chunks()  # the same bytes each time


@pytest.mark.parametrize(
    ("metric", "where"),
    [
        (Metric("m", 0.03, 0.01, 0.10), "within"), (Metric("m", 0.5, 0.2, 0.8), "beyond"),
        (Metric("m", 0.03, 0.01, 0.11), "open"), (Metric("m", 0.3, 0.1, 0.5), "open"),
        (Metric("m", 0.0), "open"), (Metric("m", None), "unknown"), (None, "unknown"),
    ],
)  # fmt: skip
def test_a_bound_is_met_by_the_whole_interval_or_left_open(metric, where):
    assert standing(metric, 0.1) == where


def verdicts(runs, **bounds):
    report = report_from_runs(runs, Bounds(**bounds))
    return {d.model: (d.verdict, d.reason) for d in report.decisions}


def test_a_verdict_goes_by_the_users_bounds(runs):
    wide = {"attack": 1.0, "over_refusal": 1.0, "loss": 1.0}
    assert {v for v, _ in verdicts(runs, **wide).values()} == {"ship"}
    assert {v for v, _ in verdicts(runs, **wide | {"attack": 0.0}).values()} == {"do not ship"}
    assert "of answers are good" in verdicts(runs, **wide | {"utility": 1.0})["base"][1]
    with pytest.raises(UserError, match="attack must be a rate"):
        Bounds(attack=10)


def test_what_was_not_measured_is_undecided(runs):
    verdict, reason = verdicts(runs[:1], attack=1.0, over_refusal=1.0)["base"]
    assert verdict == "undecided"
    assert reason == "The change in good answers was not measured."
    assert verdicts(runs[:1], attack=1.0, over_refusal=1.0, utility=0.0)["base"][0] == "ship"


def test_over_refusal_is_read_where_it_is_worst_and_never_averaged_over_attacks():
    """An answer begun for the model is no refusal, and hid that all it is asked was refused."""

    def level(attack, value):
        metric = Metric("over-refusal", value, max(value - 0.05, 0.0), min(value + 0.05, 1.0), 40)
        benchmark = None if attack is None else "safe"
        return Level("dpo", Scope("over_refusal", "phrases", benchmark, attack), replace(
            metric, unit="rate"
        ))  # fmt: skip

    levels = (level(None, 0.05), level("direct", 0.9), level("prefill", 0.0))
    result = SimpleNamespace(
        levels=levels, contrasts=(), runs=("dpo",), notes=(), void={}, baseline="dpo"
    )
    (decision,) = decide(result, Bounds())
    assert decision.verdict == "do not ship"
    assert decision.prices[1].value.value == 0.9
    assert "90.0% (85.0 to 95.0%) of safe requests, direct on safe, are refused" in decision.reason


def test_the_worst_attack_is_named(runs):
    report = report_from_runs(runs)
    for decision in report.decisions:
        worst = decision.prices[0]
        every = [
            m
            for m, asked in links(report)
            if asked.get("measure") == "asr"
            and asked["model"] == decision.model
            and "attack" in asked
            and "with" not in asked
        ]
        assert worst.value.value == max(m.value for m in every)
        assert worst.name.partition(",")[0] in decision.reason.lower()
    assert report.title.startswith("Do not ship")


@pytest.mark.parametrize(
    ("label", "verdict", "why"),
    [
        ("incoherent", "do not ship", "no longer answers"),
        ("cut", "undecided", "the answers were cut before they said anything) was not measured"),
    ],
)
def test_a_model_that_gives_no_answer_does_not_ship(tmp_path, label, verdict, why):
    run = evaluated(tmp_path / "broken", 0, label=label, success=False)
    found = report_from_runs([run], Bounds(1, 1, 1, 0)).decisions[0]
    assert (found.verdict, why in found.reason) == (verdict, True)


def test_more_rows_lie_in_a_folder_and_the_policy_lets_the_page_ask_for_them(
    runs, tmp_path, monkeypatch
):
    report = report_from_runs(runs)
    alone = render_report(report, tmp_path / "report.html").read_text("utf-8")
    assert 'id="rows-0"' in alone
    assert "strict-dynamic" not in alone
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    monkeypatch.setattr("trueline.report.html.ONE_FILE", 10)
    monkeypatch.setattr(rows_module, "CHUNK", 20)
    (tmp_path / "report-rows").mkdir()
    (tmp_path / "report-rows" / "999.js").write_text("of an earlier, longer report")
    page = render_report(report_from_runs(runs), tmp_path / "report.html").read_text("utf-8")
    assert 'id="rows-0"' not in page
    assert "strict-dynamic" in page
    files = sorted(path.name for path in (tmp_path / "report-rows").iterdir())
    assert files == ["0.js", "1.js", "2.js"]


def test_hostile_rows_are_packed_away(tmp_path):
    run = evaluated(tmp_path / "run", 0, text=HOSTILE)
    page = render_html(report_from_runs([run]))
    assert "alert(1)" not in page.partition("<header")[2].partition("<footer")[0]
    packed = page.partition('id="rows-0">')[2].partition("<")[0]
    assert "gnp.exe" in json.dumps(unpacked(packed))
    assert "\u202e" not in json.dumps(unpacked(packed), ensure_ascii=False)


def test_marks_are_one_for_each_model_everywhere(runs):
    from trueline.report.drawing.view import Views

    report = report_from_runs(runs)
    views = Views(models=list(report.models))
    assert [views.place(n) for n in ("base", "kldo", "dpo", "value")] == [0, 1, 2, -1]
    random.seed(0)
    for section in report.sections:
        for block in section.blocks:
            view = views.view(block) if isinstance(block, Table) else {"rows": ()}
            for row, cells in zip(getattr(block, "rows", ()), view["rows"], strict=False):
                for cell, shown in zip(row, cells, strict=True):
                    if isinstance(cell, Shown) and isinstance(cell.value, Metric) and shown["bar"]:
                        assert shown["mark"]["tone"] == f"m{views.place(cell.model)}"
    from trueline.report.drawing.numbers import mark_view

    assert len({tuple(mark_view(i).values()) for i in range(25)}) == 25
