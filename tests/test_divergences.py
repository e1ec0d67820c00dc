"""Closed forms against sums and integrals, estimators against closed forms, definitions checked."""

import math

import pytest
import torch

from trueline import divergences as dv
from trueline.divergences import DIVERGENCES, FDivergence, Gaussian, dual, dual_error
from trueline.errors import UserError

P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def gaussian(mean, scale=1.0, d=1):
    return Gaussian(
        torch.full((d,), mean, dtype=torch.float64), torch.eye(d, dtype=torch.float64) * scale**2
    )


# --- closed forms --------------------------------------------------------------------------------


def test_discrete_golden_values():
    # KL = .4 ln 4 + .3 ln 1.5 - .2 ln 1.5 - .1 ln 4 = .3 ln 4 + .1 ln 1.5
    assert dv.kl(P, Q).item() == pytest.approx(0.3 * math.log(4) + 0.1 * math.log(1.5))
    assert dv.reverse_kl(P, Q).item() == pytest.approx(dv.kl(P, Q).item())  # symmetric here
    assert dv.tv(P, Q).item() == pytest.approx(0.4)  # (.3 + .1 + .1 + .3) / 2
    assert dv.chi2(P, Q).item() == pytest.approx(0.9 + 0.05 + 1 / 30 + 0.225)
    # 2 - 2 (2 sqrt(.04) + 2 sqrt(.06))
    assert dv.hellinger2(P, Q).item() == pytest.approx(2 - 2 * (0.4 + 2 * math.sqrt(0.06)))
    # the midpoint is uniform: JS = KL(P || 1/4) = ln 4 - entropy
    entropy = -sum(p * math.log(p) for p in P.tolist())
    assert dv.js(P, Q).item() == pytest.approx(math.log(4) - entropy)


def test_bounds_and_disjoint_supports():
    p, q = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.25, 0.75])
    assert dv.kl(p, q) == math.inf == dv.chi2(p, q)
    assert dv.js(p, q).item() == pytest.approx(math.log(2))
    assert dv.tv(p, q).item() == 1
    assert dv.hellinger2(p, q).item() == 2
    for name in ("kl", "js", "tv", "hellinger2", "chi2", "reverse_kl"):
        assert getattr(dv, name)(p, p).item() == 0
        assert DIVERGENCES[name].between(p, p).item() == 0


@pytest.mark.parametrize(
    ("name", "factor"),
    [("kl", 1), ("reverse_kl", 1), ("js", 2), ("tv", 1), ("hellinger2", 1), ("chi2", 1)],
)
def test_the_family_agrees_with_the_closed_forms(name, factor):
    p = torch.rand(20, 5, dtype=torch.float64)
    q = torch.rand(20, 5, dtype=torch.float64)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    truth = factor * getattr(dv, name)(p, q)
    assert (truth >= 0).all()
    torch.testing.assert_close(DIVERGENCES[name].between(p, q), truth)
    disjoint = torch.eye(2, dtype=torch.float64)
    limit = factor * getattr(dv, name)(disjoint[0], disjoint[1])
    torch.testing.assert_close(DIVERGENCES[name].between(disjoint[0], disjoint[1]), limit)


def test_no_distribution_is_an_error():
    with pytest.raises(ValueError, match="add up to 1"):
        dv.kl(2 * P, Q)
    with pytest.raises(ValueError, match="both must be Gaussians"):
        dv.kl(P, gaussian(0.0))


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "hellinger2", "chi2", "tv"])
def test_gaussians_against_numerical_integrals(name):
    x = torch.linspace(-30, 30, 200001, dtype=torch.float64)[:, None]
    width = 60 / 200000
    for p, q in (
        (gaussian(1.0), gaussian(-0.5)),
        (gaussian(0.3, 0.8), gaussian(-0.2, 0.8 if name == "tv" else 1.1)),
    ):
        a, b = p.log_prob(x), q.log_prob(x)
        integrand = {
            "kl": a.exp() * (a - b),
            "reverse_kl": b.exp() * (b - a),
            "hellinger2": ((a / 2).exp() - (b / 2).exp()) ** 2,
            "chi2": (a.exp() - b.exp()) ** 2 / b.exp().clamp(min=1e-300),
            "tv": (a.exp() - b.exp()).abs() / 2,
        }[name]
        got = getattr(dv, name)(p, q).item()
        assert got == pytest.approx((integrand.sum() * width).item(), rel=1e-6)


