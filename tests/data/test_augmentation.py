"""Where each pixel of a shifted and mirrored image comes from, and how a data set is cut into splits and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fcs_utils.data import readers
from fcs_utils.data.arrays import Arrays
from fcs_utils.data.dataset import Dataset, EpochBatches, data_folder, load_dataset
from fcs_utils.errors import StudyError


def test_a_shift_reads_further_down_or_right_and_mirrors_the_border(digits: Dataset) -> None:
    order = torch.tensor([5, 7, 3])
    shifts = torch.tensor([[1, 0, -2], [0, 3, 0]])[:, :, None]  # rows, then columns
    (batch,) = EpochBatches(digits, 3, order, shifts, torch.tensor([False, False, True])[:, None])
    first, second, third = digits.train.images[order, :, :, 0].numpy()
    want = np.stack(
        [
            np.concatenate([first[1:], first[[30]]]),  # behind row 31 comes row 30 again
            np.concatenate([second[:, 3:], second[:, [30, 29, 28]]], 1),
            np.concatenate([third[[2, 1]], third[:-2]])[:, ::-1],  # mirrored left to right
        ]
    )
    found = (batch[0][:, 0] * digits.std + digits.mean).round().to(torch.uint8)
    assert found.numpy().tolist() == want.tolist() and batch[1].equal(digits.train.labels[order])


def test_a_batch_is_at_most_the_training_split(digits: Dataset) -> None:
    for size, lengths in ((1000, [1000]), (5000, [1000]), (501, [501]), (500, [500, 500])):
        assert [len(labels) for _, labels in digits.batches(size)(0, 1)] == lengths
    # Without flipping, no number is drawn for it: the next epoch's order comes right after the shifts.
    generator = torch.Generator().manual_seed(4)
    for epoch in (1, 2):
        order = torch.randperm(1000, generator=generator)
        shifts = torch.randint(-4, 5, (2, 1000, 1), generator=generator)
        found = digits.batches(100)(4, epoch)
        assert found.order.equal(order) and found.shifts.equal(shifts) and not found.mirrored.any()


def test_pixels_are_normalised_by_channel() -> None:
    dataset = toy_dataset(np.array([[0, 100], [200, 100]]))
    # Of the training split, the first channel alternates between 0 and 200; the second is 100 throughout, and 1 stands for 0.
    assert dataset.mean.tolist() == [100, 100] and dataset.std.tolist() == [100, 1]
    images = torch.tensor([[[[50, 103]]]], dtype=torch.uint8)  # (N, H, W, C)
    assert dataset.normalise(images).tolist() == [[[[-0.5]], [[3.0]]]]
    assert dataset.channels == 2 and dataset.normalise(dataset.test.images).is_contiguous(memory_format=torch.channels_last)


def toy_dataset(values: np.ndarray, count: int = 40, name: str = "toy") -> Dataset:
    """Images of 4x4 pixels; image n has the values (C,) of row n modulo the rows, and its label likewise."""
    rows, channels = values.shape

    def arrays(number: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(number) % rows
        return values[labels][:, :, None, None].repeat(4, 2).repeat(4, 3).astype(np.uint8), labels

    with pytest.MonkeyPatch.context() as patch:
        made = Arrays("Toy", tuple(map(str, range(rows))), *arrays(count), *arrays(rows), flip=True)
        patch.setitem(readers.READERS, "toy", lambda folder: made)
        return load_dataset(name)


@pytest.mark.parametrize(("classes", "count", "held_out"), [(2, 40, 4), (2, 49, 4), (5, 30, 5), (2, 60, 6)])
def test_validation_is_a_tenth_and_at_least_an_image_a_class(classes: int, count: int, held_out: int) -> None:
    dataset = toy_dataset(np.arange(classes)[:, None], count)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (count - held_out, held_out, classes)
    assert (dataset.train.images[:, 0, 0, 0] == dataset.train.labels).all() and dataset.flip and dataset.title == "Toy"
    assert dataset.validation.labels.bincount().min() >= 1


def test_a_part_leaves_an_image_a_class() -> None:
    for number in (2, 34):
        part = toy_dataset(np.arange(2)[:, None], 40, f"toy[:{number}]")
        assert len(part.train) == number and part.train.labels.unique().tolist() == [0, 1]
        assert part.title == f"Toy, {number} training images"
    for number in (1, 35, 36):
        with pytest.raises(StudyError, match="with N from 2 to 34"):
            toy_dataset(np.arange(2)[:, None], 40, f"toy[:{number}]")


def test_calibration_images_are_drawn_from_the_training_split(digits: Dataset) -> None:
    drawn = digits.calibration(1000, 3)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    assert drawn.images.equal(digits.train.images[order]) and drawn.labels.equal(digits.train.labels[order])
    assert digits.calibration(1, 3).labels.equal(digits.train.labels[order[:1]])
    with pytest.raises(StudyError, match="calibration=0"):
        digits.calibration(0, 3)


def test_batches_in_order_hold_every_image_once(digits: Dataset) -> None:
    found = list(digits.in_order(digits.validation, 100))
    assert [len(labels) for _, labels in found] == [100, 100, 97]
    assert torch.cat([images for images, _ in found]).equal(digits.normalise(digits.validation.images))
    assert [len(labels) for _, labels in digits.in_order(digits.train)] == [500, 500]


def test_the_data_folder_is_the_argument_then_the_environment_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCS_DATA", "there")
    assert [data_folder("here"), data_folder()] == [Path("here"), Path("there")]
    monkeypatch.delenv("FCS_DATA")
    assert data_folder() == Path("data")
