"""Published data sets: what their readers make of files whose every byte is known."""

from __future__ import annotations

import gzip
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from fcs_utils.data import readers
from fcs_utils.data.arrays import Arrays, download
from fcs_utils.data.readers import FASHION_FILES, check_source, read_arrays, read_idx
from fcs_utils.errors import StudyError
from tests.conftest import ROOT


def idx(values: np.ndarray) -> bytes:
    """LeCun's format: two zeros, 8 for unsigned bytes, the number of dimensions, each of them in four bytes, the values."""
    return (
        bytes([0, 0, 8, values.ndim])
        + b"".join(size.to_bytes(4, "big") for size in values.shape)
        + values.astype(np.uint8).tobytes()
    )


def test_idx_files_have_any_shape(tmp_path: Path) -> None:
    for shape in [(5,), (2, 3), (2, 300, 1), (0, 2**24 + 2), (2**24, 0)]:  # 300 takes two of the four bytes, 2**24 all
        values = (np.arange(math.prod(shape)) % 251).reshape(shape)
        (tmp_path / "plain").write_bytes(idx(values))
        (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(values)))
        for name in ("plain", "packed.gz"):
            found = read_idx(tmp_path / name)
            assert found.dtype == np.uint8 and found.shape == shape and (found == values).all()


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x09\x01\0\0\0\x01a", b"\0\x01\x08\x01\0\0\0\x01a", b"\0\0\x08\x01\0\0\0\x01ab"]
)
def test_what_is_no_idx_file_of_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(StudyError, match=re.escape(str(tmp_path / "odd"))):
        read_idx(tmp_path / "odd")


def test_all_four_bytes_of_a_size_count(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (1, 2**24 + 2, 2**16 + 2))
    (tmp_path / "odd").write_bytes(header + bytes(4))  # as many as 1 x 2 x 2 have
    with pytest.raises(StudyError, match="odd is truncated: 4 bytes of"):
        read_idx(tmp_path / "odd")


def test_an_idx_file_without_dimensions_lacks_its_one_number(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"\0\0\x08\0a")
    assert read_idx(tmp_path / "one") == ord("a")
    (tmp_path / "none").write_bytes(b"\0\0\x08\0")
    with pytest.raises(StudyError, match="none is truncated: 0 bytes of 1"):
        read_idx(tmp_path / "none")


def test_an_idx_file_that_unpacks_to_more_than_is_allowed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = idx(np.zeros(92))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(readers, "LARGEST_IDX", len(content))  # 100 bytes, which are just allowed
    assert len(read_idx(tmp_path / "packed.gz")) == 92
    monkeypatch.setattr(readers, "LARGEST_IDX", len(content) - 1)
    with pytest.raises(StudyError, match="unpacks to more than 99 bytes"):
        read_idx(tmp_path / "packed.gz")


def test_an_idx_file_of_more_than_a_gibibyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**30 + 1)  # which takes no place on the disk
    with pytest.raises(StudyError, match="large has 1,073,741,825 bytes"):
        read_idx(tmp_path / "large")


