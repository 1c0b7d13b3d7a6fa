"""Data sets as uint8 tensors that live on the device: fixed splits, calibration set, augmentation.

No workers and no per-image Python: a batch is one gather out of a resident tensor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcs_utils.errors import refuse
from fcs_utils.sources import Arrays, read_arrays

SHIFT = 4  # pixels, the customary CIFAR augmentation


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) uint8 and labels (N,) int64. Channels last, so that a gathered batch already is."""

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
    fingerprint: str  # of the pixels and labels, so that records tell when two folders of one name differ

    @property
    def channels(self) -> int:
        return self.train.images.shape[-1]

    @property
    def size(self) -> int:
        """Height and width of an image in pixels."""
        return self.train.images.shape[1]

    def to(self, device: torch.device) -> Dataset:
        moved: dict[str, Any] = {part: Split(s.images.to(device), s.labels.to(device))
                 for part, s in (("train", self.train), ("validation", self.validation), ("test", self.test))}  # fmt: skip
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
        # Drawn on the CPU: the same seed must name the same images on every device.
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[:count]
        chosen = chosen.to(self.train.labels.device)
        return Split(self.train.images[chosen], self.train.labels[chosen])

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled, augmented pass over the training split: normalised images (B, C, H, W), labels (B,).

        All draws come from the generator (on the CPU, so that they are the same on every device), in an
        order that does not depend on what is trained: two methods with one seed see the same batches. An
        incomplete last batch is dropped unless it is the only one.
        """
        count = len(self.train)
        batch_size = min(batch_size, count)
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch_size + 1, batch_size):
            index = order[start : start + batch_size]
            yield self.normalise(self._augment(index, generator)), self.train.labels[index.to(self.train.labels.device)]

    def _augment(self, index: Tensor, generator: torch.Generator) -> Tensor:
        # One gather does selection, shift and flip. The border is mirrored: position -1 reads position 1.
        size = self.size
        steps = torch.arange(size)
        rows = steps + torch.randint(-SHIFT, SHIFT + 1, (len(index), 1), generator=generator)  # (B, H)
        columns = steps + torch.randint(-SHIFT, SHIFT + 1, (len(index), 1), generator=generator)  # (B, W)
        rows, columns = (size - 1 - (size - 1 - at.abs()).abs() for at in (rows, columns))
        if self.flip:
            mirrored = torch.rand(len(index), 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        device = self.train.images.device
        index, rows, columns = (at.to(device) for at in (index, rows, columns))
        return self.train.images[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def data_folder(folder: str | Path | None = None) -> Path:
    """The data folder: the argument, else FCS_DATA, else ``data`` in the current folder."""
    return Path(folder or os.environ.get("FCS_DATA") or "data")


def load_dataset(name: str, folder: str | Path | None = None, device: torch.device | str = "cpu") -> Dataset:
    """A data set by name with its fixed splits on a device.

    Validation is a stratified tenth of the published training images (297 of the 1,297 of digits, where a
    tenth would be too coarse a ruler), the same for every seed; the test split is the published one.

    Raises StudyError for an unknown name or for data that cannot be found or read.
    """
    from sklearn.model_selection import train_test_split

    arrays = read_arrays(name, data_folder(folder))
    held_out = 297 if name == "digits" else max(len(arrays.classes), len(arrays.train_labels) // 10)
    train, validation = train_test_split(
        np.arange(len(arrays.train_labels)), test_size=held_out, random_state=0, stratify=arrays.train_labels
    )
    pixels = arrays.train_images[train]
    dataset = Dataset(
        name, arrays.title, arrays.classes,
        _split(pixels, arrays.train_labels[train]),
        _split(arrays.train_images[validation], arrays.train_labels[validation]),
        _split(arrays.test_images, arrays.test_labels),
        mean=torch.tensor(pixels.mean((0, 2, 3)), dtype=torch.float32),
        std=torch.tensor(pixels.std((0, 2, 3)), dtype=torch.float32).clamp_min(1.0),
        flip=arrays.flip, fingerprint=_fingerprint(arrays),
    )  # fmt: skip
    return dataset.to(torch.device(device))


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 2, 3, 1))), torch.from_numpy(labels))


def _fingerprint(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for part in (arrays.train_images, arrays.train_labels, arrays.test_images, arrays.test_labels):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
