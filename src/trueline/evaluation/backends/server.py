"""Any OpenAI-compatible server, through the `openai` client: as many requests under way as allowed,
failures as answers that say so.

What may pass (429, 5xx, a time-out, a lost connection) is asked again after a growing pause, while
others take its place. What does not pass, or a server refuses, is an answer with its reason.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.backends.base import Decoding, Request
from trueline.evaluation.backends.flight import Queue, Told, run
from trueline.evaluation.generation import Generation, OnAnswer
from trueline.prompts import Progress

PASSING = {408, 409, 425, 429}
"""Statuses below 500 that may pass."""
FOR_ALL = {401, 404, 405}
"""Statuses that say nothing of one request: a wrong key, model or address."""


class ServerBackend:
    """A chat model behind ``base_url``.

    A request that the server refuses, or that fails ``retries`` times again, has an answer with
    ``failed``. Where nothing at all is answered, the first failures stop the work.

    Args:
        model: the server's name for the model.
        base_url: such as ``http://localhost:8000/v1``; None for the client's own default.
        api_key_env: the environment variable that holds the key; a local server needs none.
        concurrency: requests under way at once.
        timeout: seconds for one request.
        retries: further attempts after a failure that may pass.
        continues: whether the server goes on with an assistant's turn that it is given (as vLLM
            does), so that a prefill is possible.

    Raises:
        UserError: the extra is not installed.
    """

    local = None
    marks = ()

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        continues: bool = False,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UserError(
                "a model behind a server needs the extra: pip install 'trueline[openai]'"
            ) from None
        key = os.environ.get(api_key_env)
        if base_url is None and not key:
            raise UserError(f"give base_url=..., or put a key into the variable {api_key_env}")
        if concurrency < 1:
            raise UserError(f"concurrency must be at least 1, got {concurrency}")
        self._openai = openai
        self._how = {"base_url": base_url, "api_key": key or "none", "timeout": timeout}
        self.base_url = str(openai.OpenAI(**self._how).base_url)
        self.model, self.concurrency, self.continues = model, concurrency, continues
        self.retries = retries
        self.facts = {"backend": "openai", "model": model, "base_url": self.base_url}

    def key(self, request: Request) -> list[dict[str, str]]:
        return self._messages(request)

    def _messages(self, request: Request) -> list[dict[str, str]]:
        if isinstance(request.prompt, str):
            raise UserError(
                "a chat server takes conversations; leave --plain out, or load the model locally"
            )
        messages = [message.to_dict() for message in request.prompt]
        if request.prefill and not self.continues:
            raise UserError(
                "this server is not said to continue an assistant's turn, so a prefill attack "
                "cannot reach the model; say continues=true if it does (vLLM), or load it locally"
            )
        if request.prefill:
            messages.append({"role": "assistant", "content": request.prefill})
        return messages

    def __call__(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        *,
        progress: Progress | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[Generation]:
        bodies = [self._body(request, decoding) for request in requests]
        pass_on = Told(requests, on_answer, progress)
        run(lambda: self._all(bodies, pass_on))
        return pass_on.answers

    async def _all(self, bodies: Sequence[dict[str, Any]], told: Told) -> None:
        """Everything, ``concurrency`` requests under way at any time."""
        todo = Queue(len(bodies))
        how = {**self._how, "max_retries": 0}
        async with self._openai.AsyncOpenAI(**how) as client:

            async def work() -> None:
                while (taken := await todo.take()) is not None:
                    index, attempt = taken
                    prefill = told.requests[index].prefill
                    answer, wait = await self._one(client, bodies[index], prefill)
                    if answer.retry and attempt < self.retries:
                        todo.again(index, attempt + 1, wait)
                        continue
                    told(index, answer)
                    todo.done()
                    if not told.good and told.failed >= min(len(bodies), max(self.concurrency, 8)):
                        raise UserError(self._nothing(told))

            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(bodies))):
                    group.create_task(work())

    def _nothing(self, told: Told) -> str:
        reason, count = told.reasons.most_common(1)[0]
        return (
            f"the server at {self.base_url} answered none of {told.failed} requests for model "
            f"{self.model!r}; {count} times: {reason}"
        )

    def _body(self, request: Request, decoding: Decoding) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": self._messages(request),
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
        }
        if decoding.temperature:
            body["seed"] = decoding.seed
        if request.prefill:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    async def _one(
        self, client: Any, body: dict[str, Any], prefill: str
    ) -> tuple[Generation, float]:
        """One attempt, and how many seconds the server asks to wait before another.

        Raises:
            UserError: a wrong key, model or address, which no request of all would pass.
        """
        errors = self._openai
        try:
            # JSON as it comes: the client's own classes take as long as all the rest
            reply = await client.post("/chat/completions", body=body, cast_to=object)
        except errors.APIStatusError as error:
            reason = f"{error.status_code} {_first_line(error)}"
            if error.status_code in FOR_ALL:
                raise UserError(
                    f"the server at {self.base_url} refuses model {self.model!r}: {reason}; "
                    "answers so far are kept, the same command goes on"
                ) from None
            passing = error.status_code in PASSING or error.status_code >= 500
            return _failed(reason, prefill, retry=passing), _asked_to_wait(error)
        except errors.APIError as error:  # a time-out, a lost connection, a reply that is none
            return _failed(
                f"{type(error).__name__}: {_first_line(error)}", prefill, retry=True
            ), 0.0
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] or ""
            used = int((reply.get("usage") or {}).get("completion_tokens") or 0)
        except (KeyError, IndexError, TypeError, ValueError):
            return _failed("a reply without an answer", prefill, retry=True), 0.0
        finished = choice.get("finish_reason") != "length"
        return Generation(text, used, finished, prefill, prefill + text), 0.0


def _failed(reason: str, prefill: str, *, retry: bool) -> Generation:
    return Generation("", 0, True, prefill, prefill, failed=reason, retry=retry)


def _asked_to_wait(error: Any) -> float:
    """What the server says in its header, in seconds; at most a minute is heeded."""
    try:
        return min(max(float(error.response.headers.get("retry-after", 0)), 0.0), 60.0)
    except ValueError:  # a date
        return 0.0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
