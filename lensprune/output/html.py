"""Pieces of an HTML page: the template environment, tables, and embedded figures and files."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lensprune.output.drawing.style import settings
from lensprune.output.files import write_atomically, write_error
from lensprune.output.plain_text import csv_text, visible
from lensprune.version import __version__

__all__ = [
    "Column",
    "EmbeddedFigure",
    "Table",
    "csv_link",
    "embedded_figure",
    "json_block",
    "render",
    "table",
    "write_page",
]

LARGEST_INSIDE = 1_500_000
"""Largest file, in bytes, to embed in the page; browsers refuse to save much longer data: URLs."""


_LONG = 30
"""Letters of a text that stands in a column of at least 16rem."""


@dataclass(frozen=True)
class Column:
    """How a column of a frame is shown: its heading and, for numbers, a format such as ``+.3f``."""

    title: str
    format: str = ""

    @property
    def number(self) -> bool:
        return bool(self.format)


@dataclass(frozen=True)
class _Cell:
    text: str
    value: str
    number: bool

    @property
    def long(self) -> bool:
        """Whether the text needs a column of some width: a name in a narrow one is broken into many lines."""
        return len(self.text) > _LONG


@dataclass(frozen=True)
class _Row:
    cells: tuple[_Cell, ...]
    attributes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """A table ready for the template."""

    columns: tuple[Column, ...]
    rows: tuple[_Row, ...]


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure inside the page: an SVG picture that can't run scripts, and the data that it draws.

    Narrow screens scroll a `wide` one instead of shrinking it.
    """

    name: str
    source: str
    alt: str
    caption: str
    csv: str | None
    wide: bool


def _cell(value: Any, column: Column) -> _Cell:
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return _Cell("–" if column.number else "", "", column.number)
    if column.number:
        return _Cell(format(value, column.format).replace("-", "−"), repr(float(value)), True)
    return _Cell(visible(str(value)), "", False)


def table(frame: pd.DataFrame, columns: Mapping[str, Column], attributes: Sequence[str] = ()) -> Table:
    """Rows of `frame` with the columns named, and `attributes` (columns too) for the page's filters."""
    rows = []
    for record in frame.to_dict("records"):
        cells = tuple(_cell(record[name], column) for name, column in columns.items())
        rows.append(_Row(cells, tuple((name, visible(str(record[name]))) for name in attributes)))
    return Table(tuple(columns.values()), tuple(rows))


def _data_address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def csv_link(data: pd.DataFrame | bytes) -> str | None:
    """A data: URL of a CSV file, or of a frame as CSV; ``None`` if it is too large."""
    if isinstance(data, pd.DataFrame):
        data = csv_text(data).encode("utf-8", "backslashreplace")
    return _data_address("text/csv", data) if len(data) <= LARGEST_INSIDE else None


def embedded_figure(
    name: str, axes: Axes | Sequence[Axes], data: pd.DataFrame, alt: str, caption: str
) -> EmbeddedFigure:
    """Embed a figure in the page and close it."""
    first = axes if isinstance(axes, Axes) else axes[0]
    figure = cast(Figure, first.figure)
    width, height = figure.get_size_inches()
    buffer = io.BytesIO()
    try:
        with settings({"svg.fonttype": "path", "svg.hashsalt": "lensprune"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None})
    finally:
        plt.close(figure)
    source = _data_address("image/svg+xml", buffer.getvalue())
    return EmbeddedFigure(name, source, alt, caption, csv_link(data), wide=bool(width > 1.5 * height))


def json_block(value: Any) -> Markup:
    """JSON that is safe inside a script element, whatever its texts contain."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _breaks(text: str) -> Markup:
    """`text`, escaped, that may break after the commas and brackets of a task's parameters, and not inside words."""
    return Markup(str(escape(text)).replace(",", ",<wbr>").replace("[", "[<wbr>"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lensprune.output", "templates"), autoescape=True, undefined=StrictUndefined
    )
    for kind, names in (("style", ["page.css"]), ("script", ["explore.js", "page.js"])):
        folder = files("lensprune.output") / "templates"
        text = "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        # Only these two texts may style or run: the page's policy lists their hashes.
        environment.globals[kind] = Markup(text)
        environment.globals[f"{kind}_hash"] = f"sha256-{digest}"
    environment.globals["version"] = __version__
    environment.filters["breaks"] = _breaks
    return environment


def render(template: str, **context: object) -> str:
    """A whole page; everything in `context` is escaped unless it is `Markup`."""
    return _environment().get_template(template).render(**context)


def write_page(page: str, target: Path) -> Path:
    """Write a page, whole or not at all; returns the file.

    Raises:
        UserError: the disk is full or the place can't be written to.
    """
    try:
        write_atomically(target, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise write_error(error, target) from None
    return target
