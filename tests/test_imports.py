"""Imports run one way only: accumulate -> invert -> apply -> the halves -> data, report, race, demo -> the command."""

import ast
from pathlib import Path

import pytest

import fisherlayers

ROOT = Path(fisherlayers.__file__).parent

# What each part may import from the package, besides itself.
CORE = {"precision", "gram", "information", "inverse_root", "root", "layer"}
ALLOWED = {
    "precision": set(),
    "gram": set(),
    "information": {"precision", "gram"},
    "inverse_root": {"precision"},
    "files": set(),
    "model_files": set(),
    "root": {"inverse_root"},
    "layer": {"information", "inverse_root", "root"},
    "natural_gradient": CORE,
    "fisher_vectors": CORE | {"data", "files", "model_files"},
    "data": {"files"},
    "report": set(),
    "race": CORE | {"natural_gradient", "data", "report", "files"},
    "demo": CORE | {"natural_gradient", "fisher_vectors", "data", "race", "report", "files"},
    "cli": CORE | {"natural_gradient", "fisher_vectors", "data", "race", "report", "demo", "files", "model_files"},
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_parts(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fisherlayers":
            names = [node.module] if "." in node.module else [f"fisherlayers.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "fisherlayers"]
        else:
            continue
        for name in names:
            yield ([*name.split("."), ""])[1]


FILES = [path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in ALLOWED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    part = part_of(path)
    # A command may read the version from the package itself; everything else imports the module that defines a name.
    allowed = ALLOWED[part] | {part} | ({"__version__"} if part == "cli" else set())
    assert set(imported_parts(path)) <= allowed


def test_every_part_has_a_rule():
    parts = {
        path.stem for path in ROOT.iterdir() if path.name[0] not in "_." and (path.is_dir() or path.suffix == ".py")
    }
    assert parts == set(ALLOWED)
