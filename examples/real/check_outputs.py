"""What `trueline align` left loads in plain transformers and peft, and merged is as it was adapted.

    python examples/real/check_outputs.py BASE RUN ...

Each run answers one harmless question. An adapter is loaded over BASE by peft; where the run holds
merged weights too, plain transformers must give their logits as peft gives the adapter's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CLOSE = 1e-4
"""Of the largest logit: a merge adds the adapter's product to the weights, once rounded."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("base")
    parser.add_argument("runs", nargs="+", type=Path)
    given = parser.parse_args()
    for run in given.runs:
        if (run / "adapter_config.json").is_file():
            base = AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32)
            model = PeftModel.from_pretrained(base, run)
        elif (run / "model.safetensors").is_file():
            model = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32)
        else:
            sys.exit(f"error: {run} holds neither a model nor an adapter")
        _answer(run, model.eval())
        if (run / "merged").is_dir():
            _same(run, model)


def _inputs(tokenizer: Any) -> Any:
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, return_tensors="pt", add_special_tokens=False)


def _answer(run: Path, model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run)
    inputs = _inputs(tokenizer)
    end = tokenizer.eos_token_id
    ids = model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=end)
    said = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{run} loads; asked for the capital of France it says {said.strip()!r}", flush=True)


def _same(run: Path, model: Any) -> None:
    folder = run / "merged"
    inputs = _inputs(AutoTokenizer.from_pretrained(folder))
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        before, after = (m(**inputs).logits for m in (model, merged))
    apart = ((before - after).abs().max() / before.abs().max()).item()
    print(f"{folder}: logits {apart:.1e} apart from the adapter's")
    if apart > CLOSE:
        sys.exit(f"error: {folder} is not the model that {run} is")


if __name__ == "__main__":
    main()
