"""Small networks on signals (N, C, L) and on volumes (N, C, D, H, W), for tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fcs_utils.inputs import Inputs, call
from tests.pruning.toys import Net

SIGNALS = torch.randn(12, 2, 24, generator=torch.Generator().manual_seed(1))
VOLUMES = torch.randn(12, 2, 6, 5, 8, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(12) % 3


class Block(nn.Module):
    """Two convolutions of signals beside a shortcut, which has a convolution where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm1d(out)
        self.conv2, self.bn2 = nn.Conv1d(out, out, 3, padding=1, bias=False), nn.BatchNorm1d(out)
        self.beside = nn.Conv1d(channels, out, 1, stride) if stride > 1 or channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.beside(x) + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def resnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)),
        *(Block(8, 8), Block(8, 12, 2), Block(12, 12)),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 3)),
    )


def flattened() -> nn.Module:
    """Conv1d whose whole map a linear layer reads, which takes signals of one length."""
    return nn.Sequential(
        *(nn.Conv1d(2, 6, 3), nn.InstanceNorm1d(6, affine=True), nn.PReLU(6), nn.AvgPool1d(2)),
        *(nn.Conv1d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7), nn.ReLU(), nn.Linear(7, 3)),
    )


def separable() -> nn.Module:
    """Depthwise and grouped Conv1d, and GroupNorm."""
    return nn.Sequential(
        *(nn.Conv1d(2, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU()),
        *(nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.BatchNorm1d(8), nn.Conv1d(8, 12, 1), nn.ReLU()),
        *(nn.Conv1d(12, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Conv1d(6, 4, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def cropped(net: nn.Module, x: Tensor) -> Tensor:
    """A U-Net whose skip is cut to the length of what comes back, as in Wave-U-Net."""
    skip = net.first(x).relu()
    up = net.up(net.down(skip).relu()).relu()
    return net.last(torch.cat([up, skip[:, :, 1:-1]], 1)).mean(2)


def unet() -> nn.Module:
    return Net(
        cropped,
        first=nn.Conv1d(2, 6, 3, padding=1),
        down=nn.Conv1d(6, 8, 3, 2),
        up=nn.ConvTranspose1d(8, 5, 2, 2),
        last=nn.Conv1d(11, 3, 1),
    )


def gated(net: nn.Module, x: Tensor) -> Tensor:
    """Half of the channels gates the other half, as in WaveNet; the halves are slices of the channels."""
    h = net.first(x)
    return net.last(net.second(h[:, :4].tanh() * h[:, 4:].sigmoid()).relu()).mean(2)


def wavenet() -> nn.Module:
    return Net(gated, first=nn.Conv1d(2, 8, 3), second=nn.Conv1d(4, 6, 3), last=nn.Conv1d(6, 3, 1))


def row() -> nn.Module:
    """A small C3D (Tran et al. 2015)."""
    return nn.Sequential(
        *(nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d((1, 1, 2))),
        *(nn.Conv3d(6, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3)),
    )


def volumes() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(2, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d((2, 1, 2))),
        *(nn.Conv3d(6, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv3d(8, 8, 1, groups=8), nn.InstanceNorm3d(8)),
        *(nn.Conv3d(8, 4, (1, 3, 3), padding=(0, 1, 1)), nn.PReLU(4), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def grown(net: nn.Module, x: Tensor) -> Tensor:
    """ConvTranspose3d beside a skip that loses its border, and a linear layer on the whole map."""
    skip = net.first(x).relu()
    up = net.up(net.down(skip).relu()).relu()
    return net.head((up + net.beside(skip[:, :, :, :4])).flatten(1))


def transposed() -> nn.Module:
    return Net(
        grown,
        first=nn.Conv3d(2, 6, 3, padding=1),
        down=nn.Conv3d(6, 8, 2, 2),
        up=nn.ConvTranspose3d(8, 4, 2, 2),
        beside=nn.Conv3d(6, 4, 1),
        head=nn.Linear(4 * 6 * 4 * 8, 3),
    )


# By name: a network, images of it, and the layers that shrink when all may.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, set[str]]] = {
    "residual network of signals": (
        resnet,
        SIGNALS,
        {"0", *(f"{n}.{conv}" for n in (4, 5, 6) for conv in ("conv1", "conv2")), "5.beside"},
    ),
    "signals flattened": (flattened, SIGNALS, {"0", "4", "7"}),
    "depthwise and grouped": (separable, SIGNALS, {"0", "3", "5", "7", "9"}),
    "signals cut to length": (unet, SIGNALS, {"first", "down", "up"}),
    "halves that gate": (wavenet, SIGNALS, {"second"}),
    "volumes in a row": (row, VOLUMES, {"0", "4", "7"}),
    "volumes": (volumes, VOLUMES, {"0", "4", "7", "9"}),
    "transposed volumes": (transposed, VOLUMES, {"first", "down", "up", "beside"}),
}


@torch.no_grad()
def settled(network: nn.Module, images: Inputs) -> nn.Module:
    """The network in eval mode with BatchNorm statistics of these images, and scales and shifts that differ by channel."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.uniform_(-0.3, 0.3, generator=generator)
    network.train()
    for _ in range(8):
        call(network, images)
    return network.eval()
