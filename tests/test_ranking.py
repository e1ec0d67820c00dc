"""Ranking: the paper's golden values by hand, the released code's faults, a model's metrics."""

import gzip
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline.data import load_examples
from trueline.diagnostics.ranking import (
    Scores,
    difficulties_of,
    difficulty,
    difficulty_of,
    ranking,
    ranking_of,
    ranking_of_scores,
    score_completions,
)
from trueline.diagnostics.ranking.data import write_difficulty
from trueline.diagnostics.ranking.reach import reach_of
from trueline.diagnostics.ranking.theory import (
    dpo_threshold,
    exact_ranking,
    gamma_dpo_threshold,
    idealized,
    ipo_threshold,
    rater_logit,
    ties_right,
)
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.objectives import dpo, gamma_dpo, ipo
from trueline.records import Completion, Example
from trueline.scoring import Scorer
from trueline.stats import clustered_rate, rate
from trueline.stats.resampling import (
    bootstrap_interval,
    quantile,
    rate_difference,
)

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)


def paired(rows):
    """Rows (policy w, l, reference w, l, length w, l); the reference may be None."""
    w, loser, ref_w, ref_l, len_w, len_l = zip(*rows, strict=True)

    def side(policy, reference, length):
        tensors = [torch.tensor(policy, dtype=torch.float64), torch.tensor(length)]
        if reference[0] is not None:
            tensors.append(torch.tensor(reference, dtype=torch.float64))
        return CompletionLogProbs(*tensors)

    return PairedLogProbs(side(w, ref_w, len_w), side(loser, ref_l, len_l))


PAIR_1 = (-40.0, -55.0, -42.0, -50.0, 20, 50)
PAIR_2 = (-58.0, -55.0, -60.0, -50.0, 20, 50)


def value(finding, name):
    return finding[f"gap/{name}"].value


# -- golden values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("c", "loss"),
    [
        (-5, 0.974077),  # ln(1 + e^0.5) = ln 2.648721
        (0, 0.693147),  # ln 2
        (1, 0.644397),  # ln(1 + e^-0.1) = ln 1.904837
        (5, 0.474077),  # ln(1 + e^-0.5) = ln 1.606531
        (10, 0.313262),  # ln(1 + e^-1) = ln 1.367879
        (20, 0.126928),  # ln(1 + e^-2) = ln 1.135335
        (50, 0.006715),  # ln(1 + e^-5) = ln 1.006738
    ],
)
def test_dpos_threshold(c, loss):
    assert dpo_threshold(c, 0.1) == pytest.approx(loss, abs=5e-7)


@pytest.mark.parametrize(
    ("beta", "three_quarters", "unanimous"),
    [
        (0.01, 109.861, 690.776),  # ln 3 / beta = 1.098612 / beta; ln 1000 / beta = 6.907755 / beta
        (0.1, 10.986, 69.078),
        (1, 1.0986, 6.9078),
        (5, 0.2197, 1.3816),
        (10, 0.1099, 0.6908),
    ],
)
def test_limits_on_difficulty(beta, three_quarters, unanimous):
    reach = reach_of("dpo", {"beta": beta})
    assert reach.limit(0.75) == pytest.approx(three_quarters, rel=5e-4)
    assert reach.limit(1.0) == pytest.approx(unanimous, rel=5e-5)


def test_pair_1_is_right_by_sums_and_wrong_by_tokens():
    # -40 > -55, but -40/20 = -2 < -55/50 = -1.1; margin (-40 + 55) - (-42 + 50) = 7
    found = ranking_of(paired([PAIR_1]))
    assert value(found, "ranking_accuracy") == 1.0
    assert value(found, "ranking_accuracy_per_token") == 0.0
    assert value(found, "reward_accuracy") == 1.0
    assert value(found, "loss") == pytest.approx(0.403186, abs=5e-7)  # ln(1 + e^-0.7)
    assert value(found, "difficulty_q50") == -8.0  # -50 + 42


