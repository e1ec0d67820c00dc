"""The theory, measured: an objective's minimum is its divergence, its optimum a known policy.

D+ and D- are discrete, so a batch with atoms in their proportions turns E+ and E- into exact sums.
"""

import math

import pytest
import torch

from trueline import divergences as dv
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives import bind, coefficients
from trueline.objectives.base import assemble

P = torch.tensor([8, 6, 4, 2], dtype=torch.float64) / 20  # D+
Q = torch.tensor([3, 4, 5, 8], dtype=torch.float64) / 20  # D-
LOG_R = (P / Q).log()
ATOMS_P = torch.arange(4).repeat_interleave((P * 20).round().long())
ATOMS_Q = torch.arange(4).repeat_interleave((Q * 20).round().long())


def minimize(loss, start, steps=200):
    """The minimum of a smooth function of (K,) values, and where it is."""
    x = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [x], max_iter=steps, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimizer.step(closure)
    return loss(x).item(), x.detach()


def scores(policy, reference=None):
    n = len(policy)
    reference = policy.new_zeros(n) if reference is None else reference
    return CompletionLogProbs(policy, torch.ones(n, dtype=torch.long), reference)


def labeled(log_ratio, reference=None):
    """D+'s atoms as desirable and D-'s as undesirable completions, from one value an atom."""
    atoms = torch.cat([ATOMS_P, ATOMS_Q])
    reference = torch.zeros(4, dtype=torch.float64) if reference is None else reference
    return UnpairedLogProbs(
        scores(log_ratio[atoms], reference[atoms]), torch.arange(40) < len(ATOMS_P)
    )


def crossed(policy, reference=None):
    """All pairs of an atom of D+ and one of D-: chosen and rejected independent."""
    w, l = (x.flatten() for x in torch.meshgrid(ATOMS_P, ATOMS_Q, indexing="ij"))  # noqa: E741
    reference = torch.zeros(4, dtype=torch.float64) if reference is None else reference
    return PairedLogProbs(scores(policy[w], reference[w]), scores(policy[l], reference[l]))


def class_means(name, options=None, **statistics):
    """E+ + E- of an objective, as a function of the log-ratios of the four atoms."""
    objective = bind(name, {"beta": 1.0, **(options or {})})
    # a (B,) objective averages over both classes, which are equally many here: twice its mean

    def loss(x):
        losses = objective.losses(labeled(x), **statistics)
        return losses if losses.dim() == 0 else 2 * losses.mean()

    return loss


# --- the minimum over all rewards is the divergence (kldo.md, section 1) --------------------------

SHIFT = 0.7
INFIMA = {
    "bco": ({"shift": SHIFT}, math.log(4) - 2 * dv.js(P, Q).item(), SHIFT),
    "kldo": ({}, -dv.kl(P, Q).item(), None),  # None: up to a constant
    "kldo_nwj": ({}, -dv.kl(P, Q).item(), 1.0),
    "kldo_ema": ({"log_normalizer": 0.0}, -dv.kl(P, Q).item(), 0.0),
    "hdo": ({}, 2 - dv.hellinger2(P, Q).item(), 0.0),
    "reverse_kl": ({}, -dv.reverse_kl(P, Q).item(), 0.0),
    "chi2": ({}, -dv.chi2(P, Q).item(), 0.0),
}


@pytest.mark.parametrize("name", INFIMA)
def test_the_minimum_is_the_divergence_at_the_predicted_reward(name):
    statistics, infimum, offset = INFIMA[name]
    value, r = minimize(class_means(name, **statistics), torch.zeros(4, dtype=torch.float64))
    assert value == pytest.approx(infimum, abs=1e-9)
    constant = r[0] - LOG_R[0] if offset is None else offset
    torch.testing.assert_close(r, LOG_R + constant, rtol=0, atol=1e-5)


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "js", "hellinger2", "chi2"])
def test_fdo_reaches_any_divergence(divergence):
    loss = class_means("fdo", {"divergence": divergence})
    value, r = minimize(loss, torch.zeros(4, dtype=torch.float64))
    assert value == pytest.approx(-dv.DIVERGENCES[divergence].between(P, Q).item(), abs=1e-9)
    torch.testing.assert_close(r, LOG_R, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "fdo"])
def test_total_variation_is_approached_by_a_step(name):
    """1 - TV is an infimum, not a minimum: rewards run to sign(R - 1) times infinity."""
    options = {"divergence": "tv"} if name == "fdo" else {}
    loss, constant = class_means(name, options), 0.0 if name == "fdo" else 1.0
    start = torch.zeros(4, dtype=torch.float64)
    _, r = minimize(loss, start, steps=20)
    assert (r.sign() == LOG_R.sign()).all()
    infimum = constant - dv.tv(P, Q).item()
    assert loss(40 * LOG_R.sign()).item() == pytest.approx(infimum, abs=1e-9)
    for _ in range(50):
        assert loss(10 * torch.randn(4, dtype=torch.float64)) >= infimum


