"""A run's model card: README.md with front matter that hubs read, and the run's findings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trueline.files import write_text
from trueline.report.drawing.style import visible
from trueline.results import Finding
from trueline.runs.record import CARD, CONFIG, MANIFEST, Run

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!~$])")
"""What Markdown (or HTML inside it) would read as more than text."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-][\w.-]*")
"""An id of a hub, as against a path; both look alike, so what exists here counts as a path."""


def write_model_card(run_dir: str | os.PathLike[str]) -> Path:
    """Write README.md from what the run directory holds: configuration and findings.

    Call it again when findings have been added; it needs nothing else.

    Raises:
        UserError: there is no such directory.
    """
    run = Run.open(run_dir)
    path = run.path / CARD
    write_text(path, model_card(run.name, run.config, run.own))
    return path


def model_card(name: str, config: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    """The card's text.

    Args:
        name: of the model.
        config: the run's resolved configuration.
        findings: what was measured.
    """
    import yaml

    matter = yaml.safe_dump(dict(_matter(config)), sort_keys=False, width=10**6)
    objective = config.get("loss_type", "unknown")
    objective = " + ".join(objective) if isinstance(objective, list) else str(objective)
    base = str(config.get("model_name_or_path") or "a model")
    data = str(config.get("dataset_name") or "data that were not recorded")
    lines = [
        f"# {escaped(name)}",
        "",
        f"{escaped(base)}, aligned with the objective {escaped(objective)} on {escaped(data)} by "
        f"Trueline. The whole configuration is in `{CONFIG}`; versions and data hashes are in "
        f"`{MANIFEST}`; `trueline report` shows the run on one page.",
        "",
        *(line for finding in findings for line in _finding(finding)),
    ]
    if not findings:
        lines += ["Nothing was measured on held-out data.", ""]
    return f"---\n{matter}---\n\n" + "\n".join(lines)


def _matter(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Front matter; hubs take ids for base model and data, so paths are left to the text."""
    yield "library_name", "peft" if config.get("use_peft") else "transformers"
    base, data = config.get("model_name_or_path"), config.get("dataset_name")
    if _is_hub_id(base):
        yield "base_model", base
    if _is_hub_id(data):
        yield "datasets", [data]
    objective = config.get("loss_type")
    names = objective if isinstance(objective, list) else [objective]
    yield "tags", ["trueline", "alignment", *(" ".join(str(n).split()) for n in names if n)]


def _is_hub_id(name: Any) -> bool:
    return isinstance(name, str) and bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def _finding(finding: Finding) -> Iterator[str]:
    title = finding.name[:1].upper() + finding.name[1:].replace("_", " ")
    yield from (f"## {escaped(title)}", "", escaped(finding.summary), "")
    if finding.metrics:
        yield from ("| Measure | Value [95% interval] | n |", "|---|---|---|")
        for m in finding.metrics:
            count = "" if m.n is None else str(m.n)
            yield f"| {escaped(m.name)} | {escaped(str(m))} | {count} |"
        yield ""


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is.

    Example:
        >>> print(escaped("<b>a|b</b>"))
        \<b\>a\|b\</b\>
    """
    return SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))
