"""What every verb uses: results and JSON on stdout, the console on stderr, the common options."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from trueline.terminal import console, is_first, out

__all__ = ["Json", "console", "out", "print_json"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def print_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else; of several processes the first prints it."""
    if is_first():
        print(json.dumps(value, indent=2, default=str, ensure_ascii=False))
