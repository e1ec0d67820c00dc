"""What the registry knows of an objective, as plain data and as a page of documentation."""

from __future__ import annotations

import inspect
from typing import Any

from trueline.objectives.base import OBJECTIVES, Objective

LAYOUTS = {
    "paired": "preference pairs",
    "unpaired": "labeled completions",
    "completion": "completions to imitate",
}

HEADINGS = {
    "paired": "On preference pairs, with a reference",
    "free": "On preference pairs, without a reference",
    "unpaired": "On labeled completions",
    "completion": "On completions to imitate",
}


ORDER = "paired margins transport density_ratio reference_free unpaired kl duals".split()
"""Modules in the order of the documentation."""


def coupling(spec: Objective) -> str:
    """How a completion's coefficient depends on the rest of the effective batch, in words."""
    if spec.coupled:
        return "the whole effective batch at once"
    if spec.statistic is None:
        return "none"
    of = "mismatched completions" if spec.statistic.of == "mismatched" else "the effective batch"
    average = f", moving average ({spec.statistic.decay:g})" if spec.statistic.decay else ""
    return f"{spec.statistic.argument} of {of}{average}"


def describe(spec: Objective) -> dict[str, Any]:
    """One objective as plain data, ready for JSON."""
    return {
        "name": spec.name,
        "aliases": list(spec.aliases),
        "summary": spec.summary,
        "layout": spec.layout,
        "reference": spec.reference,
        "requires": list(spec.requires),
        "coupled": spec.coupled,
        "coupling": coupling(spec),
        "equation": spec.equation,
        "estimates": spec.estimates or None,
        "source": spec.source,
        "options": {
            name: {
                "default": option.default,
                "accepts": option.wording,
                "help": help_of(spec, name),
            }
            for name, option in spec.declared.items()
        },
    }


def help_of(spec: Objective, option: str) -> str:
    """What the docstring's Args say of an option, on one line; empty where they say nothing."""
    lines = (inspect.getdoc(spec.function) or "").split("\n")
    start = next((i for i, x in enumerate(lines) if x.strip().startswith(f"{option}: ")), None)
    if start is None:
        return ""
    indent = len(lines[start]) - len(lines[start].lstrip())
    words = [lines[start].strip().removeprefix(f"{option}: ")]
    for line in lines[start + 1 :]:
        if len(line) - len(line.lstrip()) <= indent:
            break
        words.append(line.strip())
    return " ".join(words).replace("``", "`")


def group(spec: Objective) -> str:
    """The heading an objective belongs under."""
    return "free" if spec.layout == "paired" and not spec.reference else spec.layout


def catalog() -> list[Objective]:
    """Trueline's own objectives, the best known first; what users registered comes after."""
    modules = [f"trueline.objectives.{name}" for name in ORDER]
    place = {name: i for i, name in enumerate(modules)}
    return sorted(OBJECTIVES.values(), key=lambda s: place.get(s.function.__module__, len(ORDER)))


def page() -> str:
    """docs/objectives.md, whole: written by ``python -m trueline.objectives.describe``."""
    own = [spec for spec in catalog() if spec.function.__module__.startswith("trueline.")]
    parts = [_INTRODUCTION.format(count=len(own))]
    for key, heading in HEADINGS.items():
        specs = [spec for spec in own if group(spec) == key]
        parts.append(f"## {heading}\n")
        parts.append("| objective | estimates | coupling |\n| --- | --- | --- |")
        parts += [
            f"| [`{spec.name}`](#{spec.name}) | {_cell(spec.estimates)} | {coupling(spec)} |"
            for spec in specs
        ]
        parts.append("")
        parts += [_section(spec) for spec in specs]
    return "\n".join(parts).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _section(spec: Objective) -> str:
    lines = [f"### {spec.name}\n", f"{spec.summary}\n", f"```equation\nL = {spec.equation}\n```\n"]
    facts = {
        "Estimates": spec.estimates,
        "Coupling": "" if coupling(spec) == "none" else coupling(spec),
        "Needs": ", ".join(f"`{column}`" for column in spec.requires),
        "Also called": ", ".join(f"`{alias}`" for alias in spec.aliases),
        "Source": spec.source,
    }
    lines += [f"- {name}: {text}" for name, text in facts.items() if text]
    if spec.declared:
        lines.append("\n| option | default | accepts | |\n| --- | --- | --- | --- |")
        lines += [
            f"| `{name}` | {_default(option.default)} | {_cell(option.wording)} | "
            f"{_cell(help_of(spec, name))} |"
            for name, option in spec.declared.items()
        ]
    return "\n".join([*lines, ""])


def _default(value: Any) -> str:
    return "none" if value is None else f"`{value}`"


_INTRODUCTION = """\
<!-- `python -m trueline.objectives.describe > docs/objectives.md` writes it; edit the code. -->

# Objectives

{count} objectives, each a pure function of log-probs in `trueline.objectives`. `trueline objectives
NAME` shows one in the terminal, `--json` all of them as data.

Notation: a and b are the policy's log-probs of the chosen and the rejected completion, summed over
their |w| and |l| tokens; u and v their log-ratios to the reference; s the logistic function;
r = beta times a completion's log-ratio, its reward. E+ and E- are means over the desirable and the
undesirable completions, D+ and D- their distributions. All logarithms are natural.

"Estimates" says what the minimum over all rewards is: most objectives are a divergence between D+
and D- in disguise. "Coupling" says what of the effective batch (all micro-batches, accumulation
steps and processes together) enters a completion's gradient; it is exact, however the batch is cut.

**A reference prompt.** Where a row has `reference_prompt`, the reference alone reads it in place of
the prompt. That is E-RLHF, and it works with every objective that has a reference; `e_dpo` is `dpo`
that insists on it.

**Sums.** `loss_type: [dpo, sft]` with `loss_weights: [1.0, 0.2]` adds objectives. On pairs, an
objective on labeled completions takes the chosen as desirable and the rejected as undesirable; one
that imitates takes the chosen. An option goes to every part that has it. At most one part may
need a value of the whole batch.

**Your own.** `loss_type: my_package.losses:mine` takes a function of `PairedLogProbs`,
`UnpairedLogProbs` or `CompletionLogProbs` (its first parameter's annotation says which) that
returns a loss for each row, or one scalar of the whole effective batch. Its keyword-only arguments
are its options. `@trueline.objectives.objective(...)` adds an equation, a source and metrics.

**Any f-divergence.** `fdo` takes `divergence`, one of `trueline.divergences.DIVERGENCES` (kl,
reverse_kl, js, tv, hellinger2, chi2) or one you register:
`DIVERGENCES.add("mine", FDivergence("mine", f, conjugate, derivative, link, domain))`. Convexity,
f(1) = 0, the conjugate and the link are checked when it is defined.

**Guards.** Objectives that weigh completions by e^r log `weights/effective_sample_size` and
`weights/top_share`, and take `clip` (bounds a completion's weight) and `anchor` (holds the
desirable ones' likelihood up).
"""


if __name__ == "__main__":
    print(page(), end="")
