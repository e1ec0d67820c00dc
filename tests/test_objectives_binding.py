"""From names and options to an objective: errors with a remedy, weighted sums, a user's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from test_objectives import engine_gradient, make_trees, rows, value_and_coefficients
from trueline.cli.objectives import objectives
from trueline.divergences import DIVERGENCES, FDivergence
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives import OBJECTIVES, Statistic, bind, dpo, objective
from trueline.objectives.describe import page
from trueline.objectives.examples import BATCH, PAIR

# --- names and options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("sigmoid", "dpo"),
        ("robust", "robust_dpo"),
        ("exo_pair", "exo"),
        ("nca_pair", "nca"),
        ("sppo_hard", "sppo"),
        ("bco_pair", "bco"),
        ("aot_pair", "aot"),
        ("dil_lsif", "dil"),
    ],
)
def test_names_of_other_trainers(alias, name):
    assert bind(alias).spec.name == name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dp", {}, "unknown objective 'dp'; did you mean 'dpo'"),
        ("losses.mine", {}, "is written losses:mine"),
        ("dpo", {"bta": 1}, "'bta' has no effect on objective 'dpo'; did you mean 'beta'"),
        ("dil", {"beta": 0.1}, "'beta' has no effect on objective 'dil'"),
        ("dpo", {"beta": 0}, "'beta' of objective 'dpo' must be a number > 0; got 0"),
        ("dpo", {"beta": float("nan")}, "must be a number > 0; got nan"),
        ("dpo", {"beta": "0.1x"}, "must be a number > 0; got '0.1x'"),
        ("dpo", {"beta": "1e-3"}, "as text; in YAML write 0.001"),
        ("dpo", {"beta": True}, "must be a number > 0; got True"),
        ("dpo", {"label_smoothing": 0.5}, r"must be a number in \[0, 0.5\); got 0.5"),
        ("exo", {"label_smoothing": 0}, r"in \(0, 0.5\); got 0"),
        ("ipo", {"reduction": "men"}, "must be 'sum' or 'mean'; got 'men'; did you mean 'mean'"),
        ("fdo", {"divergence": "k1"}, "'divergence' of objective 'fdo' must be one of chi2"),
        ("kldo", {"clip": -1}, r"must be a number in \(0, 50\], or none; got -1"),
        ("discopop", {"discopop_tau": 1}, r"in \(0, 1\)"),
        (["dpo", "sft"], {"clip": 3}, r"'clip' has no effect on objective 'dpo \+ sft'"),
    ],
)
def test_bad_names_and_options_are_one_clear_error(name, options, message):
    with pytest.raises(UserError, match=message):
        bind(name, options)


def test_options_reach_the_function():
    assert bind("dpo", {"beta": 1}).options == {
        "beta": 1.0,
        "label_smoothing": 0.0,
        "dpo_reduction": "sum",
    }
    assert bind("kldo", {"clip": None}).options["clip"] is None
    torch.testing.assert_close(bind("dpo", {"beta": 2}).loss(PAIR), dpo(PAIR, beta=2.0).mean())


def test_label_smoothing_is_honored_by_the_default_loss():  # F7
    assert bind("dpo", {"label_smoothing": 0.1}).loss(PAIR) != bind("dpo").loss(PAIR)


def test_an_option_without_default_is_refused_where_it_is_declared():
    with pytest.raises(TypeError, match="option 'scale' needs a default"):

        @objective("never", layout="paired", equation="", source="")
        def never(pairs, *, scale):
            return pairs.margin * scale

    with pytest.raises(TypeError, match="keyword-only"):

        @objective("never", layout="paired", equation="", source="")
        def never2(pairs, scale=1.0):
            return pairs.margin * scale

    assert "never" not in OBJECTIVES


def test_a_registered_name_cannot_be_taken():
    with pytest.raises(ValueError, match="'dpo' is registered already"):
        objective("dpo", layout="paired", equation="", source="")(lambda pairs: pairs.margin)


def test_e_dpo_insists_on_reference_prompts():
    bind("e_dpo").require({"reference_prompt"})
    bind("dpo").require(())
    for bound in (bind("e_dpo"), bind(["e_dpo", "sft"])):
        with pytest.raises(UserError, match="needs 'reference_prompt' in the data, and no row"):
            bound.require({"safety"})


# --- weighted sums -------------------------------------------------------------------------------


def test_a_sum_on_pairs_is_the_sum_of_its_parts():
    """MPO's recipe: paired, unpaired and imitation on the same pairs."""
    names, weights = ["dpo", "apo_zero_unpaired", "sft"], [0.8, 0.2, 1.0]
    both = bind(names, {"beta": 0.2}, weights=weights)
    assert both.layout == "paired"
    assert both.spec.reference
    assert both.beta == 0.2
    assert both.spec.name == "0.8 dpo + 0.2 apo_zero_unpaired + sft"
    labels = torch.tensor([True, False])
    join = lambda a, b: torch.cat([a, b])  # noqa: E731
    flat = CompletionLogProbs(
        join(PAIR.chosen.policy, PAIR.rejected.policy),
        join(PAIR.chosen.length, PAIR.rejected.length),
        join(PAIR.chosen.reference, PAIR.rejected.reference),
    )
    expected = (
        0.8 * bind("dpo", {"beta": 0.2}).loss(PAIR)
        + 0.2 * bind("apo_zero_unpaired", {"beta": 0.2}).loss(UnpairedLogProbs(flat, labels))
        + bind("sft").loss(PAIR.chosen)
    )
    torch.testing.assert_close(both.loss(PAIR), expected)


