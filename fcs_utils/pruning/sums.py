"""Running sums of one layer's maps: everything that a criterion reads, in sizes that do not grow with the images."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor

from fcs_utils.errors import StudyError
from fcs_utils.pruning.spectra import map_ranks, nuclear_drops

Reading = Literal["pooled", "per_image", "mean_map"]
READINGS: tuple[Reading, ...] = get_args(Reading)
Extra = Literal["apoz", "hrank", "chip"]
EXTRAS: tuple[Extra, ...] = get_args(Extra)
TRIANGLE = 256
Where = Literal["reader", "convolution"]  # whose maps: as the next layer reads them, or as the convolution returns them


class Sums:
    """Sums over the images of maps (N, C, ...). Each batch is reduced in float32 and added in float64.

    calls: how often a forward pass adds maps of the same images. The positions of all these calls, which may be of different sizes,
    count as those of one map (N, C, P); only ``hrank`` is the mean over the calls. layer: its name, for errors. passes: how many
    are complete. waiting: maps of the calls of one that is not.
    """

    def __init__(self, readings: Collection[Reading], extras: Collection[Extra], calls: int = 1, layer: str = "") -> None:
        self.readings, self.extras, self.calls, self.layer = readings, extras, calls, layer
        self.images = self.positions = self.passes = 0
        self.sums: dict[str, Tensor] = {}
        self.waiting: list[Tensor] = []

    def add(self, maps: Tensor) -> None:
        """maps: (N, C, ...), of one call. Raises StudyError where calls of a pass have unequal numbers of images."""
        if self.calls == 1:
            self._reduce([in_float32(maps)])
            return
        if self.waiting and len(self.waiting[0]) != len(maps):
            raise StudyError(
                f"layer {self.layer} is called with {len(self.waiting[0])} images and with {len(maps)} in one forward pass: "
                "statistics need equally many"
            )
        self.waiting.append(in_float32(maps).clone())  # what comes behind may overwrite a map before the pass ends
        if len(self.waiting) == self.calls:
            self._reduce(self.waiting)
            self.waiting = []

    def check(self, passes: int) -> None:
        """Raises StudyError where so many forward passes did not each make all the calls, and no more."""
        if self.calls > 1 and (self.waiting or self.passes != passes):
            raise StudyError(f"layer {self.layer}: how often it is called in a forward pass depends on the images")

    def _reduce(self, calls: list[Tensor]) -> None:
        maps = calls[0] if len(calls) == 1 else torch.cat([one.flatten(2) for one in calls], 2)
        self.passes += 1
        self.images += len(maps)
        self.positions = maps[0, 0].numel()
        rows = _rows(maps)
        total = rows.sum(0)
        # After a ReLU nothing is negative, and checking costs a CPU half the time of a copy and no memory. A GPU
        # would have to wait for the result.
        rectified = not rows.is_cuda and bool(rows.min() >= 0)
        self._add("gram", gram(rows))
        self._add("absolute", total if rectified else rows.abs().sum(0))
        self._add("total", total)
        if "per_image" in self.readings:
            # Cosines of one image's maps are products of unit maps, so their sum is a Gram matrix too. A zero
            # map stays zero.
            norms = maps.flatten(2).norm(dim=2)
            units = maps.flatten(2) * torch.where(norms > 0, 1 / norms, 0)[:, :, None]
            units = _rows(units)
            self._add("per_image", gram(units))
        if "mean_map" in self.readings:
            self._add("map", maps.flatten(2).sum(0))
        if "apoz" in self.extras:
            self._add("apoz", (rows == 0).sum(0))
        # Numbers that are not finite cannot be decomposed. The Gram matrix has them too, so ``finite`` tells.
        if self.extras and bool(self.sums["gram"].isfinite().all()):
            if "hrank" in self.extras:
                self._add("hrank", torch.stack([map_ranks(one).sum(0).double() for one in calls]).mean(0))
            if "chip" in self.extras:
                self._add("chip", nuclear_drops(maps.flatten(2)).sum(0))

    def _add(self, name: str, value: Tensor) -> None:
        if name in self.sums:
            self.sums[name] += value
        else:
            self.sums[name] = value.to(torch.float64, copy=True)  # sums may be of one tensor here, and part later

    def finite(self) -> bool:
        """Whether no sum is NaN or infinite: their total says so, for sums of float32 are far from float64's end."""
        return all(bool(value.sum().isfinite()) for value in self.sums.values())

    def mean(self, name: str, count: int) -> Tensor:
        """A sum divided by a count, float64, on the CPU."""
        value = self.sums[name].cpu()
        return value if count == 1 else value / count

    def gram_of(self, name: str, count: int) -> Tensor:
        """A Gram matrix (C, C) divided by a count, symmetric to the last bit."""
        gram = self.mean(name, count)
        return gram.T.contiguous().add_(gram).div_(2)  # in memory order: adding a transposed view takes three times as long


def gram(rows: Tensor) -> Tensor:
    """rows.T @ rows of (M, C), (C, C). From ``TRIANGLE`` channels on, a CPU multiplies the triangle only: a quarter less time."""
    width = rows.shape[1]
    if rows.device.type != "cpu" or width < TRIANGLE:
        return rows.T @ rows
    found, step = rows.new_empty(width, width), max(TRIANGLE // 2, width // 4)
    for start in range(0, width, step):
        end = min(start + step, width)
        found[start:, start:end] = rows[:, start:].T @ rows[:, start:end]
        found[start:end, end:] = found[end:, start:end].T
    return found


def in_float32(values: Tensor) -> Tensor:
    """Numbers of half precision as float32, in which sums do not overflow; others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _rows(maps: Tensor) -> Tensor:
    """(N, C, ...) -> (N P, C); a view of maps in channels_last memory."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])