def test_dpo_is_a_jensen_shannon_divergence_of_products():
    """Free offsets cancel; the minimum is ln 2 - JS(D+ x D-, D- x D+), r = ln R + c."""
    forward, backward = torch.outer(P, Q).flatten(), torch.outer(Q, P).flatten()
    objective = bind("dpo", {"beta": 1.0})
    value, r = minimize(lambda x: objective.loss(crossed(x)), torch.zeros(4, dtype=torch.float64))
    assert value == pytest.approx(math.log(2) - dv.js(forward, backward).item(), abs=1e-9)
    torch.testing.assert_close(r - r[0], LOG_R - LOG_R[0], rtol=0, atol=1e-5)


def test_dil_finds_the_ratio_of_chosen_to_rejected():
    """With the rejected standing in for the reference, the optimal ratio is D+/D-."""
    for name in ("dil", "dil_ukl", "dil_bce"):
        objective = bind(name, {"reduction": "sum"})
        _, r = minimize(lambda x: objective.loss(crossed(x)), torch.zeros(4, dtype=torch.float64))  # noqa: B023
        torch.testing.assert_close(r, LOG_R, rtol=0, atol=1e-5)


# --- the optimal policy is pi_ref h(R) / Z --------------------------------------------------------

REFERENCE = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
BETA = 0.5


def best_policy(loss):
    """Minimize over policies (softmax of logits) from the reference; ``loss`` takes log-probs."""
    _, logits = minimize(lambda z: loss(z.log_softmax(0)), REFERENCE.log(), steps=500)
    return logits.softmax(0)


def tilted(power):
    weights = REFERENCE * (P / Q) ** power
    return weights / weights.sum()


def test_kldo_reaches_the_tilted_reference():
    """Donsker-Varadhan's free constant takes up ln Z: pi* = pi_ref R^(1/beta) / Z, exactly."""
    objective = bind("kldo", {"beta": BETA})
    policy = best_policy(lambda logp: objective.loss(labeled(logp, REFERENCE.log())))
    torch.testing.assert_close(policy, tilted(1 / BETA), rtol=0, atol=1e-6)


def test_bco_reaches_the_tilted_reference_at_the_shift_that_normalizes_it():
    objective = bind("bco", {"beta": BETA})
    normalizer = (REFERENCE * (P / Q) ** (1 / BETA)).sum().log()

    def loss(logp, shift):
        return objective.loss(labeled(logp, REFERENCE.log()), shift=shift)

    policy = best_policy(lambda logp: loss(logp, -BETA * normalizer))
    torch.testing.assert_close(policy, tilted(1 / BETA), rtol=0, atol=1e-6)


def test_bco_with_its_own_shift_comes_close_to_it():
    """d = (E+ r + E- r) / 2 at its fixed point is not the shift that normalizes, but near it."""
    objective = bind("bco", {"beta": BETA})
    shift = torch.zeros((), dtype=torch.float64)
    for _ in range(30):
        policy = best_policy(
            lambda logp: objective.loss(labeled(logp, REFERENCE.log()), shift=shift)  # noqa: B023
        )
        shift = objective.measure(labeled(policy.log(), REFERENCE.log()))
    assert 1e-3 < dv.tv(policy, tilted(1 / BETA)) < 1e-2


@pytest.mark.parametrize("name", ["hdo", "reverse_kl", "chi2", "kldo_nwj"])
def test_a_fixed_scale_of_rewards_meets_the_normalization_of_the_policy(name):
    """h(R) = R^(1/beta) needs sum pi_ref R^(1/beta) = 1 where the objective fixes r's constant. It
    holds for a reference D- at beta 1, and then pi* = D+; elsewhere pi* is not pi_ref h(R) / Z."""
    objective = bind(name, {"beta": 1.0})
    offset = 1.0 if name == "kldo_nwj" else 0.0
    reference = Q.log() - offset  # NWJ's optimum is 1 + ln R: its natural reference has mass 1/e

    def on_reference(logp):
        return objective.loss(labeled(logp, reference))

    _, logits = minimize(lambda z: on_reference(z.log_softmax(0)), Q.log(), steps=500)
    torch.testing.assert_close(logits.softmax(0), P, rtol=0, atol=1e-6)

    other = bind(name, {"beta": BETA})
    policy = best_policy(lambda logp: other.loss(labeled(logp, REFERENCE.log())))
    assert (policy - tilted(1 / BETA)).abs().max() > 1e-3
    assert ((policy / REFERENCE).log().argsort() == LOG_R.argsort()).all(), "still increasing in R"


