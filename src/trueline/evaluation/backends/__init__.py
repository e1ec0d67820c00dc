"""What answers: a local model, vLLM, a server, or a script."""

from trueline.evaluation.backends.base import Backend, Decoding, Request, ScriptedBackend, ask
from trueline.evaluation.backends.open import open_backend

__all__ = ["Backend", "Decoding", "Request", "ScriptedBackend", "ask", "open_backend"]
