"""For the documentation's build: the house's plain equations as MathML, which browsers draw.

Equations stand in code, docstrings and pages as they are typed, ``-E+ r + ln E- e^r``: readable in
a terminal, in a file and on a forge. A page marks one as a fence of the language ``equation``; in a
docstring it is the indented block before ``Args:``. Nothing is fetched: browsers know MathML.

What is written so: juxtaposition multiplies; ``^`` raises and ``_`` lowers the next number, name or
bracket; ``a / b`` is a fraction where ``a`` is a number, a name or a bracket of its own; ``s(`` is
the logistic function; Greek letters are spelled; words are words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

NAMES = "alpha beta gamma delta epsilon zeta eta theta lambda mu nu xi pi rho sigma tau phi psi"
GREEK = dict(zip(NAMES.split(), "αβγδεζηθλμνξπρστφψ", strict=True))
GREEK |= {"Delta": "Δ", "Sigma": "Σ", "Phi": "Φ", "kappa": "κ", "eps": "ε", "grad": "∇", "inf": "∞"}
FUNCTIONS = {
    "ln", "log", "exp", "max", "min", "mean", "sort", "sqrt", "softmax", "var", "cov", "tanh", "KL",
    "JS", "TV", "logsigmoid", "sigmoid", "sum", "median", "argmax", "argmin", "sign", "Pr", "cos",
}  # fmt: skip
SIGNS = {"+-": "±", "-+": "∓", "<=": "≤", ">=": "≥", "!=": "≠", "->": "→", "*": "·", "-": "−",
         "||": "∥", "=>": "⇒", "~": "∼", ":=": "≔"}  # fmt: skip
TOKEN = re.compile(
    r"(?P<signed>\b[ED][+-](?=[\s,)(|]|$))|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)"
    r"|(?P<word>[A-Za-z]{3,}_[A-Za-z]{3,}|[A-Za-z]+(?:[-'][A-Za-z]+)+|[A-Za-z]+'?)|(?P<sign>\+-|-\+|<=|>=|!=|->|=>|:=|\|\||\S)"
    r"|(?P<space>\s+)"
)


def mathml(text: str, *, block: bool = True) -> str:
    """An equation, a line of its own for each of its lines.

    Example:
        >>> mathml("1 / (2 beta)", block=False)
        '<math><mfrac><mn>1</mn><mrow><mn>2</mn><mi>β</mi></mrow></mfrac></math>'
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    shown = ["".join(_Parser(line).row()) for line in lines]
    if not block:
        return f"<math>{''.join(shown)}</math>"
    rows = "".join(f"<mtr><mtd>{line}</mtd></mtr>" for line in shown)
    inside = shown[0] if len(shown) == 1 else f'<mtable columnalign="left">{rows}</mtable>'
    return (
        f'<math display="block" alttext="{escape("; ".join(lines), quote=True)}">'
        f"<mrow>{inside}</mrow></math>"
    )