def test_kto_takes_a_step():
    """Where R < 1 the optimum's probability is 0 at any beta. Above, how far R is beyond 1 matters
    less and less as beta grows: pi* goes to pi_ref 1{R > 1} / Z, and is not it at a small beta."""
    step = torch.where(LOG_R > 0, REFERENCE, 0.0)
    step = step / step.sum()
    distance = []
    for beta in (0.5, 2.0, 20.0):
        kto = bind("kto", {"beta": beta})
        policy = best_policy(
            lambda logp, kto=kto: kto.loss(labeled(logp, REFERENCE.log()), baseline=0.0)
        )
        assert policy[LOG_R < 0].sum() < 1e-3
        distance.append(dv.tv(policy, step).item())
    assert distance[0] > distance[1] > distance[2]
    assert distance[0] > 0.3
    assert distance[2] < 0.03


def test_only_dpo_has_a_free_offset_for_each_prompt():
    """Two prompts whose references need different constants: DPO reaches pi_ref R^(1/beta) / Z(x)
    on both, KLDO's one constant cannot."""
    other = torch.tensor([0.55, 0.05, 0.05, 0.35], dtype=torch.float64)
    targets = []
    for reference in (REFERENCE, other):
        weights = reference * (P / Q) ** (1 / BETA)
        targets.append(weights / weights.sum())

    def policies(objective, view):
        def loss(z):
            a, b = z[:4].log_softmax(0), z[4:].log_softmax(0)
            return objective(view(a, REFERENCE.log()), view(b, other.log()))

        _, z = minimize(loss, torch.zeros(8, dtype=torch.float64), steps=500)
        return z[:4].softmax(0), z[4:].softmax(0)

    dpo = bind("dpo", {"beta": BETA})
    for got, target in zip(
        policies(lambda x, y: dpo.loss(x) + dpo.loss(y), crossed), targets, strict=True
    ):
        torch.testing.assert_close(got, target, rtol=0, atol=1e-5)

    kldo = bind("kldo", {"beta": BETA})

    def both(x, y):
        merged = [torch.cat([getattr(b.completions, k) for b in (x, y)]) for k in
                  ("policy", "length", "reference")]  # fmt: skip
        labels = torch.cat([x.desirable, y.desirable])
        return kldo.loss(UnpairedLogProbs(CompletionLogProbs(*merged), labels))

    off = [
        (got - target).abs().max()
        for got, target in zip(policies(both, labeled), targets, strict=True)
    ]
    assert max(off) > 1e-2


# --- E-DPO: only the reference reads the safe prompt ----------------------------------------------


def test_explanations_outside_the_safe_references_support_vanish():
    """p* = p_ref(e|x_s) e^(R/beta) / Z: an explanation that p_ref(.|x) supports and p_ref(.|x_s)
    does not gets probability 0, however rewarded; with plain DPO it is the likeliest of all."""
    reward = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)  # the first one is harmful
    direct = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    first, second = (x.flatten() for x in torch.meshgrid(*[torch.arange(4)] * 2, indexing="ij"))
    wins = (reward[first] - reward[second]).sigmoid()  # Bradley-Terry
    beta = 0.5

    def optimum(name, reference):
        objective = bind(name, {"beta": beta})

        def loss(z):
            logp = z.log_softmax(0)
            pairs = PairedLogProbs(
                scores(logp[first], reference.log()[first]),
                scores(logp[second], reference.log()[second]),
            )
            return (wins * objective.losses(pairs)).sum()

        _, z = minimize(loss, reference.log(), steps=500)
        return z.softmax(0)

    plain = optimum("dpo", direct)
    assert plain.argmax() == 0
    previous = 1.0
    for mass in (1e-2, 1e-5, 1e-8):
        safe = torch.tensor([mass, 0.3, 0.5, 0.2 - mass], dtype=torch.float64)
        policy = optimum("e_dpo", safe)
        expected = safe * (reward / beta).exp()
        torch.testing.assert_close(policy, expected / expected.sum(), rtol=1e-4, atol=1e-10)
        assert policy[0] < previous
        previous = policy[0] / 100  # in proportion to the reference's mass: 0 in the limit
    assert policy[0] < 1e-6


# --- sensitivity to a shift between D+ and D- -----------------------------------------------------


