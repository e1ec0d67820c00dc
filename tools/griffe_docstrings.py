"""For the documentation's build: docstrings as the page's parser knows them.

An ``Example:`` is a section of code, like ``Examples:``, which alone the parser knows; a role of
reStructuredText becomes the name as code, since Markdown has none; an equation, which stands
indented before the sections, becomes a fence that is drawn (:mod:`mathml`).
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


BLOCK = re.compile(r"(?<=\n\n)((?: {4,}\S.*\n?)+)(?=\n|\Z)")
SECTION = re.compile(r"^(?:Args|Returns|Raises|Yields|Attributes|Examples?|Source):", re.MULTILINE)
NO_EQUATION = re.compile(
    r"""[`"'{}\[\]]|\btrueline |\.json|\bimport |>>>|--\w|\w\.\w+\(|\w=\w|\w ->|\bdef |:  """
)
EQUATION = re.compile(r"[=^]|\b(?:ln|log|exp|sum|mean|max)\b|[-+/] ")


def drawn_equations(text: str) -> str:
    """Indented blocks before the first section that read like equations, as fences.

    Example:
        >>> print(drawn_equations("What.\\n\\n    e^x = 1\\n\\nMore."))
        What.
        <BLANKLINE>
        ```equation
        e^x = 1
        ```
        <BLANKLINE>
        More.
    """
    begun = SECTION.search(text)
    end = begun.start() if begun else len(text)

    def fence(found: re.Match[str]) -> str:
        lines = [line.strip() for line in found[1].strip("\n").split("\n")]
        block = "\n".join(lines)
        if NO_EQUATION.search(block) or not EQUATION.search(block):
            return found[0]
        return f"```equation\n{block}\n```\n"

    return BLOCK.sub(fence, text[:end]) + text[end:]


class PlainDocstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            text = plain_names(EXAMPLE.sub("Examples:", obj.docstring.value))
            obj.docstring.value = drawn_equations(text)
