"""CIFAR-10 and CIFAR-100: torchvision's files and images in folders and archives come to the same tensors."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from fcs_utils.data import cifar
from fcs_utils.data.arrays import Arrays
from fcs_utils.data.cifar import identity
from fcs_utils.data.dataset import load_dataset
from fcs_utils.data.readers import read_arrays
from fcs_utils.errors import StudyError
from fcs_utils.study.study import Study
from tests.data.pictures import saved

CLASSES = ("airplane", "bird", "cat")
GENERATOR = np.random.default_rng(0)
PARTS = {
    "train": GENERATOR.integers(0, 256, (60, 32, 32, 3), np.uint8),
    "test": GENERATOR.integers(0, 256, (9, 32, 32, 3), np.uint8),
}
LABELS = {"train": np.arange(60) % 3, "test": np.arange(9) // 3}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()  # torchvision's check


def torchvisions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files as torchvision unpacks them, in this order of images, with their checksums in place of CIFAR-10's."""
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    sums = {}
    for name, part in (("data_batch_1", "train"), ("test_batch", "test")):
        flat = PARTS[part].transpose(0, 3, 1, 2).reshape(len(PARTS[part]), -1)
        (place / name).write_bytes(pickle.dumps({"data": flat, "labels": LABELS[part].tolist()}))
        sums[part] = [[name, md5(place / name)]]
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    reader = torchvision.datasets.CIFAR10
    monkeypatch.setattr(reader, "train_list", sums["train"])
    monkeypatch.setattr(reader, "test_list", sums["test"])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5(place / "batches.meta")})
    return folder


def images(folder: Path, name: str = "cifar10") -> Path:
    """The same images as files, with names in another order."""
    for part, pixels in PARTS.items():
        for number, (image, label) in enumerate(zip(pixels, LABELS[part], strict=True)):
            file = folder / name / part / CLASSES[label] / f"{977 * number % 1000:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(saved(Image.fromarray(image)))
    return folder


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> str:
    """The checksum of this small data set, worked out here from its definition, in place of CIFAR-10's."""
    lines = [
        f"{hashlib.sha256(image.tobytes()).hexdigest()} {part} {CLASSES[label]}"
        for part, pixels in PARTS.items()
        for image, label in zip(pixels, LABELS[part], strict=True)
    ]
    known = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    monkeypatch.setitem(cifar.IDENTITIES, "cifar10", known)
    return known


def same(one: Arrays, other: Arrays) -> bool:
    arrays = ("train_images", "train_labels", "test_images", "test_labels")
    return one.classes == other.classes and all((getattr(one, a) == getattr(other, a)).all() for a in arrays)


