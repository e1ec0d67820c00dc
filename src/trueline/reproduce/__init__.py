"""Measuring what alignment does, in the sandbox, where the truth is known."""

import sys

from trueline.verbs import Called

sys.modules[__name__].__class__ = Called
