"""What `trueline data` does to curate: the steps, and how one is run."""

from trueline.runs.curate.page import write_page
from trueline.runs.curate.run import curate, every, verb

__all__ = ["curate", "every", "verb", "write_page"]
