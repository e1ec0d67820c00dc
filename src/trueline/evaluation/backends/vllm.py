"""vLLM: the same token ids as the transformers backend, answered in large batches on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trueline.config import ModelArguments
from trueline.errors import UserError
from trueline.evaluation.backends.base import Decoding, Request
from trueline.evaluation.generation import (
    Generation,
    OnAnswer,
    end_tokens,
    generation,
    model_input,
)
from trueline.models import load_tokenizer
from trueline.models.fingerprint import files_fingerprint
from trueline.prompts import Progress, Renderer, control_tokens

CHUNK = 256
"""Requests handed over at a time; their answers are kept before the next are asked for."""


class VllmBackend:
    """A model run by vLLM.

    Prompts are handed over as token ids, so that template and BOS are those of every other
    backend. The weights are vLLM's own, so the model is named by its files' names, sizes and
    first and last bytes.

    Args:
        name: a model folder or hub id.
        dtype: as vLLM takes it.
        revision: branch, tag or commit of a hub model.
        options: handed to ``vllm.LLM`` (``tensor_parallel_size``, ...).

    Raises:
        UserError: vLLM is not installed.
    """

    local = None

    def __init__(
        self, name: str, *, dtype: str = "auto", revision: str = "main", **options: Any
    ) -> None:
        try:
            import vllm
        except ImportError:
            raise UserError(
                "the vllm backend needs the extra: pip install 'trueline[vllm]'"
            ) from None
        self._params = vllm.SamplingParams
        self.tokenizer = load_tokenizer(
            ModelArguments(model_name_or_path=name, model_revision=revision)
        )
        self.renderer = Renderer(self.tokenizer)
        # "vllm": the model's own sampling settings must change nothing, as with transformers
        options.setdefault("generation_config", "vllm")
        self.engine = vllm.LLM(model=name, dtype=dtype, revision=revision, **options)
        self.facts = {"backend": "vllm", "model": files_fingerprint(name, revision), "dtype": dtype}
        self.marks = control_tokens(self.tokenizer)
        self._ends = end_tokens(_generation_settings(name, revision), self.tokenizer)

    def key(self, request: Request) -> list[int]:
        return model_input(self.renderer, request.prompt, request.prefill).ids

    def __call__(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        *,
        progress: Progress | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[Generation]:
        inputs = [
            model_input(self.renderer, r.prompt, r.prefill, f"prompt {i}")
            for i, r in enumerate(requests)
        ]
        settings = self._params(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            seed=decoding.seed if decoding.temperature else None,
            stop_token_ids=self._ends,
            skip_special_tokens=True,
        )
        answers: list[Generation] = []
        for start in range(0, len(inputs), CHUNK):
            chunk = inputs[start : start + CHUNK]
            outputs = self.engine.generate(
                [{"prompt_token_ids": given.ids} for given in chunk], settings, use_tqdm=False
            )
            for given, output in zip(chunk, outputs, strict=True):
                best = output.outputs[0]
                answer = generation(self.tokenizer, given, list(best.token_ids), self._ends)
                answers.append(replace(answer, finished=best.finish_reason != "length"))
                if on_answer is not None:
                    on_answer(len(answers) - 1, answers[-1])
            if progress is not None:
                progress(len(answers), len(inputs))
        return answers


def _generation_settings(name: str, revision: str) -> Any:
    """What :func:`end_tokens` looks at: the model's generation settings, where it has some."""
    from types import SimpleNamespace

    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(name, revision=revision)
    except OSError:
        settings = None
    return SimpleNamespace(generation_config=settings)
