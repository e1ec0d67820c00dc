"""What measurements become: named values with their uncertainty, findings, and the run manifest."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib import metadata
from typing import Any


@dataclass(frozen=True, slots=True)
class Metric:
    """A named value with its interval and the number of observations behind it.

    ``value`` is None where nothing was scored: missing is never 0.0. ``low`` and ``high`` bound
    the interval at ``level`` (0.95 unless said), or are None where no interval is defined.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    level: float = 0.95
    unit: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return "unscored"
        percent = self.unit == "rate"
        show = (lambda x: f"{100 * x:.1f}%") if percent else (lambda x: f"{x:.4g}")
        if self.low is None or self.high is None:
            return show(self.value)
        return f"{show(self.value)} [{show(self.low)}, {show(self.high)}]"


@dataclass(frozen=True, slots=True)
class Finding:
    """One diagnostic's or evaluation's result: numbers, a verdict in plain words, what to try.

    ``figures`` holds plain data (lists and numbers) that the report draws; never HTML.
    """

    name: str
    summary: str
    metrics: Sequence[Metric] = ()
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Metric:
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(
            f"no metric {name!r} in {self.name}; it has {[m.name for m in self.metrics]}"
        )

    def to_frame(self) -> Any:
        """The metrics as a pandas DataFrame, one a row."""
        return frame([self])

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return to_html([self])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data; :meth:`from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Finding:
        """The finding that :meth:`to_dict` wrote."""
        metrics = tuple(Metric(**metric) for metric in value.get("metrics", ()))
        return cls(**{**value, "metrics": metrics})


def frame(findings: Sequence[Finding]) -> Any:
    """The metrics of findings as a pandas DataFrame: finding, metric, value, low, high, n, unit."""
    import pandas as pd

    columns = ("value", "low", "high", "n", "unit")
    rows = [
        {"finding": f.name, "metric": m.name, **{name: getattr(m, name) for name in columns}}
        for f in findings
        for m in f.metrics
    ]
    return pd.DataFrame(rows, columns=["finding", "metric", *columns])


def to_html(findings: Sequence[Finding], title: str = "") -> str:
    """Findings for a notebook: what each says, then its numbers; all text is escaped."""
    parts = [f"<h3>{escape(title)}</h3>"] if title else []
    for f in findings:
        parts.append(f"<p><b>{escape(f.name)}</b>: {escape(f.summary)}</p>")
        rows = "".join(
            f"<tr><td>{escape(m.name)}</td><td>{escape(str(m))}</td>"
            f"<td>{'' if m.n is None else m.n}</td></tr>"
            for m in f.metrics
        )
        if rows:
            head = "<tr><th>measure</th><th>value [95% interval]</th><th>n</th></tr>"
            parts.append(f"<table>{head}{rows}</table>")
        if f.advice:
            parts.append(f"<p><i>{escape(f.advice)}</i></p>")
    return "\n".join(parts)


def manifest(**facts: Any) -> dict[str, Any]:
    """What it takes to run this again: versions, machine, git revision, and the given facts."""
    packages = ("trueline", "torch", "transformers", "accelerate", "peft", "datasets", "numpy")
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions,
        "machine": {"system": platform.system(), "machine": platform.machine()},
        "git": _git_revision(),
        **facts,
    }


def _git_revision() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
