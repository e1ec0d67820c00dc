"""`trueline diffusion` as a user runs it: real folders, recipes, wrong input, the demo."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tiny_diffusion import RESOLUTION, pick_rows, tiny_sd, tiny_sd3, tiny_sdxl, write_folder
from trueline.cli.app import app as whole
from trueline.cli.diffusion import app
from trueline.diffusion import DiffusionTrainer, load_diffusion_config, load_image_examples
from trueline.diffusion import text_to_image as wrap
from trueline.errors import UserError
from trueline.report import load_run
from trueline.runs.record import Run

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "examples" / "diffusion").glob("*.yaml"))


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exception is None, result.exception
    return result


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), 6)


def options(base, data, output):
    return ["--model_name_or_path", base, "--dataset_name", data, "--output_dir", output,
            "--cache_dir", output / "cache", "--per_device_train_batch_size", 2,
            "--logging_steps", 1, "--max_steps", 3, "--learning_rate", "1e-2"]  # fmt: skip


def test_align_then_evaluate(tmp_path, base, data, monkeypatch):
    full, lora = tmp_path / "full", tmp_path / "lora"
    done = run("align", *options(base, data, full), "--loss_type", "dspo", "--beta", 0.5, "--json")
    result = json.loads(done.stdout)
    assert result["steps"] == 3
    assert result["examples"] == 6
    for name in ("config.yaml", "manifest.json", "metrics.jsonl", "findings.json",
                 "model_index.json", "unet"):  # fmt: skip
        assert (full / name).exists(), name
    resolved = yaml.safe_load((full / "config.yaml").read_text())
    assert resolved["objective_options"] == {"beta": 0.5, "detach": False}
    manifest = json.loads((full / "manifest.json").read_text())
    assert manifest["reference"] == "a frozen copy"
    assert manifest["predicts"] == "epsilon"
    assert load_run(full).rows[0]["step"] == 1
    assert Run(full).own[0].name == "alignment"

    run("align", *options(base, data, lora), "--loss_type", "ipo", "--use_peft", "true",
        "--sdpo_mu", "0.1")  # fmt: skip
    assert (lora / "pytorch_lora_weights.safetensors").exists()

    (tmp_path / "my_scores.py").write_text(
        "def red(images, captions):\n"
        "    return [float(i.resize((1, 1)).getpixel((0, 0))[0]) for i in images]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\n<b>a cross</b>\na green cross\n")
    out = tmp_path / "evaluation"
    done = run("evaluate", "--base", base, "--aligned", full, "--aligned", lora,
               "--prompts", prompts, "--scorer", "my_scores:red", "--steps", 2,
               "--guidance", 2, "--output", out, "--json")  # fmt: skip
    findings = json.loads(done.stdout)["findings"]
    assert [f["name"] for f in findings] == ["full: my_scores:red", "lora: my_scores:red"]
    rows = json.loads((out / "scores.json").read_text())
    assert rows[1]["seed"] == 1
    assert set(rows[0]["scores"]["my_scores:red"]) == {"base", "full", "lora"}
    for name in ("base", "full", "lora"):
        assert len(list((out / "images" / name).glob("*.png"))) == 3
    page = (out / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 9
    assert "<b>a cross" not in page
    assert "http-equiv" in page
    assert len(Run(out).own) == 2


def test_ties_and_corrupt_images_are_told(tmp_path, base, data, capsys):
    folder = write_folder(tmp_path / "data", 4)
    (folder / "2-rejected.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"row 3, rejected is no readable image.*skip_bad: true"):
        run("align", *options(base, folder, tmp_path / "run"))
    done = run("align", *options(base, folder, tmp_path / "run"), "--skip_bad", "true",
               "--encode_first", "true", "--overwrite", "true", "--json")  # fmt: skip
    result = json.loads(done.stdout)
    assert result["examples"] == 3
    assert "row 3, rejected" in result["dropped"][0]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--loss_tipe", "dspo"], "did you mean 'loss_type'"),
        (["--loss_type", "dsp"], "did you mean 'dspo'"),
        (["--beta", "high"], "beta must be"),
        (["--beta", "3"], r"must be a number in \(0, 2\)"),
        (["--loss_type", "diffusion_sft", "--beta", "1"], "has no effect on objective"),
        (["--lora_r", "8"], "no effect without use_peft: true"),
        (["--sample_steps", "2"], "no effect without each other"),
        (["--mixed_precision", "half"], "must be one of no, bf16, fp16"),
        (["--timestep_sampling", "logit_normal"], "is for flow matching"),
        (["--lr_scheduler_type", "steep"], "lr_scheduler_type"),
        (["--model_name_or_path", "/nowhere/at/all"], "cannot load"),
        (["--dataset_name", "/nowhere/at/all"], "not to be had"),
        (["--max_steps", "0"], "max_steps must be a number >= 1"),
        (["--dtype", "int8"], "dtype must be"),
        (["--resume"], "no whole checkpoint"),
    ],
)
def test_wrong_input_is_one_clear_line(tmp_path, base, data, extra, message):
    given = options(base, data, tmp_path / "run")
    pairs = zip(given[::2], given[1::2], strict=True)
    others = [word for pair in pairs if pair[0] not in extra for word in pair]
    with pytest.raises(UserError, match=message) as error:
        run("align", *others, *extra)
    assert "\n" not in str(error.value).strip()


def test_a_yaml_no_is_no_mixed_precision(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("mixed_precision: no\nbeta: 0.02\ndetach: true\n")
    config = load_diffusion_config(file, {"max_steps": "7"})
    assert (config.mixed_precision, config.max_steps) == ("no", 7)
    assert config.bind().options == {"beta": 0.02, "detach": True}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_run_on_tiny_pipelines_of_their_classes(tmp_path, path):
    """Each recipe as it stands, but for the model, the data, the sizes and the steps."""
    config = load_diffusion_config(
        path,
        {
            "output_dir": str(tmp_path),
            "cache_dir": "none",
            "resolution": str(RESOLUTION),
            "max_steps": "2",
            "per_device_train_batch_size": "2",
            "gradient_accumulation_steps": "2",
            "disable_tqdm": "true",
            "sample_steps": "0",
            "sample_prompts": [],
        },
    )
    effective = yaml.safe_load(path.read_text())
    pairs = effective["per_device_train_batch_size"] * effective["gradient_accumulation_steps"]
    assert pairs == (128 if "lora" in path.stem else 2048)
    pipeline = tiny_sdxl() if path.stem.startswith("sdxl") else tiny_sd()
    examples = load_image_examples(pick_rows()).examples
    trainer = DiffusionTrainer(wrap(pipeline), config, examples)
    row = trainer.train()
    assert 0 < row["loss"] < 3
    assert row["diffusion/w"] == pytest.approx(0.5, abs=0.2)


def test_objectives_are_listed():
    listed = json.loads(run("objectives", "--json").stdout)
    names = [spec["name"] for spec in listed["diffusion"]]
    assert {"dspo", "dspo_sdxl_official", "diffusion_dpo", "diffusion_kto", "mapo", "dmpo",
            "diffusion_sft"} <= set(names)  # fmt: skip
    assert {"dpo", "ipo", "aot"} <= set(listed["carried_over"])
    assert "dspo" in run("objectives").stdout


PAGES = [ROOT / "docs" / "diffusion.md", ROOT / "docs" / "tasks" / "diffusion.md"]


@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "avx2",
    reason="torch's bf16 attention packs for the processor's AVX-512 where its setting forbids it",
)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_commands_of_the_docs_run(tmp_path, base, data, monkeypatch, page):
    """Line by line as they stand, but for the model, the data, the sizes, and a scorer that needs
    no download."""
    block = re.search(r"```(?:sh|console)\n(trueline .*?)```", page.read_text("utf-8"), re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "prompts.txt").write_text("a red square\na cross\n")
    (tmp_path / "one_score.py").write_text(
        "def score(images, captions): return [1.0] * len(images)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path / "cache"))
    small = {
        "align": ["--model_name_or_path", base, "--resolution", 16,
                  "--max_steps", 1, "--per_device_train_batch_size", 1, "--disable_tqdm", "true",
                  "--gradient_accumulation_steps", 1, "--cache_dir", "none"],
        "evaluate": ["--steps", 1],
    }  # fmt: skip
    stand_ins = {"BASE": base, "MODEL": base, "pickscore": "one_score:score", "my_pairs": data}
    ran = set()
    for line in block[1].splitlines():
        if line == "trueline demo --diffusion":
            continue  # has a test of its own
        words = [str(stand_ins.get(word, word)) for word in line.split()[1:]]
        verb = words[1] if words[0] == "diffusion" else words[0]
        ran.add(verb)
        if verb == "align" and "--dataset_name" not in words:
            words += ["--dataset_name", str(data)]
        done = CliRunner().invoke(whole, [*words, *map(str, small.get(verb, []))])
        assert done.exit_code == 0, (line, done.exception)
    assert {"align", "evaluate", "objectives"} <= ran
    assert (tmp_path / "runs" / "diffusion-evaluation" / "report.html").exists()


def test_the_configurations_of_the_docs_bind():
    for block in re.findall(r"```yml\n(.*?)```", PAGES[0].read_text("utf-8"), re.DOTALL):
        assert load_diffusion_config(None, yaml.safe_load(block)).bind()


def test_the_tables_of_the_docs_are_of_what_is_kept(monkeypatch):
    """`python tools/diffusion_figures.py` writes them."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import diffusion_figures

    page = PAGES[0].read_text("utf-8")
    assert diffusion_figures.written(page) == page


def test_the_demo_runs_through(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(
        whole,
        [
            "demo",
            "--diffusion",
            "--size",
            "test",
            "--output",
            str(tmp_path / "demo"),
            "--json",
            "--jobs",
            "0",
        ],
    )
    story = json.loads(done.stdout)
    assert list(story["models"]) == ["base", "sft", "dpo", "dspo", "dspo-swapped", "dspo-random"]
    page = Path(story["report"]).read_text("utf-8")
    assert page.count('<img src="data:image/png;base64,') == 6 * 12
    for words in ("DSPO, labels swapped", "random losers", "valid", "bright, change"):
        assert words in page
    for name in ("sft", "dspo"):
        assert load_run(tmp_path / "demo" / name).rows


def test_sd3_folders_load(tmp_path):
    from trueline.diffusion import load_text_to_image

    tiny_sd3().save_pretrained(tmp_path)
    assert load_text_to_image(str(tmp_path)).schedule.space == "flow"
