"""Sets in the IDX format of MNIST: found on this machine, checked byte for byte, or downloaded on request.

Format: http://yann.lecun.com/exdb/mnist (two zero bytes, the type, the number of axes, the sizes, the values).
"""

import gzip
import hashlib
import io
import math
import os
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fisherlayers.data.image_sets import DataNotFoundError, TrainTest
from fisherlayers.files import write_file

DATA_VARIABLE: Final = "FISHERLAYERS_DATA"
_UNSIGNED_BYTES: Final = 8
_LARGEST_FILE: Final = 100_000_000
_MOST_AXES: Final = 64  # of NumPy's arrays


@dataclass(frozen=True)
class IdxSet:
    """Where a set of four IDX files is found, and how it is recognised.

    Attributes:
        name: as people write it.
        sha256: hash of the raw (not gzipped) bytes by file name, in the order train images, train labels,
            test images, test labels.
        folders: subfolders of a root that may hold the files.
        system_folders: absolute folders where a system's package puts them.
        mirrors: addresses of the folder of gzipped files.
        package_hint: how a package manager brings the set.
        download_command: what people type to download the set to their cache.
        classes: the class names.
    """

    name: str
    sha256: dict[str, str]
    folders: tuple[str, ...]
    system_folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    package_hint: str
    download_command: str
    classes: tuple[str, ...]

    def load(self, root: str | Path | None = None) -> TrainTest:
        """Read the set.

        Args:
            root: the only folder to search; None searches $FISHERLAYERS_DATA, the system's folders and the
                user's cache.

        Returns:
            uint8 images (n, height, width) and their labels. A damaged or foreign file is a ValueError.

        Raises:
            DataNotFoundError: the four files are nowhere; the message says how to get them.
        """
        folders = list(self._candidates(root))
        for folder in folders:
            files = [_find(folder, name) for name in self.sha256]
            if all(files):
                arrays = [self._read(file) for file in files if file]
                train_images, train_labels, test_images, test_labels = arrays
                return TrainTest(
                    train_images,
                    train_labels.astype(np.int64),
                    test_images,
                    test_labels.astype(np.int64),
                    [*self.classes],
                )
        raise DataNotFoundError(self._how_to_get(folders))

    def download(
        self, root: str | Path | None = None, *, progress: Callable[[str, int, int], None] | None = None
    ) -> Path:
        """Fetch the four files from the set's public mirrors; those already there and intact are kept.

        Args:
            root: the folder to fill; None is the user's cache.
            progress: called with the file's name, the files done and the number of files.

        Returns:
            The folder, to be given to `load`. Where no mirror sends the right bytes, it is an OSError.
        """
        folder = self._cache() if root is None else Path(root)
        folder.mkdir(parents=True, exist_ok=True)
        for done, name in enumerate(self.sha256):
            if progress:
                progress(name, done, len(self.sha256))
            if (file := _find(folder, name)) is None or not self._intact(file):
                self._fetch(folder, name)
        if progress:
            progress("", len(self.sha256), len(self.sha256))
        return folder

    def _candidates(self, root: str | Path | None) -> Iterator[Path]:
        if root is not None:
            roots = [Path(root)]
        else:
            roots = [Path(os.environ[DATA_VARIABLE])] if os.environ.get(DATA_VARIABLE) else []
            roots += [Path(folder) for folder in self.system_folders]
            roots.append(self._cache())
        for place in roots:
            yield place
            if str(place) not in self.system_folders and place != self._cache():
                yield from (place / folder for folder in self.folders)

    def _cache(self) -> Path:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "fisherlayers" / self.folders[0]

    def _read(self, file: Path) -> NDArray[np.uint8]:
        raw = _raw_bytes(file)
        if _sha256(raw) != self.sha256[file.name.removesuffix(".gz")]:
            raise ValueError(f"{file} is not {self.name}'s: its sha256 differs; remove it and fetch it again")
        return parse_idx(raw, source=str(file))

    def _intact(self, file: Path) -> bool:
        try:
            return _sha256(_raw_bytes(file)) == self.sha256[file.name.removesuffix(".gz")]
        except ValueError:
            return False

    def _fetch(self, folder: Path, name: str) -> None:
        refusals = []
        for mirror in self.mirrors:
            address = f"{mirror.rstrip('/')}/{name}.gz"
            try:
                with urllib.request.urlopen(address, timeout=30) as answer:
                    packed = answer.read(_LARGEST_FILE)
                intact = _sha256(_unpacked(packed)) == self.sha256[name]
            except (OSError, EOFError, zlib.error) as error:
                refusals.append(f"{address}: {error}")
                continue
            if intact:
                write_file(folder / f"{name}.gz", packed)
                (folder / name).unlink(missing_ok=True)  # a damaged raw copy would hide the good one
                return
            refusals.append(f"{address}: not the expected bytes (sha256)")
        raise OSError(f"{self.name} could not be downloaded: " + "; ".join(refusals))

    def _how_to_get(self, searched: list[Path]) -> str:
        ways = [
            self.package_hint,
            f"put its four files ({', '.join(self.sha256)}, gzipped or not) in a folder "
            f"and name that folder by the environment variable {DATA_VARIABLE}, or in Python by the argument root",
            f"download it once to your cache: {self.download_command}",
        ]
        listed = "".join(f"\n  {number}. {way}" for number, way in enumerate(ways, 1))
        places = ", ".join(str(place) for place in searched)
        return f"{self.name} is not on this machine (searched {places}). Get it in one of {len(ways)} ways:{listed}"


def parse_idx(raw: bytes, *, source: str) -> NDArray[np.uint8]:
    """Return the array that an IDX file of unsigned bytes holds.

    Args:
        raw: the file's bytes, not gzipped.
        source: what error messages call it.

    Returns:
        An array of the shape in the file's head.

    Raises:
        ValueError: the bytes are not such a file, or end early or late.
    """
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UNSIGNED_BYTES:
        raise ValueError(f"{source} is not an IDX file of unsigned bytes (it begins with {raw[:4].hex()!r})")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    if len(raw) != start + math.prod(shape) or len(shape) > _MOST_AXES:
        raise ValueError(f"{source} is damaged: {len(raw)} bytes do not hold an array of shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()  # to be written to


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _raw_bytes(file: Path) -> bytes:
    packed = file.read_bytes()
    if file.suffix != ".gz":
        return packed
    try:
        return _unpacked(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is damaged: {error}; remove it and fetch it again") from error


def _unpacked(packed: bytes) -> bytes:
    # What goes on longer is none of these files, and may fill the memory.
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        return file.read(_LARGEST_FILE)


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
