"""Where a group's channels are in the operations that they reach."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Reached:
    """Where a group's channels are in an operation, worked out once for all that they reach in the same way.

    pairs: (2, n), indices of the operation and the channels that they belong to. channels: how many the group has.
    """

    def __init__(self, pairs: Tensor, channels: int) -> None:
        self.pairs, self.channels = pairs, channels
        self.indices, self.owners = pairs

    @cached_property
    def unlike(self) -> bool:
        """Whether an index belongs to several channels."""
        return len(self.indices.unique()) < len(self.indices)

    @cached_property
    def aligned(self) -> bool:
        """Whether the indices, equally many of each channel, come in the order of the channels."""
        return bool((self.owners.reshape(self.channels, -1) == torch.arange(self.channels)[:, None]).all())

    @cached_property
    def positions(self) -> Tensor:
        """The indices of each channel (C, k)."""
        even = len(self.indices) % self.channels == 0 and self.aligned
        return self.indices.reshape(self.channels, -1) if even else _by_channel(self.pairs, self.channels)

    def owners_in(self, width: int) -> tuple[Tensor, bool]:
        """For each of so many indices the channel that it belongs to, -1 for none, and whether all are among these."""
        owners, known = torch.full((width,), -1), self.indices < width  # reshapes may count wrongly
        owners[self.indices[known]] = self.owners[known]
        return owners, bool(known.all())


def _by_channel(pairs: Tensor, channels: int) -> Tensor:
    """The indices of each channel (C, k), in their order; those that have fewer end in -1. pairs: (2, n), indices and channels."""
    indices, owners = pairs[:, pairs[0].argsort()]
    order = owners.argsort(stable=True)
    counts = owners.bincount(minlength=channels)
    places = torch.arange(len(owners)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    positions = torch.full((channels, int(counts.max())), -1)
    positions[owners[order], places] = indices[order]
    return positions


def to_all(pairs: Tensor, units: Tensor) -> Tensor:
    """Indices and channels (2, n) with each index given to all channels of a unit, sorted by channels. units: (C,), of one size."""
    members = units.argsort(stable=True).reshape(int(units.max()) + 1, -1)[units[pairs[1]]]
    given = torch.stack([members.flatten(), pairs[0].repeat_interleave(members.shape[1])])
    return given.unique(dim=1).flip(0)
