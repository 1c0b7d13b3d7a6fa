"""Splits: fixed, stratified and apart; the mean and deviation are the training images'; what augmentation may do."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from fcs_utils.data import readers
from fcs_utils.data.arrays import Arrays
from fcs_utils.data.dataset import Dataset, Split, load_dataset
from fcs_utils.errors import StudyError
from fcs_utils.files import tensors_sum

# SHA-256 of images and labels. A change here makes every published record one of other data.
DIGITS = {
    "train": "c599ec8c8825ab9897c3db48c8a67d82f2e16ca0ad8df11bc352a468aeb5e4cc",
    "validation": "506b073cdf78dccb60e6a2f257afa49b4a1d9bcaa3be3887fc5ce5d062973b66",
    "test": "3572ea4feca3bff3d8a452dd732b857855ed4867e3225bd0e1c88a0d5d72f35c",
}


@pytest.mark.parametrize("part", DIGITS)
def test_the_splits_of_digits_are_those_of_the_published_records(digits: Dataset, part: str) -> None:
    split: Split = getattr(digits, part)
    assert tensors_sum({"images": split.images, "labels": split.labels}) == DIGITS[part]


def numbered(counts: list[int], tests: int) -> Arrays:
    """A data set in which an image's first two pixels are its own number; the classes stand one after the other."""
    total = sum(counts) + tests
    images = np.zeros((total, 1, 8, 8), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(total) // 256, np.arange(total) % 256
    labels = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.arange(tests) % len(counts)])
    names = tuple(map(str, range(len(counts))))
    return Arrays("numbers", names, images[:-tests], labels[:-tests], images[-tests:], labels[-tests:], flip=False)


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() * 256 + images[:, 0, 1, 0].int()).tolist()


def load(monkeypatch: pytest.MonkeyPatch, arrays: Arrays, name: str = "numbers") -> Dataset:
    monkeypatch.setitem(readers.READERS, "numbers", lambda _: arrays)
    return load_dataset(name)


