"""The report in a real browser: it draws, hides, loads nothing, and hostile text stays text."""

import pytest

from browser import CHROMIUM, browser
from report_pages import everything
from trueline.report import render_report

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome found (set CHROMIUM to its path)"
)

TAB, ENTER = ("Tab", 9), ("Enter", 13)
ATTACKER = "window.hacked = []; window.alert = (x) => window.hacked.push(x);"
BLUR = "getComputedStyle(document.querySelector('.answers .words')).filter"


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from report_pages import HOSTILE

    return render_report(everything(HOSTILE), tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_draws_every_figure_and_complains_of_nothing(chromium, page, dark):
    chromium.open(page, dark=dark)
    drawn = "[...document.querySelectorAll('.plot')].map((p) => p.querySelector('svg') !== null)"
    figures = chromium.run(drawn)
    assert len(figures) == 12
    assert all(figures)
    assert chromium.complaints() == []
    ink = chromium.run("getComputedStyle(document.body).color")
    assert ink == ("rgb(232, 230, 225)" if dark else "rgb(38, 41, 46)")


def test_no_request_leaves_the_page(chromium, page):
    chromium.open(page)
    outside = [url for url in chromium.requests() if not url.startswith(("file:", "data:"))]
    assert outside == []
    broken = chromium.run(
        "new Promise((done) => { addEventListener('securitypolicyviolation', (e) => "
        "done(e.effectiveDirective)); new Image().src = 'https://trueline.invalid/x.png'; })"
    )
    assert broken == "img-src"  # even where something in the page asks for it


def test_hostile_output_stays_text(chromium, page):
    chromium.open(page, script=ATTACKER)
    chromium.run("document.querySelectorAll('button').forEach((b) => b.click())")
    assert chromium.run("window.hacked") == []
    # the figures' data, their library as text and as it was run, and the page's own
    assert chromium.run("document.querySelectorAll('script').length") == 4
    assert chromium.run("document.querySelectorAll('img, iframe, object, .words a').length") == 0
    links = chromium.run("[...document.links].map((link) => link.protocol + link.pathname)")
    assert all(link == f"file:{page}" for link in links)
    words = chromium.run("document.querySelector('.words').textContent")
    assert "<script>alert(1)</script>" in words
    assert "**bold** [x](javascript:alert(1))" in words
    assert "\\u202egnp.exe" in words  # written out: it turns nothing around
    assert not chromium.run("/[\u202a-\u202e]/.test(document.documentElement.innerText)")
    labels = chromium.run(
        "[...document.querySelectorAll('.plot text')].map((t) => t.textContent).join(' ')"
    )
    assert "<script>" in labels


def test_sensitive_answers_are_blurred_until_asked_for_by_mouse(chromium, page):
    chromium.open(page)
    assert chromium.run(BLUR) == "blur(6px)"
    assert chromium.run("document.querySelector('.answers').inert")
    chromium.run("document.querySelector('button.reveal').click()")
    assert chromium.run(BLUR) == "none"
    chromium.run("document.querySelector('button.reveal').click()")
    assert chromium.run(BLUR) == "blur(6px)"
    chromium.run("document.querySelector('button.reveal-all').click()")
    assert chromium.run(BLUR) == "none"
    assert chromium.run("document.querySelector('button.reveal').textContent") == "Hide"


def test_everything_is_reached_and_shown_by_keyboard(chromium, page):
    chromium.open(page)
    seen = []
    for _ in range(200):
        chromium.press(*TAB)
        name, outline = chromium.run(
            "[document.activeElement.className || document.activeElement.tagName, "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        seen.append(name)
        assert outline != "none" or name == "BODY", f"focus on {name} is not to be seen"
        if name == "reveal":
            break
    assert "A" in seen  # the sections' links
    assert "SUMMARY" in seen
    assert "words" not in seen  # what is blurred cannot be walked into
    assert chromium.run(BLUR) == "blur(6px)"
    chromium.press(*ENTER)
    assert chromium.run(BLUR) == "none"
    chromium.press(*TAB)
    assert chromium.run("document.activeElement.className") == "words"


@pytest.mark.parametrize("width", [360, 800])
def test_nothing_sticks_out_of_a_narrow_window(chromium, tmp_path, width):
    path = render_report(everything("some words of an ordinary length"), tmp_path / "page.html")
    chromium.open(path, width=width)
    assert chromium.run("document.documentElement.scrollWidth") == width


def test_figures_say_in_words_what_they_show(chromium, page):
    chromium.open(page)
    told = chromium.run(
        "[...document.querySelectorAll('.plot')].map((p) => [p.role, p.ariaLabel.length > 20])"
    )
    assert told == [["img", True]] * 12


def test_paper_is_light_unfolded_and_still_blurred(chromium, page):
    chromium.open(page, dark=True)
    chromium.run("dispatchEvent(new Event('beforeprint'))")
    assert chromium.run(
        "[...document.querySelectorAll('.facts details')].every((each) => each.open)"
    )
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert chromium.run("getComputedStyle(document.body).color") == "rgb(38, 41, 46)"
    assert chromium.run(BLUR) == "blur(6px)"
    printed = chromium.call("Page.printToPDF")["data"]
    assert printed.startswith("JVBERi")  # %PDF, in base 64
    chromium.call("Emulation.setEmulatedMedia", media="")
    chromium.run("dispatchEvent(new Event('afterprint'))")
    assert not chromium.run("document.querySelector('.facts details').open")
