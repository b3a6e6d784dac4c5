"""CSV tables: headings, relative paths, and errors that name the line."""

import numpy as np
import pytest

from fisherlayers.data.tables import load_table


@pytest.fixture
def write(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "c, d.png"):
        (tmp_path / "images" / name).touch()

    def write(text, encoding="utf-8"):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        return tmp_path / "t.csv"

    return write


@pytest.mark.parametrize("heading", ["", "path,label\n", "Filename, class\n", "\ufeffpath,label\r\n"])
def test_heading_is_optional(write, tmp_path, heading):
    images = load_table(write(heading + "images/b.png,zebra\nimages/a.png, ant\n\n"))
    assert images.paths == [tmp_path / "images/b.png", tmp_path / "images/a.png"]
    assert images.classes == ["ant", "zebra"]
    np.testing.assert_array_equal(images.labels, [1, 0])


def test_absolute_paths_and_quoted_names(write, tmp_path):
    images = load_table(write(f'{tmp_path}/images/a.png,1\n"images/c, d.png",2\n'))
    assert images.paths == [tmp_path / "images/a.png", tmp_path / "images/c, d.png"]


def test_repeated_rows_count_once(write):
    images = load_table(write("images/a.png,1\nimages/b.png,2\nimages/a.png,1\n"))
    assert len(images) == 2
    assert images.notes[0].startswith("1 repeated rows of")


def test_two_labels_for_one_file(write):
    with pytest.raises(ValueError, match=r"images/a\.png is '1' in line 1 but '2' in line 3"):
        load_table(write("images/a.png,1\nimages/b.png,2\nimages/a.png,2\n"))


def test_missing_file_names_the_line(write):
    with pytest.raises(ValueError, match=r"t\.csv, line 3: there is no file .*none\.png \(relative paths start at"):
        load_table(write("path,label\nimages/a.png,1\nnone.png,2\n"))


@pytest.mark.parametrize("label", ["", "nan", "NaN", "null"])
def test_missing_label_names_the_line(write, label):
    with pytest.raises(ValueError, match=r"line 2: the label of images/b\.png is missing"):
        load_table(write(f"images/a.png,1\nimages/b.png,{label}\n"))


@pytest.mark.parametrize("row", ["images/a.png", "images/a.png,1,2"])
def test_wrong_number_of_columns(write, row):
    with pytest.raises(ValueError, match=r"line 2: expected two columns with a comma between, path,label; got [13]"):
        load_table(write(f"images/b.png,1\n{row}\n"))


@pytest.mark.parametrize("text", ["", "path,label\n", "\n\n"])
def test_empty_table(write, text):
    with pytest.raises(ValueError, match=r"t\.csv is empty: expected rows such as"):
        load_table(write(text))


def test_single_class(write):
    path = write("images/a.png,1\nimages/b.png,1\n")
    with pytest.raises(ValueError, match=r"has 2 images of 1 class \(1\)"):
        load_table(path)
    assert len(load_table(path, min_classes=1)) == 2


def test_not_utf8(write):
    with pytest.raises(ValueError, match=r"is not a CSV file in UTF-8"):
        load_table(write("images/a.png,Käfer\n", encoding="latin-1"))


def test_missing_table(tmp_path):
    with pytest.raises(ValueError, match=r"there is no table .*none\.csv"):
        load_table(tmp_path / "none.csv")


def test_columns_may_be_swapped_under_a_heading_that_says_so(write, tmp_path):
    images = load_table(write("Label,path\nzebra,images/b.png\nant,images/a.png\n"))
    assert images.paths == [tmp_path / "images/b.png", tmp_path / "images/a.png"]
    assert images.classes == ["ant", "zebra"]


def test_swapped_columns_and_unknown_headings_are_recognised(write):
    with pytest.raises(ValueError, match=r"line 1: .*there is images/b.png: the first column must be the path"):
        load_table(write("zebra,images/b.png\nant,images/a.png\n"))
    with pytest.raises(ValueError, match=r"line 1: .*a heading must be path,label"):
        load_table(write("Where,What\nimages/b.png,zebra\nimages/a.png,ant\n"))
    with pytest.raises(ValueError, match="line 1: expected two columns with a comma between"):
        load_table(write("images/b.png;zebra\nimages/a.png;ant\n"))


def test_names_that_are_too_long_and_folders_are_no_files(write, tmp_path):
    with pytest.raises(ValueError, match=r"t\.csv, line 1: there is no file .*xxx"):
        load_table(write("x" * 5000 + ",cat\n"))
    with pytest.raises(ValueError, match=r"cannot read the table .*: Is a directory"):
        load_table(tmp_path)
