"""Data: every common form in, one kind of record out, as a stream; inspect it, convert it."""

import sys

import trueline.data.foreign  # noqa: F401  (registers its forms)
from trueline.data.convert import TARGETS, WriteReport, write_examples
from trueline.data.forms import FORMS, Form, detect
from trueline.data.inspect import DataSummary, inspect_examples
from trueline.data.load import Drop, Examples, LoadReport, load_examples
from trueline.data.mapped import Mapped, Mixed, Stream
from trueline.data.readers import DataError
from trueline.data.tally import Lengths
from trueline.verbs import Data

__all__ = [
    "FORMS",
    "TARGETS",
    "DataError",
    "DataSummary",
    "Drop",
    "Examples",
    "Form",
    "Lengths",
    "LoadReport",
    "Mapped",
    "Mixed",
    "Stream",
    "WriteReport",
    "detect",
    "inspect_examples",
    "load_examples",
    "write_examples",
]

sys.modules[__name__].__class__ = Data
