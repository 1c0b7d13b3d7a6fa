"""Data sets, damaged files, augmentation."""

from __future__ import annotations

import gzip
import re
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcs_utils.data.dataset import Dataset, _levels, load_dataset
from fcs_utils.data.readers import read_idx
from fcs_utils.errors import StudyError


def test_digits_splits_are_fixed_and_disjoint(digits: Dataset) -> None:
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1000, 297, 500]
    assert digits.train.images.dtype == torch.uint8 and digits.train.images.shape[1:] == (32, 32, 1)
    assert load_dataset("digits").fingerprint == digits.fingerprint and not digits.flip


def test_levels_are_those_of_numpy_without_its_copy_of_all_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (4000, 2, 32, 32), dtype=np.uint8)
    pixels[:, 1] = 9  # nothing to divide by
    tracemalloc.start()
    mean, std = _levels(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mean.equal(torch.tensor(pixels.mean((0, 2, 3)), dtype=torch.float32))
    assert std.tolist() == [torch.tensor(pixels[:, 0].std(), dtype=torch.float32).item(), 1.0]
    assert peak < 2 * pixels.nbytes  # it was above eight times


def test_calibration_is_fixed_by_its_seed_and_bounded(digits: Dataset) -> None:
    assert digits.calibration(50, 1).images.equal(digits.calibration(50, 1).images)
    assert not digits.calibration(50, 1).images.equal(digits.calibration(50, 2).images)
    with pytest.raises(StudyError, match="calibration=1001"):
        digits.calibration(1001, 0)


def test_augmentation_shifts_by_at_most_four_pixels(digits: Dataset) -> None:
    images, labels = next(iter(digits.batches(40)(0, 1)))
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(0))[:40]
    assert labels.equal(digits.train.labels[order])
    padded = np.pad(digits.train.images[order].numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    out = (images.permute(0, 2, 3, 1) * digits.std + digits.mean).round().to(torch.uint8).numpy()
    offsets = set()
    for one, frame in zip(out, padded, strict=True):
        found = [(y, x) for y in range(9) for x in range(9) if np.array_equal(one, frame[y : y + 32, x : x + 32])]
        assert found
        offsets.add(found[0])
    assert len(offsets) > 20


def test_an_epochs_draws_follow_from_seed_and_epoch_alone(digits: Dataset) -> None:
    mirrored = replace(digits, flip=True)
    generator = torch.Generator().manual_seed(3)  # one generator runs on from epoch to epoch
    drawn = []
    for _ in range(3):
        order = torch.randperm(1000, generator=generator)
        shifts = torch.randint(-4, 5, (2, 1000, 1), generator=generator)
        drawn.append((order, shifts, torch.rand(1000, 1, generator=generator) < 0.5))
    batches = mirrored.batches(300)
    for epoch in (1, 2, 3, 3, 1, 2):  # one after the other, again, back, and on
        found = batches(3, epoch)
        assert all(
            one.equal(other) for one, other in zip((found.order, found.shifts, found.mirrored), drawn[epoch - 1], strict=True)
        )
        assert len(found) == 3 and [len(labels) for _, labels in found] == [300] * 3
    assert not batches(4, 1).order.equal(drawn[0][0])
    with pytest.raises(StudyError, match="epoch=0 is not allowed"):
        batches(3, 0)


def test_part_of_the_training_split_is_stratified_and_leaves_the_other_splits(digits: Dataset) -> None:
    part = load_dataset("digits[:200]")
    assert len(part.train) == 200 and part.title == "digits (scikit-learn), 200 training images"
    assert part.train.labels.bincount().min() >= 18
    assert part.validation.images.equal(digits.validation.images) and part.test.images.equal(digits.test.images)
    for bad in ("digits[:5]", "digits[:1000]"):
        with pytest.raises(StudyError, match=re.escape(bad)):
            load_dataset(bad)


def image_folder(root: Path) -> Path:
    for part, count in (("train", 12), ("test", 3)):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 36), (i, len(part), 200 if label == "dog" else 0)).save(root / part / label / f"{i:03}.png")
    return root


def test_image_folder_and_archive_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCS_CACHE", str(tmp_path / "cache"))
    folder = image_folder(tmp_path / "pets")
    with tarfile.open(tmp_path / "packed.tar.xz", "w:xz") as archive:
        archive.add(folder, "pets")
    plain, packed = (load_dataset(f"imagefolder:{name}", tmp_path) for name in ("pets", "packed"))
    assert plain.classes == ("cat", "dog") and plain.fingerprint == packed.fingerprint
    assert load_dataset("imagefolder:pets", tmp_path).fingerprint == plain.fingerprint  # from the cache
    assert (plain.size, plain.channels, len(plain.test)) == (32, 3, 6)


def test_missing_data_lists_places_and_ways(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"Looked in: .*nothing\.tar\.xz.*FCS_DATA"):
        load_dataset("imagefolder:nothing", tmp_path)
    for name in ("imagefolder:../etc", "minst"):
        with pytest.raises(StudyError, match="dataset="):
            load_dataset(name, tmp_path)


def test_truncated_archive_and_idx_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCS_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "cut.tar.gz", "w:gz") as archive:
        archive.add(image_folder(tmp_path / "pets"), "pets")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "cut.tar.gz").read_bytes()[:300])
    with pytest.raises(StudyError, match="cut.tar.gz cannot be read"):
        load_dataset("imagefolder:cut", tmp_path)
    good = b"\0\0\x08\x01\0\0\0\x03abc"
    for name, content in (("good", good), ("good.gz", gzip.compress(good))):
        (tmp_path / name).write_bytes(content)
        assert read_idx(tmp_path / name).tolist() == [97, 98, 99]
    for name, content in (("short", good[:-1]), ("foreign", b"hello"), ("cut.gz", gzip.compress(good)[:-9])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StudyError, match=name):
            read_idx(tmp_path / name)