class _Parser:
    """One line, from left to right."""

    def __init__(self, line: str) -> None:
        self.tokens = [(m.lastgroup or "", m.group()) for m in TOKEN.finditer(line)]
        self.at = 0

    def row(self, end: str = "") -> Iterator[str]:
        """Everything up to a closing bracket, as MathML."""
        parts: list[str] = []
        plain = False  # whether the last part may stand over a fraction's bar
        while self.at < len(self.tokens):
            kind, text = self.tokens[self.at]
            if text == end:
                break
            if text == "/" and plain and self._spaced() and (under := self._denominator()):
                parts.append(f"<mfrac>{_one(parts.pop())}{under}</mfrac>")
                plain = False
                continue
            if kind == "space":
                self.at += 1
                continue
            alone = not parts or self._after_sign()
            inside, bracket = self._atom()
            plain = alone and (kind in ("number", "word") or bracket)
            if (
                plain
                and kind == "word"
                and (text in FUNCTIONS or (len(text) > 1 and text not in GREEK))
            ):
                plain = False
            if bracket and not (plain and self._divides()):
                inside = f"<mrow><mo>(</mo>{inside}<mo>)</mo></mrow>"
            parts.append(inside)
        return iter(parts)

    def _spaced(self) -> bool:
        """Whether the sign here has spaces around it: ``a / b`` is a fraction, ``a/|w|`` is not."""
        around = self.tokens[self.at - 1 : self.at] + self.tokens[self.at + 1 : self.at + 2]
        return [kind for kind, _ in around] == ["space", "space"]

    def _divides(self) -> bool:
        """Whether a fraction's bar comes next, so that a bracket above it falls away."""
        at, back = self.at + 1, self.at
        if self._next() != "/" or at >= len(self.tokens) or self.tokens[at][1] != "/":
            return False
        self.at = at
        found = self._spaced() and bool(self._denominator())
        self.at = back
        return found

    def _after_sign(self) -> bool:
        """Whether what comes stands behind a sign that ends a product."""
        before = [text for kind, text in self.tokens[: self.at] if kind != "space"]
        return not before or before[-1] in ("+", "-", "=", ",", "(", "<=", ">=", "+-", "[", ";")

    def _next(self) -> str:
        rest = (text for kind, text in self.tokens[self.at :] if kind != "space")
        return next(rest, "")

    def _denominator(self) -> str:
        """What stands behind the bar, or nothing where the line goes on with ``/``."""
        back = self.at
        self.at += 1
        while self.at < len(self.tokens) and self.tokens[self.at][0] == "space":
            self.at += 1
        if self.at < len(self.tokens):
            kind, text = self.tokens[self.at]
            if (kind in ("number", "word") and text not in FUNCTIONS) or text == "(":
                inside, _ = self._atom()
                if self._next() != "(":
                    return _one(inside)
        self.at = back
        return ""

    def _atom(self) -> tuple[str, bool]:
        """The next number, name, sign or bracket with its scripts, and whether it is a bracket."""
        kind, text = self.tokens[self.at]
        self.at += 1
        bracket = False
        if text == "(":
            inside = "".join(self.row(")"))
            self.at += self.at < len(self.tokens)
            bracket = True
        elif kind == "signed":
            inside = f"<msub><mi>{text[0]}</mi><mo>{SIGNS.get(text[1], text[1])}</mo></msub>"
        else:
            inside = _leaf(kind, text)
            if text == "s" and self._next() == "(":
                inside = "<mi>σ</mi>"
            if text == "sqrt" and self._next() == "(":
                inside = f"<msqrt>{self._atom()[0]}</msqrt>"
        scripted = self._scripts(
            f"<mrow><mo>(</mo>{inside}<mo>)</mo></mrow>" if bracket else inside
        )
        if scripted is not None:
            return scripted, False
        return inside, bracket

    def _scripts(self, base: str) -> str | None:
        """The base with what is raised and lowered; None where nothing is."""
        found: dict[str, str] = {}
        while self.at < len(self.tokens) and self.tokens[self.at][1] in ("^", "_", "*"):
            sign = self.tokens[self.at][1]
            if sign == "*":  # a conjugate, f*(y)
                if self.at + 1 >= len(self.tokens) or self.tokens[self.at + 1][1] != "(":
                    break
                self.at += 1
                found["^"] = "<mo>*</mo>"
                continue
            self.at += 1
            minus = self.at < len(self.tokens) and self.tokens[self.at][1] in ("-", "+-")
            lead = ""
            if minus:
                lead = f"<mo>{SIGNS[self.tokens[self.at][1]]}</mo>"
                self.at += 1
            if self.at >= len(self.tokens):
                break
            if self.tokens[self.at][1] == "(":
                self.at += 1
                raised = "".join(self.row(")"))
                self.at += self.at < len(self.tokens)
            else:
                raised = _leaf(*self.tokens[self.at])
                self.at += 1
            found[sign] = _one(lead + raised)
        if not found:
            return None
        if len(found) == 2:
            return f"<msubsup>{_one(base)}{found['_']}{found['^']}</msubsup>"
        ((sign, script),) = found.items()
        name = "msup" if sign == "^" else "msub"
        return f"<{name}>{_one(base)}{script}</{name}>"


def _one(inside: str) -> str:
    """One element: several are put in a row."""
    leaf = re.fullmatch(r"<(m\w+)[^<>]*>[^<]*</\1>", inside)
    return inside if leaf else f"<mrow>{inside}</mrow>"


def _leaf(kind: str, text: str) -> str:
    if kind == "number":
        return f"<mn>{text}</mn>"
    if kind == "word":
        if text in GREEK:
            return f"<mi>{GREEK[text]}</mi>"
        if len(text.rstrip("'")) == 1:
            return f"<mi>{escape(text[0])}</mi>" + ("<mo>′</mo>" if len(text) > 1 else "")
        if text in FUNCTIONS:
            return f'<mi>{text}</mi><mspace width="0.17em"/>'
        return f'<mspace width="0.25em"/><mtext>{escape(text)}</mtext><mspace width="0.25em"/>'
    if text == "|":
        return '<mo stretchy="false">|</mo>'
    return f"<mo>{escape(SIGNS.get(text, text))}</mo>"


def fence(source: str, *_: Any, **__: Any) -> str:
    """A fence of the language ``equation``, for the page's Markdown."""
    return f'<div class="equation">{mathml(source)}</div>'
