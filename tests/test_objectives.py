"""Every objective: a value by hand, and one common suite that a new one gets for free."""

import dataclasses

import pytest
import torch

from trueline.batching import Branch, TokenTree, pack
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives import OBJECTIVES, bind, coefficients, weight_warning
from trueline.objectives.base import assemble
from trueline.objectives.examples import BATCH, PAIR
from trueline.training.sampling import BatchPlan
from trueline.training.step import StepEngine

COUPLED = [name for name, spec in OBJECTIVES.items() if spec.coupled]
PAIRED = [name for name, spec in OBJECTIVES.items() if spec.layout == "paired"]
UNPAIRED = [name for name, spec in OBJECTIVES.items() if spec.layout == "unpaired"]

# One pair: a = -40, b = -55, u = 2, v = -5, u - v = 7, |w| = 20, |l| = 50, beta .1 unless said.
# One batch: log-ratios 2, -1 desirable and 1, -5 undesirable, so rewards .2, -.1 | .1, -.5.
# ls(x) = -ln(1 + e^-x); ls(.7) = -.403186, ls(-.7) = -1.103186.
GOLDEN = [
    ("dpo", {}, 0.403186),  # -ls(.7)
    ("dpo", {"label_smoothing": 0.1}, 0.473186),  # .9 * .403186 + .1 * 1.103186
    ("e_dpo", {}, 0.403186),
    ("robust_dpo", {}, 0.315686),  # (.9 * .403186 - .1 * 1.103186) / .8
    ("r_dpo", {}, 0.513015),  # -ls(.7 + .01 (20 - 50)) = -ls(.4)
    ("dpop", {}, 0.403186),  # u > 0: no penalty
    ("gamma_dpo", {}, 0.287335),  # -ls(.1 (15 - .5 * 8)) = -ls(1.1)
    ("discopop", {"beta": 0.1}, 0.496585),  # m = s(14) = .99999917: e^-.7 = .496585
    ("ipo", {}, 4.0),  # (7 - 5)^2
    ("ipo", {"reduction": "mean"}, 23.04),  # (.1 + .1 - 5)^2
    ("hinge", {}, 0.3),  # 1 - .7
    ("sppo", {}, 4.5),  # ((2 - 5)^2 + (-5 + 5)^2) / 2
    ("exo", {}, 1.657292),  # .668188 (-.403186 + .001) + .331812 (-1.103186 + 6.907755)
    ("nca", {}, 1.234247),  # -ls(.2) - ls(-.2) / 2 - ls(.5) / 2 = .598139 + .399069 + .237038
    ("apo_zero", {}, 0.827707),  # s(-.2) + s(-.5) = .450166 + .377541
    ("apo_down", {}, 0.881646),  # s(.2) + s(-.7) = .549834 + .331812
    ("aot", {}, 0.403186),  # one pair: dpo
    ("aot_unpaired", {}, 0.403186),
    ("dil", {}, -0.695806),  # -e^.1 + e^-.2 / 2
    ("dil_ukl", {}, 0.804837),  # -.1 + e^-.1
    ("dil_bce", {}, 1.288793),  # 2 ln(1 + e^-.1)
    ("dil_cpc", {}, 0.683197),  # -ls(.1 * .2)
    ("simpo", {}, 2.395545),  # -ls(2 (-2 + 1.1) - .5)
    ("orpo", {}, 2.14322),  # 2 - .1 ls(-1.854587 + .695228)
    ("cpo", {}, 40.201413),  # -ls(1.5) + 40
    ("slic", {}, 4.0),  # max(0, 1 - 15) + .1 * 40
    ("rrhf", {}, 40.9),  # (-1.1 + 2) + 40
    ("sft", {}, 2.0),  # 40 / 20
    ("kto", {}, 0.469416),  # (s(-.2) + s(.1) + s(.1) + s(-.5)) / 4
    ("kto", {"desirable_weight": 2.0}, 0.713202),  # (2 (.450166 + .524979) + .902520) / 4
    ("apo_zero_unpaired", {}, 0.469416),
    ("bco", {}, 0.640252),  # (.598139 + .744397 + .744397 + .474077) / 4
    ("kldo", {}, -0.205659),  # -.05 + ln((1.105171 + .606531) / 2)
    ("kldo", {"anchor": 0.1}, 0.049341),  # + .1 (40 / 20 + 31 / 10) / 2
    ("kldo", {"clip": 0.05}, -0.20644),  # e^.05 (1 + .05) = 1.103835 in place of e^.1
    ("kldo_ema", {}, -0.194149),  # Z = 0: -.05 + .855851 - 1
    ("kldo_nwj", {}, 0.26485),  # -.05 + (e^-.9 + e^-1.5) / 2
    ("hdo", {}, 1.89309),  # (e^-.1 + e^.05) / 2 + (e^.05 + e^-.25) / 2
    ("reverse_kl", {}, -0.238049),  # (e^-.2 + e^.1) / 2 + (.1 - .5) / 2 - 1
    ("chi2", {}, -0.331599),  # -(e^.2 + e^-.1 - 2) + (e^.2 + e^-1) / 2 - 1
    ("fdo", {}, -0.194149),  # -(1 + .05) + .855851
    ("fdo", {"divergence": "hellinger2"}, -0.10691),  # hdo - 2
    ("fdo", {"divergence": "js"}, -0.105790),  # 2 (bco - ln 2)
    ("fdo", {"divergence": "tv"}, -0.061167),  # 2 kto - 1
]