def test_gaussians_in_more_dimensions_add_up():
    """Independent coordinates: KL adds, Bhattacharyya coefficients and 1 + chi2 multiply."""
    one = (gaussian(0.7, 0.9), gaussian(0.0, 1.0))
    three = (gaussian(0.7, 0.9, 3), gaussian(0.0, 1.0, 3))
    torch.testing.assert_close(dv.kl(*three), 3 * dv.kl(*one))
    torch.testing.assert_close(1 - dv.hellinger2(*three) / 2, (1 - dv.hellinger2(*one) / 2) ** 3)
    torch.testing.assert_close(1 + dv.chi2(*three), (1 + dv.chi2(*one)) ** 3)


def test_what_has_no_closed_form_says_so():
    with pytest.raises(UserError, match="Jensen-Shannon divergence of Gaussians has no closed"):
        dv.js(gaussian(0.0), gaussian(1.0))
    with pytest.raises(UserError, match="only where their covariances agree"):
        dv.tv(gaussian(0.0, 1.0), gaussian(1.0, 2.0))
    assert dv.chi2(gaussian(0.0, 2.0), gaussian(0.0, 1.0)) == math.inf  # heavier tails than q


# --- definitions ---------------------------------------------------------------------------------

KL = {
    "f": lambda t: t * t.log(),
    "conjugate": lambda u: (u - 1).exp(),
    "derivative": lambda t: 1 + t.log(),
    "link": lambda r: r,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f": lambda t: t * t.log() + 0.1}, r"f\(1\) must be 0"),
        ({"f": lambda t: -t * t.log(), "derivative": lambda t: -1 - t.log()}, "f is not convex"),
        ({"derivative": lambda t: t.log()}, "derivative is not f'"),
        ({"conjugate": lambda u: u.exp()}, "conjugate is not f"),
        ({"link": lambda r: -r}, "link must rise"),
        ({"link": lambda r: 0 * r}, "link must rise"),
        ({"link": lambda r: r.log()}, "link"),
        ({"domain": (0.0, math.inf)}, "link leaves the domain"),
        ({"unaligned": torch.exp}, "unaligned must be conjugate"),
        ({"f": lambda t: t.sum()}, "f.1. must be 0|elementwise"),
    ],
)
def test_four_maps_that_do_not_belong_together(change, message):
    FDivergence("fine", **KL)
    with pytest.raises(ValueError, match=message):
        FDivergence("broken", **(KL | change))


def test_pearsons_conjugate_off_its_branch_is_caught():
    """u + u^2 / 4 is f* only for u >= -2; a link that goes below is out of the domain."""
    with pytest.raises(ValueError, match="leaves the domain"):
        FDivergence(
            "pearson",
            lambda t: (t - 1) ** 2,
            lambda u: u + u**2 / 4,
            lambda t: 2 * (t - 1),
            lambda r: 2 * r,
            domain=(-2.0, math.inf),
        )


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if n != "tv"])
def test_links_are_canonical(name):
    """g = f' o exp, so that the optimal reward is ln P/Q."""
    divergence = DIVERGENCES[name]
    r = torch.linspace(-4, 4, 33, dtype=torch.float64)
    torch.testing.assert_close(divergence.link(r), divergence.derivative(r.exp()))


# --- estimators ----------------------------------------------------------------------------------


def critics(kl, n, m, seeds, d=1):
    """The optimal critic ln P/Q on samples of two unit Gaussians with KL(P || Q) = kl."""
    p, q = gaussian(math.sqrt(2 * kl / d), d=d), gaussian(0.0, d=d)
    generator = torch.Generator().manual_seed(0)
    for _ in range(seeds):
        x, y = p.sample(n, generator), q.sample(m, generator)
        yield p.log_prob(x) - q.log_prob(x), p.log_prob(y) - q.log_prob(y)