def fashion(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Two training images and one test image, which is the first of them."""
    folder.mkdir(parents=True)
    for name, values in zip(FASHION_FILES, (images, labels, images[:1], labels[:1]), strict=True):
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
    return folder


IMAGES = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 255 + 1  # no zero


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "fashion-mnist", "."])
def test_fashion_mnist_gets_a_border_of_two_pixels(tmp_path: Path, place: str) -> None:
    fashion(tmp_path / "data" / place, IMAGES, np.array([9, 0]))
    found = read_arrays("fashion_mnist", tmp_path / "data")
    assert found.train_images.shape == (2, 1, 32, 32) and found.test_images.shape == (1, 1, 32, 32)
    assert (found.train_images[:, 0, 2:30, 2:30] == IMAGES).all() and (found.test_images[0] == found.train_images[0]).all()
    assert (found.train_images != 0).sum() == 2 * 28 * 28  # all else is black
    assert found.train_labels.tolist() == [9, 0] and found.test_labels.tolist() == [9]
    assert found.train_labels.dtype == found.test_labels.dtype == np.int64
    assert (found.title, found.flip, len(found.classes)) == ("Fashion-MNIST", True, 10)


def test_a_folder_that_lacks_a_file_of_fashion_mnist_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion(tmp_path / "fashion-mnist", IMAGES, np.array([9, 0]))
    fashion(tmp_path / "FashionMNIST" / "raw", IMAGES[::-1], np.array([3, 4]))
    (tmp_path / "FashionMNIST" / "raw" / f"{FASHION_FILES[2]}.gz").unlink()
    assert read_arrays("fashion_mnist", tmp_path).train_labels.tolist() == [9, 0]
    (tmp_path / "fashion-mnist" / f"{FASHION_FILES[3]}.gz").unlink()
    monkeypatch.setattr(readers, "DEBIAN_FASHION", tmp_path / "no")
    asked = []
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", lambda *given, **more: asked.append((given, more)))
    with pytest.raises(StudyError, match="fashion_mnist: torchvision's download left no IDX files in .*raw"):
        read_arrays("fashion_mnist", tmp_path)
    assert asked == [((str(tmp_path),), {"download": True})]


@pytest.mark.parametrize(
    ("images", "labels", "file"),
    [
        (IMAGES[:, :27], np.array([9, 0]), FASHION_FILES[0]),
        (IMAGES, np.array([9]), FASHION_FILES[0]),
        (IMAGES, np.array([10, 0]), FASHION_FILES[0]),
    ],
    ids=["27 rows", "a label too few", "an eleventh class"],
)
def test_files_that_are_not_fashion_mnists_are_named(tmp_path: Path, images: np.ndarray, labels: np.ndarray, file: str) -> None:
    fashion(tmp_path / "data", images, labels)
    with pytest.raises(StudyError, match=f"{file}.gz and its labels are not Fashion-MNIST's"):
        read_arrays("fashion_mnist", tmp_path / "data")


@pytest.mark.parametrize(("number", "values"), [(2, IMAGES[:, :27]), (3, np.array([10]))], ids=["27 rows", "an eleventh class"])
def test_test_files_that_are_not_fashion_mnists_are_named(tmp_path: Path, number: int, values: np.ndarray) -> None:
    folder = fashion(tmp_path / "data", IMAGES, np.array([9, 0]))
    (folder / f"{FASHION_FILES[number]}.gz").write_bytes(gzip.compress(idx(values)))
    with pytest.raises(StudyError, match=f"{FASHION_FILES[2]}.gz and its labels are not Fashion-MNIST's"):
        read_arrays("fashion_mnist", folder)


def test_digits_are_stretched_to_bytes_and_to_32_pixels() -> None:
    found = read_arrays("digits", Path("nowhere"))
    assert found.train_images.shape == (1297, 1, 32, 32) and found.test_images.shape == (500, 1, 32, 32)
    assert found.train_images.dtype == np.uint8 and found.train_images.max() == 255 and found.train_images.min() == 0
    small = np.round(load_digits().images * (255 / 16))  # 0 to 16 become 0 to 255
    # Enlarged by four, each corner pixel is the corner of the small image; all small images are found again.
    corners = found.train_images[:, 0, [0, 0, 31, 31], [0, 31, 0, 31]]
    assert {tuple(row) for row in corners.tolist()} <= {tuple(row) for row in small[:, [0, 0, 7, 7], [0, 7, 0, 7]].tolist()}
    # A tenth of each class, give or take one: 500 of 1,797.
    shares = np.bincount(found.test_labels) - np.bincount(load_digits().target) * 500 / 1797
    assert np.abs(shares).max() < 1 and found.classes == tuple("0123456789") and not found.flip


def test_names_of_image_folders_may_give_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    arrays = dict.fromkeys(("train_images", "train_labels", "test_images", "test_labels"))
    monkeypatch.setattr(readers, "read_image_folder", lambda *given: asked.append(given) or (arrays, ["a"]))
    for name in ("imagefolder:pets", "imagefolder:pets@64", "imagefolder:my.cats_2"):
        assert read_arrays(name, tmp_path).flip
    assert asked == [(tmp_path, "pets", 32), (tmp_path, "pets", 64), (tmp_path, "my.cats_2", 32)]
    for size in (8, 1024):
        assert read_arrays(f"imagefolder:pets@{size}", tmp_path) and asked.pop()[2] == size
    for size in (0, 7, 1025):
        with pytest.raises(StudyError, match="SIZE from 8 to 1024"):
            read_arrays(f"imagefolder:pets@{size}", tmp_path)
    assert len(asked) == 3 and read_arrays("imagefolder:pets@64", tmp_path).title == "pets"
    for bad in ("imagefolder:", "imagefolder:..", "imagefolder:a/b", "imagefolder:a@", "imagefolder:a@b"):
        with pytest.raises(StudyError, match="dataset="):
            read_arrays(bad, tmp_path)


def test_a_download_makes_the_folder_that_it_needs(tmp_path: Path) -> None:
    places = [tmp_path / "new" / "folder" / "batches", tmp_path / "images"]
    found = []
    download(lambda: found.append(places[0].parent.is_dir()), "some", places, "ask a friend")
    download(lambda: found.append(not places[0].exists()), "some", places, "ask a friend")  # the folder is there already
    assert found == [True, True] and not places[1].exists()
    (tmp_path / "file").touch()
    with pytest.raises(
        StudyError, match=r"^data set 'some' not found. Looked in: .*batches\. .*NotADirectoryError.*; ask a friend$"
    ):
        download(lambda: found.append(False), "some", [tmp_path / "file" / "more" / "batches"], "ask a friend")
    assert found == [True, True]


def test_the_worked_example_of_a_data_set_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    names = {"Path": Path, "Arrays": Arrays, "np": np, "download": download}
    exec(re.search(r"```python\n(def _kmnist.*?)```", page, re.DOTALL)[1], names)  # noqa: S102 - our own page
    monkeypatch.setitem(readers.READERS, "kmnist", names["_kmnist"])

    def unreachable(folder: str, train: bool, download: bool) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:")

    monkeypatch.setattr(torchvision.datasets, "KMNIST", unreachable)
    with pytest.raises(StudyError, match="data set 'kmnist' not found. Looked in: .*raw. .*copy its four files there$"):
        read_arrays("kmnist", tmp_path)
    split = SimpleNamespace(classes=["o", "ki"], data=torch.from_numpy(IMAGES), targets=torch.tensor([1, 0]))
    monkeypatch.setattr(torchvision.datasets, "KMNIST", lambda folder, train, download: split)
    found = read_arrays("kmnist", tmp_path)
    assert found.train_images.shape == (2, 1, 32, 32) and found.test_labels.tolist() == [1, 0] and found.classes == ("o", "ki")


@pytest.mark.parametrize(
    "name",
    [*(f"imagefolder:{name}" for name in ("", "..", "a/b", "a@4", "x" * 201, "ß" * 101)), "cifar"],
)
def test_a_source_is_checked_without_its_data(name: str) -> None:
    with pytest.raises(StudyError, match="dataset="):
        check_source(name)
    check_source("imagefolder:" + "x" * 200)
    check_source("imagefolder:" + "ß" * 100)  # of two bytes each
    check_source("cifar10")
    with pytest.raises(StudyError, match="allowed: digits, fashion_mnist, cifar10, cifar100, imagefolder:NAME"):
        read_arrays("cifar", Path("nowhere"))
