"""vLLM: the same token ids as the transformers backend, all requests at once on a GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trueline.config import ModelArguments
from trueline.errors import UserError
from trueline.evaluation.backends.base import Decoding, Request
from trueline.evaluation.backends.flight import Told
from trueline.evaluation.generation import (
    Generation,
    OnAnswer,
    end_tokens,
    generation,
    model_input,
)
from trueline.models import load_tokenizer
from trueline.models.fingerprint import files_fingerprint
from trueline.models.load import adapter_settings
from trueline.processes import local_rank, rank, started
from trueline.prompts import Progress, Renderer, control_tokens


class VllmBackend:
    """A model, or a LoRA adapter over one, run by vLLM.

    Prompts are handed over as token ids, so that template and BOS are those of every other
    backend; all of them at once, so that a place that is free is taken at once, and each answer is
    passed on when it is there. The weights are vLLM's own, so the model is named by its files.

    Under ``accelerate launch`` every process has an engine on devices of its own.

    Args:
        name: a model folder or hub id, or an adapter's folder.
        dtype: as vLLM takes it.
        revision: branch, tag or commit of a hub model.
        options: handed to ``vllm.LLM`` (``tensor_parallel_size``, ...).

    Raises:
        UserError: vLLM is not installed; fewer devices than processes need.
    """

    local = None

    def __init__(
        self, name: str, *, dtype: str = "auto", revision: str = "main", **options: Any
    ) -> None:
        own_devices(int(options.get("tensor_parallel_size", 1)))
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
        self.facts = {"backend": "vllm", "model": files_fingerprint(name, revision), "dtype": dtype}
        self._more: dict[str, Any] = {}
        base, adapter = name, adapter_settings(name)
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            base = str(adapter.base_model_name_or_path)
            self.facts["base"] = files_fingerprint(base, revision)
            options |= {"enable_lora": True, "max_lora_rank": int(adapter.r)}
            self._more["lora_request"] = LoRARequest("adapter", 1, str(Path(name).resolve()))
        llm = vllm.LLM(model=base, dtype=dtype, revision=revision, **options)
        self.engine = llm.llm_engine
        self.marks = control_tokens(self.tokenizer)
        self._ends = end_tokens(_generation_settings(base, revision), self.tokenizer)

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
        told = Told(requests, on_answer, progress)
        for index, given in enumerate(inputs):
            settings = self._params(
                max_tokens=decoding.max_new_tokens,
                temperature=decoding.temperature,
                seed=decoding.seed if decoding.temperature else None,
                stop_token_ids=self._ends,
                skip_special_tokens=True,
            )
            prompt = {"prompt_token_ids": given.ids}
            self.engine.add_request(str(index), prompt, settings, **self._more)
        try:
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    if output.finished:
                        index, best = int(output.request_id), output.outputs[0]
                        new = list(best.token_ids)
                        answer = generation(self.tokenizer, inputs[index], new, self._ends)
                        told(index, replace(answer, finished=best.finish_reason != "length"))
        except BaseException:
            self.engine.abort_request([str(index) for index in range(len(inputs))])
            raise
        return told.answers


def own_devices(count: int) -> None:
    """Of several processes on a machine, leave this one ``count`` devices of its own to see.

    Raises:
        UserError: there are too few.
    """
    if started() <= 1:
        return
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
    mine = there[local_rank() * count : (local_rank() + 1) * count]
    if len(mine) < count:
        raise UserError(
            f"process {rank()} needs {count} devices of its own for vLLM and the machine has "
            f"{len(there)} for all; start fewer processes, or lower tensor_parallel_size"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)


def _generation_settings(name: str, revision: str) -> Any:
    """What :func:`end_tokens` looks at: the model's generation settings, where it has some."""
    from types import SimpleNamespace

    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(name, revision=revision)
    except OSError:
        settings = None
    return SimpleNamespace(generation_config=settings)
