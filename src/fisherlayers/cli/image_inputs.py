"""Images named on the command line: a folder of class folders or a table, read once, with every bad file named."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from fisherlayers.cli.console import Stages
from fisherlayers.cli.errors import UserError
from fisherlayers.data import ImageReadError, ImageSet, load_folder, load_table, read_image
from fisherlayers.data.images import Pixels

MEMORY: Final = 2**30
"""Bytes of decoded images that are kept; further ones are read again whenever they are needed."""

PART: Final = 256
"""Images that are classified between two moves of the progress bar."""


class Reading(NamedTuple):
    """Which files are good.

    Attributes:
        images: pixels, or the path where `MEMORY` is used up.
        kept: positions of the good files, one an image.
        problems: one message for each bad file.
    """

    images: list[Pixels | Path]
    kept: list[int]
    problems: list[str]


class Labelled(NamedTuple):
    """Good images with their class names, and the classes that the source names."""

    images: list[Pixels | Path]
    names: NDArray[np.str_]
    classes: list[str]


def list_images(source: Path, *, min_classes: int) -> ImageSet:
    """Return the labelled files of a folder or a table, with its notes on the error stream."""
    tabular = source.is_file() or (source.suffix.lower() == ".csv" and not source.is_dir())
    images = (load_table if tabular else load_folder)(source, min_classes=min_classes)
    for note in images.notes:
        typer.echo(f"note: {note}", err=True)
    return images


def read_images(paths: Sequence[Path]) -> Reading:
    """Return every file's pixels, or its problem."""
    reading, used = Reading([], [], []), 0
    with Stages() as stages:
        for position, path in enumerate(paths):
            try:
                pixels = read_image(path)
            except ImageReadError as error:
                reading.problems.append(str(error))
            else:
                fits = used + pixels.nbytes <= MEMORY
                used += pixels.nbytes if fits else 0
                reading.images.append(pixels if fits else path)
                reading.kept.append(position)
            stages("reading images", position + 1, len(paths))
    return reading


def read_labelled(images: ImageSet, *, skip_unreadable: bool) -> Labelled:
    """Read the files of a set.

    Args:
        images: from `list_images`.
        skip_unreadable: report bad files and go on without them.

    Returns:
        The good ones.

    Raises:
        UserError: files are bad and not to be skipped, or none is left of a class.
    """
    reading = read_images(images.paths)
    if skip_unreadable:
        for problem in reading.problems:
            typer.echo(f"left out: {problem}", err=True)
    elif reading.problems:
        shown = reading.problems[:5]
        more = [f"and {len(reading.problems) - 5} more"] if len(reading.problems) > 5 else []
        remedy = "repair or remove them, or pass --skip-unreadable"
        raise UserError("\n  ".join([f"unreadable images: {len(reading.problems)}", *shown, *more, remedy]))
    names = images.names()[reading.kept]
    if missing := sorted(set(images.classes) - set(names.tolist())):
        raise UserError(f"no readable image is left of class {', '.join(missing)}: add some, or remove the class")
    return Labelled(reading.images, names, images.classes)


def by_parts(
    function: Callable[[list[Pixels | Path]], NDArray[Any]], images: list[Pixels | Path], *, prefix: str = ""
) -> NDArray[Any]:
    """Apply a classifier's method to a few images at a time, with a progress bar.

    Args:
        function: images -> one row each.
        images: at least one.
        prefix: of the bar's name.

    Returns:
        All rows.
    """
    rows = []
    with Stages(prefix) as stages:
        for start in range(0, len(images), PART):
            rows.append(function(images[start : start + PART]))
            stages("classifying", min(start + PART, len(images)), len(images))
    return np.concatenate(rows)
