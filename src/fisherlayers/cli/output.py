"""The output place is tried before the work starts, so that no work is lost; and tables for people."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from fisherlayers.cli.errors import UserError
from fisherlayers.model_files import check_place

_PROBE: Final = b"\0" * 2**20
_FILE_WIDTH: Final = 1000  # columns of a table that goes to a file or a pipe: nothing is folded


def check_model_place(folder: Path, source: Path) -> None:
    """Refuse a place where a model cannot be saved, or would replace something that is no model.

    Args:
        folder: the model folder to be.
        source: the folder of images, or the table.

    Raises:
        UserError: it is a file, a folder with other contents or inside the images, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another name for the model")
    if source.is_dir() and source.resolve() in folder.resolve().parents:
        raise UserError(f"{folder} lies inside {source}, where every folder is a class: choose a place outside")
    try:
        check_place(folder)
    except FileExistsError as error:
        raise UserError(f"{error}, choose another name") from error
    check_writable(folder if folder.is_dir() else folder.absolute().parent)


def check_file(path: Path) -> None:
    """Refuse a file that could not be written at the end.

    Args:
        path: of the file; it need not exist yet.

    Raises:
        UserError: it is a folder, or cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: the name of a file is needed there")
    check_writable(path.absolute().parent)


def check_writable(folder: Path) -> None:
    """Write and remove a mebibyte in a folder, or where it would be made.

    Args:
        folder: where the output will be written; it need not exist yet.

    Raises:
        UserError: it is a file or cannot be written, or the disk is full.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: a folder is needed there")
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            if file.write(_PROBE) < len(_PROBE):
                file.write(_PROBE)  # after a short write, the next one says why
    except OSError as error:
        raise UserError(f"cannot write to {existing}: {error.strerror or error}") from error


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, numbers to the right.

    Args:
        columns: the headings.
        rows: one text a column in each row.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(table)
