"""The rows behind the rates, in a real browser: counted, filtered, linked, blurred, harmless."""

import re

import pytest

from browser import CHROMIUM, browser
from report_pages import HOSTILE, evaluated
from trueline.report import render_report, report_from_runs
from trueline.report import rows as rows_module

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome (set CHROMIUM to its path)"),
]
READY = (
    "new Promise((done) => { const look = () => document.querySelector('.rows').dataset.ready"
    " ? done(true) : setTimeout(look, 5); look(); })"
)
FOLLOW = """
(async () => {
  const told = [];
  const box = document.querySelector('.rows');
  for (const link of document.querySelectorAll("a[href^='#rows?']")) {
    link.click();
    while (box.dataset.at !== link.hash) await new Promise((done) => setTimeout(done, 5));
    told.push([link.textContent, document.querySelector('.rows .count').textContent,
               document.querySelector('.rows .shown').textContent, location.hash]);
  }
  return told;
})()
"""


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    names = ("base", "kldo", "dpo")
    return [evaluated(folder / name, i, text=HOSTILE) for i, name in enumerate(names)]


@pytest.fixture(scope="module", params=["one file", "a folder"])
def page(request, runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    if request.param == "one file":
        return render_report(report_from_runs(runs), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trueline.report.html.ONE_FILE", 10)
        patch.setattr(rows_module, "CHUNK", 20)
        return render_report(report_from_runs(runs), path)


def opened(chromium, page, hash_="", **how):
    chromium.open(page, **how)
    if hash_:
        chromium.run(f"location.hash = {hash_!r}")
    assert chromium.run(READY)
    chromium.run("new Promise((done) => setTimeout(done, 150))")


def test_each_rates_link_leads_to_rows_whose_count_gives_the_rate(chromium, page):
    opened(chromium, page)
    told = chromium.run(FOLLOW)
    rates = [one for one in told if one[0].endswith("%")]
    assert len(rates) > 60
    for rate, sentence, shown, _ in rates:
        yes, n, again = re.search(
            r"in ([\d,]+) of ([\d,]+) answers .*?\(([\d.]+%)\)", sentence
        ).groups()
        assert again == rate, sentence
        assert round(100 * int(yes) / int(n), 1) == float(rate[:-1])
        left = re.search(r"([\d,]+) more (is|are) not judged", sentence)
        rows = int(n) + (int(left[1]) if left else 0)
        if sentence.startswith(("Labeled", "Truncated", "Empty", "Unparsable")):
            rows = int(yes)
        assert f"of {rows} rows" in shown or (rows == 0 and "No row" in shown), (sentence, shown)
    changed = [one for one in told if "fixed" in one[0]]
    for cell, _, shown, _ in changed:
        both = sum(map(int, re.findall(r"\d+", cell)))
        assert f"of {both} rows" in shown or (both == 0 and "No row" in shown), (cell, shown)
    assert chromium.complaints() == []
    assert all(url.startswith(("file:", "data:")) for url in chromium.requests())


def test_hostile_rows_stay_text(chromium, page):
    opened(chromium, page, "#rows?model=kldo&measure=asr",
           script="window.hacked = []; window.alert = (x) => window.hacked.push(x);")  # fmt: skip
    chromium.run("document.querySelector('.show-all').click()")
    words = chromium.run("document.querySelector('.rows .words').textContent")
    assert "<script>alert(1)</script>" in words + chromium.run("document.body.textContent")
    strange = "document.querySelectorAll('.rows img, .rows iframe, .rows script').length"
    assert chromium.run(strange) == 0
    assert chromium.run("window.hacked") == []
    assert not chromium.run("/[\u202a-\u202e]/.test(document.documentElement.innerText)")


def test_answers_are_blurred_until_asked_for_and_one_prompt_has_a_link(chromium, page):
    opened(chromium, page, "#rows?model=kldo&measure=asr&attack=prefill")
    blur = "getComputedStyle(document.querySelector('.rows .answers .words')).filter"
    assert chromium.run(blur) == "blur(6px)"
    assert chromium.run("document.querySelector('.rows .answers').inert")
    chromium.run("document.querySelector('.rows button.reveal').click()")
    assert chromium.run(blur) == "none"
    hash_ = chromium.run("document.querySelector('.rows .permalink').getAttribute('href')")
    prompt = chromium.run("document.querySelector('.rows .prompt').textContent")
    opened(chromium, page, hash_)
    assert chromium.run("document.querySelectorAll('.rows article').length") == 1
    assert chromium.run("document.querySelector('.rows .prompt').textContent") == prompt
    assert chromium.run("document.querySelectorAll('.rows .answer').length") == 3


def test_keyboard_alone_opens_a_rate_filters_and_returns(chromium, page):
    opened(chromium, page)
    for _ in range(40):
        chromium.press("Tab", 9)
        if chromium.run("document.activeElement.matches('header a.value')"):
            break
    href = chromium.run("document.activeElement.getAttribute('href')")
    chromium.press("Enter", 13)
    chromium.run("new Promise((done) => setTimeout(done, 200))")
    assert chromium.run("document.activeElement.tagName") == "H2"
    assert chromium.run("location.hash") == href
    seen = []
    for _ in range(40):
        chromium.press("Tab", 9)
        seen.append(chromium.run("document.activeElement.name || document.activeElement.className"))
        outline = chromium.run("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", seen[-1]
    for name in ("model", "measure", "attack", "category", "label", "outcome", "text", "back",
                 "show-all", "permalink", "reveal"):  # fmt: skip
        assert name in seen, name
    chromium.run("document.querySelector('.rows .back').focus()")
    chromium.press("Enter", 13)
    assert chromium.run("document.activeElement.getAttribute('href')") == href


def test_paper_begins_with_the_verdicts_beside_their_reasons(chromium, page):
    """A table that may not break leaves the first sheet empty; a verdict ends before its reason."""
    opened(chromium, page, width=680)
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert (
        chromium.run("getComputedStyle(document.querySelector('.decisions')).breakInside") == "auto"
    )
    gaps = chromium.run("""[...document.querySelectorAll('.decisions tbody tr')].map((row) => {
      const words = document.createRange();
      words.selectNodeContents(row.querySelector('.ruling'));
      return row.querySelector('.reason').getBoundingClientRect().left
        - words.getBoundingClientRect().right; })""")
    chromium.call("Emulation.setEmulatedMedia", media="")
    assert len(gaps) == 3
    assert min(gaps) >= 0


def test_filters_are_told_by_the_address(chromium, page):
    opened(chromium, page)
    pick = "const s = document.querySelector('.filters [name={}]'); s.value = '{}'; "
    for name, value in (("model", "dpo"), ("attack", "prefill"), ("outcome", "differs")):
        chromium.run("{" + pick.format(name, value) + "s.dispatchEvent(new Event('change')); }")
    chromium.run("new Promise((done) => setTimeout(done, 200))")
    before = chromium.run("document.querySelector('.rows .list').textContent")
    hash_ = chromium.run("location.hash")
    assert "outcome=differs" in hash_
    opened(chromium, page, hash_)
    assert chromium.run("document.querySelector('.rows .list').textContent") == before


def test_five_thousand_rows_open_within_a_second(chromium, tmp_path):
    run = evaluated(tmp_path / "large", 0, text="plain words and more of them " * 20, prompts=2500)
    report = report_from_runs([run])
    path = render_report(report, tmp_path / "report.html")
    assert not (tmp_path / "report-rows").exists()
    chromium.open(path)
    chromium.run("location.hash = '#rows?model=large&measure=asr&attack=prefill'")
    took = chromium.run(READY.replace("done(true)", "done(performance.now())")) / 1000
    assert took < 1.0, f"{took:.2f} s by the page's clock"
