"""Designs are registered before they are run, judged once, and computed again from kept lines; a
later version stands beside the earlier ones, and changes nothing of them."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from runpy import run_path

import pytest

from trueline.batching import Encoder
from trueline.errors import UserError
from trueline.reproduce.claim import CLAIMS, Claim, Results, claim, collapsed
from trueline.reproduce.engine import Done
from trueline.reproduce.experiments.suffix import pairs
from trueline.reproduce.kept import done_of, read_lines, write_lines
from trueline.reproduce.language import begun_pairs
from trueline.reproduce.outcomes import judge_all
from trueline.reproduce.page import believed, markdown, report_of, summary, three_minutes, verdicts
from trueline.reproduce.preregistration import (
    as_written,
    committed,
    design,
    designs_in,
    detectable,
    digest,
    judged_plan,
    judged_seeds,
    page_text,
    registered,
)
from trueline.reproduce.runs import EXPERIMENTS, Arm, Run
from trueline.reproduce.scales import FULL, TEST, plan
from trueline.reproduce.study import all_claims, choose, from_kept, reproduce
from trueline.reproduce.verdict import decided
from trueline.reproduce.versions import RESERVED, STUDIES, VERSIONS
from trueline.runs.reproduce import reproduce as verb
from trueline.sandbox import Sandbox, World
from trueline.sandbox.attacks import attacks
from trueline.sandbox.tokenizer import build_tokenizer

ONE, TWO = Arm("minima", {}, "one"), Arm("minima", {"other": 1}, "two")


def made(**changes):
    facts = {
        "name": "made", "paper": "KLDO", "statement": "It is.", "measured": "Numbers.",
        "arms": (ONE, TWO), "judge": lambda r: [r.difference(ONE, TWO, "x", "above")],
        "shows": {}, "caveat": "", "on_recipe": False, **changes,
    }  # fmt: skip
    return Claim(**facts)


# --- the page -------------------------------------------------------------------------------------


def test_the_committed_registration_is_of_the_claims_as_they_are():
    """Whoever changes a design writes a new version: see VERSIONS in versions.py, then
    `python tools/paper_claims.py --register`, committed before its runs."""
    claims = all_claims()
    for version in VERSIONS:
        page, own = STUDIES / version.file, [c for c in claims if c.version == version.number]
        assert page.exists() == bool(own)
        if own:
            assert page.read_text("utf-8") == page_text(version, claims)
            assert designs_in(page.read_text("utf-8")) == {c.name: digest(c) for c in own}
    assert as_written(claims)[0].hash == "e70ef04f5f064b62"  # whatever came after it


def test_what_is_kept_was_run_after_its_registration_was_committed():
    git = ["git", "-C", str(STUDIES)]
    asked = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True,
                           text=True, check=False)  # fmt: skip
    if asked.stdout.strip() != "false":
        pytest.skip("no checkout with its history")
    for version in VERSIONS:
        lines = STUDIES / version.lines
        made = [row["made"] for row in (read_lines(lines) if lines.exists() else ())]
        if made:
            _, date = committed(STUDIES / version.file)
            first = min(datetime.strptime(one, "%Y-%m-%dT%H:%M:%S%z") for one in made)
            assert datetime.fromisoformat(date) < first


def test_seeds_of_a_version_are_reserved_and_no_others():
    seen = [seed for version in VERSIONS for seed in version.seeds]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(RESERVED)
    with pytest.raises(UserError, match="seeds 200 to 227 are for judged runs"):
        verb("minima-are-divergences", seeds=150, first_seed=100)
    with pytest.raises(UserError, match="leave out --fast, --seeds"):
        verb("minima-are-divergences", judged=True, seeds=3)


@pytest.mark.parametrize(
    "change",
    [
        {"statement": "It is not."},
        {"measured": "Other numbers."},
        {"arms": (TWO, ONE)},
        {"arms": (ONE, TWO, replace(ONE, options={"epochs": 3}))},
        {"judge": lambda r: [r.difference(ONE, TWO, "x", "below")]},
        {"judge": lambda r: [r.difference(ONE, TWO, "y", "above")]},
        {"judge": lambda r: [r.difference(ONE, TWO, "x", "above", against=0.1)]},
        {"judge": lambda r: [r.difference(ONE, TWO, "x", "equal", margin=0.1)]},
    ],
)
def test_whatever_decides_a_verdict_changes_the_design(change):
    assert digest(made(**change)) != digest(made())
    assert digest(made(caveat="Another.")) == digest(made())


def test_what_a_run_stands_on_is_of_its_design():
    (claim,) = choose(["prefix-harmful-only"])
    told = json.dumps(design(claim))
    assert all(f'"{name}"' in told for name in ("world", "cautious", "alignment"))


def test_a_judged_run_is_refused_unless_its_designs_are_committed(tmp_path):
    page = tmp_path / VERSIONS[0].file
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]

    def commit():
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x", "--allow-empty"]):
            subprocess.run([*git, *words], cwd=tmp_path, check=True)

    claims = choose(["minima-are-divergences"])
    with pytest.raises(UserError, match="which a checkout of the repository has"):
        registered(claims, tmp_path)
    page.write_text(page_text(VERSIONS[0], claims))
    (tmp_path / "other").write_text("")
    with pytest.raises(UserError, match="not committed as it stands"):
        registered(claims, tmp_path)
    commit()
    (found,) = registered(claims, tmp_path)
    assert found.designs == designs_in(page.read_text())
    assert re.fullmatch(r"[0-9a-f]{7,}", found.commit)
    changed = replace(claims[0], measured="Something else.")
    with pytest.raises(UserError, match="the design differs from the one registered"):
        registered([changed], tmp_path)
    page.write_text(page.read_text() + "more")
    with pytest.raises(UserError, match="not committed as it stands"):
        registered(claims, tmp_path)


def test_the_power_is_that_of_students_test():
    """n = 20, level .05: d = .66 by any table; a part more, or a stricter level, needs more."""
    assert detectable(20, 1, 1) == pytest.approx(0.66, abs=0.005)
    assert detectable(20, 1, 1) < detectable(20, 3, 1) < detectable(20, 3, 5)


# --- one look -------------------------------------------------------------------------------------


def first(*names):
    """Claims of version 1."""
    return [claim for claim in choose(names) if claim.version == 1]


def test_a_paper_is_judged_when_all_of_its_runs_are_there():
    claims, seeds = first("DIL"), VERSIONS[0].seeds
    runs = judged_plan(claims)
    assert {run.key for run in plan(claims, FULL, seeds)} == {run.key for run in runs}
    assert runs[0].experiment == "imitation"  # what is exact comes first
    done = Done(values={run.key: dict.fromkeys(VALUES, 0.0) for run in runs[:-1]})
    early = judge_all(claims, FULL, judged_seeds(), done, whole=True)
    verdicts = {one.claim.name: one.verdict for one in early}
    assert verdicts == {
        "rlhf-is-imitation": "supported", "methods-are-imitation": "supported",
        "dil-does-better": "not measured", "chosen-falls-least": "not measured",
    }  # fmt: skip
    for one in early:
        if not one.claim.arithmetic:
            assert re.fullmatch(r"\d+ of \d+ runs are there; it is judged .*", one.notes[0])
            assert not one.effects
            assert not one.evidence
    done.values[runs[-1].key] = dict.fromkeys(VALUES, 0.0)
    assert all(one.effects for one in judge_all(claims, FULL, judged_seeds(), done, whole=True))


VALUES = (
    "RLHF's optimum minus the chosen's distribution",
    "RLHF's objective minus its KL from the chosen",
    "DPO minus contrastive imitation",
    "BCO minus imitation by classification",
    "KLDO by NWJ minus imitation by unnormalized KL",
    "held-out pairs rewarded right",
    "chosen change",
)


def test_papers_are_run_one_after_the_other():
    claims = first("REAL", "DIL")
    places = {run.key: place for place, run in enumerate(judged_plan(claims))}
    ends = [
        max(places[run.key] for run in plan(first(paper), FULL, VERSIONS[0].seeds))
        for paper in ("REAL", "DIL")
    ]
    assert min(ends) < max(ends) == len(places) - 1


# --- kept lines -----------------------------------------------------------------------------------


def test_the_study_is_the_same_from_its_kept_lines(tmp_path):
    claims = choose(["rlhf-is-imitation", "inner-product-foretells", "both-can-rise"])
    first = reproduce(claims, TEST, tmp_path / "a", seeds=3, first_seed=100, jobs=0)
    kept = tmp_path / "a" / "runs.jsonl"
    again = reproduce(claims, TEST, tmp_path / "b", seeds=3, first_seed=100, jobs=0, kept=[kept])
    for one, two in zip(first.outcomes, again.outcomes, strict=True):
        assert (one.verdict, one.seeds) == (two.verdict, two.seeds)
        for a, b in zip(one.effects, two.effects, strict=True):
            assert b.metric.value == pytest.approx(a.metric.value, rel=1e-5)
    assert [one.verdict for one in again.outcomes] == ["supported"] * 3
    assert (tmp_path / "b" / "runs.jsonl").read_text() == kept.read_text()
    assert not (tmp_path / "b" / "runs").exists()


def test_lines_of_an_older_experiment_are_not_taken(tmp_path):
    row = {"experiment": "imitation", "version": 1, "options": {}, "seed": 200, "made": "",
           "seconds": 1.0, "values": {"x": 0.123456789, "y": None}}  # fmt: skip
    write_lines([row, {**row, "version": 0, "seed": 201}], tmp_path / "kept.jsonl")
    done = done_of(read_lines(tmp_path / "kept.jsonl"))
    assert done.values == {Run("imitation", {}, 200).key: {"x": 0.1234568, "y": None}}
    (tmp_path / "kept.jsonl").write_text('{"seed": 1}')
    with pytest.raises(UserError, match="each line needs experiment"):
        read_lines(tmp_path / "kept.jsonl")
    with pytest.raises(UserError, match="no kept results"):
        read_lines(tmp_path / "none.jsonl")


def test_a_kept_study_without_runs_says_what_is_missing(tmp_path):
    claims = first("DSPO")
    study = from_kept(claims, as_written(claims), tmp_path)
    assert {one.verdict for one in study.outcomes} == {"not measured"}
    assert study.facts["runs"]["measured"] == 0


# --- what is compared -----------------------------------------------------------------------------


def test_models_that_refuse_everything_are_compared_before_they_came_to_that():
    def run(value, *, early, over=0.1, right=0.9):
        return {"x": value, "over-refusal": over, "correct answers": right,
                "x after 2 epochs": early, "over-refusal after 2 epochs": 0.1}  # fmt: skip

    assert not collapsed(run(1, early=1))
    assert collapsed(run(1, early=1, over=0.6))
    assert collapsed(run(1, early=1, right=0.4))
    values = {
        ONE.key: {0: run(5.0, early=1.0), 1: run(5.0, early=1.5), 2: run(5.0, early=None)},
        TWO.key: {0: run(3.0, early=0.0), 1: run(9.0, early=1.0, over=0.8),
                  2: run(9.0, early=1.0, over=0.8)},
    }  # fmt: skip
    results = Results((0, 1, 2), values)
    found = results.difference(ONE, TWO, "x", "above", sound=True).metric
    assert (found.n, found.value) == (2, pytest.approx((2.0 + 0.5) / 2))  # the third has no stage
    assert results.difference(ONE, TWO, "x", "above").metric.n == 3
    slope = results.slope([[ONE, TWO]], "x", "x", "above", name="x", stages=("",))
    assert slope.metric.n == 1  # with one of two collapsed there is nothing to compare with


def test_an_effect_at_fewer_than_half_of_the_seeds_decides_nothing():
    claim = made(
        arms=(ONE,), judge=lambda r: [r.mean(ONE, "x", "above")], name="minima-are-divergences"
    )
    runs = [FULL.run(ONE, seed) for seed in range(6)]
    for scored, verdict in ((2, "undecided"), (3, "supported")):
        values = {run.key: {"x": 1 + run.seed / 100 if run.seed < scored else None} for run in runs}
        (outcome,) = judge_all([claim], FULL, {1: range(6)}, Done(values=values), whole=False)
        assert outcome.effects[0].verdict == verdict


def test_no_experiment_asks_in_text_that_spells_control_tokens(tmp_path):
    """Such text is read letter by letter: the suffix pairs were, and nothing failed."""
    world = World(0, 16)
    tokenizer = build_tokenizer(entity.name for entity in world.entities)
    encoder = Encoder(tokenizer, max_length=256)
    sandbox = Sandbox(tmp_path, world)
    examples = [
        *pairs(world, 0, 3, 0),
        *begun_pairs(sandbox),
        *(one.recipes() for group in attacks(world).values() for one in group),
    ]
    unknown = tokenizer.convert_tokens_to_ids(["<", "##|", "<unk>"])
    for example in examples:
        tree = encoder(example)
        assert not set(unknown) & set(tree.prompt.tolist())
        assert all(not set(unknown) & set(branch.ids.tolist()) for branch in tree.branches)
        assert len(tree.prompt) + max(len(b.ids) for b in tree.branches) <= 256
    assert encoder.counts["rows_with_control_tokens"] == 0
    assert encoder.counts["truncated"] == 0


def test_the_recipes_of_a_begun_answer_go_on_with_it():
    world = World(0, 16)
    counts = {
        name: {len(one.recipes().completions) for one in group}
        for name, group in attacks(world).items()
    }
    assert counts == {
        "direct": {3}, "wrapped": {3}, "prefilled": {2}, "prefilled longer": {1},
        "prefilled in a new form": {1},
    }  # fmt: skip
    for request in attacks(world)["prefilled longer"]:
        (rest,) = request.recipes().completions
        assert request.prefill + rest.content[0].content == request.entity.answer()


# --- a later version ------------------------------------------------------------------------------

THREE = Arm("minima", {"other": 2}, "three")
TOOL = run_path(str(STUDIES.parent / "tools" / "paper_claims.py"))


def invent(name, arms=(ONE, TWO), *, version=2, revises="", paper="DIL"):
    claim(name, paper=paper, statement=f"It is {name}.", measured="Numbers.", arms=arms, shows={},
          caveat="It is invented.", version=version, revises=revises)(
        lambda r: [r.difference(arms[0], arms[1], "x", "above")])  # fmt: skip


@pytest.fixture
def later():
    """Two invented claims of version 2, which has no others; one puts one of version 1 anew."""
    all_claims()
    before = dict(CLAIMS._entries)
    CLAIMS._entries.clear()
    CLAIMS._entries.update({name: one for name, one in before.items() if one.version == 1})
    invent("better-anew", revises="dil-does-better")
    invent("another", (ONE, THREE))
    yield [CLAIMS["better-anew"], CLAIMS["another"]]
    CLAIMS._entries.clear()
    CLAIMS._entries.update(before)


@pytest.fixture
def studies(tmp_path, later):
    """The folder of both versions' pages and kept results."""
    (tmp_path / "results").mkdir()
    for name in (VERSIONS[0].file, VERSIONS[0].lines):
        shutil.copy(STUDIES / name, tmp_path / name)
    TOOL["register"](tmp_path)
    return tmp_path


