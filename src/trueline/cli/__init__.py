"""The command line: `trueline VERB ...`."""

from trueline.cli.app import main

__all__ = ["main"]