@pytest.mark.parametrize("counts", [[100, 200, 300], [57, 43], [11, 13, 500, 76], [2, 2]])
def test_validation_is_a_tenth_of_each_class_and_no_image_is_in_two_splits(
    monkeypatch: pytest.MonkeyPatch, counts: list[int]
) -> None:
    data = load(monkeypatch, numbered(counts, 12))
    size = max(len(counts), sum(counts) // 10)
    train, validation, test = (set(numbers(split.images)) for split in (data.train, data.validation, data.test))
    assert len(data.validation) == len(validation) == size and train | validation == set(range(sum(counts)))
    assert not train & validation and test == set(range(sum(counts), sum(counts) + 12))
    for split in (data.train, data.validation):  # each class within one of its share
        share = torch.tensor(counts) * len(split) / sum(counts)
        assert (split.labels.bincount(minlength=len(counts)) - share).abs().max() <= 1
        first = np.cumsum([0, *counts])
        assert all(
            first[label] <= number < first[label + 1]
            for number, label in zip(numbers(split.images), split.labels.tolist(), strict=True)
        )


def test_the_same_splits_come_out_whatever_was_drawn_before(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = numbered([50, 70], 10)
    first = load(monkeypatch, arrays)
    np.random.seed(7)
    torch.manual_seed(7)
    again = load(monkeypatch, arrays)
    assert numbers(again.train.images) == numbers(first.train.images)
    assert numbers(again.validation.images) == numbers(first.validation.images)


@pytest.mark.parametrize("name", ["numbers", "numbers[:40]"])
def test_calibration_and_batches_see_training_images_only(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = load(monkeypatch, numbered([100, 100, 57], 30), name)
    train, held_out = set(numbers(data.train.images)), set(numbers(data.validation.images)) | set(numbers(data.test.images))
    for seed in range(5):
        chosen = data.calibration(40, seed)
        assert len(set(numbers(chosen.images))) == 40 and set(numbers(chosen.images)) <= train
        where = {number: label for number, label in zip(numbers(data.train.images), data.train.labels.tolist(), strict=True)}
        assert [where[number] for number in numbers(chosen.images)] == chosen.labels.tolist()
    order = torch.cat([labels for _, labels in data.batches(len(data.train))(0, 1)])
    assert order.bincount().equal(data.train.labels.bincount()) and not train & held_out
    assert set(numbers(data.calibration(len(data.train), 0).images)) == train


def test_part_of_the_training_split_comes_from_it_and_holds_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = numbered([100, 60, 20], 9)
    whole, part = (load(monkeypatch, arrays, name) for name in ("numbers", "numbers[:30]"))
    assert set(numbers(part.train.images)) < set(numbers(whole.train.images)) and len(part.train) == 30
    assert numbers(part.validation.images) == numbers(whole.validation.images) and numbers(part.test.images) == numbers(
        whole.test.images
    )
    share = torch.tensor([100, 60, 20]) * 30 / 180
    assert (part.train.labels.bincount() - share).abs().max() <= 1
    same, _ = train_test_split(whole.train.images, train_size=30, random_state=0, stratify=whole.train.labels)  # at each start
    assert numbers(part.train.images) == numbers(same)


def test_the_fingerprint_tells_of_every_pixel_and_label(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = numbered([20, 20], 4)
    parts = {name: getattr(arrays, name) for name in ("train_images", "train_labels", "test_images", "test_labels")}
    known = load(monkeypatch, arrays).fingerprint
    assert known == hashlib.sha256(b"".join(part.tobytes() for part in parts.values())).hexdigest()[:16]
    for name, part in parts.items():
        other = part.copy()
        other[-1] = 0
        assert load(monkeypatch, replace(arrays, **{name: other})).fingerprint != known


def test_mean_and_deviation_are_those_of_the_training_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = numbered([40, 40], 10)
    probe = load(monkeypatch, arrays)
    images = np.full((80, 2, 8, 8), 250, np.uint8)  # validation and test: bright
    chosen = numbers(probe.train.images)
    assert len(chosen) == 72
    images[chosen, 0] = 10
    images[chosen[:36], 1], images[chosen[36:], 1] = 20, 40  # mean 30, deviation 10
    data = load(monkeypatch, replace(arrays, train_images=images, test_images=np.full((10, 2, 8, 8), 250, np.uint8)))
    assert data.mean.tolist() == [10, 30] and data.std.tolist() == [1, 10]  # no deviation counts as 1
    normal = data.normalise(data.train.images)
    assert normal.shape == (72, 2, 8, 8) and normal.is_contiguous(memory_format=torch.channels_last)
    assert normal[:, 0].abs().max() == 0 and sorted(set(normal[:, 1].flatten().tolist())) == [-1, 1]
    ((validation, labels),) = data.in_order(data.validation)
    assert (validation == torch.tensor([240.0, 22.0]).view(2, 1, 1)).all() and labels.equal(data.validation.labels)
    few = load(monkeypatch, replace(arrays, train_images=images, test_images=images[:10]), "numbers[:10]")
    assert few.mean[1] == few.train.images[..., 1].double().mean() != 30  # of the part, not of the whole


def test_evaluation_takes_each_image_once_and_in_order(digits: Dataset) -> None:
    batches = list(digits.in_order(digits.test, 150))
    assert [len(labels) for _, labels in batches] == [150, 150, 150, 50]
    assert torch.cat([labels for _, labels in batches]).equal(digits.test.labels)
    assert torch.cat([images for images, _ in batches]).equal(digits.normalise(digits.test.images))


def pictured(direction: str, flip: bool) -> Dataset:
    """1,000 equal images whose pixels grow by one to the right or to the bottom, 100 to 115."""
    ramp = torch.arange(100, 116, dtype=torch.uint8)
    image = ramp.expand(16, 16) if direction == "right" else ramp[:, None].expand(16, 16)
    split = Split(image.expand(1000, 16, 16).contiguous()[..., None], torch.arange(1000) % 10)
    return Dataset("ramp", "ramp", tuple("0123456789"), split, split, split, torch.zeros(1), torch.ones(1), flip, "")


def middle(data: Dataset) -> torch.Tensor:
    """The four middle pixels of each image of an epoch, left to right and top to bottom: (N, 4, 4). No border reaches them."""
    return torch.cat([images[:, 0, 6:10, 6:10] for images, _ in data.batches(100)(3, 1)])


def test_about_half_of_the_images_are_mirrored_left_to_right_and_none_upside_down() -> None:
    steps = middle(pictured("right", flip=True)).diff(dim=2)
    mirrored = (steps == -1).flatten(1).all(1)
    assert ((steps == 1).flatten(1).all(1) | mirrored).all() and 450 < mirrored.sum() < 550
    drawn = pictured("right", flip=True).batches(100)(3, 1)
    assert mirrored.equal(drawn.mirrored[:, 0])
    both = [torch.cat([images for images, _ in pictured("right", flip).batches(100)(3, 1)]) for flip in (True, False)]
    assert both[0][mirrored].equal(both[1][mirrored].flip(3)) and both[0][~mirrored].equal(both[1][~mirrored])  # equal shifts
    assert (middle(pictured("down", flip=True)).diff(dim=1) == 1).all()


def test_without_flip_no_image_is_mirrored() -> None:
    assert (middle(pictured("right", flip=False)).diff(dim=2) == 1).all()
    assert (middle(pictured("down", flip=False)).diff(dim=1) == 1).all()


def test_shifts_go_four_pixels_each_way_and_evenly() -> None:
    for direction in ("right", "down"):
        shifts = middle(pictured(direction, flip=False))[:, 0, 0].int() - 106  # the pixel that stood at place 6
        counts = (shifts + 4).bincount(minlength=9)
        assert len(counts) == 9 and counts.min() > 80 and counts.max() < 150  # 111 each, give or take


def test_a_border_is_mirrored_without_its_edge() -> None:
    data = pictured("right", flip=False)
    for images, _ in data.batches(100)(3, 1):
        for row in images[:, 0, 0].int().tolist():
            shift = row[6] - 106
            want = [100 + min(abs(at + shift), 30 - abs(at + shift)) for at in range(16)]  # -1 reads 1, and 16 reads 14
            assert row == want


@pytest.mark.parametrize("name", ["numbers[:2]", "numbers[:108]", "numbers[:0]", "numbers[:]", "numbers[:-5]", "numbers[:5"])
def test_parts_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(StudyError, match="dataset="):
        load(monkeypatch, numbered([40, 40, 40], 9), name)


def test_the_data_folder_is_the_argument_then_the_variable_then_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fcs_utils.data.dataset import data_folder

    monkeypatch.setenv("FCS_DATA", "/from/variable")
    assert data_folder(tmp_path) == tmp_path and data_folder("") == data_folder() == Path("/from/variable")
    monkeypatch.delenv("FCS_DATA")
    assert data_folder() == Path("data")


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0, 0, 1], [0, 1], r"1 training and 1 test images of class '1'"),
        ([0, 0, 1, 1], [1], r"2 training and 0 test images of class '0'"),
        ([0, 0, 0], [], r"3 training and 0 test images of class '0'"),
        ([1, 1, 1], [0, 1], r"0 training and 1 test images of class '0'"),
    ],
)
def test_a_class_without_images_is_refused(monkeypatch: pytest.MonkeyPatch, train: list[int], test: list[int], said: str) -> None:
    parts = [(np.zeros((len(labels), 1, 8, 8), np.uint8), np.array(labels, np.int64)) for labels in (train, test)]
    with pytest.raises(StudyError, match=f"'numbers' has {said}; each class needs at least two and one"):
        load(monkeypatch, Arrays("numbers", ("0", "1"), *parts[0], *parts[1], flip=False))
