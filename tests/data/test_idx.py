"""IDX sets: parsing against a slow reader, the places searched, the check of the bytes, the download from a mirror."""

import gzip
import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fisherlayers.data import FASHION_MNIST, MNIST, load_fashion_mnist, load_mnist
from fisherlayers.data.idx import IdxSet, parse_idx
from fisherlayers.data.image_sets import DataNotFoundError

ARRAYS = {
    "train-images": np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
    "train-labels": np.array([0, 1, 1, 0], np.uint8),
    "test-images": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    "test-labels": np.array([1, 0], np.uint8),
}


def to_idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FISHERLAYERS_DATA", raising=False)
    (tmp_path / "mirror").mkdir()
    for name, array in ARRAYS.items():
        (tmp_path / "mirror" / f"{name}.gz").write_bytes(gzip.compress(to_idx(array)))
    return IdxSet(
        name="Tiny-Set",
        sha256={name: hashlib.sha256(to_idx(array)).hexdigest() for name, array in ARRAYS.items()},
        folders=("tiny", "Tiny/raw"),
        system_folders=(str(tmp_path / "system"),),
        mirrors=((tmp_path / "absent").as_uri(), (tmp_path / "mirror").as_uri()),
        package_hint="on Debian: apt-get install tiny",
        download_command="tiny.download()",
        classes=("a", "b"),
    )


def put(folder, *, packed=False):
    folder.mkdir(parents=True)
    for name, array in ARRAYS.items():
        raw = to_idx(array)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(raw) if packed else raw)


def assert_tiny(data):
    np.testing.assert_array_equal(data.train_images, ARRAYS["train-images"])
    np.testing.assert_array_equal(data.train_labels, ARRAYS["train-labels"])
    np.testing.assert_array_equal(data.test_images, ARRAYS["test-images"])
    np.testing.assert_array_equal(data.test_labels, ARRAYS["test-labels"])
    assert data.train_labels.dtype == np.int64
    assert data.classes == ["a", "b"]


@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=5)))
def test_parse_is_the_inverse_of_the_format(array):
    np.testing.assert_array_equal(parse_idx(to_idx(array), source="x"), array)


@given(st.integers(0, 15))
def test_a_file_that_ends_early_is_refused(length):
    with pytest.raises(ValueError, match=r"x is (damaged|not an IDX file)"):
        parse_idx(to_idx(ARRAYS["train-labels"])[: min(length, 11)], source="x")


@pytest.mark.parametrize(
    "sizes",
    [[2**32 - 1] * 3, [2**16] * 4, [2**31, 2**31, 4, 1], [1] * 255],  # the second and the third are 2^64
)
def test_heads_that_lie_are_refused(sizes):
    head = b"\0\0\x08" + bytes([len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    for rest in (b"", b"1"):
        with pytest.raises(ValueError, match=r"x is damaged: .* do not hold an array of shape"):
            parse_idx(head + rest, source="x")


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_fills_the_memory(tiny, tmp_path, monkeypatch):
    put(tmp_path / "root", packed=True)
    monkeypatch.setattr("fisherlayers.data.idx._LARGEST_FILE", 5000)
    assert_tiny(tiny.load(tmp_path / "root"))
    (tmp_path / "root/train-images.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"train-images\.gz is not Tiny-Set's: its sha256 differs"):
        tiny.load(tmp_path / "root")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_file_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"x is not an IDX file of unsigned bytes \(it begins with '00000d01'\)"):
        parse_idx(b"\0\0\x0d\x01" + b"\0" * 8, source="x")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["root", "root/tiny", "root/Tiny/raw"])
def test_root_and_its_usual_subfolders(tiny, tmp_path, place, packed):
    put(tmp_path / place, packed=packed)
    assert_tiny(tiny.load(tmp_path / "root"))


@pytest.mark.parametrize("place", ["data/tiny", "system", "cache/fisherlayers/tiny"])
def test_places_searched_without_a_root(tiny, tmp_path, monkeypatch, place):
    monkeypatch.setenv("FISHERLAYERS_DATA", str(tmp_path / "data"))
    put(tmp_path / place)
    assert_tiny(tiny.load())


def test_a_root_is_the_only_place_searched(tiny, tmp_path):
    put(tmp_path / "system")
    with pytest.raises(DataNotFoundError, match=r"searched .*elsewhere"):
        tiny.load(tmp_path / "elsewhere")


def test_absent_set_states_the_three_ways(tiny):
    with pytest.raises(DataNotFoundError) as caught:
        tiny.load()
    message = str(caught.value)
    for part in (
        "Tiny-Set is not on this machine",
        "in one of 3 ways",
        "apt-get install tiny",
        "FISHERLAYERS_DATA",
        "tiny.download()",
    ):
        assert part in message


def test_three_of_four_files_are_not_a_set(tiny, tmp_path):
    put(tmp_path / "root")
    (tmp_path / "root/test-labels").unlink()
    with pytest.raises(DataNotFoundError):
        tiny.load(tmp_path / "root")


def test_other_bytes_are_refused(tiny, tmp_path):
    put(tmp_path / "root")
    (tmp_path / "root/test-labels").write_bytes(to_idx(np.array([1, 1], np.uint8)))
    with pytest.raises(ValueError, match=r"test-labels is not Tiny-Set's: its sha256 differs"):
        tiny.load(tmp_path / "root")


def test_damaged_gzip_is_refused(tiny, tmp_path):
    put(tmp_path / "root", packed=True)
    whole = (tmp_path / "root/train-images.gz").read_bytes()
    (tmp_path / "root/train-images.gz").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"train-images\.gz is damaged"):
        tiny.load(tmp_path / "root")


def test_download_goes_to_the_next_mirror_and_fills_the_cache(tiny, tmp_path):
    steps = []
    folder = tiny.download(progress=lambda *step: steps.append(step))
    assert folder == tmp_path / "cache/fisherlayers/tiny"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in ARRAYS)
    assert steps == [(name, done, 4) for done, name in enumerate([*ARRAYS, ""])]
    assert_tiny(tiny.load())


def test_download_repairs_what_is_damaged_and_keeps_the_rest(tiny, tmp_path):
    put(tmp_path / "root")
    (tmp_path / "root/test-labels").write_bytes(b"broken")
    before = (tmp_path / "root/train-images").stat().st_mtime_ns
    assert_tiny(tiny.load(tiny.download(tmp_path / "root")))
    assert (tmp_path / "root/train-images").stat().st_mtime_ns == before


def test_download_refuses_other_bytes_and_leaves_nothing(tiny, tmp_path):
    (tmp_path / "mirror/train-images.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(OSError, match=r"Tiny-Set could not be downloaded: .*absent.*not the expected bytes \(sha256\)"):
        tiny.download(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_interrupted_write_leaves_nothing(tiny, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        tiny.download(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize(
    ("known", "load", "name"),
    [(FASHION_MNIST, load_fashion_mnist, "Fashion-MNIST"), (MNIST, load_mnist, "MNIST")],
)
def test_the_standard_sets(known, load, name, tmp_path):
    assert len(known.classes) == 10
    assert all(len(bytes.fromhex(digest)) == 32 for digest in known.sha256.values())
    with pytest.raises(DataNotFoundError, match=f"{name} is not on this machine .* in one of 3 ways"):
        load(tmp_path)
