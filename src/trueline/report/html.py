"""One self-contained HTML file: opens offline, asks for nothing, runs only its own two scripts.

Safety does not rest on care alone. The template escapes everything; figure data is JSON whose
``<``, ``>`` and ``&`` are escaped, so no string can close its script element; and a content
security policy lets the page run the two scripts whose hashes it names, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from trueline.files import write_text
from trueline.report.blocks import Report, Section
from trueline.report.drawing import style
from trueline.report.drawing.tables import decision_view, highlight_view
from trueline.report.drawing.view import Views, paragraphs
from trueline.report.rows import ONE_FILE, Rows, files

HERE = Path(__file__).parent


def render_html(report: Report, rows_folder: str = "") -> str:
    """The page's text.

    Args:
        report: what to show.
        rows_folder: where the page finds the texts of its rows; empty for inside it.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    views = Views(models=list(report.models))
    views.know(block for section in report.sections for block in section.blocks)
    sections = [_section(views, i, section) for i, section in enumerate(report.sections, start=1)]
    scripts = [(HERE / "page.js").read_text("utf-8")]
    rows = _rows_of(report)
    if rows is not None:
        scripts.append((HERE / "rows.js").read_text("utf-8"))
    library = _plotly() if views.figures else ""
    page: str = environment.get_template("template.html.j2").render(
        title=report.title,
        subtitle=report.subtitle,
        summary=[p for p in paragraphs(report.summary) if p not in report.told],
        page_highlights=[highlight_view(item, views.place) for item in report.highlights],
        decisions=[decision_view(one, views.place) for one in report.decisions],
        bounds=report.bounds,
        refresh=report.refresh,
        symbols=style.SHAPES,
        rows_table=rows.table() if rows else "",
        rows_chunks=rows.chunks() if rows and not rows_folder else [],
        rows_folder=rows_folder,
        sections=sections,
        style=Markup((HERE / "page.css").read_text("utf-8")),
        palette=_palette(),
        figures={"figures": views.figures, "dark": style.DARK} if views.figures else None,
        library=Markup(library),
        scripts=[Markup(script) for script in scripts],
        policy=_policy([*([library] if library else []), *scripts], loads=bool(rows_folder)),
    )
    return page.lstrip()


def render_report(report: Report, out_path: str | os.PathLike[str]) -> Path:
    """Write the report as one HTML file and return its path.

    The texts of more than :data:`~trueline.report.rows.ONE_FILE` rows lie in a folder beside it,
    ``report-rows`` for ``report.html``; the page opens without reading them. A reader of the path
    sees the old file or the whole new one, never a part. Folders are made as needed.

    Args:
        report: what to show.
        out_path: where to; usually ``report.html`` in the run directory.
    """
    path = Path(out_path)
    rows = _rows_of(report)
    folder = path.with_name(f"{path.stem}-rows") if rows and len(rows) > ONE_FILE else None
    text = render_html(report, folder.name if folder else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    if rows is not None and folder is not None:
        folder.mkdir(exist_ok=True)
        chunks = dict(files(rows.chunks()))
        for name, chunk in chunks.items():
            write_text(folder / name, chunk)
        for old in folder.glob("*.js"):
            if old.name not in chunks:
                old.unlink()
    write_text(path, text)
    return path


def _rows_of(report: Report) -> Rows | None:
    """The page's rows, if it has any."""
    every = (block for section in report.sections for block in section.blocks)
    return next((block for block in every if isinstance(block, Rows) and len(block)), None)


def _shown(value: Any) -> Any:
    """Text with its control and direction-turning characters written out; the rest as it is."""
    return style.visible(value) if type(value) is str else value


def _section(views: Views, index: int, section: Section) -> dict[str, Any]:
    rows = any(isinstance(block, Rows) for block in section.blocks)
    return {
        "id": "rows" if rows else f"section-{index}",
        "title": section.title,
        "paragraphs": paragraphs(section.text),
        "blocks": [views.view(block) for block in section.blocks],
    }


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    if "</script" in script.lower():
        raise RuntimeError("this version of plotly.js cannot stand inside a page")
    return script


def _policy(scripts: list[str], *, loads: bool) -> str:
    """The content security policy: nothing from anywhere, and only these scripts; where they load
    the chunks of a folder, what they themselves ask for."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    more = " 'strict-dynamic'" if loads else ""
    return (
        f"default-src 'none'; script-src {hashes}{more}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _palette() -> dict[str, dict[str, str]]:
    """The figures' colors by name, for the page's own dots and legends."""
    light = {"ink": style.INK, "muted": style.MUTED, "grid": style.GRID,
             "ground": style.GROUND, "good": style.GOOD, "bad": style.BAD}  # fmt: skip
    light |= {f"m{i}": color for i, color in enumerate(style.MODELS)}
    return {"light": light, "dark": {name: style.DARK[color] for name, color in light.items()}}
