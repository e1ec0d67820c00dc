"""For the documentation's build: docstrings as the page's parser knows them.

An ``Example:`` is a section of code, like ``Examples:``, which alone the parser knows; a role of
reStructuredText becomes the name as code, since Markdown has none.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
ROLE = re.compile(r":(?:py:)?(?:func|class|meth|mod|data|attr|exc|obj):`(~?)([\w.]+)`")


def plain_names(text: str) -> str:
    """Roles as code: the last part of a name behind a tilde, else the whole name."""
    return ROLE.sub(lambda m: f"`{m[2].rsplit('.', 1)[-1] if m[1] else m[2]}`", text)


class PlainDocstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = plain_names(EXAMPLE.sub("Examples:", obj.docstring.value))
