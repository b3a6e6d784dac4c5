"""Files are written all or nothing."""

import os

import pytest

from fisherlayers.files import write_file


def test_a_write_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "report" / "index.html"
    write_file(path, "one")
    write_file(path, "two é")
    assert path.read_bytes() == "two é".encode()
    write_file(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "index.html"
    write_file(path, "old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]


def test_a_link_stays_one_and_a_file_keeps_its_mode(tmp_path):
    real, link = tmp_path / "real" / "page.html", tmp_path / "page.html"
    write_file(real, "one")
    real.chmod(0o640)
    link.symlink_to(real)
    write_file(link, "two")
    assert link.is_symlink()
    assert real.read_text() == "two"
    assert real.stat().st_mode & 0o777 == 0o640


def test_what_is_no_regular_file_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", "page")
    assert os.read(reader, 10) == b"page"
    os.close(reader)