def test_pair_2_has_the_same_margin_and_is_still_wrong():
    # margin (-58 + 55) - (-60 + 50) = 7 < c = -50 + 60 = 10, so the loss is above the threshold
    found = ranking_of(paired([PAIR_2]))
    assert value(found, "margin") == 7.0
    assert value(found, "loss") == pytest.approx(0.403186, abs=5e-7)
    assert value(found, "difficulty_q50") == 10.0
    assert value(found, "threshold_loss") == pytest.approx(0.313262, abs=5e-7)
    assert value(found, "ranking_accuracy") == 0.0
    assert value(found, "reward_accuracy") == 1.0
    assert value(found, "flipped") == 0.0


@pytest.mark.parametrize(
    ("gamma", "loss"),
    [(0, 0.854355), (0.5, 0.598139), (1, 0.403186), (2, 0.167786)],
)  # the logit is 0.1 (-3 + 10 gamma): -0.3, 0.2, 0.7, 1.7
def test_gamma_dpo_on_pair_2(gamma, loss):
    assert gamma_dpo(paired([PAIR_2]), beta=0.1, gamma=gamma).item() == pytest.approx(
        loss, abs=5e-7
    )
    threshold = gamma_dpo_threshold(10.0, 0.1, gamma)
    assert threshold == pytest.approx(math.log1p(math.exp(-gamma)))  # beta gamma c = gamma
    assert loss > threshold  # the policy ranks it wrong


ROWS = [(-20, -30, 0.75), (-30, -28, 0.75), (-45, -38, 1), (-60, -40, 0.75), (-50, -49.9, 1)]
# c = -10, 2, 7, 20, .1; at beta 1 the limits are 1.0986 (.75) and 6.9078 (1): right, wrong,
# wrong, wrong, right = .4; at beta .1 (10.986, 69.078) only c = 20 is out; at .01 none is


@pytest.mark.parametrize(("beta", "rate"), list(zip(BETAS, (1.0, 0.8, 0.4, 0.4, 0.4), strict=True)))
def test_the_idealized_accuracy_of_five_rows(beta, rate):
    w, loser, alpha = map(np.array, zip(*ROWS, strict=True))
    assert idealized(difficulty(w, loser), alpha, beta).mean() == pytest.approx(rate)


def test_five_rows_as_a_finding():
    rows = [(w, loser, w, loser, 9, 9) for w, loser, _ in ROWS]
    found = ranking_of(paired(rows), alpha=[alpha for *_, alpha in ROWS], options={"beta": 1.0})
    assert value(found, "reference_ranking_accuracy") == pytest.approx(0.2)
    assert value(found, "idealized_min") == pytest.approx(0.4)
    assert value(found, "idealized_median") == pytest.approx(0.4)
    assert value(found, "idealized_max") == 1.0
    assert value(found, "idealized") == pytest.approx(0.4)
    assert value(found, "alignment_gap") == pytest.approx(0.2)  # .4 - .2
    assert value(found, "out_of_reach") == pytest.approx(0.6)
    assert value(found, "out_of_reach_of_misranked") == pytest.approx(3 / 4)


# -- theory against the objectives themselves -------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "threshold", "options"),
    [
        (dpo, dpo_threshold, {"beta": 0.3}),
        (gamma_dpo, gamma_dpo_threshold, {"beta": 0.3, "gamma": 0.5}),
    ],
)
def test_a_pair_is_right_exactly_where_its_loss_is_at_most_the_threshold(loss, threshold, options):
    rng = np.random.default_rng(0)
    rows = [(*rng.normal(-40, 8, 4), 20, 20) for _ in range(500)]
    pairs = paired(rows)
    c = (pairs.rejected.reference - pairs.chosen.reference).numpy()
    right = (pairs.chosen.policy >= pairs.rejected.policy).numpy()
    assert 0.2 < right.mean() < 0.8
    assert ((loss(pairs, **options).numpy() <= threshold(c, *options.values())) == right).all()


def test_ipos_threshold_suffices_and_beyond_its_target_nothing_does():
    rng = np.random.default_rng(1)
    tau = 0.05  # target 1 / (2 tau) = 10
    rows = [(*rng.normal(-40, 8, 4), 20, 20) for _ in range(500)]
    pairs = paired(rows)
    c = (pairs.rejected.reference - pairs.chosen.reference).numpy()
    right = (pairs.chosen.policy >= pairs.rejected.policy).numpy()
    enough = ipo(pairs, beta=tau).numpy() <= ipo_threshold(c, tau)
    assert right[enough].all()
    assert 20 < enough.sum() < right.sum()  # suffices, but is not needed: a margin may overshoot
    assert np.isnan(ipo_threshold(c, tau)).tolist() == (c > 10).tolist()
    on_target = paired([(10.0 - 12.0, 0.0, -12.0, 0.0, 5, 5)])  # margin 10, loss 0, c = 12
    assert ipo(on_target, beta=tau).item() == 0
    assert value(ranking_of(on_target, objective="ipo", options={"beta": tau}), "flipped") == 0
    found = ranking_of(on_target, objective="ipo", options={"beta": tau})
    assert value(found, "out_of_reach") == 1.0
    assert value(found, "needs_lower_loss") == 1.0


