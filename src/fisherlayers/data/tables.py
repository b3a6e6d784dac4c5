"""A CSV table of two columns, ``path,label``."""

import csv
from pathlib import Path

import numpy as np

from fisherlayers.data.image_sets import ImageSet

_PATH_HEADINGS = {"path", "file", "filename", "file_name", "image", "image_path"}
_MISSING = {"", "nan", "none", "null", "na", "n/a"}


def load_table(table: str | Path, *, min_classes: int = 2) -> ImageSet:
    """List the images of a CSV table, without reading them.

    The first row may be a heading (``path,label``, or ``label,path`` for columns in that order). Relative paths start
    at the table's folder.

    Args:
        table: the file, UTF-8, separated by commas.
        min_classes: 2 to train, 1 to evaluate.

    Returns:
        The images in the order of the table. A file listed twice with one label counts once; the notes say so.

    Raises:
        ValueError: names the line: a row without two columns, a missing file or label, a file with two labels;
            or the table is missing or empty, not UTF-8, or has too few classes.
    """
    table = Path(table)
    rows = _rows(table)
    first_seen: dict[Path, tuple[str, int]] = {}
    repeated = 0
    for line, name, label in rows:
        path = table.parent / name
        if not _is_file(path):
            hint = f"relative paths start at {table.parent}"
            if _is_file(table.parent / label):
                hint = f"but there is {label}: the first column must be the path, the second the label"
            elif line == rows[0][0]:
                hint += "; a heading must be path,label"
            raise ValueError(f"{table}, line {line}: there is no file {path} ({hint})")
        if label.lower() in _MISSING:
            raise ValueError(f"{table}, line {line}: the label of {name} is missing (got {label!r})")
        known, known_line = first_seen.setdefault(path, (label, line))
        if known != label:
            raise ValueError(
                f"{table}: {name} is {known!r} in line {known_line} but {label!r} in line {line}: keep one"
            )
        repeated += known_line != line
    names = [label for label, _ in first_seen.values()]
    classes = sorted(set(names))
    if len(classes) < min_classes:
        raise ValueError(
            f"{table} has {len(first_seen)} images of {len(classes)} class ({', '.join(classes)}): "
            f"a classifier needs at least {min_classes} classes"
        )
    notes = [f"{repeated} repeated rows of {table} counted once"] if repeated else []
    return ImageSet(list(first_seen), np.searchsorted(classes, names), classes, notes)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that is closed to us
        return False


def _rows(table: Path) -> list[tuple[int, str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except FileNotFoundError as error:
        raise ValueError(f"there is no table {table}: expected a CSV file with the columns path,label") from error
    except OSError as error:
        raise ValueError(f"cannot read the table {table}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is not a CSV file in UTF-8: {error}") from error
    heading = [cell.lower() for cell in rows[0][1]] if rows else []
    label_first = len(heading) == 2 and heading[0] not in _PATH_HEADINGS and heading[1] in _PATH_HEADINGS
    if label_first or (heading and heading[0] in _PATH_HEADINGS):
        del rows[0]
    if not rows:
        raise ValueError(f"{table} is empty: expected rows such as images/1.jpg,cat")
    for line, cells in rows:
        if len(cells) != 2:
            raise ValueError(
                f"{table}, line {line}: expected two columns with a comma between, path,label; "
                f"got {len(cells)}: {cells}"
            )
    in_order = [(line, cells[::-1] if label_first else cells) for line, cells in rows]
    return [(line, name, label) for line, (name, label) in in_order]
