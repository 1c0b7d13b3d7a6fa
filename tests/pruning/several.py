"""Small networks that take several inputs, for tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fcs_utils.inputs import Inputs

COUNT = 10
CHANCE = torch.Generator().manual_seed(5)
IMAGES = torch.randn(COUNT, 3, 8, 8, generator=CHANCE)
GREY = torch.randn(COUNT, 1, 8, 8, generator=CHANCE)
MASKS = (torch.rand(COUNT, 1, 8, 8, generator=CHANCE) < 0.7).float()
CLASSES = torch.arange(COUNT) % 4
TOKENS = torch.randint(0, 20, (COUNT, 16), generator=CHANCE)
LABELS = torch.arange(COUNT) % 3


def conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class Branches(nn.Module):
    """Two images, each with a branch of its own, side by side before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 6), conv(1, 4)
        self.both, self.head = conv(10, 8), nn.Linear(8, 3)

    def forward(self, colour: Tensor, grey: Tensor) -> Tensor:
        return self.head(self.both(torch.cat([self.left(colour), self.right(grey)], 1)).mean((2, 3)))


class Masked(nn.Module):
    """An image and a mask (N, 1, H, W) that blanks positions of maps; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = conv(3, 6), conv(6, 8), nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        out = self.last(self.second(self.first(image) * mask) * mask)
        return {"pooled": out.mean((2, 3)), "maps": out}


class Conditional(nn.Module):
    """An image and a class, which scales the channels of a map by itself, as FiLM does (Perez et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 6), conv(6, 8), nn.Linear(8, 3)
        self.table, self.scale = nn.Embedding(4, 5), nn.Linear(5, 6)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        scale = self.scale(self.table(label).relu())
        return self.head(self.second(self.first(image) * scale[:, :, None, None]).mean((2, 3)))


class Text(nn.Module):
    """Tokens (N, L) through an embedding and Conv1d (Kim 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 5), nn.Linear(6, 3)
        self.first, self.second = nn.Conv1d(5, 8, 3), nn.Conv1d(8, 6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.table(tokens).transpose(1, 2)).relu()).relu().amax(2))


# By name: a network, its inputs, whether a plan can be proved without an example, and the layers that shrink when all may.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Inputs, bool, set[str]]] = {
    "two branches": (Branches, (IMAGES, GREY), True, {"left.0", "right.0", "both.0"}),
    "two branches by name": (Branches, {"grey": GREY, "colour": IMAGES}, True, {"left.0", "right.0", "both.0"}),
    "image and mask": (Masked, [IMAGES, MASKS], True, {"first.0", "second.0"}),
    "image and mask of truths": (Masked, {"image": IMAGES, "mask": MASKS.bool()}, False, {"first.0", "second.0"}),
    "image and class": (Conditional, (IMAGES, CLASSES), False, {"first.0", "second.0", "scale"}),
    "tokens": (Text, (TOKENS,), False, {"first", "second"}),
}