def test_the_optimum_of_dpo_is_the_idealized_one():
    # minimize -alpha ln s(beta m) - (1 - alpha) ln s(-beta m) over the margin: m = logit / beta
    for alpha, beta, c in ((0.75, 0.5, 2.1), (0.75, 0.5, 2.3), (0.6, 0.1, -3.0), (0.3, 0.1, -8.0)):
        margin = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
        losses = -alpha * torch.nn.functional.logsigmoid(beta * margin)
        losses -= (1 - alpha) * torch.nn.functional.logsigmoid(-beta * margin)
        best = margin[losses.argmin()].item()
        assert bool(idealized(c, alpha, beta)) == (best > c)


def test_an_objective_without_a_bound_is_told_apart():
    found = ranking_of(paired([PAIR_1, PAIR_2]), objective="kto", options={"beta": 0.2})
    assert "No bound is known for the objective kto" in found.summary
    assert found.figures["reach"] == {
        "title": "DPO at beta 0.2", "stands_in": "kto", "limit": pytest.approx(34.5388, rel=1e-5)
    }  # fmt: skip
    assert reach_of("gamma_dpo", {"gamma": 0.0}).right([1e9], 0.75).all()
    assert reach_of(["dpo", "sft"]).stands_in
    with pytest.raises(UserError, match="gamma"):
        reach_of("dpo", {"gamma": 0.5})


# -- faults of the released code --------------------------------------------------------------


def test_padding_on_the_left_scores_no_prompt_token():
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.padding_side = "left"
    model = tiny_llama()
    examples = list(load_examples(pair_rows(8)))
    scores = score_completions(model, tokenizer, examples, max_tokens=60)
    for example, found, lengths in zip(examples, scores.log_probs, scores.lengths, strict=True):
        prompt = [1, *tokenizer(example.prompt, add_special_tokens=False)["input_ids"]]
        for completion, log_prob, length in zip(example.completions, found, lengths, strict=True):
            ids = [*tokenizer(completion.content, add_special_tokens=False)["input_ids"], 2]
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0].double()
            at = torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1)
            expected = logits.log_softmax(-1)[at, torch.tensor(ids)].sum().item()
            assert log_prob == pytest.approx(expected, abs=1e-4)
            assert length == len(ids)


def test_the_idealized_accuracy_subtracts_log_probs_and_divides_none():
    # dividing them, -20 / -30 = .67 would lean to the chosen as weakly as -2000 / -3000 does
    assert idealized([-10.0], 0.25, 1.0).tolist() == [True]  # -10 < logit(1/4) = -1.0986
    assert idealized([-1.0], 0.25, 1.0).tolist() == [False]


def test_rater_shares_are_clamped_on_both_sides():
    assert rater_logit([0.0, 1.0]).tolist() == [-math.log(1000), math.log(1000)]
    assert rater_logit([1e-9, 1 - 1e-9]).tolist() == [-math.log(1000), math.log(1000)]
    assert rater_logit(0.5) == 0.0
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="share"):
            rater_logit(alpha)


# -- more than two answers, ties, rater shares ------------------------------------------------


def test_exact_rankings_happen_once_in_n_factorial():
    rng = np.random.default_rng(0)
    hits = [exact_ranking([3.0, 1.0, 2.0, 0.0], rng.normal(size=4)) for _ in range(20_000)]
    low, high = proportion_confint(sum(hits), len(hits), alpha=1e-4, method="wilson")
    assert low < 1 / math.factorial(4) < high
    assert exact_ranking([2, 2.5, 1], [-3.0, -1.0, -9.0])