def test_imitation_takes_the_desirable_of_labeled_completions():
    both = bind(["hdo", "sft"], weights=[1, 0.5])
    assert both.layout == "unpaired"
    nll = bind("sft").loss(BATCH.completions.map(lambda x: x[BATCH.desirable]))
    torch.testing.assert_close(both.loss(BATCH), bind("hdo").loss(BATCH) + 0.5 * nll)
    none = UnpairedLogProbs(BATCH.completions, torch.zeros(4, dtype=torch.bool))
    assert both.loss(none).isfinite()


SUMS = [
    ["dpo", "sft"],
    ["dpo", "bco", "sft"],
    ["simpo", "kto"],
    ["aot", "sft"],
    ["aot", "aot_unpaired"],
    ["dpo", "kldo"],
    ["kldo", "sft"],
    ["kto", "sft"],
    ["bco", "hdo"],
    ["kldo_ema", "sft"],
    ["sft"],
]


@pytest.mark.parametrize("names", SUMS, ids="+".join)
def test_a_sums_parts_add_up_to_the_whole(names):
    both = bind(names, weights=[0.7] * len(names))
    labels = {
        "paired": [(True, False)] * 7,
        "unpaired": [(True,), (False,)] * 2 + [(True,)] * 3,
        "completion": [(True,)] * 5,
    }
    trees = make_trees(labels[both.layout])
    losses, truth = engine_gradient(both, trees, len(trees), 5.0)
    for size in (1, 3):
        again, gradient = engine_gradient(both, trees, size, 5.0)
        assert again == pytest.approx(losses, rel=1e-12)
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-14)


def test_a_sum_with_a_moving_average():
    both = bind(["kldo", "sft"], weights=[1, 0.1])
    trees = make_trees([(True,), (False,)] * 4)
    truth = engine_gradient(both, trees, 8, 1.0, coupling="ema")
    again = engine_gradient(both, trees, 3, 1.0, coupling="ema")
    assert again[0] == pytest.approx(truth[0], rel=1e-12)
    torch.testing.assert_close(again[1], truth[1], rtol=1e-10, atol=1e-14)


