"""Version 3's instruments: a training's course, on- and off-policy, and a line whose likelihood is
known; and how contrasts on real text are read."""

import random
from importlib import import_module

import numpy as np
import pytest
from scipy.stats import pearsonr

from trueline.reproduce.claim import Results
from trueline.reproduce.experiments.course import course, graded, own_pairs, round_after, said
from trueline.reproduce.experiments.likelihood import Mixture, drop, likelihood, log_ratio
from trueline.reproduce.experiments.selection import quality, response
from trueline.reproduce.language import load_model, load_tokenizer
from trueline.reproduce.runs import Arm, Run
from trueline.reproduce.versions import STUDIES
from trueline.results import Metric
from trueline.sandbox import World, build_sandbox, grammar
from trueline.sandbox.attacks import asked
from trueline.sandbox.judge import Judge


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder as a run's parent, with the smallest sandbox in it."""
    folder = tmp_path_factory.mktemp("course")
    return folder, build_sandbox(folder / "sandbox", size="test")


def test_the_judge_counts_what_is_right_of_any_response():
    world, rng = World(seed=3, size=40), random.Random(0)
    judge = Judge(world)
    for thing in world.entities:
        for right in (0, 1, 2, 3):
            text = response(world, thing, right, rng)
            assert judge.right(f"well, {text}", thing) == right
            assert judge(text, thing) == ("correct" if right == 3 else "wrong")
        assert judge.right(response(world, thing, -1, rng), thing) is None
    one, other = world.entities[:2]
    assert judge.right(other.answer(), one) == 0


def test_answers_are_graded_as_the_raters_responses_are(base):
    _, sandbox = base
    rng = random.Random(1)
    for request in asked(sandbox.world.entities, grammar.QUESTIONS[:1]):
        thing = request.entity
        for right in (-1, 0, 1, 2, 3):
            text = response(sandbox.world, thing, right, rng)
            assert graded(sandbox, text, request) == quality(thing, right)
        worst_help = graded(sandbox, "salt the the", request)
        assert worst_help == (0 if thing.harmful else -1)


@pytest.mark.parametrize("policy", ["on", "off"])
def test_a_course_is_measured_after_each_round(base, tmp_path, policy):
    folder, _ = base
    options = {"policy": policy, "rounds": 2, "size": "test", "temperature": 1.0}
    values = course(Run("course", options, 0), tmp_path, [folder])
    ends = [round_after(count) for count in (0, 1, 2)]
    for name in ("ranking accuracy", "win rate"):
        assert all(0 < values[name + end] < 1 for end in ends)
    apart = [values["distance" + end] for end in ends]
    assert apart[0] == 0
    assert apart[1] > 0
    assert apart[2] != apart[1]
    assert list(tmp_path.glob("run-*")) == []


def test_on_policy_pairs_are_the_policys_own_answers_labeled_by_a_rater_who_errs(base):
    _, sandbox = base
    model, tokenizer = load_model(sandbox.model_dir).eval(), load_tokenizer(sandbox)
    questions = list(asked(sandbox.world.split(held_out=False), grammar.QUESTIONS))
    told = {request.prompt: request for request in questions}
    sure, unsure = (
        own_pairs(sandbox, model, tokenizer, random.Random(0), temperature, 1)
        for temperature in (0.05, 1e9)
    )
    own = {
        (request.prompt, text)
        for seed in (4, 5, 6, 7)
        for request, (text, _) in zip(
            questions, said(sandbox, model, tokenizer, questions, seed), strict=True
        )
    }
    assert sure

    def gaps(examples):
        for example in examples:
            texts = [side.content[0].content for side in example.completions]
            assert all((example.prompt, text) in own for text in texts)
            a, b = (graded(sandbox, text, told[example.prompt]) for text in texts)
            yield a - b

    assert all(gap > 0 for gap in gaps(sure))
    wrong = [gap < 0 for gap in gaps(unsure)]
    assert 0.3 < np.mean(wrong) < 0.7