def test_dpo_saturates_before_kto_before_bco_and_kldo_never():
    """Unit Gaussians a shift apart: the shift at which 90% of the largest value is reached."""
    x = torch.linspace(-12, 24, 7201, dtype=torch.float64)

    def density(mean):
        weights = torch.exp(-((x - mean) ** 2) / 2)
        return weights / weights.sum()

    def js(shift):
        return dv.js(density(shift), density(0.0)).item() / math.log(2)

    def tv(shift):
        return dv.tv(density(shift), density(0.0)).item()

    def saturation(value):
        return next(s / 100 for s in range(1, 1000) if value(s / 100) > 0.9)

    dpo = saturation(lambda s: js(s * math.sqrt(2)))  # D+ x D- and D- x D+ are sqrt 2 times apart
    kto, bco = saturation(tv), saturation(js)
    assert dpo < kto < bco
    assert (dpo, kto, bco) == pytest.approx((2.75, 3.29, 3.88), abs=0.02)
    kl = [dv.kl(density(s), density(0.0)).item() for s in (2.0, 4.0, 8.0)]
    assert kl == pytest.approx([2.0, 8.0, 32.0], rel=1e-6)


# --- coefficients: gradient-entanglement.md, section 2 --------------------------------------------


def s(x):
    return 1 / (1 + math.exp(-x))


def table(a, b, u, v, w, l):  # noqa: E741
    """-dL/da and dL/db of each loss, as the specification's table has them."""
    beta, lam, gamma, alpha = 0.3, 0.4, 0.5, 0.02
    d = u - v
    c = {
        "dpo": beta * s(-beta * d),
        "r_dpo": beta * s(-beta * d - alpha * (w - l)),
        "ipo": 2 * (1 / (2 * beta) - d),
    }
    rows = {name: (value, value) for name, value in c.items()}
    k = s(-beta * a / w + beta * b / l + gamma)
    rows["simpo"] = (beta * k / w, beta * k / l)
    active = float(b / l > a / w)
    rows["rrhf"] = (active / w + lam, active / l)
    active = float(1 - a + b > 0)
    rows["slic"] = (active + lam, active)
    k = s(-beta * (a - b))
    rows["cpo"] = (beta * k + lam, beta * k)
    k = s(-beta * (d - lam * max(0, -u)))
    rows["dpop"] = (beta * k * (1 + lam * (u < 0)), beta * k)
    rows["sppo"] = (1 / (2 * beta) - u, 1 / (2 * beta) + v)
    p, q = math.exp(a / w), math.exp(b / l)
    k = s(-(math.log(p / (1 - p)) - math.log(q / (1 - q))))
    rows["orpo"] = (1 / w + beta * k / (w * (1 - p)), beta * k / (l * (1 - q)))
    options = {
        "r_dpo": {"length_alpha": alpha},
        "simpo": {"simpo_gamma": gamma},
        "rrhf": {"rrhf_lambda": lam},
        "slic": {"slic_lambda": lam},
        "cpo": {"cpo_alpha": lam},
        "dpop": {"dpop_lambda": lam},
    }
    for name, row in rows.items():
        own = options.get(name, {})
        yield name, own if name in ("rrhf", "slic") else {"beta": beta, **own}, row


@pytest.mark.parametrize(
    "point",
    [
        (-40.0, -55.0, 2.0, -5.0, 20, 50),
        (-58.0, -55.0, -1.5, 4.0, 12, 30),
        (-9.0, -8.5, 0.3, 0.1, 5, 4),
    ],
)
def test_coefficients_are_the_tables(point):
    a, b, u, v, w, l = point  # noqa: E741
    policy = torch.tensor([a, b], dtype=torch.float64)
    reference = policy - torch.tensor([u, v], dtype=torch.float64)
    for name, options, expected in table(*point):
        objective = bind(name, options)

        def loss(policy, objective=objective):
            labels = torch.tensor([True, False])
            return objective.loss(
                assemble("paired", policy, torch.tensor([w, l]), reference, labels)
            )

        _, (up, down) = coefficients(loss, policy)
        assert (-up.item(), down.item()) == pytest.approx(expected, rel=1e-9, abs=1e-12), name


def test_ktos_coefficients_are_the_tables():
    beta, z0, (lw, ll) = 0.3, 0.2, (1.5, 0.5)
    u, v = 2.0, -1.0
    objective = bind("kto", {"beta": beta, "desirable_weight": lw, "undesirable_weight": ll})

    def loss(policy):
        batch = UnpairedLogProbs(scores(policy), torch.tensor([True, False]))
        return objective.losses(batch, baseline=z0 / beta).sum()

    _, (up, down) = coefficients(loss, torch.tensor([u, v], dtype=torch.float64))
    slope = lambda x: s(x) * (1 - s(x))  # noqa: E731
    assert -up.item() == pytest.approx(lw * beta * slope(beta * u - z0))
    assert down.item() == pytest.approx(ll * beta * slope(beta * v - z0))
