"""Data sets as uint8 tensors that live on the device: fixed splits, calibration set, augmentation.

A batch is one gather from a tensor on the device. There are no loader workers and no Python code per image.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcs_utils.config import checked
from fcs_utils.data.arrays import Arrays
from fcs_utils.data.readers import check_source, read_arrays
from fcs_utils.errors import StudyError, refuse
from fcs_utils.machine import steady_batch

SHIFT = 4  # pixels, the customary CIFAR augmentation
Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) and labels (B,)


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) uint8 and labels (N,) int64. Channels come last, so that batches are channels_last."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three fixed splits on one device, with what is needed to feed them to a network."""

    name: str
    title: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: Tensor  # (C,) per channel, of the training split, in 0..255
    std: Tensor
    flip: bool
    fingerprint: str  # hash of pixels and labels: shows in records when two folders of one name differ

    @property
    def channels(self) -> int:
        return self.train.images.shape[-1]

    @property
    def size(self) -> int:
        """Height and width of an image in pixels."""
        return self.train.images.shape[1]

    def to(self, device: torch.device) -> Dataset:
        moved: dict[str, Any] = {
            part: Split(s.images.to(device), s.labels.to(device))
            for part, s in (("train", self.train), ("validation", self.validation), ("test", self.test))
        }
        return replace(self, **moved, mean=self.mean.to(device), std=self.std.to(device))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, C) -> float32 (N, C, H, W) in channels_last memory, zero mean and unit variance."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def calibration(self, count: int, seed: int) -> Split:
        """``count`` training images, fixed by the seed, never augmented.

        Raises StudyError when the training split has fewer.
        """
        if not 1 <= count <= len(self.train):
            raise refuse("calibration", count, f"1 to {len(self.train)}, the training split of {self.name}")
        # Drawn on the CPU, so that a seed gives the same images on every device.
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[:count]
        chosen = chosen.to(self.train.labels.device)
        return Split(self.train.images[chosen], self.train.labels[chosen])

    def in_order(self, split: Split, batch_size: int | None = None) -> Iterator[Batch]:
        """All of a split as it is, for evaluation: normalised images (B, C, H, W) and labels (B,), by default 500 at once.

        Of images larger than 64 x 64 they are fewer (``machine.steady_batch``).
        """
        batch_size = batch_size or steady_batch(self.normalise(split.images[:1]), 500)
        for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
            yield self.normalise(images), labels

    def batches(self, batch_size: int) -> ShuffledBatches:
        """The training split shuffled and augmented, by seed and epoch: what ``fit`` takes."""
        return ShuffledBatches(self, batch_size)


