"""What every verb uses: the console on stderr, JSON on stdout, the common options."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from trueline.terminal import console

__all__ = ["Json", "console", "print_json"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def print_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else."""
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False))