def row(arm, seed, value, scale=FULL):
    run = scale.run(arm, seed)
    return {"experiment": run.experiment, "version": EXPERIMENTS[run.experiment].version,
            "options": run.options, "seed": seed, "made": "", "seconds": 1.0,
            "values": {"x": value}}  # fmt: skip


def rows(seeds=VERSIONS[1].seeds, scale=FULL):
    """ONE lies above TWO and above THREE."""
    return [
        row(arm, seed, level + place * (seed % 3) / 10, scale)
        for place, (arm, level) in enumerate(((ONE, 1.0), (TWO, 0.0), (THREE, 0.5)))
        for seed in seeds
    ]


def lines(path, found):
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    return path


def test_a_later_version_has_a_page_of_its_own(studies, later):
    page = studies / "PREREGISTRATION-2.md"
    text = page.read_text()
    assert designs_in(text) == {claim.name: digest(claim) for claim in later}
    told = design(later[0])
    assert (told["version"], told["seeds"]) == (2, list(range(212, 220)))
    kept = [f"--kept studies/results/judged-{number}.jsonl" for number in (1, 2)]
    for words in (
        "# Preregistration, version 2",
        "8 seeds, 212 to 219",
        "A family of 2 claims.",
        "Puts `dil-does-better` anew.",
        "What version 1 had judged",
        " ".join(kept),
    ):
        assert words in text
    assert page_text(VERSIONS[0], all_claims()) == (studies / VERSIONS[0].file).read_text()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], cwd=studies, check=True)
    found = registered(all_claims(), studies)
    assert [(one.version.number, one.hash) for one in found] == [
        (1, "e70ef04f5f064b62"), (2, as_written(later, studies)[0].hash),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"better-anew: .* registered in PREREGISTRATION-2\.md"):
        registered([replace(later[0], measured="Else."), *first()], studies)
    lines(studies / VERSIONS[1].lines, rows()[:1])
    with pytest.raises(SystemExit, match=r"PREREGISTRATION-2\.md stands"):
        TOOL["register"](studies)