def test_a_sums_metrics_are_its_parts():
    metrics = bind(["dpo", "kldo"]).metrics(PAIR)
    assert "weights/top_share" in metrics
    assert bind(["dpo", "e_dpo"]).spec.requires == ("reference_prompt",)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], None, "at least one name"),
        (["dpo", "sigmoid"], None, "'dpo' is in the list twice"),
        (["dpo", "sft"], [1.0], "one weight for each objective: 2"),
        (["dpo", "sft"], [1.0, 0.0], "weight of 'sft' must be a positive number"),
        (["dpo", "sft"], [1.0, "x"], "weight of 'sft' must be a number"),
        ("dpo", [1.0], "no effect on the one objective 'dpo'"),
        (["kto", "bco"], None, "'kto' and 'bco' each need a value of the whole batch"),
        (["kto", "aot"], None, "'kto' and 'aot' each need"),
        (["kldo", "bco"], None, "'kldo' and 'bco' each need"),
    ],
)
def test_sums_that_cannot_be(names, weights, message):
    with pytest.raises(UserError, match=message):
        bind(names, weights=weights)


# --- a user's own --------------------------------------------------------------------------------

USER_MODULE = '''
import torch
from torch import Tensor
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives import objective
from trueline.options import Positive

def squared(pairs: PairedLogProbs, *, beta: Positive = 0.5) -> Tensor:
    """Squared margin.

    Args:
        beta: the target.
    """
    return (pairs.margin - beta) ** 2

def free(completions: "CompletionLogProbs") -> Tensor:
    return -completions.policy

def global_softmax(batch: UnpairedLogProbs) -> Tensor:
    return torch.where(batch.desirable, -1.0, 1.0).to(batch.log_ratio) @ batch.log_ratio.softmax(0)

@objective("declared_elsewhere", layout="paired", equation="-u", source="mine",
           metrics=lambda pairs: {"mine/u": pairs.chosen.log_ratio.mean()})
def declared(pairs, *, scale: float = 2.0):
    return -scale * pairs.chosen.log_ratio

def unannotated(pairs):
    return pairs.margin

def wrong_shape(pairs: PairedLogProbs) -> Tensor:
    return pairs.margin[:, None].expand(-1, 3)

def constant(pairs: PairedLogProbs) -> Tensor:
    return torch.zeros(len(pairs))

def broken(pairs: PairedLogProbs) -> Tensor:
    return pairs.margn

def positional(pairs: PairedLogProbs, beta=0.1) -> Tensor:
    return pairs.margin
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text(USER_MODULE)
    (tmp_path / "own_broken.py").write_text("import no_such_package_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    OBJECTIVES._entries.pop("declared_elsewhere", None)
    sys.modules.pop("own_losses", None)


def test_a_plain_function_by_its_path(own):
    mine = bind("own_losses:squared", {"beta": 2})
    assert (mine.spec.layout, mine.spec.reference, mine.spec.coupled) == ("paired", True, False)
    assert mine.loss(PAIR).item() == 25  # (7 - 2)^2
    assert mine.spec.summary == "Squared margin."
    with pytest.raises(UserError, match="must be a number > 0"):
        bind("own_losses:squared", {"beta": -1})
    free = bind("own_losses:free").spec
    assert (free.layout, free.reference) == ("completion", False)


def test_a_plain_function_of_the_whole_batch_is_coupled_exactly(own):
    mine = bind("own_losses:global_softmax")
    assert mine.spec.coupled
    trees = make_trees([(True,), (False,)] * 3)
    losses, truth = engine_gradient(mine, trees, 6, 2.0)
    again, gradient = engine_gradient(mine, trees, 1, 2.0)
    assert again == pytest.approx(losses)
    torch.testing.assert_close(gradient, truth)


def test_a_decorated_function_keeps_its_facts_and_joins_sums(own):
    mine = bind("own_losses:declared", {"scale": 3})
    assert mine.spec.name == "declared_elsewhere"
    assert mine.metrics(PAIR)["mine/u"].item() == 2
    assert bind("declared_elsewhere").spec is mine.spec
    both = bind(["own_losses:declared", "sft"], {"scale": 3}, weights=[1, 2])
    assert both.loss(PAIR).item() == pytest.approx(-6 + 2 * 2)
    assert "declared_elsewhere" not in page()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:mine", "no module 'no_such_module'; install its package, or put"),
        ("own_losses:squard", "has no function 'squard'; did you mean 'squared'"),
        ("own_losses:unannotated", "annotate its first parameter, 'pairs'"),
        ("own_losses:wrong_shape", r"one loss for each row, shape \(2,\).*returned \(2, 3\)"),
        ("own_losses:constant", "does not depend on the policy"),
        ("own_losses:broken", "failed on a trial batch: AttributeError"),
        ("own_losses:positional", "'beta' must be keyword-only with a default"),
        ("own_broken:mine", "importing 'own_broken' failed: No module named"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_to_do(own, path, message):
    with pytest.raises(UserError, match=message):
        bind(path)


def test_a_users_divergence_reaches_fdo():
    """Le Cam's triangular discrimination: f = (t - 1)^2 / (2 (t + 1))."""
    DIVERGENCES.add(
        "le_cam",
        FDivergence(
            "le_cam",
            lambda t: (t - 1) ** 2 / (2 * (t + 1)),
            lambda u: 2 - u - 2 * (1 - 2 * u).sqrt(),
            lambda t: 0.5 - 2 / (t + 1) ** 2,
            lambda r: 0.5 - 2 * torch.sigmoid(-r) ** 2,
            domain=(-1.5, 0.5),
        ),
    )
    try:
        mine = bind("fdo", {"divergence": "le_cam"})
        assert mine.metrics(BATCH)["divergence/le_cam"].isfinite()
        value, gradient = value_and_coefficients(mine, rows("unpaired"))
        assert value.isfinite()
        assert gradient.abs().max() > 0
    finally:
        DIVERGENCES._entries.pop("le_cam")
    with pytest.raises(UserError, match="must be one of"):
        bind("fdo", {"divergence": "le_cam"})


def test_a_users_statistic_is_no_option():
    @objective(
        "with_statistic",
        layout="paired",
        equation="u - v - m",
        source="a test",
        statistic=Statistic("middle", lambda pairs: pairs.margin.mean()),
    )
    def with_statistic(pairs: PairedLogProbs, *, middle=0.0):
        return (pairs.margin - middle) ** 2

    try:
        with pytest.raises(UserError, match="'middle' has no effect"):
            bind("with_statistic", {"middle": 1.0})
        assert bind("with_statistic").measure(PAIR).item() == 7
    finally:
        OBJECTIVES._entries.pop("with_statistic")


# --- the catalogue, as a page and on the command line --------------------------------------------


def run(*arguments):
    app = typer.Typer()
    app.command()(objectives)
    return CliRunner().invoke(app, list(arguments))


def test_json_lists_every_objective():
    listed = json.loads(run("--json").stdout)
    assert {entry["name"] for entry in listed} == set(OBJECTIVES)
    for entry in listed:
        assert entry["summary"], entry["name"]
        assert entry["equation"], entry["name"]
        assert entry["source"], entry["name"]
        for option in entry["options"].values():
            assert option["help"], entry["name"]
    entry = json.loads(run("bco_pair", "--json").stdout)
    assert entry["name"] == "bco"
    assert entry["coupling"] == "shift of the effective batch, moving average (0.9)"


def test_tables_go_to_stdout_a_line_a_row_and_are_complete():
    """So that `trueline objectives | grep kldo` finds it."""
    result = run()
    firsts = {line.split()[0] for line in result.stdout.splitlines() if line.strip()}
    assert set(OBJECTIVES) <= firsts
    assert "shows one with its options" in result.stderr
    assert "Donsker-Varadhan" in run("kldo").stdout


def test_an_unknown_name_is_a_user_error():
    result = run("kldoo")
    assert isinstance(result.exception, UserError)
    assert "did you mean 'kldo'" in str(result.exception)


def test_the_page_is_in_step_with_the_code():
    """If this fails: python -m trueline.objectives.describe > docs/objectives.md"""
    written = Path(__file__).parent.parent / "docs" / "objectives.md"
    assert written.read_text(encoding="utf-8") == page()


def test_help_imports_nothing_heavy():
    code = "import sys, trueline.cli.objectives; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
