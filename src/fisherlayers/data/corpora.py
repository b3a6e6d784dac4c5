"""Plain text as numbers: words of the Penn Treebank, characters of tiny-shakespeare, or of any other file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fisherlayers.data.places import find_files

END_OF_LINE: Final = "<eos>"


class Corpus(NamedTuple):
    """A text split in order, as positions in its vocabulary.

    Attributes:
        train: (n,) int64.
        validation: (m,) int64.
        test: (k,) int64; empty where the text has no third part.
        vocabulary: the words or characters.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    vocabulary: list[str]


def load_penn_treebank(root: str | Path | None = None) -> Corpus:
    """Return the Penn Treebank in Mikolov's preparation: 929,589 words to train, a vocabulary of 10,000.

    Args:
        root: the only folder to search, it or its subfolder ptb; None searches $FISHERLAYERS_DATA and the user's cache.

    Returns:
        The words, each line ended by `END_OF_LINE`; the vocabulary is sorted, and is that of the training text.
    """
    files = find_files(
        "Penn Treebank",
        [f"ptb.{part}.txt" for part in ("train", "valid", "test")],
        folders=("ptb", "simple-examples/data"),
        root=root,
        source="simple-examples.tgz, Tomas Mikolov's language modelling examples",
    )
    return read_words(*files)


def read_words(train: str | Path, validation: str | Path, test: str | Path | None = None) -> Corpus:
    """Read text files word by word: separated by white space, each line ended by `END_OF_LINE`.

    Args:
        train: gives the vocabulary, sorted.
        validation: may hold only words of the vocabulary, or any if that has "<unk>".
        test: as `validation`.

    Returns:
        The numbered words.
    """
    paths = [Path(path) for path in (train, validation, *([test] if test else []))]
    parts = [_words(path) for path in paths]
    vocabulary = sorted(set(parts[0]))
    index = {word: number for number, word in enumerate(vocabulary)}
    arrays = [_numbers(part, index, path) for part, path in zip(parts, paths, strict=True)]
    return Corpus(arrays[0], arrays[1], arrays[2] if test else np.zeros(0, np.int64), vocabulary)


def _words(path: Path) -> list[str]:
    lines = _text(path).splitlines()
    return [word for line in lines for word in (*line.split(), END_OF_LINE)]


def load_tiny_shakespeare(root: str | Path | None = None) -> Corpus:
    """Return Karpathy's tiny-shakespeare, 1,115,394 characters: the first 90 % to train, the rest to validate.

    Args:
        root: the only folder to search for tinyshakespeare.txt; None searches $FISHERLAYERS_DATA and the user's cache.

    Returns:
        The characters.
    """
    (file,) = find_files(
        "tiny-shakespeare",
        ["tinyshakespeare.txt"],
        folders=("tinyshakespeare", "tiny-shakespeare"),
        root=root,
        source="data/tinyshakespeare/input.txt of https://github.com/karpathy/char-rnn under that name",
    )
    return read_characters(file)


def read_characters(file: str | Path, *, train_share: float = 0.9) -> Corpus:
    """Read a text file character by character.

    Args:
        file: UTF-8 text.
        train_share: of the text that is the training part, from its beginning; in (0, 1).

    Returns:
        The numbered characters; the vocabulary is sorted and of the whole text.

    Raises:
        ValueError: the share is out of range, or the text is shorter than two characters.
    """
    if not 0 < train_share < 1:
        raise ValueError(f"train_share must be in (0, 1); got {train_share}")
    file = Path(file)
    text = _text(file)
    if len(text) < 2:
        raise ValueError(f"{file} holds {len(text)} characters: expected a text that can be split")
    vocabulary = sorted(set(text))
    numbers = _numbers(text, {character: number for number, character in enumerate(vocabulary)}, file)
    cut = min(max(1, round(train_share * len(text))), len(text) - 1)
    return Corpus(numbers[:cut], numbers[cut:], np.zeros(0, np.int64), vocabulary)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error


def _numbers(tokens: Iterable[str], index: dict[str, int], path: Path) -> NDArray[np.int64]:
    unknown = index.get("<unk>")
    try:
        return np.array([index[token] if unknown is None else index.get(token, unknown) for token in tokens], np.int64)
    except KeyError as error:
        raise ValueError(f"{path} holds the word {error.args[0]!r}, which the training text lacks") from error