class ShuffledBatches:
    """Shuffled, augmented passes over the training split of a data set, by seed and epoch.

    All draws come from a generator on the CPU, so that they are the same on every device, in an order that does not
    depend on what is trained: two arms with one seed see the same batches. The generator runs on from epoch to epoch.
    An epoch that does not follow the last one asked for is reached by drawing the numbers of the epochs before it again.
    """

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, min(batch_size, len(dataset.train))
        self._generator = torch.Generator()
        self._next: tuple[int, int] | None = None  # the seed and epoch that the generator stands before

    def __call__(self, seed: int, epoch: int) -> EpochBatches:
        """One pass; epochs count from 1. An incomplete last batch is dropped unless it is the only one.

        Raises StudyError for an epoch below 1.
        """
        if epoch < 1:
            raise refuse("epoch", epoch, "1 and more")
        if self._next != (seed, epoch):
            self._generator.manual_seed(seed)
            for _ in range(1, epoch):
                self._draw()
        self._next = (seed, epoch + 1)
        return EpochBatches(self.dataset, self.batch_size, *self._draw())

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Order (N,), shifts in pixels (2, N, 1), and whether an image is mirrored (N, 1)."""
        count = len(self.dataset.train)
        order = torch.randperm(count, generator=self._generator)
        shifts = torch.randint(-SHIFT, SHIFT + 1, (2, count, 1), generator=self._generator)
        if self.dataset.flip:
            return order, shifts, torch.rand(count, 1, generator=self._generator) < 0.5
        return order, shifts, torch.zeros(count, 1, dtype=torch.bool)


@dataclass(frozen=True)
class EpochBatches:
    """One pass over the training split: normalised images (B, C, H, W) and labels (B,)."""

    dataset: Dataset
    batch_size: int
    order: Tensor
    shifts: Tensor
    mirrored: Tensor

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        train, size = self.dataset.train, self.dataset.size
        # Draws move once an epoch: a GPU never waits for the host between batches, and works out the positions itself.
        order, shifts, mirrored = (drawn.to(train.images.device) for drawn in (self.order, self.shifts, self.mirrored))
        # One gather does selection, shift and flip. The border is mirrored: position -1 reads position 1.
        at = torch.arange(size, device=train.images.device)
        rows, columns = (size - 1 - (size - 1 - (at + by).abs()).abs() for by in shifts)  # (N, H), (N, W)
        columns = torch.where(mirrored, columns.flip(1), columns)
        for number in range(len(self)):
            batch = slice(number * self.batch_size, (number + 1) * self.batch_size)
            images = train.images[order[batch, None, None], rows[batch, :, None], columns[batch, None, :]]
            yield self.dataset.normalise(images), train.labels[order[batch]]


def data_folder(folder: str | Path | None = None) -> Path:
    """The data folder: the argument, else FCS_DATA, else ``data`` in the current folder, else ``data`` beside this package.

    A notebook's kernel starts in ``notebooks/``, where there is no ``data``.
    """
    here, beside = Path("data"), Path(__file__).parents[2] / "data"
    return Path(folder or os.environ.get("FCS_DATA") or (beside if beside.is_dir() and not here.is_dir() else here))


def _source_and_limit(name: str) -> tuple[str, int | None]:
    part = re.fullmatch(r"(.+)\[:(\d+)\]", name)
    return (part[1], int(part[2])) if part else (name, None)


def check_dataset_name(name: str) -> None:
    """Raises StudyError for a name that no data set can have; looks for no data."""
    check_source(_source_and_limit(name)[0])


@checked
def load_dataset(name: str, folder: str | Path | None = None, device: torch.device | str = "cpu") -> Dataset:
    """A data set by name with its fixed splits on a device.

    Validation is a stratified tenth of the published training images, the same for every seed. Of the 1,297 images of
    digits it takes 297, because a tenth would measure accuracy too coarsely. The test split is the published one.
    ``NAME[:N]`` keeps N images of the training split, also stratified.

    Raises StudyError for an unknown name or for data that cannot be found or read.
    """
    from sklearn.model_selection import train_test_split

    source, limit = _source_and_limit(name)
    arrays = read_arrays(source, data_folder(folder))
    _check_classes(source, arrays)
    held_out = 297 if source == "digits" else max(len(arrays.classes), len(arrays.train_labels) // 10)
    train, validation = train_test_split(
        np.arange(len(arrays.train_labels)), test_size=held_out, random_state=0, stratify=arrays.train_labels
    )
    if limit is not None:
        fewest, most = len(arrays.classes), len(train) - len(arrays.classes)  # each class is in the part and in the rest
        if not fewest <= limit <= most:
            raise refuse("dataset", name, f"{source}[:N] with N from {fewest} to {most}")
        train, _ = train_test_split(train, train_size=limit, random_state=0, stratify=arrays.train_labels[train])
    pixels = arrays.train_images[train]
    dataset = Dataset(
        name,
        arrays.title + (f", {limit:,} training images" if limit else ""),
        arrays.classes,
        _split(pixels, arrays.train_labels[train]),
        _split(arrays.train_images[validation], arrays.train_labels[validation]),
        _split(arrays.test_images, arrays.test_labels),
        *_levels(pixels),
        flip=arrays.flip,
        fingerprint=_fingerprint(arrays),
    )
    return dataset.to(torch.device(device))


def _levels(pixels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation a channel of uint8 (N, C, H, W), the latter at least 1.

    By how often each level is there: NumPy's would make a copy of all pixels that is eight times as large.
    """
    found, levels = [], np.arange(256.0)
    for channel in range(pixels.shape[1]):
        share = torch.bincount(torch.from_numpy(pixels[:, channel].ravel()), minlength=256).numpy() / pixels[:, channel].size
        mean = share @ levels
        found.append((mean, np.sqrt(share @ (levels - mean) ** 2)))
    mean, std = torch.tensor(np.array(found), dtype=torch.float32).T
    return mean, std.clamp_min(1.0)


def _check_classes(name: str, arrays: Arrays) -> None:
    """A class without images would never be learned, or never be tested, without a word."""
    counts = [np.bincount(labels, minlength=len(arrays.classes)) for labels in (arrays.train_labels, arrays.test_labels)]
    for label, train, test in zip(arrays.classes, *counts, strict=True):
        if train < 2 or test < 1:
            raise StudyError(
                f"data set {name!r} has {train} training and {test} test images of class {label!r}; "
                "each class needs at least two and one"
            )


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 2, 3, 1))), torch.from_numpy(labels))


def _fingerprint(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for part in (arrays.train_images, arrays.train_labels, arrays.test_images, arrays.test_labels):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
