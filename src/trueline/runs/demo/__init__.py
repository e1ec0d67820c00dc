"""What `trueline demo` does: the whole story in the sandbox, from a base model to a report."""

from trueline.runs.demo.words import Story, demo

__all__ = ["Story", "demo"]