def test_files_folder_and_archive_give_the_same_tensors_splits_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: str
) -> None:
    folders = [torchvisions(tmp_path / "files", monkeypatch), images(tmp_path / "folder")]
    (tmp_path / "archive").mkdir()
    with tarfile.open(tmp_path / "archive" / "cifar10.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "folder" / "cifar10", "cifar10")
    folders.append(tmp_path / "archive")
    first, *others = (read_arrays("cifar10", folder) for folder in folders)
    assert all(same(first, other) for other in others) and identity(first) == pinned
    assert (first.title, first.classes, first.flip) == ("CIFAR-10", CLASSES, True)
    # By class, then by the checksum of the pixels.
    assert first.train_labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20 and first.train_labels.dtype == np.int64
    sums = [hashlib.sha256(one.transpose(1, 2, 0).tobytes()).hexdigest() for one in first.train_images]
    assert all(sums[start : start + 20] == sorted(sums[start : start + 20]) for start in (0, 20, 40))
    assert sorted(sums) == sorted(hashlib.sha256(one.tobytes()).hexdigest() for one in PARTS["train"])
    loaded, *more = (load_dataset("cifar10", folder) for folder in folders)
    for other in more:
        assert other.fingerprint == loaded.fingerprint
        for part in ("train", "validation", "test"):
            assert torch.equal(getattr(other, part).images, getattr(loaded, part).images)
            assert torch.equal(getattr(other, part).labels, getattr(loaded, part).labels)


def test_torchvisions_files_come_first_and_nothing_is_downloaded_beside_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: str
) -> None:
    images(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", lambda _: pytest.fail("downloads"))
    assert len(read_arrays("cifar10", tmp_path).test_labels) == 9
    torchvisions(tmp_path, monkeypatch)
    (tmp_path / "cifar10" / "train" / "cat" / "000.png").unlink(missing_ok=True)
    assert identity(read_arrays("cifar10", tmp_path)) == pinned


@pytest.mark.parametrize("change", ["a pixel", "a class", "a part"])
def test_other_images_under_the_name_are_refused(tmp_path: Path, pinned: str, change: str) -> None:
    place = images(tmp_path) / "cifar10"
    one = sorted((place / "train" / "cat").iterdir())[0]
    if change == "a pixel":
        pixels = np.asarray(Image.open(one)).copy()
        pixels[31, 31, 2] ^= 1
        one.write_bytes(saved(Image.fromarray(pixels)))
    else:
        one.rename(place / ("train/bird/x.png" if change == "a class" else "test/cat/x.png"))
    with pytest.raises(
        StudyError, match=rf"{place} is not CIFAR-10 as published: its checksum is \w{{64}}, not {pinned}; .*imagefolder:"
    ):
        read_arrays("cifar10", tmp_path)


def test_the_pinned_checksum_is_that_of_the_published_images(tmp_path: Path) -> None:
    images(tmp_path)
    with pytest.raises(StudyError, match="not 6fed5d45e90a44d8f9be833d2af27cf996ace670fa82d03ce92f6a076ea3007a"):
        read_arrays("cifar10", tmp_path)


def test_cifar100_is_held_against_no_checksum_of_ours(tmp_path: Path) -> None:
    found = read_arrays("cifar100", images(tmp_path, "cifar100"))
    assert (found.title, found.classes) == ("CIFAR-100", CLASSES)


def test_folders_are_torchvisions() -> None:
    assert {name: getattr(torchvision.datasets, name.upper()).base_folder for name in cifar.BASES} == cifar.BASES


WITHOUT = """
import sys
from pathlib import Path
import fcs_utils.report.explorer
from fcs_utils.data.readers import read_arrays
try:
    read_arrays("cifar10", Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__)
print("torchvision" in sys.modules)
"""


@pytest.mark.slow
def test_the_explorer_on_images_does_not_wait_for_torchvision(tmp_path: Path) -> None:
    """Its import takes half as long as those of all else."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(images(tmp_path))], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["StudyError", "False"]  # the images are not CIFAR-10's, which is found once all are read


def test_a_damaged_cifar_is_told_from_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def parts(folder: str, download: bool, train: bool = True) -> None:
        asked.append(download)
        raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setitem(cifar.BASES, "cifar10", "batches")
    parts.filename = "batches.tar.gz"  # type: ignore[attr-defined]
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", parts)
    said = r"'cifar10' not found. Looked in: .*batches, .*cifar10\. .*unpack batches.tar.gz there; .*train/CLASS/"
    with pytest.raises(StudyError, match=said):
        read_arrays("cifar10", tmp_path)
    assert asked == [False, True]
    (tmp_path / "batches").mkdir()
    with pytest.raises(StudyError, match="batches fails torchvision's MD5 check"):
        read_arrays("cifar10", tmp_path)
    assert asked == [False, True, False]  # nothing is downloaded over it
    large = tmp_path / "batches" / "data_batch_1"
    large.touch()
    os.truncate(large, 2**30 + 1)  # which takes no place on the disk
    with pytest.raises(StudyError, match="data_batch_1.* has 1,073,741,825 bytes"):
        read_arrays("cifar10", tmp_path)
    assert asked == [False, True, False]  # torchvision would read all of it


def test_a_cifar_that_could_be_downloaded_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def parts(folder: str, download: bool, train: bool = True) -> SimpleNamespace:
        asked.append((train, download))
        if len(asked) == 1:
            raise RuntimeError("Dataset not found or corrupted.")
        return SimpleNamespace(data=np.zeros((2 + train, 32, 32, 3), np.uint8), targets=[1] * (2 + train), classes=["a", "b"])

    monkeypatch.setitem(cifar.BASES, "cifar100", "batches")
    parts.filename = "batches.tar.gz"  # type: ignore[attr-defined]
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", parts)
    found = read_arrays("cifar100", tmp_path)
    assert (len(found.train_labels), len(found.test_labels)) == (3, 2)
    assert asked == [(True, False), (True, True), (True, False), (False, False)]


@pytest.mark.slow
def test_a_study_on_either_form_leaves_equal_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: str) -> None:
    results = []
    for folder in (torchvisions(tmp_path / "files", monkeypatch), images(tmp_path / "folder")):
        study = Study("smoke:cifar10", tmp_path / f"out-{folder.name}", folder)
        study.profile = study.profile.model_copy(update={"calibration": 16})
        results.append([record["result"] for record in study.run(["reference"])])
    assert results[0] == results[1] and results[0]
