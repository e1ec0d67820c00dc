"""A model in this process: transformers, with batches sorted by length and the KV cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from trueline.config import ModelArguments
from trueline.evaluation.backends.base import Decoding, Request
from trueline.evaluation.generation import Generation, OnAnswer, generate, model_input
from trueline.models import check_vocabulary, load_model, load_tokenizer
from trueline.models.fingerprint import fingerprint
from trueline.prompts import Progress, Renderer, control_tokens


class TransformersBackend:
    """A transformers or PEFT model that is in memory.

    Under ``accelerate launch`` every process loads the model on its own device and answers its
    share of the requests; see :func:`trueline.evaluation.harness.store.complete`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        batch_size: prompts in a batch.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 32) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.renderer = Renderer(tokenizer)
        precision = str(next(model.parameters()).dtype)
        self.facts = {
            "backend": "transformers",
            "model": fingerprint(model, precision, adapters=True),
        }
        self.marks = control_tokens(tokenizer)

    @property
    def local(self) -> tuple[Any, Any]:
        return self.model, self.tokenizer

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
        return generate(
            self.model,
            self.tokenizer,
            [request.prompt for request in requests],
            prefill=[request.prefill for request in requests],
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            seed=decoding.seed,
            batch_size=self.batch_size,
            progress=progress,
            on_answer=on_answer,
        )


def load_local(
    name: str, *, dtype: str = "auto", revision: str = "main", batch_size: int = 32
) -> TransformersBackend:
    """The model at a folder or hub id, on this process's device, ready to answer.

    Raises:
        UserError: it cannot be loaded.
    """
    args = ModelArguments(model_name_or_path=name, dtype=dtype, model_revision=revision)
    tokenizer = load_tokenizer(args)
    model = load_model(args).to(_device()).eval()
    check_vocabulary(model, tokenizer, name)
    return TransformersBackend(model, tokenizer, batch_size=batch_size)


def _device() -> str:
    import torch

    from trueline.processes import local_rank

    if torch.cuda.is_available():
        return f"cuda:{local_rank()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def template_hash(tokenizer: Any) -> str | None:
    """A hash of the chat template, which decides what a model reads; None where there is none."""
    template = tokenizer.chat_template
    if template is None:
        return None
    return hashlib.blake2b(str(template).encode(), digest_size=8).hexdigest()
