"""Designs are registered before they are run, judged once, and computed again from kept lines."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from trueline.batching import Encoder
from trueline.errors import UserError
from trueline.reproduce.claim import Claim, Results, collapsed
from trueline.reproduce.engine import Done
from trueline.reproduce.experiments.suffix import pairs
from trueline.reproduce.instrument import attacks
from trueline.reproduce.kept import done_of, read_lines, write_lines
from trueline.reproduce.language import begun_pairs
from trueline.reproduce.outcomes import judge_all
from trueline.reproduce.preregistration import (
    NOW,
    PAGE,
    RESERVED,
    VERSIONS,
    design,
    designs_in,
    detectable,
    digest,
    judged_plan,
    page_text,
    registered,
)
from trueline.reproduce.runs import Arm, Run
from trueline.reproduce.scales import FULL, TEST, plan
from trueline.reproduce.study import all_claims, choose, from_kept, reproduce
from trueline.runs.reproduce import reproduce as verb
from trueline.sandbox import Sandbox, World
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
    """Whoever changes a design writes a new version: see VERSIONS in preregistration.py, then
    `python tools/paper_claims.py --register`, committed before its runs."""
    assert PAGE.read_text("utf-8") == page_text(all_claims())


def test_seeds_of_a_version_are_reserved_and_no_others():
    seen = [seed for version in VERSIONS for seed in version.seeds]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(RESERVED)
    with pytest.raises(UserError, match="seeds 200 to 219 are for judged runs"):
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
    page = tmp_path / "PREREGISTRATION.md"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]

    def commit():
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x", "--allow-empty"]):
            subprocess.run([*git, *words], cwd=tmp_path, check=True)

    claims = choose(["minima-are-divergences"])
    with pytest.raises(UserError, match="which a checkout of the repository has"):
        registered(claims, page)
    page.write_text(page_text(claims))
    (tmp_path / "other").write_text("")
    with pytest.raises(UserError, match="not committed as it stands"):
        registered(claims, page)
    commit()
    found = registered(claims, page)
    assert found.designs == designs_in(page.read_text())
    assert re.fullmatch(r"[0-9a-f]{7,}", found.commit)
    changed = replace(claims[0], measured="Something else.")
    with pytest.raises(UserError, match="the design differs from the one registered"):
        registered([changed], page)
    page.write_text(page.read_text() + "more")
    with pytest.raises(UserError, match="not committed as it stands"):
        registered(claims, page)


def test_the_power_is_that_of_students_test():
    """n = 20, level .05: d = .66 by any table; a part more, or a stricter level, needs more."""
    assert detectable(20, 1, 1) == pytest.approx(0.66, abs=0.005)
    assert detectable(20, 1, 1) < detectable(20, 3, 1) < detectable(20, 3, 5)


# --- one look -------------------------------------------------------------------------------------


def test_a_paper_is_judged_when_all_of_its_runs_are_there():
    claims = choose(["DIL"])
    runs = judged_plan(claims)
    assert {run.seed for run in runs} == set(NOW.seeds)
    assert {run.key for run in plan(claims, FULL, NOW.seeds)} == {run.key for run in runs}
    assert runs[0].experiment == "imitation"  # what is exact comes first
    done = Done(values={run.key: dict.fromkeys(VALUES, 0.0) for run in runs[:-1]})
    early = judge_all(claims, FULL, NOW.seeds, done, whole=True)
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
    assert all(one.effects for one in judge_all(claims, FULL, NOW.seeds, done, whole=True))


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
    claims = choose(["REAL", "DIL"])
    places = {run.key: place for place, run in enumerate(judged_plan(claims))}
    ends = [
        max(
            places[run.key]
            for run in plan([c for c in claims if c.paper == paper], FULL, NOW.seeds)
        )
        for paper in ("REAL", "DIL")
    ]
    assert min(ends) < max(ends) == len(places) - 1


# --- kept lines -----------------------------------------------------------------------------------


def test_the_study_is_the_same_from_its_kept_lines(tmp_path):
    claims = choose(["rlhf-is-imitation", "inner-product-foretells", "both-can-rise"])
    first = reproduce(claims, TEST, tmp_path / "a", seeds=3, first_seed=100, jobs=0)
    kept = tmp_path / "a" / "runs.jsonl"
    again = reproduce(claims, TEST, tmp_path / "b", seeds=3, first_seed=100, jobs=0, kept=kept)
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
    study = from_kept(choose(["DSPO"]), tmp_path / "none.jsonl", registered_as_is())
    assert {one.verdict for one in study.outcomes} == {"not measured"}
    assert study.facts["runs"]["measured"] == 0


def registered_as_is():
    from trueline.reproduce.preregistration import Registered

    return Registered(designs_in(PAGE.read_text("utf-8")), "", "")


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
        (outcome,) = judge_all([claim], FULL, range(6), Done(values=values), whole=False)
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


def test_the_registration_can_be_read_back():
    text = Path(PAGE).read_text("utf-8")
    claims = all_claims()
    assert designs_in(text) == {claim.name: digest(claim) for claim in claims}
