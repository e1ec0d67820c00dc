"""A small world with known ground truth, on which alignment can be seen to work or not."""

from trueline.sandbox.build import Sandbox, Size, build_sandbox
from trueline.sandbox.judge import Judge, Verdict
from trueline.sandbox.world import Entity, World

__all__ = ["Entity", "Judge", "Sandbox", "Size", "Verdict", "World", "build_sandbox"]
