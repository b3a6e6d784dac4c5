import base64
import re
from html.parser import HTMLParser

import pytest

from fisherlayers.report import Curve, Picture, Section, Table, bars, curves, image_grid, render


class Page(HTMLParser):
    """Collects the text of table cells and every attribute that could load something."""

    def __init__(self, html):
        super().__init__()
        self.cells, self.links, self.tags, self._cell = [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._cell = tag in ("td", "th")
        if self._cell:
            self.cells.append("")
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag):
        self._cell = False

    def handle_data(self, data):
        if self._cell:
            self.cells[-1] += data


PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
TABLE = Table(["method", "steps", "loss"], [["SGD", "300", "0.0123"], ["SGD reconstructed", "60", "0.0119"]], "a race")


@pytest.fixture
def html():
    figures = [
        curves({"steps": [Curve("SGD", [0, 1], [1.0, 0.1], "SGD")]}, xlabel="steps", ylabel="loss"),
        bars({"ours": 91.5, "pixels": 40.0}, xlabel="%", highlight=["ours"]),
        image_grid([[[0.0, 1.0], [1.0, 0.0]]], ["brick"], ["grass"]),
    ]
    pictures = [Picture(content, f"picture {i}") for i, content in enumerate([*figures, PNG])]
    section = Section("The race", ["Two methods."], [TABLE], pictures)
    return render("A report", [section], introduction="What this is.", footer="torch 2.13")


def test_the_numbers_in_the_page_are_those_given(html):
    page = Page(html)
    assert page.cells == ["method", "steps", "loss", "SGD", "300", "0.0123", "SGD reconstructed", "60", "0.0119"]
    for text in ("A report", "What this is.", "The race", "Two methods.", "a race", "torch 2.13"):
        assert text in html


def test_nothing_is_loaded_from_elsewhere(html):
    page = Page(html)
    assert len(page.links) == 4
    assert all(link.startswith("data:image/") for link in page.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert not re.search(r"@import|url\(", html)
    for link in page.links[:3]:
        svg = base64.b64decode(link.partition(",")[2]).decode()
        assert not re.search(r"""(href|src)=["'](?!#|data:)""", svg)
        assert not re.search(r"url\((?!#)", svg)
        assert "<script" not in svg


def test_pictures_travel_inside_the_page():
    source = Picture(PNG, "dots").source
    assert source.startswith("data:image/png;base64,")
    assert base64.b64decode(source.partition(",")[2]) == PNG
    assert Picture(b"<svg/>", "lines").source.startswith("data:image/svg+xml;base64,")


def test_text_is_escaped():
    html = render("<b>&", [Section("<script>alert(1)</script>", tables=[Table(["<i>"], [["a<b"]])])])
    assert "<script>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert Page(html).cells == ["<i>", "a<b"]


def test_highlighted_rows_are_marked():
    html = render("t", [Section("s", tables=[Table(["a"], [["x"], ["y"]], highlight=frozenset({1}))])])
    assert re.findall(r'<tr( class="highlight")?>\s*<th scope="row">(.)</th>', html) == [
        ("", "x"),
        (' class="highlight"', "y"),
    ]


def test_empty_parts_leave_no_empty_tags():
    html = render("t", [Section("s")])
    for tag in ("<caption", "<figure>", "<footer>", "<table>", '<p class="introduction"'):
        assert tag not in html


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match="needs 2 entries"):
        Table(["a", "b"], [["1", "2"], ["3"]])
