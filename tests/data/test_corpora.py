"""Plain texts as numbers, on made-up files."""

import numpy as np
import pytest

from fisherlayers.data import (
    DataNotFoundError,
    load_penn_treebank,
    load_tiny_shakespeare,
    read_characters,
    read_words,
)


@pytest.fixture
def bank(tmp_path):
    folder = tmp_path / "ptb"
    folder.mkdir()
    for part, text in {"train": " the cat\n the <unk> sat \n", "valid": " a cat\n", "test": " sat\n"}.items():
        (folder / f"ptb.{part}.txt").write_text(text)
    return folder


def test_words_are_numbered_and_lines_ended(bank):
    corpus = load_penn_treebank(bank)
    assert corpus.vocabulary == ["<eos>", "<unk>", "cat", "sat", "the"]
    words = [[corpus.vocabulary[number] for number in part] for part in corpus[:3]]
    assert words == [
        ["the", "cat", "<eos>", "the", "<unk>", "sat", "<eos>"],
        ["<unk>", "cat", "<eos>"],
        ["sat", "<eos>"],
    ]
    assert corpus.train.dtype == np.int64


def test_the_bank_is_found_by_the_variable(bank, monkeypatch):
    monkeypatch.setenv("FISHERLAYERS_DATA", str(bank.parent))
    assert len(load_penn_treebank().train) == 7


def test_a_new_word_without_a_substitute_is_named(tmp_path):
    (tmp_path / "a").write_text("one two")
    (tmp_path / "b").write_text("one three")
    with pytest.raises(ValueError, match="b holds the word 'three', which the training text lacks"):
        read_words(tmp_path / "a", tmp_path / "b")
    assert len(read_words(tmp_path / "a", tmp_path / "a").test) == 0


def test_characters_are_split_in_order(tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_text("abcab cab\n")
    corpus = load_tiny_shakespeare(tmp_path)
    text = "".join(corpus.vocabulary[number] for number in np.concatenate([corpus.train, corpus.validation]))
    assert text == "abcab cab\n"
    assert len(corpus.train) == 9
    assert len(read_characters(tmp_path / "tinyshakespeare.txt", train_share=0.5).validation) == 5


def test_bad_texts_and_shares_are_refused(tmp_path):
    file = tmp_path / "t"
    file.write_text("x")
    with pytest.raises(ValueError, match="holds 1 characters"):
        read_characters(file)
    with pytest.raises(ValueError, match="train_share must be in"):
        read_characters(file, train_share=1.0)


def test_missing_texts_say_where_to_get_them(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"tiny-shakespeare is not on this machine .*char-rnn"):
        load_tiny_shakespeare(tmp_path)


def test_paths_may_be_text_and_other_encodings_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("one two\none")
    assert read_words(str(tmp_path / "a.txt"), str(tmp_path / "a.txt")).vocabulary == ["<eos>", "one", "two"]
    assert len(read_characters(str(tmp_path / "a.txt")).vocabulary) == 7
    (tmp_path / "b.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"b\.txt is no UTF-8 text"):
        read_characters(tmp_path / "b.txt")
