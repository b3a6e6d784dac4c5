"""The README's and the documentation's Python examples run as they stand."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from fisherlayers import reconstruct
from fisherlayers.natural_gradient.following import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_readme_names_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


def prose(page):
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page):
    """Return the names that GitHub gives to a page's headings."""
    headings = [heading.lower() for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_file_and_module_exists(page):
    text = prose(page)
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
    for path in re.findall(r"`((?:tests|benchmarks|docs|examples|src)/[\w/.]+\.\w+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path
    for module in re.findall(r"python -m (benchmarks\.[a-z]\w*)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module


def test_the_table_of_arguments_has_the_defaults_of_the_signature():
    page = (ROOT / "docs" / "natural_gradient.md").read_text()
    table = page.partition("## Arguments")[2].partition("## ")[0]
    stated = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", table, flags=re.MULTILINE))
    defaults = {name: parameter.default for name, parameter in inspect.signature(reconstruct).parameters.items()}
    defaults["output_damping"] = Settings._field_defaults["output_damping"]  # None stands for it
    assert len(stated) == 9
    for name, text in stated.items():
        assert ast.literal_eval(text.strip("`").replace("none", "None")) == defaults[name], name