def golden_batch(layout):
    return {"paired": PAIR, "unpaired": BATCH, "completion": PAIR.chosen}[layout]


@pytest.mark.parametrize(("name", "options", "value"), GOLDEN)
def test_golden_value(name, options, value):
    objective = bind(name, options)
    assert objective.loss(golden_batch(objective.layout)).item() == pytest.approx(value, abs=2e-6)


def test_every_own_objective_has_a_golden_value():
    own = {n for n, s in OBJECTIVES.items() if s.function.__module__.startswith("trueline.")}
    assert own == {name for name, _, _ in GOLDEN}


def pair(u, v, w=(-40.0, 20), l=(-55.0, 50)):  # noqa: E741
    def completions(ratio, sums, length):
        policy = torch.full((1,), sums, dtype=torch.float64)
        return CompletionLogProbs(policy, torch.tensor([length]), policy - ratio)

    return PairedLogProbs(completions(u, *w), completions(v, *l))


# dil.md: (u, v) and LSIF, UKL, BCE, CPC at beta 1.
DIL = [
    (0, 0, -0.5, 1, 1.386294, 0.693147),
    (0.2, -0.1, -0.812037, 0.704837, 1.242536, 0.554355),
    (-0.3, -0.5, -0.556879, 0.906531, 1.328432, 0.598139),
    (1, 0.5, -1.359141, 0.648721, 1.287339, 0.474077),
    (2, -5, -7.389033, -1.993262, 0.133643, 0.000911),
]


@pytest.mark.parametrize("row", DIL)
def test_dil_golden_values(row):
    u, v, *values = row
    for name, value in zip(("dil", "dil_ukl", "dil_bce", "dil_cpc"), values, strict=True):
        options = {"reduction": "sum"} | ({"beta": 1.0} if name == "dil_cpc" else {})
        got = bind(name, options).loss(pair(u, v)).item()
        assert got == pytest.approx(value, abs=1.5e-6), name


@pytest.mark.parametrize(
    ("gamma", "value"), [(0, 0.854355), (0.5, 0.598139), (1, 0.403186), (2, 0.167786)]
)
def test_gamma_dpo_golden_values(gamma, value):
    """ranking.md, pair 2: policy (-58, -55), reference (-60, -50)."""
    pairs = pair(2, -5, (-58.0, 20), (-55.0, 50))
    assert bind("gamma_dpo", {"gamma": gamma}).loss(pairs).item() == pytest.approx(value, abs=1e-6)


