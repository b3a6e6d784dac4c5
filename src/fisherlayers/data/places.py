"""Where sets of several files are looked for: an argument, $FISHERLAYERS_DATA, the user's cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from fisherlayers.data.idx import DATA_VARIABLE
from fisherlayers.data.image_sets import DataNotFoundError


def find_files(
    name: str, files: Sequence[str], *, folders: Sequence[str], root: str | Path | None, source: str
) -> list[Path]:
    """Return the files of a set, all from the first folder that holds every one of them.

    Args:
        name: of the set, as people write it.
        files: the names to find.
        folders: subfolders of a root that may hold the files.
        root: the only place to search; None searches $FISHERLAYERS_DATA and the user's cache.
        source: where people get the set, for the error message.

    Returns:
        One path a name.

    Raises:
        DataNotFoundError: no folder holds them all; the message says how to get them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fisherlayers"
    if root is not None:
        roots = [Path(root)]
    else:
        roots = [*([Path(os.environ[DATA_VARIABLE])] if os.environ.get(DATA_VARIABLE) else []), cache]
    places = [place for base in roots for place in (base, *(base / folder for folder in folders))]
    for place in places:
        found = [place / file for file in files]
        if all(path.is_file() for path in found):
            return found
    searched = ", ".join(str(place) for place in places)
    raise DataNotFoundError(
        f"{name} is not on this machine (searched {searched}). Get {source}, put {', '.join(files)} in a folder, "
        f"and name that folder by the environment variable {DATA_VARIABLE}, or in Python by the argument root"
    )