def test_correlations_are_a_seeds_own_along_the_stages():
    rng, one, two = np.random.default_rng(0), Arm("a"), Arm("b")
    stages = [f" {k}" for k in range(6)]
    values = {
        arm.key: {
            seed: {f"{name}{end}": float(rng.normal()) for name in "xy" for end in stages}
            for seed in range(5)
        }
        for arm in (one, two)
    }
    values[one.key][3] = {**values[one.key][3], **{f"x{end}": 0.5 for end in stages}}
    values[two.key][4]["y 2"] = None
    results = Results(range(5), values)

    def r(arm, seed, along=stages):
        run = values[arm.key][seed]
        return pearsonr([run[f"x{e}"] for e in along], [run[f"y{e}"] for e in along])[0]

    alone = results.along(one, stages, "y", "x", "above", name="own").metric
    assert alone.value == pytest.approx(np.mean([r(one, seed) for seed in (0, 1, 2, 4)]))
    assert alone.n == 4  # a seed without change is left out
    apart = results.along(one, stages, "y", "x", "above", minus=(two, stages), name="").metric
    assert apart.value == pytest.approx(np.mean([r(one, s) - r(two, s) for s in (0, 1, 2)]))
    halves = results.along(two, stages[3:], "y", "x", "below", minus=(two, stages[:4]), name="")
    found = [r(two, s, stages[3:]) - r(two, s, stages[:4]) for s in range(4)]
    assert halves.metric.value == pytest.approx(np.mean(found))


def test_mixtures_are_what_integrals_and_differences_say():
    one = Mixture.drawn(np.random.default_rng(5))
    x, step = np.linspace(-12, 12, 6001, retstep=True)
    density = np.exp(one.log_density(x))
    assert density.sum() * step == pytest.approx(1)
    slope = np.gradient(one.log_density(x), x)
    assert np.abs(slope - one.score(x))[1:-1].max() < 1e-3
    tilted = density * np.exp(0.7 * x)
    assert np.exp(one.tilted(0.7).log_density(x)) == pytest.approx(
        tilted / (tilted.sum() * step), abs=1e-9
    )
    keep, noise, at = 0.6, 0.8, 0.3
    spread = np.exp(-((at - keep * x) ** 2) / (2 * noise**2)) / (noise * np.sqrt(2 * np.pi))
    seen = np.exp(one.noised(keep, noise).log_density(np.array([at])))[0]
    assert seen == pytest.approx((density * spread).sum() * step)
    drawn = one.draw(np.random.default_rng(0), 40_000)
    assert drawn.mean() == pytest.approx(one.weights @ one.means, abs=0.03)


def test_the_bound_is_exact_with_its_own_weights_and_errs_with_diffusion_dpos(tmp_path):
    """Two Gaussians: ln p / r in closed form, and no drop where the two are one."""
    p = Mixture(np.ones(1), np.array([0.5]), np.array([0.8]))
    r = Mixture(np.ones(1), np.array([-0.2]), np.array([1.1]))
    x = np.array([-1.0, 0.0, 2.0])
    true = np.log(1.1 / 0.8) - (x - 0.5) ** 2 / 1.28 + (x + 0.2) ** 2 / 2.42
    assert log_ratio(p, r, x) == pytest.approx(true, abs=1e-4)
    assert not drop(p, p, x, 0.5, 0.5).any()
    for seed in (100,):
        values = likelihood(Run("likelihood", {}, seed), tmp_path, [])
        assert abs(values["bound with the likelihood's weights minus true log-ratio"]) < 1e-4
        assert values["estimated log-ratio's error"] > 1e-3
        assert values["estimated loss minus DPO's"] > 0.01  # Jensen: a mean of losses
        assert abs(values["DSPO's score minus that of RL's optimum"]) < 1e-9


@pytest.mark.parametrize(
    ("metric", "word"),
    [
        (Metric("x", 0.2, 0.1, 0.3), "as said"),
        (Metric("x", -0.2, -0.3, -0.1), "the other way"),
        (Metric("x", 0.2, -0.1, 0.5), "undecided"),
        (Metric("x", 0.2, 0.2, 0.2), "undecided"),  # twice the very same difference
        (Metric("x", 0.2), "of one run"),
    ],
)
def test_contrasts_on_real_text_are_read_off_their_intervals(metric, word, monkeypatch):
    monkeypatch.syspath_prepend(STUDIES)
    made = import_module("real_text").Contrast
    assert made("KLDO", "more", "x", ("a",), "above").word(metric) == word
    turned = {"as said": "the other way", "the other way": "as said"}.get(word, word)
    assert made("KLDO", "less", "x", ("a",), "below").word(metric) == turned