# --- the common suite: new objectives get it for free --------------------------------------------


def rows(layout, n=6, dtype=torch.float64, scale=3.0):
    """n pairs' (or 2n completions') columns: policy, length, reference, desirable."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(2 * n, 2, generator=generator, dtype=torch.float64)
    length = torch.randint(5, 40, (2 * n,), generator=generator)
    policy = -20 - 5 * noise[:, 0].abs()
    desirable = torch.arange(2 * n) % 2 == 0
    return policy.to(dtype), length, (policy - scale * noise[:, 1]).to(dtype), desirable


def value_and_coefficients(objective, columns, **statistics):
    policy, length, reference, desirable = columns

    def loss(policy):
        return objective.loss(
            assemble(objective.layout, policy, length, reference, desirable), **statistics
        )

    return coefficients(loss, policy)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_coefficients_are_finite_differences(name):
    objective = bind(name)
    policy, *rest = columns = rows(objective.layout)
    _, gradient = value_and_coefficients(objective, columns)
    for i in range(len(policy)):
        step = torch.zeros_like(policy)
        step[i] = 1e-5
        up, _ = value_and_coefficients(objective, (policy + step, *rest))
        down, _ = value_and_coefficients(objective, (policy - step, *rest))
        assert gradient[i].item() == pytest.approx((up - down).item() / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_order_does_not_matter(name):
    objective = bind(name)
    policy, length, reference, desirable = columns = rows(objective.layout)
    truth, gradient = value_and_coefficients(objective, columns)
    order = torch.randperm(len(policy) // 2)
    order = torch.stack([2 * order, 2 * order + 1], 1).flatten()  # pairs stay together
    value, permuted = value_and_coefficients(
        objective, (policy[order], length[order], reference[order], desirable[order])
    )
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(permuted, gradient[order])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_where_policy_is_reference_nothing_good_is_pushed_down(name):
    objective = bind(name)
    policy, length, _, desirable = rows(objective.layout)
    value, gradient = value_and_coefficients(objective, (policy, length, policy, desirable))
    assert value.isfinite()
    assert gradient.abs().max() > 0
    if name == "discopop":
        pytest.skip("it does push the wrong way there; see its own test")
    assert (gradient[desirable] <= 1e-12).all()
    assert objective.layout == "completion" or (gradient[~desirable] >= -1e-12).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_float32_is_float64(name):
    objective = bind(name)
    truth, gradient = value_and_coefficients(objective, rows(objective.layout))
    value, single = value_and_coefficients(objective, rows(objective.layout, dtype=torch.float32))
    assert value.dtype == single.dtype == torch.float32
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.double(), gradient, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_stable_at_any_log_ratio(name, dtype):
    """Log-ratios 0 and +-1e4, log-probs 0 and -1e4, in all combinations."""
    objective = bind(name)
    extremes = torch.tensor([-1e4, 0.0, 1e4], dtype=dtype)
    chosen, rejected = (x.flatten() for x in torch.meshgrid(extremes, extremes, indexing="ij"))
    ratios = torch.stack([chosen, rejected], 1).flatten()
    policy = -ratios.abs() * (torch.arange(len(ratios)) % 3 != 0)
    length = torch.full((len(ratios),), 10)
    desirable = torch.arange(len(ratios)) % 2 == 0
    value, gradient = value_and_coefficients(
        objective, (policy, length, policy - ratios, desirable)
    )
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert objective.layout == "completion" or gradient.abs().max() > 0


@pytest.mark.parametrize("kept", ["both", "desirable", "undesirable", "one each", "imbalanced"])
@pytest.mark.parametrize("name", UNPAIRED)
def test_empty_one_element_and_imbalanced_classes(name, kept):
    objective = bind(name)
    columns = rows(objective.layout)
    desirable = columns[3]
    mask = {
        "both": torch.zeros_like(desirable),
        "desirable": desirable,
        "undesirable": ~desirable,
        "one each": torch.arange(12) < 2,
        "imbalanced": desirable | (torch.arange(12) < 2),
    }[kept]
    value, gradient = value_and_coefficients(objective, [x[mask] for x in columns])
    assert value.isfinite()
    assert gradient.isfinite().all()
    metrics = objective.metrics(assemble("unpaired", *(x[mask] for x in columns)))
    assert all(torch.as_tensor(x).isfinite() for x in metrics.values())


@pytest.mark.parametrize("name", PAIRED)
def test_no_pair_is_a_connected_zero(name):
    objective = bind(name)
    value, gradient = value_and_coefficients(objective, [x[:0] for x in rows("paired")])
    assert value.item() == 0
    assert gradient.shape == (0,)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_the_reference_reads_matters_exactly_where_there_is_one(name):
    """E-RLHF for every objective: other reference log-probs of the same completions, as behind a
    safe prompt, change every reference-based loss and no other."""
    objective = bind(name)
    policy, length, reference, desirable = rows(objective.layout)
    shift = torch.linspace(-3, 1, len(policy), dtype=torch.float64)
    before, _ = value_and_coefficients(objective, (policy, length, reference, desirable))
    after, _ = value_and_coefficients(objective, (policy, length, reference + shift, desirable))
    assert (before != after) == objective.spec.reference


@pytest.mark.parametrize("name", [n for n, s in OBJECTIVES.items() if s.reference])
def test_a_missing_reference_is_an_error(name):
    objective = bind(name)
    policy, length, _, desirable = rows(objective.layout)
    with pytest.raises(ValueError, match="needs reference log-probs"):
        objective.loss(assemble(objective.layout, policy, length, None, desirable))


# --- exact coupling: the split does not matter, in float64 ---------------------------------------


class FakeScorer:
    """Log-probs that are parameters: completion k of the data, spread evenly over its tokens."""

    def __init__(self, logps):
        self.logps = logps

    def pack(self, trees):
        return pack(trees)

    def __call__(self, trees, packed=None, *, through=None):
        packed = packed or pack(trees)
        which = torch.tensor([int(b.ids[0]) for tree in trees for b in tree.branches])
        return (self.logps[which] / packed.length)[packed.owners]

    def sums(self, trees):
        return pack(trees).sums(self(trees)).detach()


def make_trees(labels):
    """One tree for each tuple of labels; completion k begins with token k."""
    trees, k = [], 0
    for i, label in enumerate(labels):
        branches = []
        for _ in label:
            ids = torch.full((2 + k % 5,), k, dtype=torch.int32).numpy()
            branches.append(Branch(ids, ids == ids))
            k += 1
        prompt = torch.tensor([i, i], dtype=torch.int32).numpy()
        trees.append(TokenTree(prompt, tuple(branches), tuple(label), None, f"row {i}"))
    return trees


def engine_gradient(objective, trees, micro_batch_size, ratio_scale, coupling="exact", steps=2):
    completions = sum(len(tree.branches) for tree in trees)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, completions, generator=generator, dtype=torch.float64)
    logps = (-20 - noise[0].abs()).requires_grad_(True)
    reference = FakeScorer(logps.detach() - ratio_scale * noise[1])
    engine = StepEngine(
        objective,
        FakeScorer(logps),
        (lambda trees: reference.sums(trees)) if objective.spec.reference else None,
        coupling=coupling,
    )
    mismatched = engine._mismatched
    plan = BatchPlan(
        trees,
        len(trees),
        micro_batch_size=micro_batch_size,
        paired=objective.layout == "paired",
        mismatched=mismatched,
    )
    losses = [
        engine.step(plan.share(range(len(trees)))).loss.item() for _ in range(steps)
    ]  # a second step, so that a moving average has a past
    return losses, logps.grad


LABELS = {
    "paired": {"pairs": [(True, False)] * 7},
    "completion": {"chosen": [(True,)] * 7},
    "unpaired": {
        "balanced": [(True,), (False,)] * 4,
        "imbalanced": [(True,)] * 7 + [(False,)],
        "one class": [(False,)] * 4,
        "no rejected": [(True,)] * 4,
    },
}
CASES = [(n, case) for n, spec in OBJECTIVES.items() for case in LABELS[spec.layout]]


@pytest.mark.parametrize(("name", "case"), CASES)
@pytest.mark.parametrize("scale", [2.0, 1e4])
def test_parts_add_up_to_the_whole(name, case, scale):
    objective = bind(name)
    trees = make_trees(LABELS[objective.layout][case])
    losses, truth = engine_gradient(objective, trees, len(trees), scale)
    assert truth.isfinite().all()
    for size in (1, 3):
        again, gradient = engine_gradient(objective, trees, size, scale)
        assert again == pytest.approx(losses, rel=1e-12)
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", COUPLED)
def test_a_coupled_objective_is_not_its_parts_mean(name):
    """F11 and the log-mean-exp: the sort, or the normalizer, of parts is another one."""
    objective = bind(name)
    columns = rows(objective.layout)
    whole, _ = value_and_coefficients(objective, columns)
    parts = [
        value_and_coefficients(objective, [x[i : i + 4] for x in columns])[0] for i in (0, 4, 8)
    ]
    assert abs(whole - sum(parts) / 3) > 1e-4


def test_the_moving_average_is_the_papers():
    """The gradient's denominator is the debiased average of E- e^r, this batch included."""
    objective = bind("kldo_ema", {"beta": 1.0})
    trees = make_trees([(True,), (False,)] * 3)
    losses, gradient = engine_gradient(objective, trees, 2, 1.0, steps=1)
    _, exact = engine_gradient(bind("kldo", {"beta": 1.0}), trees, 2, 1.0, steps=1)
    torch.testing.assert_close(gradient, exact)  # the first step's average is the batch itself
    assert losses[0] == pytest.approx(
        engine_gradient(bind("kldo", {"beta": 1.0}), trees, 6, 1.0, steps=1)[0][0]
    )


