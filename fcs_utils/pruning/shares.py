"""Channels that go only together, or in equal numbers: those of GroupNorm, of grouped convolutions and of gated linear units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.kinds import DIRECT, Convolution, grouped


@dataclass(frozen=True)
class Shares:
    """Which choices of a layer's C channels there are.

    unit: so many neighbours go together, such as those of one group of a GroupNorm, or of one map behind a PixelShuffle. parts:
    the channels lie in so many equal runs, such as the groups of a grouped convolution, and each run keeps as many as the others.
    alike: they lie in so many equal runs, such as the halves of a gated linear unit, and each run keeps the same places.
    """

    unit: int = 1
    parts: int = 1
    alike: int = 1

    @property
    def step(self) -> int:
        """The number of channels that stay is a multiple of it."""
        return self.unit * math.lcm(self.parts, self.alike)

    def joined(self, other: Shares) -> Shares:
        """The choices that both allow."""
        return Shares(*(math.lcm(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)))

    def arranged(self, values: Tensor) -> Tensor:
        """Numbers of C channels as (alike, parts of a run, units of a part, channels of a unit)."""
        return values.reshape(self.alike, math.lcm(self.parts, self.alike) // self.alike, -1, self.unit)

    def units(self, channels: int) -> Tensor:
        """Which unit each of C channels belongs to, counted through the first run, (C,)."""
        firsts = torch.arange(channels // self.alike // self.unit)
        return firsts.repeat_interleave(self.unit).repeat(self.alike)

    def order(self, importance: Tensor) -> list[int]:
        """All C channels, the most important first. The first ``n * step`` are a choice, whatever n; a unit counts by its mean."""
        channels = self.arranged(torch.arange(len(importance)))
        ranks = self.arranged(importance.cpu().double()).mean((0, 3)).argsort(dim=1, descending=True, stable=True)
        return channels[:, torch.arange(len(ranks))[:, None], ranks].permute(2, 0, 1, 3).flatten().tolist()

    def fault(self, kept: Sequence[int], channels: int) -> str | None:
        """Why these channels are no choice, or None where they are."""
        stays = torch.zeros(channels, dtype=torch.bool)
        stays[list(kept)] = True
        units = self.arranged(stays)
        if (units.any(0) != units.all(0)).any():
            return f"the same places of each {channels // self.alike} channels, because these meet, as in a gated linear unit"
        units = units[0]
        if (units.any(2) != units.all(2)).any():
            return f"channels {self.unit} by {self.unit} together, because a GroupNorm or a PixelShuffle joins them"
        if len(set(stays.reshape(self.parts, -1).sum(1).tolist())) > 1:
            return f"as many of each {channels // self.parts} channels, because they are read in {self.parts} equal parts"
        return None


ANY = Shares()


def tying(channels: int, ties: Iterable[NDArray[np.int64]]) -> Shares | None:
    """What follows from pairs of channels (2, n) that go together; None where these are no neighbours or equal places of runs."""
    pairs = np.concatenate([np.zeros((2, 0), np.int64), *ties], 1)
    links = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), (channels, channels))
    _, owners = connected_components(links, directed=False)
    size, *others = {*np.bincount(owners).tolist()}
    for unit in range(1, size + 1) if not others else ():
        shares = Shares(unit, 1, size // unit)
        if size % unit == 0 and channels % shares.step == 0:
            found = shares.units(channels).numpy()
            if len({*zip(found.tolist(), owners.tolist(), strict=True)}) == channels // size:
                return shares
    return None


def run_width(ids: Tensor) -> int | None:
    """The width of the runs when the ids (C,) of neighbours are equal in runs of one width, every id in one run; else None."""
    runs = torch.unique_consecutive(ids)
    width = len(ids) // len(runs)
    equal = width * len(runs) == len(ids) and bool((ids.reshape(-1, width) == runs[:, None]).all())
    return width if equal and len(runs.unique()) == len(runs) else None


def runs_of(covered: Tensor) -> Shares:
    """What a module asks that meets some of the channels alone, covered (C,) bool: as many of each run of those and of the others.

    All runs have one width, the largest that fits, as the halves of a chunk.
    """
    edges = (covered[1:] != covered[:-1]).nonzero()[:, 0] + 1
    return Shares(parts=len(covered) // math.gcd(len(covered), *edges.tolist()))


def shares_of(module: nn.Module, indices: Tensor, reads: bool) -> Shares | None:
    """What a grouped convolution or a GroupNorm asks of channels that are its own ``indices`` (C,); None if they cannot be cut.

    reads: whether the indices are inputs of the convolution, or its outputs.
    """
    if isinstance(module, nn.GroupNorm):
        width = module.num_channels // module.num_groups
        return Shares(unit=width) if run_width(indices // width) == width else None
    assert isinstance(module, DIRECT)
    width = (module.in_channels if reads else module.out_channels) // module.groups
    whole = len(indices) == width * module.groups and run_width(indices // width) == width
    return Shares(parts=module.groups) if whole else None


def cut_of(module: object, written: bool, usual: Callable[..., Any]) -> Callable[..., Any]:
    """The function that removes indices from a module: for these modules from here, else the ``usual`` one."""
    if grouped(module):
        return _cut_outputs if written else _cut_inputs
    return _cut_norm if isinstance(module, nn.GroupNorm) else usual


def staying_units(gone: Sequence[int], channels: int, unit: int, what: str) -> Tensor:
    """The channels that stay, (K,). Raises StudyError, which names what they are, where a unit of neighbours would stay in part."""
    stays = torch.ones(channels, dtype=torch.bool)
    stays[list(gone)] = False
    units = stays.reshape(-1, unit)
    if (units.any(1) != units.all(1)).any() or not stays.any():
        raise StudyError(f"{what} must go as a whole, and one of them must stay")
    return stays.nonzero()[:, 0]


def _staying(gone: Sequence[int], width: int, groups: int, what: str) -> Tensor:
    """The indices that stay, by group: (G, K). Raises StudyError where groups would keep unequally many."""
    stays = torch.ones(width, dtype=torch.bool)
    stays[list(gone)] = False
    counts = stays.reshape(groups, -1).sum(1)
    if len(counts.unique()) > 1 or not counts[0]:
        raise StudyError(f"each of the {groups} groups of a convolution must keep equally many {what}, one or more")
    return stays.nonzero()[:, 0].reshape(groups, -1)


def _cut_outputs(layer: Convolution, gone: Sequence[int]) -> None:
    keep = _staying(gone, layer.out_channels, layer.groups, "output channels").flatten().to(layer.weight.device)
    layer.out_channels = len(keep)
    layer.weight = nn.Parameter(layer.weight.detach()[keep])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[keep])


def _cut_inputs(layer: Convolution, gone: Sequence[int]) -> None:
    width = layer.in_channels // layer.groups
    keep = _staying(gone, layer.in_channels, layer.groups, "input channels").to(layer.weight.device) % width
    layer.in_channels = keep.numel()
    rows = layer.weight.detach().unflatten(0, (layer.groups, -1))  # (G, outputs, inputs, ...)
    layer.weight = nn.Parameter(torch.cat([own[:, columns] for own, columns in zip(rows, keep, strict=True)]))


def _cut_norm(layer: nn.GroupNorm, gone: Sequence[int]) -> None:
    width = layer.num_channels // layer.num_groups
    keep = staying_units(gone, layer.num_channels, width, f"the groups of {width} channels of a GroupNorm")
    layer.num_channels, layer.num_groups = len(keep), len(keep) // width
    for name, tensor in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(tensor.detach()[keep.to(tensor.device)]))