def test_exact_on_discrete_distributions():
    """Atoms in proportion to P and Q are expectations: every estimator hits its divergence."""
    r = (P / Q).log()
    aligned = r.repeat_interleave((P * 10).round().long())
    unaligned = r.repeat_interleave((Q * 10).round().long())
    kl = dv.kl(P, Q)
    torch.testing.assert_close(dv.donsker_varadhan(aligned + 3, unaligned + 3), kl)
    torch.testing.assert_close(dv.donsker_varadhan_clipped(aligned, unaligned, 5.0), kl)
    torch.testing.assert_close(dv.nwj(aligned + 1, unaligned + 1), kl)
    torch.testing.assert_close(-dv.donsker_varadhan_corrected_loss(aligned, unaligned, 0.0), kl)
    for name in ("kl", "reverse_kl", "js", "hellinger2", "chi2"):
        divergence = DIVERGENCES[name]
        torch.testing.assert_close(dual(divergence, aligned, unaligned), divergence.between(P, Q))
    step = 50 * r.sign()
    torch.testing.assert_close(
        dual(DIVERGENCES["tv"], step.repeat_interleave((P * 10).round().long()),
             step.repeat_interleave((Q * 10).round().long())),
        dv.tv(P, Q),
    )  # fmt: skip


def test_surrogates_have_the_gradients_they_promise():
    aligned = torch.randn(8, dtype=torch.float64, requires_grad=True)
    unaligned = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def gradient(loss):
        return torch.autograd.grad(loss, (aligned, unaligned))

    normalizer = unaligned.detach().logsumexp(0) - math.log(6)
    biased = gradient(dv.donsker_varadhan_loss(aligned, unaligned))
    corrected = gradient(dv.donsker_varadhan_corrected_loss(aligned, unaligned, normalizer))
    clipped = gradient(dv.donsker_varadhan_clipped_loss(aligned, unaligned, 50.0))
    for a, b, c in zip(biased, corrected, clipped, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    torch.testing.assert_close(biased[1], unaligned.detach().softmax(0))
    weights = gradient(dv.donsker_varadhan_clipped_loss(aligned, unaligned, 0.1))[1]
    expected = unaligned.detach().clamp(max=0.1).exp()
    torch.testing.assert_close(weights / weights.sum(), expected / expected.sum())
    for value in (dv.donsker_varadhan(aligned, unaligned), dv.nwj(aligned, unaligned)):
        assert not value.requires_grad, "a report is no loss"


def test_the_corrected_loss_is_an_upper_bound_of_the_logarithm():
    unaligned = torch.randn(50, dtype=torch.float64)
    aligned = torch.randn(50, dtype=torch.float64)
    truth = dv.donsker_varadhan_loss(aligned, unaligned)
    for z in (-2.0, 0.0, 0.3, 2.0):
        assert dv.donsker_varadhan_corrected_loss(aligned, unaligned, z) >= truth


def test_log_mean_exp_of_four_overstates_kl_as_the_spec_says():
    """r ~ N(0, 1.5^2): the mean of ln of a mean of 4 is near 0.69, the truth 1.125."""
    r = 1.5 * torch.randn(40000, 4, dtype=torch.float64)
    assert (r.logsumexp(1) - math.log(4)).mean().item() == pytest.approx(0.69, abs=0.02)
    assert 1.5**2 / 2 == 1.125


def test_bias_and_variance_shrink_with_n():
    truth, previous = 0.5, math.inf
    for n in (10, 100, 1000):
        values = torch.stack([dv.donsker_varadhan(a, b) for a, b in critics(truth, n, n, 400)])
        spread = values.std().item()
        error = spread / math.sqrt(400)
        # E ln of a mean ~ -var(e^r) / (2 n): bias up by (e^(2 KL) - 1) / (2 n) to first order
        bias = (math.exp(2 * truth) - 1) / (2 * n)
        assert values.mean().item() - truth == pytest.approx(bias, abs=4 * error + bias / 2)
        assert spread < previous / 2
        previous = spread


def test_a_fitted_critic_flatters_itself_more_in_more_dimensions():
    """Of the same KL = 0.5 in d dimensions, a linear critic fitted to 200 samples of each sees more
    on its own samples and less on new ones, the wider the gap the larger d."""
    gaps = []
    for d in (1, 4, 16):
        p, q = gaussian(math.sqrt(1 / d), d=d), gaussian(0.0, d=d)
        generator = torch.Generator().manual_seed(d)
        inside, outside = [], []
        for _ in range(20):
            x, y = p.sample(200, generator), q.sample(200, generator)
            theta = torch.zeros(d, dtype=torch.float64, requires_grad=True)
            fit = torch.optim.LBFGS([theta], max_iter=40, line_search_fn="strong_wolfe")

            def closure(x=x, y=y, theta=theta, fit=fit):
                fit.zero_grad()
                loss = dv.donsker_varadhan_loss(x @ theta, y @ theta)
                loss.backward()
                return loss

            fit.step(closure)
            new = p.sample(200, generator), q.sample(200, generator)
            inside.append(dv.donsker_varadhan(x @ theta, y @ theta))
            outside.append(dv.donsker_varadhan(*(z @ theta for z in new)))
        gaps.append((torch.stack(inside).mean() - torch.stack(outside).mean()).item())
    assert gaps[0] < gaps[1] < gaps[2]
    assert abs(gaps[0]) < 0.1
    assert gaps[2] > 0.3


def test_coverage_near_its_level_while_kl_is_small():
    hits = 0
    for a, b in critics(0.25, 500, 500, 400):
        hits += abs(dv.donsker_varadhan(a, b) - 0.25) < 1.96 * dv.donsker_varadhan_error(a, b)
    assert 0.91 < hits / 400 < 0.98
    hits = 0
    truth = dv.hellinger2(gaussian(1.0), gaussian(0.0))
    divergence = DIVERGENCES["hellinger2"]
    for a, b in critics(0.5, 500, 500, 400):
        hits += abs(dual(divergence, a, b) - truth) < 1.96 * dual_error(divergence, a, b)
    assert 0.91 < hits / 400 < 0.98


def test_estimates_collapse_where_kl_passes_log_n():
    """The value is off, its error bar is blind, and the weight rests on a few of the n samples."""
    n = 100
    for kl, covered in ((0.5, True), (8.0, False)):  # ln 100 = 4.6
        off, hits, effective = [], 0, []
        for a, b in critics(kl, n, n, 200):
            value, error = dv.donsker_varadhan(a, b), dv.donsker_varadhan_error(a, b)
            off.append((value - kl).item())
            hits += bool(abs(value - kl) < 1.96 * error)
            effective.append((1 / b.softmax(0).square().sum()).item())
        bias = sum(off) / 200
        if covered:
            assert abs(bias) < 0.05
            assert hits / 200 > 0.85
            assert sum(effective) / 200 > 20
        else:
            assert bias > 1.5
            assert hits / 200 < 0.5
            assert sum(effective) / 200 < 5


def test_a_fitted_critic_diverges_where_kl_passes_log_n():
    """Two unit Gaussians, critic c x fitted to n samples each: unbounded where the mean of P's
    samples lies above all of Q's, that is about where KL = mean^2 / 2 > ln n."""
    generator = torch.Generator().manual_seed(1)
    n = 100
    for kl, low, high in ((1.0, 0.0, 0.02), (9.0, 0.95, 1.0)):
        p, q = gaussian(math.sqrt(2 * kl)), gaussian(0.0)
        unbounded = [
            bool(p.sample(n, generator).mean() > q.sample(n, generator).max()) for _ in range(200)
        ]
        assert low <= sum(unbounded) / 200 <= high