# --- facts about single objectives ----------------------------------------------------------------


def flipped(pairs):
    return PairedLogProbs(pairs.rejected, pairs.chosen)


def test_robust_dpo_is_unbiased_and_conservative_dpo_is_the_expectation():
    """Labels flipped with probability e: E[robust] is the clean dpo; cDPO is E[dpo]."""
    e = 0.2
    clean, wrong = bind("dpo").loss(PAIR), bind("dpo").loss(flipped(PAIR))
    robust = bind("robust_dpo", {"label_smoothing": e})
    unbiased = (1 - e) * robust.loss(PAIR) + e * robust.loss(flipped(PAIR))
    torch.testing.assert_close(unbiased, clean)
    conservative = bind("dpo", {"label_smoothing": e}).loss(PAIR)
    torch.testing.assert_close(conservative, (1 - e) * clean + e * wrong)


def test_discopop_has_the_papers_two_local_optima():
    """Lu et al. give them for beta = tau = 0.05: a minimum of 0.785929 at a margin of -2.3714 nats,
    a maximum of 0.87829 at 1.44012. In between, where every run begins, margins are pushed down."""
    objective = bind("discopop")
    for margin, value in ((-2.3714, 0.785929), (1.44012, 0.87829)):
        middle, left, right = (
            objective.loss(pair(margin + d, 0.0)).item() for d in (0.0, -0.1, 0.1)
        )
        assert middle == pytest.approx(value, abs=1e-5)
        assert (left - middle) * (right - middle) > 0
    assert objective.loss(pair(0.1, 0.0)) > objective.loss(pair(0.0, 0.0))


