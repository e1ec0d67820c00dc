"""E-RLHF's bounds: the table of the specification, exact tails, and where they say nothing."""

import json
import math

import numpy as np
import pytest
import typer
from scipy.optimize import minimize
from scipy.stats import binom, dirichlet
from typer.testing import CliRunner

from trueline.cli.evaluate import bound as verb
from trueline.errors import UserError
from trueline.evaluation import jailbreak_bound
from trueline.evaluation.bound import Zone, concentrated
from trueline.evaluation.mimicry import mimicry_bound, reference_optimum, support_demonstration


@pytest.mark.parametrize(
    ("harmful", "epsilon", "exact", "normal"),
    [(110, 0.02, 0.983, 0.944), (110, 0.05, 0.99996, 0.994), (90, 0.02, 0.488, 0.302)],
)
def test_the_specifications_table(harmful, epsilon, exact, normal):
    found = jailbreak_bound(1000, harmful, 0.1, epsilon)
    assert found.exact == pytest.approx(exact, abs=0.6 * 10 ** -(len(str(exact)) - 2))
    assert found.normal == pytest.approx(normal, abs=0.0006)


def test_volume_is_a_binomial_tail_and_the_normal_misses_it():
    small = Zone(60, 6, 0.15)
    assert small.volume() == pytest.approx(binom.cdf(5, 59, 0.15))
    assert (round(small.volume(), 4), round(small.normal_volume(), 3)) == (0.1056, 0.080)
    expanded = Zone(60, 6, 0.15, 0.1)
    assert expanded.volume() == pytest.approx(binom.cdf(5, 59, 0.10))
    assert Zone(60, 6, 0.15, 0.3).volume() == 1.0  # everything is within reach


@pytest.mark.parametrize("zone", [Zone(60, 6, 0.15), Zone(60, 6, 0.15, 0.1), Zone(8, 3, 0.6, 0.2)])
def test_simulation_agrees_with_the_exact_volume(zone):
    drawn = zone.simulate(seed=1, samples=20_000, level=0.999)
    assert drawn.low < zone.volume() < drawn.high


def test_no_shorter_way_into_the_zone():
    """The move that the simulation takes is the shortest in l1: found by linear programming."""
    from scipy.optimize import linprog

    x = np.array([0.05, 0.05, 0.3, 0.6])  # two harmful, mass .1; p = .25 needs .15 more
    one = np.eye(4)
    # minimize sum t with -t <= y - x <= t, sum y = 1, y_1 + y_2 >= .25, y >= 0
    found = linprog(
        np.r_[np.zeros(4), np.ones(4)],
        A_ub=np.block([[one, -one], [-one, -one], [np.array([[-1, -1, 0, 0]]), np.zeros((1, 4))]]),
        b_ub=np.r_[x, -x, -0.25],
        A_eq=[[1] * 4 + [0] * 4],
        b_eq=[1],
    )
    assert found.fun == pytest.approx(2 * 0.15)


def test_a_density_deep_in_the_safe_zone_makes_the_bound_vacuous():
    zone = Zone(1000, 110, 0.1, 0.02)
    uniform = concentrated(zone, 0.0)
    assert (uniform.ratio, uniform.bound) == pytest.approx((1.0, zone.volume()))
    assert uniform.truth == pytest.approx(zone.volume())
    for extra in (0.001, 0.003, 0.01, 0.1):
        found = concentrated(zone, extra)
        assert found.bound <= found.truth
    assert (found.bound, found.truth > 0.85) == (0.0, True)  # it says nothing, and most succeed
    said = jailbreak_bound(1000, 110, 0.1, 0.02, ratio=found.ratio)
    assert said.vacuous
    assert "does not make a jailbreak unlikely" in said.to_finding().advice
    assert not jailbreak_bound(1000, 110, 0.1, 0.02).vacuous


def test_the_largest_density_ratio_is_the_one_a_search_finds():
    zone, extra = Zone(5, 2, 0.4), 0.7
    alpha = np.array([1, 1, 1.7, 1.7, 1.7])

    def ratio(logits):
        x = np.exp(logits - np.logaddexp.reduce(logits))
        return dirichlet.pdf(x, alpha) / dirichlet.pdf(x, np.ones(5))

    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-10, "fatol": 1e-12}
    best = minimize(
        lambda v: -math.log(ratio(v)), np.zeros(5), method="Nelder-Mead", options=options
    )
    assert concentrated(zone, extra).ratio == pytest.approx(math.exp(-best.fun), rel=1e-3)


def test_mimicry_by_hand():
    # w = sqrt((5 + ln 20) / 2000) = sqrt(7.995732 / 2000) = 0.0632287
    found = mimicry_bound(0.1, kl=5.0, n=1000, alpha=0.5, delta=0.05)
    assert found.width == pytest.approx(0.0632287, abs=1e-7)
    assert found.bound == pytest.approx((0.1 + 0.0632287) / 0.5, abs=1e-6)
    assert not found.vacuous
    assert mimicry_bound(0.1, kl=5.0, n=1000, alpha=0.05).vacuous


def test_the_optimum_is_the_one_that_ascent_finds():
    reference, reward, beta = np.array([0.1, 0.2, 0.4, 0.3]), np.array([1.0, 0.5, -1, 1]), 0.7

    def loss(logits):
        policy = np.exp(logits - np.logaddexp.reduce(logits))
        return -(policy @ reward - beta * (policy @ np.log(policy / reference)))

    found = minimize(loss, np.zeros(4), tol=1e-12).x
    policy = np.exp(found - np.logaddexp.reduce(found))
    assert reference_optimum(reference, reward, beta) == pytest.approx(policy, abs=1e-5)


def test_what_the_safe_reference_excludes_stays_excluded():
    assert reference_optimum([0.6, 0.4, 0.0], [0.0, 0.0, 1e6], 1e-3)[2] == 0.0
    found = support_demonstration()
    plain, safe = found.figures["curves"]["panels"][0]["lines"]
    assert min(plain["y"]) > 0.3
    assert set(safe["y"]) == {0.0}
    assert found["harmful_mass_erlhf"].value == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: jailbreak_bound(10, 10, 0.1),
        lambda: jailbreak_bound(10, 3, 1.0),
        lambda: jailbreak_bound(10, 3, 0.1, 2.5),
        lambda: jailbreak_bound(10, 3, 0.1, ratio=0.0),
        lambda: mimicry_bound(0.1, kl=1.0, n=10, alpha=0.0),
        lambda: concentrated(Zone(10, 3, 0.1, 0.3), 0.1),
        lambda: reference_optimum([0.5, 0.6], [0, 0], 1.0),
        lambda: reference_optimum([0.5, 0.5], [0, 0], 0.0),
    ],
)
def test_values_out_of_range_are_refused(call):
    with pytest.raises(UserError, match=r"expected|between|above|out of range|distribution"):
        call()


def test_verb():
    app = typer.Typer()
    app.command()(verb)
    done = CliRunner().invoke(app, ["--harmful", "90", "--json", "--samples", "2000"])
    value = json.loads(done.stdout)
    metrics = {m["name"]: m for m in value["metrics"]}
    assert metrics["bound"]["value"] == pytest.approx(0.488, abs=0.001)
    assert metrics["simulated_volume"]["low"] < 0.488 < metrics["simulated_volume"]["high"]
    assert value["vacuous"] is False
    [panel] = value["figures"]["curves"]["panels"]
    assert panel["lines"][0]["y"] == sorted(panel["lines"][0]["y"])
    told = CliRunner().invoke(app, ["--ratio", "1e9"])
    assert "nothing" in told.stdout