def test_ties_are_right_where_probabilities_are_within_a_hundredth():
    logs = [math.log(p) for p in (0.5, 0.491, 0.489)]
    assert ties_right([logs[0]] * 2, logs[1:]).tolist() == [True, False]
    assert ties_right([-40.0], [-55.0]).tolist() == [True]  # of long answers every pair is one


def scored_example(scores, pairs=((0, 1),)):
    completions = tuple(Completion(f"answer {i}", score=s) for i, s in enumerate(scores))
    return Example("Which?", completions, pairs)


def scores_of(*rows):
    return Scores(
        tuple(np.array(row, dtype=float) for row in rows),
        tuple(np.full(len(row), 4) for row in rows),
    )


def test_scored_answers_give_rankings_and_ties():
    examples = [
        scored_example([3, 2, 1]),
        scored_example([3, 2, 1]),
        scored_example([2, 1, 1], pairs=((0, 1), (0, 2))),
    ]
    scores = scores_of([-1, -2, -3], [-1, -3, -2], [-1, -2, -2.5])
    found = ranking_of_scores(examples, scores)
    assert value(found, "exact_ranking") == 0.5
    assert found["gap/exact_ranking"].n == 2
    assert value(found, "exact_ranking_chance") == pytest.approx(1 / 6)
    assert value(found, "ties") == 0.0  # e^-2 - e^-2.5 = .135 - .082
    assert found["gap/ranking_accuracy"].n == 4


def test_rater_shares_come_from_votes():
    examples = [scored_example([3, 1]), scored_example([0.5, 0.5])]
    found = ranking_of_scores(
        examples, scores_of([-12, -11], [-12, -11]), alpha="scores", options={"beta": 1.0}
    )  # c = 1: logit(3/4) = 1.0986 reaches it, logit(1/2) = 0 does not
    assert value(found, "idealized") == 0.5
    for scores, said in (([1.0, None], "no score"), ([-1.0, 2.0], "no votes")):
        with pytest.raises(UserError, match=said):
            ranking_of_scores([scored_example(scores)], scores_of([-1, -2]), alpha="scores")
    with pytest.raises(UserError, match="alpha must be"):
        ranking_of_scores(examples, scores_of([-1, -2], [-1, -2]), alpha="votes")


# -- the metrics ------------------------------------------------------------------------------


def population(n=400, seed=0):
    """Pairs whose reference leans both ways, and a policy that moved a little from it."""
    rng = np.random.default_rng(seed)
    ref = rng.normal(-60, 12, (n, 2))
    moved = ref + np.column_stack([rng.normal(1, 2, n), rng.normal(-1, 2, n)])
    lengths = rng.integers(5, 60, (n, 2))
    return [(*m, *r, *length) for m, r, length in zip(moved, ref, lengths, strict=True)]


def test_every_rate_has_wilsons_interval_and_n():
    rows = population()
    found = ranking_of(paired(rows))
    right = np.array([row[0] >= row[1] for row in rows])
    metric = found["gap/ranking_accuracy"]
    assert (metric.value, metric.n) == (right.mean(), 400)
    low, high = proportion_confint(right.sum(), 400, method="wilson")
    assert (metric.low, metric.high) == pytest.approx((low, high), abs=1e-6)
    for metric in found.metrics:
        if metric.unit == "rate" and metric.n and metric.name != "gap/alignment_gap":
            assert 0 <= metric.low <= metric.value <= metric.high <= 1, metric.name
    gap = found["gap/alignment_gap"]
    assert gap.value == pytest.approx(value(found, "idealized") - right.mean())
    assert gap.low < gap.value < gap.high


def test_flips_are_counted_by_difficulty():
    rows = population(1000)
    found = ranking_of(paired(rows))
    c = np.array([row[3] - row[2] for row in rows])
    right = np.array([row[0] >= row[1] for row in rows])
    assert value(found, "flipped") == right[c > 0].mean()
    assert value(found, "unlearned") == (~right[c <= 0]).mean()
    assert value(found, "ranking_gain") == pytest.approx(right.mean() - (c <= 0).mean())
    bins = [m for m in found.metrics if m.name.startswith("gap/flipped, c")]
    assert len(bins) == 5
    assert sum(m.n for m in bins) == (c > 0).sum()
    assert sum(round(m.value * m.n) for m in bins) == right[c > 0].sum()
    assert bins[0].value > 0.1 > bins[-1].value  # the harder, the rarer
    assert bins[0].name.startswith("gap/flipped, c 0 to ")