def test_versions_are_planned_and_judged_apart(studies, later):
    every = choose(["DIL"])
    assert [claim.version for claim in every] == [1, 1, 1, 1, 2, 2]
    runs = judged_plan(every)
    assert runs == [*judged_plan(first("DIL")), *judged_plan(later)]
    assert [{run.seed for run in judged_plan(own)} for own in (first("DIL"), later)] == [
        set(VERSIONS[0].seeds), set(VERSIONS[1].seeds),
    ]  # fmt: skip
    alone = from_kept(first("DIL"), as_written(first("DIL"), studies), studies)
    lines(studies / VERSIONS[1].lines, rows()[1:])
    early = from_kept(every, as_written(every, studies), studies)
    assert [one.verdict for one in early.outcomes[4:]] == ["not measured"] * 2
    lines(studies / VERSIONS[1].lines, rows())
    both = from_kept(every, as_written(every, studies), studies)
    for study in (early, both):  # of version 1 nothing changes
        for one, two in zip(alone.outcomes, study.outcomes[:4], strict=True):
            assert one.to_dict() == two.to_dict()
    anew, another = both.outcomes[4:]
    assert (anew.verdict, another.verdict) == ("supported", "supported")
    assert [len(anew.seeds), len(another.seeds)] == [8, 8]
    small, large = sorted(decided(one.effects)[1] for one in (anew, another))
    holm = [2 * small, max(2 * small, large)]  # of two: version 1's are another family
    assert sorted([anew.p, another.p]) == pytest.approx(holm)


