"""Small networks written here, of kinds that torchvision has none of: U-Nets, a detector with chunks, super-resolution, LeNet.

Each calls the layers that write its outputs ``head``. Weights are random.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class LeNet(nn.Module):
    """Two convolutions and three linear layers (LeCun et al. 1998), with ReLU and max pooling: (N, 3, 32, 32) to (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.head = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def _two_convolutions(channels: int, out: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, out, 3, padding=1, bias=False), norm(out), nn.ReLU()),
        *(nn.Conv2d(out, out, 3, padding=1, bias=False), norm(out), nn.ReLU()),
    )


class UNet(nn.Module):
    """A U-Net of three levels (Ronneberger et al. 2015): (N, 3, H, W) to (N, 2, H, W), H and W multiples of 4.

    transposed: whether maps grow by a transposed convolution, as in the paper, or by interpolation.
    """

    def __init__(self, norm: Norm, transposed: bool) -> None:
        super().__init__()
        self.down1, self.down2 = _two_convolutions(3, 16, norm), _two_convolutions(16, 32, norm)
        self.bottom = _two_convolutions(32, 64, norm)
        self.grow2 = nn.ConvTranspose2d(64, 64, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.grow1 = nn.ConvTranspose2d(32, 32, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.up2, self.up1 = _two_convolutions(96, 32, norm), _two_convolutions(48, 16, norm)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        one = self.down1(images)
        two = self.down2(F.max_pool2d(one, 2))
        three = self.bottom(F.max_pool2d(two, 2))
        x = self.up2(torch.cat([two, self.grow2(three)], 1))
        return self.head(self.up1(torch.cat([one, self.grow1(x)], 1)))


class Block(nn.Sequential):
    """Convolution, BatchNorm and SiLU, as YOLO networks have."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.SiLU())


class Bottleneck(nn.Module):
    """Two blocks beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = Block(channels, channels, 3), Block(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x))


class C2f(nn.Module):
    """C2f of YOLOv8: one block's output in two halves by ``chunk``; the second goes on through bottlenecks, and all are joined."""

    def __init__(self, channels: int, out: int, depth: int = 1) -> None:
        super().__init__()
        self.first, self.last = Block(channels, out), Block((2 + depth) * out // 2, out)
        self.between = nn.ModuleList(Bottleneck(out // 2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = [*self.first(x).chunk(2, 1)]
        for bottleneck in self.between:
            parts.append(bottleneck(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """A small detector like YOLOv8: C2f, pooling pyramid, one way up with concatenation, and two heads.

    (N, 3, H, W), H and W multiples of 8, to maps (N, 12, H / 4, W / 4) and (N, 12, H / 8, W / 8).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(3, 16, 3, 2), Block(16, 32, 3, 2), C2f(32, 32))
        self.deep = nn.Sequential(Block(32, 64, 3, 2), C2f(64, 64, 2))
        self.squeeze, self.mixed = Block(64, 32), Block(128, 64)
        self.up = C2f(96, 32)
        self.head = nn.ModuleList([nn.Conv2d(32, 12, 1), nn.Conv2d(64, 12, 1)])

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.stem(images)
        pyramid = [self.squeeze(self.deep(fine))]
        for _ in range(3):
            pyramid.append(F.max_pool2d(pyramid[-1], 5, 1, 2))
        coarse = self.mixed(torch.cat(pyramid, 1))
        joined = self.up(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1))
        return [self.head[0](joined), self.head[1](coarse)]


class SRResNet(nn.Module):
    """Super-resolution by 2 with residual blocks and PixelShuffle (Ledig et al. 2017): (N, 3, H, W) to (N, 3, 2 H, 2 W)."""

    def __init__(self, channels: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 9, padding=4), nn.PReLU())
        self.blocks = nn.ModuleList(self._block(channels) for _ in range(blocks))
        self.after = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.grow = nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.head = nn.Conv2d(channels, 3, 9, padding=4)

    @staticmethod
    def _block(channels: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.PReLU()),
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)),
        )

    def forward(self, images: Tensor) -> Tensor:
        first = x = self.stem(images)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.grow(first + self.after(x)))


WRITTEN_HERE: dict[str, Callable[[], nn.Module]] = {
    "lenet": LeNet,
    "unet_batchnorm": partial(UNet, nn.BatchNorm2d, True),
    "unet_interpolated": partial(UNet, nn.BatchNorm2d, False),
    "unet_groupnorm": partial(UNet, partial(nn.GroupNorm, 8), False),
    "c2f_detector": Detector,
    "srresnet": SRResNet,
}
