"""A folder of class folders: ``root/cat/1.jpg``, ``root/dog/2.png``."""

from pathlib import Path

import numpy as np

from fisherlayers.data.image_sets import ImageSet
from fisherlayers.data.images import IMAGE_SUFFIXES

_LAYOUT = "expected one folder a class, each with image files, such as cats/1.jpg and dogs/2.jpg"


def load_folder(root: str | Path, *, min_classes: int = 2) -> ImageSet:
    """List the images of a folder of class folders, without reading them.

    The class is the first folder's name; images may lie deeper. Hidden files and folders, and ``__MACOSX``, are
    passed over.

    Args:
        root: the folder that holds the class folders.
        min_classes: 2 to train, 1 to evaluate.

    Returns:
        The images sorted by class and path. Files that are no images are counted in its notes.

    Raises:
        ValueError: there is no such folder, it has no class folders, a class has no images, or classes are too few.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}: {_LAYOUT}")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and _visible(path))
    loose = sum(_is_image(path) for path in root.iterdir())
    if not folders:
        raise ValueError(f"{root} has no class folders ({_count(loose, 'image')} lie directly in it): {_LAYOUT}")

    members = {folder.name: _files(folder, frozenset({root.resolve()})) for folder in folders}
    images = {name: [path for path in files if _is_image(path)] for name, files in members.items()}
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise ValueError(
            f"{_listed(empty)} in {root} {'have' if len(empty) > 1 else 'has'} no images "
            f"(known endings: {' '.join(sorted(IMAGE_SUFFIXES))}): add some, or remove the folder"
        )
    if len(images) < min_classes:
        raise ValueError(
            f"{root} has {_count(len(images), 'class folder')} ({_listed(images)}): "
            f"a classifier needs at least {min_classes} classes, one folder each"
        )
    notes = []
    others = sum(len(files) for files in members.values()) - sum(len(paths) for paths in images.values())
    if others:
        notes.append(f"{_count(others, 'file')} in {root} passed over: no image ending")
    if loose:
        notes.append(f"{_count(loose, 'image')} passed over: directly in {root}, in no class folder")
    classes = list(images)
    labels = np.repeat(np.arange(len(classes)), [len(images[name]) for name in classes])
    return ImageSet([path for name in classes for path in images[name]], labels, classes, notes)


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"


def _is_image(path: Path) -> bool:
    return _visible(path) and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _files(folder: Path, above: frozenset[Path]) -> list[Path]:
    # A link to a folder above would go round for ever.
    above |= {folder.resolve()}
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if _visible(path) and not (path.is_dir() and path.resolve() in above):
            found += _files(path, above) if path.is_dir() else [path]
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(names: list[str] | dict[str, list[Path]]) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