def test_no_change_at_all_still_has_an_interval():
    rows = [(*row[2:4], *row[2:]) for row in population(200)]  # the policy is the reference
    gain = ranking_of(paired(rows))["gap/ranking_gain"]
    high = proportion_confint(0, 200, method="wilson")[1]
    assert gain.value == 0
    assert (gain.low, gain.high) == pytest.approx((-high, high), abs=1e-6)


def test_quantiles_of_difficulty():
    rows = population()
    found = ranking_of(paired(rows))
    c = np.array([row[3] - row[2] for row in rows])
    for q in (5, 25, 50, 75, 95):
        metric = found[f"gap/difficulty_q{q:02d}"]
        assert metric.value == pytest.approx(np.quantile(c, q / 100))
        assert metric.low <= metric.value <= metric.high
        assert metric.unit == "nats"


def test_the_length_baseline():
    rows = population()
    for i, row in enumerate(rows):  # the policy pays 0.3 nats for every token more
        extra = 0.3 * (row[4] - row[5])
        rows[i] = (row[2] + extra, row[3], *row[2:])
    found = ranking_of(paired(rows))
    difference = np.array([row[4] - row[5] for row in rows])
    longer = (difference > 0)[difference != 0]
    assert value(found, "longer_wins") == pytest.approx(longer.mean())
    assert value(found, "reward_accuracy_chosen_longer") == 1.0
    assert value(found, "reward_accuracy_chosen_shorter") == 0.0
    assert value(found, "margin_length_correlation") == pytest.approx(1.0)
    plain = ranking_of(paired(population()))["gap/margin_length_correlation"]
    margin = np.array([r[0] - r[1] - r[2] + r[3] for r in population()])
    expected = pearsonr(margin, difference)
    assert plain.value == pytest.approx(expected.statistic)
    interval = expected.confidence_interval()
    assert (plain.low, plain.high) == pytest.approx((interval.low, interval.high))


def test_without_a_reference_the_model_is_where_training_starts():
    rows = [(*row[:2], None, None, *row[4:]) for row in population()]
    found = ranking_of(paired(rows))
    names = {metric.name.removeprefix("gap/") for metric in found.metrics}
    assert not {"reward_accuracy", "flipped", "chosen_change", "loss"} & names
    c = np.array([row[1] - row[0] for row in rows])
    assert value(found, "difficulty_q50") == pytest.approx(np.median(c))
    assert "that starts from this model" in found.summary
    given = ranking_of(paired(rows), loss=0.5)
    needed = np.log1p(np.exp(-0.1 * c))
    assert value(given, "needs_lower_loss") == pytest.approx((needed < 0.5).mean())


def test_pairs_of_one_prompt_widen_the_interval():
    flags, groups = [True] * 30 + [False] * 30, np.repeat(np.arange(6), 10)
    together, apart = clustered_rate("x", flags, groups.tolist()), rate("x", flags)
    assert together.value == apart.value
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert clustered_rate("x", [True] * 60, groups.tolist()).low == pytest.approx(
        proportion_confint(6, 6, method="wilson")[0], abs=1e-6
    )


def test_intervals_against_scipy_and_statsmodels():
    first, second = rate("a", 56, 70), rate("b", 48, 80)
    found = rate_difference(first, second)
    expected = confint_proportions_2indep(56, 70, 48, 80, method="newcomb", compare="diff")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-5)
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        metric = quantile("q", rng.normal(size=60), 0.25)
        inside += metric.low < -0.6744898 < metric.high
    assert inside / 300 > 0.92


def test_many_values_are_resampled_in_little_memory():
    import tracemalloc

    values = np.random.default_rng(0).normal(size=10_000).tolist()
    tracemalloc.start()
    low, high = bootstrap_interval(values, seed=0, n_resamples=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < np.mean(values) < high
    assert peak < 150e6  # n^2 doubles would be 800 MB


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"beta": -1.0}}, "beta"),
        ({"objective": "dpoo"}, "did you mean"),
        ({"betas": ()}, "betas is empty"),
        ({"alpha": 2.0}, "share"),
    ],
)
def test_ranking_says_what_is_wrong(changes, said):
    with pytest.raises(UserError, match=said):
        ranking_of(paired([PAIR_1]), **changes)
    with pytest.raises(UserError, match="not finite"):
        ranking_of(paired([(math.nan, *PAIR_1[1:])]))