def test_apo_down_lowers_both_and_the_rejected_more():
    objective = bind("apo_down")
    policy, length, reference, desirable = (x[:2] for x in rows("paired"))
    reference = policy + torch.tensor([-2.0, 3.0])  # u = 2, v = -3
    _, gradient = value_and_coefficients(objective, (policy, length, reference, desirable))
    assert 0 < gradient[0] < gradient[1]


def test_fdo_equals_the_objectives_written_out():
    columns = rows("unpaired")
    for name, divergence, constant in (
        ("hdo", "hellinger2", 2.0),
        ("reverse_kl", "reverse_kl", 0.0),
        ("chi2", "chi2", 0.0),
        ("kldo_ema", "kl", 0.0),
    ):
        value, gradient = value_and_coefficients(bind(name), columns)
        same, again = value_and_coefficients(bind("fdo", {"divergence": divergence}), columns)
        torch.testing.assert_close(same + constant, value)
        torch.testing.assert_close(again, gradient)


def test_clip_bounds_a_weight_and_keeps_its_pull():
    columns = rows("unpaired", scale=60.0)
    bad = ~columns[3]
    _, free = value_and_coefficients(bind("kldo"), columns)
    _, clipped = value_and_coefficients(bind("kldo", {"clip": 0.5}), columns)
    assert clipped[bad].max() < free[bad].max()
    assert (clipped[bad] > 0).all(), "the heaviest sample is still pushed down"
    ratio = clipped[bad].max() / clipped[bad].min()
    rewards = (0.1 * (columns[0] - columns[2]))[bad]
    assert torch.isclose(ratio.log(), 0.5 - rewards.min())