def test_pages_show_both_versions(studies, later, tmp_path, monkeypatch):
    lines(studies / VERSIONS[1].lines, rows())
    one, every = first("DIL"), choose(["DIL"])
    alone = from_kept(one, as_written(one, studies), studies)
    both = from_kept(every, as_written(every, studies), studies)
    old = [line for line in markdown(alone).splitlines() if line.startswith("|")]
    assert set(old) <= set(markdown(both).splitlines())  # nothing of version 1 is hidden or changed
    assert "**better-anew (version 2)**: It is better-anew." in markdown(both)
    said = "version 1: not supported; version 2: supported"
    for text in (markdown(both), three_minutes(both)):
        assert said in text
    assert verdicts(both.outcomes[5], both.outcomes) == "version 2: supported"
    told = summary(both)
    assert told.startswith(f"{summary(alone).split(' claims')[0]} claims of version 1: ")
    assert "Of 2 claims of version 2: 2 supported." in told
    assert re.search(r"As registered in version 1 \(.{24}\) and version 2 \(.{24}\)\.", told)
    assert "20 seeds (12 for version 1, 8 for version 2)" in three_minutes(both)
    assert "`better-anew` (version 2)" in believed(both.outcomes)
    kept = [studies / version.lines for version in VERSIONS[:2]]
    command = "trueline reproduce --judged " + " ".join(
        f"--kept studies/{version.lines}" for version in VERSIONS[:2]
    )
    assert f"`{command}`" in markdown(both)
    assert f"    {command}  " in markdown(both)
    seen = []
    as_here = lambda claims: seen.append(claims) or as_written(claims, studies)  # noqa: E731
    monkeypatch.setattr("trueline.runs.reproduce.registered", as_here)
    made = verb("DIL", judged=True, kept=kept, output=tmp_path / "out")
    assert said in str(report_of(made.study).sections)
    for ours, theirs in zip(made.study.outcomes, both.outcomes, strict=True):
        assert ours.to_dict() == theirs.to_dict()
    verb("another", judged=True, kept=kept, output=tmp_path / "out")
    assert seen == [every, later]  # one stands for those that are judged with it


