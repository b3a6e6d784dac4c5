"""A report: a title and sections of text, tables and pictures, rendered to one HTML file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the row.

    Attributes:
        columns: the headings.
        rows: one text a column in each row.
        caption: what the table shows.
        highlight: indices of the rows that stand out.

    Raises:
        ValueError: a row has not one entry a column.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    highlight: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row needs {len(self.columns)} entries, one a column; got {list(row)}")


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        content: an SVG document or a PNG file.
        alt: what can be seen, for those who do not see it.
        caption: what it shows.
    """

    content: bytes
    alt: str
    caption: str = ""

    @property
    def source(self) -> str:
        """The content as a data URI, so that the report needs no second file."""
        kind = "png" if self.content.startswith(b"\x89PNG") else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True)
class Section:
    """A part of a report, shown in the order text, tables, pictures.

    Attributes:
        title: the heading.
        text: paragraphs of plain text.
        tables: in order.
        pictures: in order.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=tuple)
    pictures: Sequence[Picture] = field(default_factory=tuple)


def render(title: str, sections: Sequence[Section], *, introduction: str = "", footer: str = "") -> str:
    """Return the report as HTML.

    Args:
        title: of the page.
        sections: in order.
        introduction: a paragraph under the title.
        footer: a line at the end: versions, settings.

    Returns:
        A whole HTML document; all text is escaped.
    """
    environment = Environment(
        loader=PackageLoader("fisherlayers.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html")
    return template.render(title=title, sections=sections, introduction=introduction, footer=footer)
