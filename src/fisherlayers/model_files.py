"""The files of a model folder, without what they hold: config.json and weights.safetensors.

A folder that exists stays the same folder, since it may be a mount point or somebody's working directory: its files are
replaced. config.json carries the checksum of its weights and is replaced first, which is the moment from which the new
model counts; until its weights have their name too, they are read under the one that they were written with. So one
of the two models is whole at any time, and a save that is killed leaves the former or the new one. Saves into the same
folder wait for each other.
"""

import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["CONFIG", "FORMAT", "WEIGHTS", "check_place", "staged_weights", "write_model_files"]

CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
FORMAT = "fisherlayers"
# Begins the names of files that are not in their place yet.
_STAGED = ".saving-"


def check_place(folder: str | os.PathLike[str], *, beside_others: bool = False) -> None:
    """Refuse a place that holds anything but a model of this library.

    Args:
        folder: Where a model is to be written.
        beside_others: Whether a folder of other files is such a place too, as long as none has the name of a model's.

    Raises:
        FileExistsError: If it exists, and is neither an empty folder nor such a model.
    """
    target = Path(folder)
    if not target.exists():
        return
    if target.is_dir():
        names = {path.name for path in target.iterdir() if not path.name.startswith(_STAGED)}
        if not (names & {CONFIG, WEIGHTS} if beside_others else names):
            return
    try:
        ours = json.loads((target / CONFIG).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise FileExistsError(f"{target} exists and is no model folder of fisherlayers: it will not be replaced")


def write_model_files(folder: Path, weights: bytes, config: bytes) -> None:
    """Write a model into a folder that exists; at any time the former model or this one is whole.

    Args:
        folder: Its other files stay; those that are replaced keep their modes.
        weights: Of weights.safetensors.
        config: Of config.json, with the checksum of the weights.
    """
    with _alone_in(folder):
        _replace_model_files(folder, weights, config)


def _replace_model_files(folder: Path, weights: bytes, config: bytes) -> None:
    mark = f"{_STAGED}{secrets.token_hex(4)}-"
    new_config, new_weights = folder / f"{mark}{CONFIG}", folder / f"{mark}{WEIGHTS}"
    try:
        _write(new_config, config, former=folder / CONFIG)
        _write(new_weights, weights, former=folder / WEIGHTS)
        new_config.replace(folder / CONFIG)
    finally:
        if new_config.exists():  # the new model does not count yet
            new_config.unlink()
            new_weights.unlink(missing_ok=True)
    new_weights.replace(folder / WEIGHTS)
    for path in folder.glob(f"{_STAGED}*"):  # of saves that were killed
        with suppress(OSError):
            path.unlink()


def staged_weights(folder: Path) -> Iterator[bytes]:
    """Read weights that have not got their name, because a save goes on or was killed; commonly there are none.

    They are to be read before those that have: a save may give them their name in between.

    Args:
        folder: Of a model.

    Yields:
        Contents of files.
    """
    for path in folder.glob(f"{_STAGED}*{WEIGHTS}"):
        with suppress(OSError):
            yield path.read_bytes()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    # Another save would take these files, which are not in their place yet, for those of one that was killed.
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of file systems that lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes, *, former: Path) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if former.exists():
        path.chmod(stat.S_IMODE(former.stat().st_mode))
