"""The curating verbs as a user types them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tiny import tiny_llama, tiny_tokenizer
from trueline.cli.data import app
from trueline.data import load_examples
from trueline.errors import UserError
from trueline.runs.curate import every

PAIRS = [
    {"prompt": f"question {i}?", "chosen": f"a good answer {i}", "rejected": f"no {i}",
     "safety": ("safe", "harmful")[i % 2]}
    for i in range(8)
]  # fmt: skip


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_every_verb_works_and_prints_one_json_document(source, model, tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(16, 4)))
    (tmp_path / "eval.csv").write_text("goal\nquestion 1?\n")
    out = tmp_path / "made"
    verbs = {
        "compliance-refusal": ["--against", tmp_path / "eval.csv", "--drop-leaks"],
        "select": ["--vectors", tmp_path / "v.npy", "--control", "random"],
        "safe-prompts": ["--prefix", "legality"],
        "dedup": ["--by", "prompt", "--near", "0.95"],
        "difficulty": ["--model", model, "--beta", "0.1", "--details"],
    }
    rows = {}
    for verb, options in verbs.items():
        done = run(verb, source, out / f"{verb}.jsonl", *options, "--json")
        rows[verb] = json.loads(done.stdout)
    rows["preference"] = json.loads(run("preference", source, source, out / "preference.jsonl",
                                        "--first", model, "--max-new-tokens", 3, "--json",
                                        "--label-by", "keywords").stdout)  # fmt: skip
    rows["split"] = json.loads(run("split", source, out / "parts", "--test-size", 0.5,
                                   "--seed", 1, "--json").stdout)  # fmt: skip
    rows["mix"] = json.loads(run("mix", out / "mix.jsonl", "--source", source, "--source", source,
                                 "--weight", 1, "--weight", 2, "--json").stdout)  # fmt: skip
    assert set(rows) <= set(every())
    assert len(rows) == 8
    for verb, made in rows.items():
        assert made["finding"]["summary"], verb
        for path in made["outputs"]:
            assert path.endswith(".tsv") or list(load_examples(path))
        manifest = json.loads(Path(made["manifest"]).read_text())
        assert manifest["verb"] == verb
        page = Path(made["report"]).read_text()
        assert "Content-Security-Policy" in page
    assert rows["compliance-refusal"]["dropped"]["copy of an evaluation prompt"]["count"] == 1
    assert rows["safe-prompts"]["counts"]["given a reference prompt"] == 4
    assert rows["select"]["counts"]["selected"] == 4
    assert len(list(load_examples(out / "parts", split="test"))) == rows["split"]["counts"]["test"]


def test_the_terminal_shows_what_was_made(source, tmp_path):
    done = run("dedup", source, tmp_path / "out.jsonl", "--no-html")
    for said in ("8 of 8 examples kept", "repeats an earlier row", "out.manifest.json"):
        assert said in done.output
    assert "wrote" not in done.stdout
    assert not (tmp_path / "out.report.html").exists()


def test_text_from_data_is_escaped_in_the_page(tmp_path):
    path = tmp_path / "<img src=x>.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    run("mix", tmp_path / "out.jsonl", "--source", path, "--source", path)
    page = (tmp_path / "out.report.html").read_text()
    assert "<img" not in page
    assert "&lt;img" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["select", "IN", "OUT"], "one of --policy, --sentence-model and --vectors"),
        (["select", "IN", "OUT", "--vectors", "v.npy", "--context"], "no effect without --policy"),
        (["select", "IN", "OUT", "--vectors", "v.npy", "--cache", "c"], "no effect with --vectors"),
        (["select", "IN", "OUT", "--vectors", "none.npy"], "not a .npy array"),
        (["select", "IN", "OUT", "--sentence-model", "/nowhere"], "cannot load sentence-embedding"),
        (["safe-prompts", "IN", "OUT", "--prefix", "legalty"], "did you mean 'legality'"),
        (["safe-prompts", "IN", "OUT", "--prefix", "safety", "--custom-prefix", "x"], "not both"),
        (["safe-prompts", "IN", "OUT", "--threshold", "3"], "no effect without a judge"),
        (["compliance-refusal", "IN", "OUT", "--drop-leaks"], "no effect without --against"),
        (["compliance-refusal", "IN", "OUT", "--leak-near", ".9"], "no effect without --against"),
        (
            ["compliance-refusal", "IN", "OUT", "--judge-url", "http://x"],
            "--judge-url has no effect",
        ),
        (["compliance-refusal", "IN", "OUT", "--bank", "nowhere.txt"], "cannot be read"),
        (
            ["compliance-refusal", "IN", "OUT", "--refusal-judge", "phrase"],
            "did you mean 'phrases'",
        ),
        (["compliance-refusal", "IN", "OUT", "--to", "kdlo"], "did you mean 'kldo'"),
        (["compliance-refusal", "IN", "OUT.txt"], "cannot tell the file type"),
        (["dedup", "nowhere.jsonl", "OUT"], "no such file"),
        (["mix", "OUT", "--source", "IN"], "two sources or more"),
        (["difficulty", "IN", "OUT", "--model", "/nowhere"], "cannot load"),
    ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(source, tmp_path, arguments, said):
    names = {"IN": source, "OUT": str(tmp_path / "o.jsonl"), "OUT.txt": str(tmp_path / "o.txt")}
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        run(*[names.get(a, a) for a in arguments])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("o.*"))


def test_broken_rows_stop_the_run_or_are_counted(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [json.dumps(row) for row in PAIRS]
    lines[3] = '{"prompt": "q", "chosen": "", "rejected": "no"}'
    lines[5] = "{broken"
    path.write_text("\n".join(lines) + "\n")
    for verb in ("compliance-refusal", "safe-prompts", "dedup"):
        with pytest.raises(UserError, match=r"in\.jsonl:4: empty completion"):
            run(verb, path, tmp_path / "out.jsonl")
        done = json.loads(
            run(verb, path, tmp_path / f"{verb}.jsonl", "--skip-bad", "--json").stdout
        )
        manifest = json.loads(Path(done["manifest"]).read_text())
        read = manifest["inputs"]["source"]["read"]
        assert (read["rows"], read["examples"]) == (8, 6)
        assert sum(drop["count"] for drop in read["dropped"].values()) == 2
    missing = tmp_path / "missing.jsonl"
    missing.write_text('{"prompt": "q", "chosen": "a", "rejectd": "b"}\n')
    with pytest.raises(UserError, match="did you mean 'rejectd'"):
        run("safe-prompts", missing, tmp_path / "x.jsonl")