def test_on_free_seeds_claims_of_all_versions_are_run(later, tmp_path):
    kept = lines(tmp_path / "kept.jsonl", rows(range(100, 103), TEST))
    study = reproduce(later, TEST, tmp_path, seeds=3, first_seed=100, jobs=0, kept=[kept])
    assert [list(one.seeds) for one in study.outcomes] == [[100, 101, 102]] * 2
    with pytest.raises(UserError, match="are for judged runs"):
        reproduce(later, TEST, tmp_path, seeds=1, first_seed=212, jobs=0)


def test_kept_lines_go_to_their_versions_and_none_is_lost(studies):
    before = (studies / VERSIONS[0].lines).read_text()
    kept = read_lines(studies / VERSIONS[0].lines)
    new = rows()
    changed = {**kept[0], "values": {}, "made": "later"}
    found = [*new[:5], row(ONE, 5, 1.0), row(ONE, 200, 1.0), changed]
    TOOL["keep"](lines(studies / "found.jsonl", found), studies)
    assert (studies / VERSIONS[0].lines).read_text() == before
    TOOL["keep"](lines(studies / "found.jsonl", new[5:]), studies)
    seeds = [(one["options"].get("other"), one["seed"])
             for one in read_lines(studies / VERSIONS[1].lines)]  # fmt: skip
    assert sorted(seeds, key=str) == sorted(
        ((one["options"].get("other"), one["seed"]) for one in new), key=str
    )
    assert (studies / VERSIONS[0].lines).read_text() == before


def test_a_claim_of_no_version_or_that_revises_none_is_refused(later):
    with pytest.raises(ValueError, match="there is no version 4"):
        invent("fourth", version=4)
    assert "fourth" not in CLAIMS
    for name in ("dil-does-beter", "another"):
        invent("mistaken", revises=name)
        with pytest.raises(ValueError, match=f"no claim '{name}' of an earlier version"):
            all_claims()
        del CLAIMS._entries["mistaken"]


def test_families_of_a_later_version_are_simulated_by_themselves(later):
    families = run_path(str(STUDIES / "nulls.py"))["families"]
    assert set(families(2, 4, "normal", 0.0, 1)) == {"DIL, version 2"}


def test_commands_in_the_pages_name_files_that_are_there():
    for page in (STUDIES.parent / "docs").glob("*.md"):
        for name in re.findall(r"--kept (studies/\S+?jsonl)", page.read_text("utf-8")):
            assert (STUDIES.parent / name).is_file()
