"""A network of a user with layers of many kinds."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Build(nn.Module):
    """Groups, a gate from a squeeze, a pixel shuffle, and a hidden linear layer; BatchNorm behind one layer alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.norm, self.groups = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=4)
        self.squeeze, self.gate, self.wide = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 32, 1)
        self.last, self.group_norm = nn.Conv2d(8, 12, 3), nn.GroupNorm(4, 12)
        self.hidden, self.out = nn.Linear(12, 10), nn.Linear(10, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.groups(F.relu(self.norm(self.first(images))))
        maps = maps * self.gate(F.relu(self.squeeze(maps.mean((2, 3), keepdim=True)))).sigmoid()
        maps = F.relu(self.group_norm(self.last(F.relu(F.pixel_shuffle(self.wide(maps), 2)))))
        out: Tensor = self.out(F.relu(self.hidden(maps.mean((2, 3)))))
        return out