# -- of a model -------------------------------------------------------------------------------


def test_ranking_of_a_model_equals_ranking_of_its_log_probs():
    tokenizer, model, reference = tiny_tokenizer(), tiny_llama(1), tiny_llama(0)
    examples = list(load_examples(pair_rows(30)))
    model.train()
    found = ranking(model, tokenizer, examples, reference=reference)
    assert model.training
    again = ranking(model, tokenizer, examples, reference=reference, max_tokens=1)
    assert value(found, "margin") == pytest.approx(value(again, "margin"), abs=1e-4)
    start = difficulty_of(reference, tokenizer, examples)
    assert value(found, "difficulty_q50") == pytest.approx(np.median(start.value))
    assert (start.example == np.arange(30)).all()
    assert found["gap/reward_accuracy"].n == 30
    with pytest.raises(UserError, match="preference pair"):
        ranking(model, tokenizer, list(load_examples([{"prompt": "a", "completion": "b"}])))


def test_a_trainers_scorer_survives():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    scorer = Scorer(model)
    forward = model.__dict__["forward"]
    difficulty_of(model, tokenizer, list(load_examples(pair_rows(2))))
    assert model.__dict__["forward"] is forward
    scorer.detach()
    assert "forward" not in model.__dict__


def test_the_reference_reads_its_own_prompt():
    row = {**pair_rows(1)[0], "reference_prompt": "say yes"}
    plain = {**row, "prompt": "say yes"}
    examples = [next(iter(load_examples([r]))) for r in (row, plain)]
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    a, b = (difficulty_of(model, tokenizer, [example]).value[0] for example in examples)
    assert a == pytest.approx(b, abs=1e-5)
    own = score_completions(model, tokenizer, examples[:1]).log_probs[0]
    assert own[1] - own[0] != pytest.approx(a, abs=1e-3)


def test_cut_answers_are_told():
    found = ranking(
        tiny_llama(), tiny_tokenizer(), list(load_examples(pair_rows(4))), max_length=5,
    )  # fmt: skip
    assert "completions truncated" in found.advice


# -- written back -----------------------------------------------------------------------------


def test_difficulty_is_written_back_and_rows_stay_as_they_are(tmp_path):
    rows = [{**row, "tag": {"n": i}} for i, row in enumerate(pair_rows(6))]
    rows[2]["rejected"] = rows[2]["chosen"]  # dropped, but copied
    source, output = tmp_path / "pairs.jsonl", tmp_path / "out" / "pairs.jsonl.gz"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    examples = list(load_examples(source, skip_bad=True, limit=4))
    found = difficulty_of(tiny_llama(), tiny_tokenizer(), examples)
    written = write_difficulty(source, found, output, skip_bad=True)
    assert (written.rows, written.scored, written.unreadable) == (6, 4, 1)
    with gzip.open(output, "rt") as file:
        back = [json.loads(line) for line in file]
    assert [row.pop("difficulty", None) for row in back] == [
        *found.value[:2].tolist(), None, *found.value[2:].tolist(), None,
    ]  # fmt: skip
    assert back == rows
    with pytest.raises(UserError, match="exists"):
        write_difficulty(source, found, output, skip_bad=True)
    with pytest.raises(UserError, match=r"end it in \.jsonl"):
        write_difficulty(source, found, tmp_path / "out.csv")
    with pytest.raises(UserError, match="already"):
        write_difficulty(output, found, tmp_path / "twice.jsonl", skip_bad=True)
    assert not (tmp_path / "twice.jsonl").exists()


def test_several_pairs_of_a_row_are_a_list(tmp_path):
    source = tmp_path / "cr.jsonl"
    row = {"prompt": "what is blue ?", "safety": 1, "acc_responses": ["sea"],
           "rej_responses": ["no", "sorry"]}  # fmt: skip
    source.write_text(json.dumps(row) + "\n")
    examples = list(load_examples(source))
    scores = scores_of([-3.0, -1.0, -5.0])
    found = difficulties_of(examples, scores)
    write_difficulty(source, found, tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["difficulty"] == [2.0, -2.0]
