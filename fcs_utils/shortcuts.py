"""Option A's shortcut (He et al. 2016): no parameters, and channels that surgery can take away on either side."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Every ``stride``-th pixel of the input (N, channels, H, W), with zeros for the channels that it lacks: (N, out, H', W').

    positions: (out,) int64, for each output channel the input's channel that it copies, or -1 for zeros. A new shortcut copies
    all channels in order and puts half of the zeros before them and half behind. ``lose_inputs`` and ``lose_outputs`` narrow
    it; an output channel whose input is lost becomes zeros. ``positions`` is no part of the state, so that networks from files
    without it load.
    """

    positions: Tensor

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        before = (out - channels) // 2
        places = [place - before if before <= place < before + channels else -1 for place in range(out)]
        self.register_buffer("positions", torch.tensor(places), persistent=False)
        self.zeros = self._zeros()

    def _zeros(self) -> tuple[int, int] | None:
        """How many zeros come before and behind the input, where all of it is copied in order; None where it is not."""
        places = self.positions.tolist()
        before = places.index(0) if 0 in places else 0
        behind = len(places) - before - self.channels
        return (before, behind) if places == [-1] * before + [*range(self.channels)] + [-1] * behind else None

    def forward(self, x: Tensor) -> Tensor:
        # Pooling single pixels takes them, because the gradient of a slice is not channels_last, and the layers before would
        # run many times slower.
        x = F.avg_pool2d(x, 1, self.stride) if self.stride != 1 else x
        if self.zeros is not None:
            # Not x itself: what reads the network's graph must tell the shortcut's output from its input.
            return F.pad(x, (0, 0, 0, 0, *self.zeros)) if any(self.zeros) else torch.ops.aten.alias(x)
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        padded = F.pad(x, (0, 0, 0, 0, 0, 1))  # the last channel is the zeros
        places = self.positions.where(self.positions >= 0, self.channels)
        return padded.index_select(1, places).contiguous(memory_format=layout)

    def lose_inputs(self, gone: Iterable[int]) -> None:
        """Narrow the shortcut by channels of its input."""
        left = sorted(set(range(self.channels)) - set(gone))
        new = {channel: number for number, channel in enumerate(left)}
        self.positions = self.positions.new_tensor([new.get(place, -1) for place in self.positions.tolist()])
        self.channels = len(left)
        self.zeros = self._zeros()

    def lose_outputs(self, gone: Iterable[int]) -> None:
        """Narrow the shortcut by channels of its output."""
        lost = set(gone)
        self.positions = self.positions.new_tensor([p for place, p in enumerate(self.positions.tolist()) if place not in lost])
        self.zeros = self._zeros()

    def extra_repr(self) -> str:
        return f"{self.channels}, {len(self.positions)}, stride={self.stride}"