def test_the_anchor_is_sft_on_the_desirable():
    columns = rows("unpaired")
    _, plain = value_and_coefficients(bind("hdo"), columns)
    _, anchored = value_and_coefficients(bind("hdo", {"anchor": 0.3}), columns)
    expected = torch.where(columns[3], -0.3 / columns[1] / columns[3].sum(), 0.0)
    torch.testing.assert_close(anchored - plain, expected.double())


@pytest.mark.parametrize("name", ["kldo", "kldo_ema", "kldo_nwj", "hdo", "chi2", "fdo"])
def test_one_rejected_sample_with_all_the_weight_is_told_of(name):
    policy, length, reference, desirable = rows("unpaired")
    objective = bind(name)
    calm = objective.metrics(assemble("unpaired", policy, length, reference, desirable))
    assert weight_warning(calm) is None
    reference = reference.clone()
    reference[1] -= 400
    metrics = objective.metrics(assemble("unpaired", policy, length, reference, desirable))
    assert metrics["weights/top_share"] > 0.9
    text = weight_warning(metrics)
    assert text is not None
    assert text.startswith("One undesirable completion carries")
    assert "clip" in text


def test_shares_are_the_coefficients_shares():
    """Effective sample size and top share describe the gradient itself."""
    columns = rows("unpaired", scale=20.0)
    batch = assemble("unpaired", *columns)
    for name in ("kldo", "kldo_ema", "kldo_nwj", "hdo", "chi2", "fdo", "reverse_kl"):
        objective = bind(name)
        _, gradient = value_and_coefficients(objective, columns)
        metrics = objective.metrics(batch)
        for prefix, members in (("weights/", ~columns[3]), ("weights_desirable/", columns[3])):
            if f"{prefix}top_share" in metrics:
                shares = gradient[members].abs() / gradient[members].abs().sum()
                torch.testing.assert_close(metrics[f"{prefix}top_share"], shares.max())
                torch.testing.assert_close(
                    metrics[f"{prefix}effective_sample_size"], 1 / (shares**2).sum()
                )


def test_class_means_need_the_whole_batchs_counts():
    part = dataclasses.replace(BATCH, counts=(4, 8))
    whole = bind("hdo").loss(BATCH)
    assert bind("hdo").loss(part) < whole
    assert isinstance(part, UnpairedLogProbs)
