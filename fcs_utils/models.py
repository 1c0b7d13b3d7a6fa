"""Networks by name: VGG and ResNet in their CIFAR form, and those that other code builds; and what they cost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from fcs_utils.builders import build_elsewhere, is_elsewhere
from fcs_utils.config import Channels, Classes, Width, checked
from fcs_utils.errors import refuse
from fcs_utils.files import untied
from fcs_utils.inputs import Inputs, count_of, first_of, moved, parts_of
from fcs_utils.machine import fitting_batch
from fcs_utils.running import MacsCounter, run_network, seed_draws, shared, tensors_in, untouched, without_numbers
from fcs_utils.shortcuts import PadShortcut

# Simonyan and Zisserman 2015, columns D and E; "M" halves the map.
VGG = {
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    "vgg19": (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"),
}
RESNET_BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}  # a stage

NETWORK_TITLES = {name: name.replace("vgg", "VGG-").replace("resnet", "ResNet-") for name in (*VGG, *RESNET_BLOCKS)}
NETWORK_TITLES |= {f"torchvision/resnet{depth}": f"ResNet-{depth}" for depth in (18, 50)}
NETWORK_TITLES |= {"torchvision/vgg16_bn": "VGG-16", "torchvision/mobilenet_v2": "MobileNetV2"}


def network_title(name: str, width: float = 1) -> str:
    """'VGG-16', or 'VGG-16 x0.25' where the width is not one: a network as readers know it. Other names stay as they are."""
    return NETWORK_TITLES.get(name, name) + ("" if width == 1 else f" x{width:g}")


def scaled(channels: int, width: float) -> int:
    """The channel count of a layer at a width multiplier, at least one."""
    return max(1, round(channels * width))


class CifarVGG(nn.Module):
    """VGG with BatchNorm and a single linear head, as pruning papers use it on CIFAR."""

    def __init__(self, layout: tuple[int | str, ...], num_classes: int, width: float, in_channels: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        number, channels = 0, in_channels
        for item in layout:
            if isinstance(item, str):
                layers[f"pool{number}"] = nn.MaxPool2d(2)
                continue
            number, out = number + 1, scaled(item, width)
            layers[f"conv{number}"] = nn.Conv2d(channels, out, 3, padding=1, bias=False)
            layers[f"bn{number}"] = nn.BatchNorm2d(out)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            channels = out
        self.features = nn.Sequential(layers)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        # A 32x32 image is 1x1 here. The mean over positions admits larger images.
        return self.head(self.features(images).mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016). No residual sum shares conv1, so its scope is ``inner``.

    first: whether the block is a stage's first. With option A, its shortcut is then a module that surgery can narrow.
    """

    def __init__(self, channels: int, out: int, stride: int, shortcut: Literal["A", "B"], first: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride = stride
        self.project: nn.Module | None = None
        self.shortcut: PadShortcut | None = None
        adapts = stride != 1 or out != channels
        if shortcut == "B" and adapts:
            self.project = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        elif shortcut == "A" and (adapts or first):
            self.shortcut = PadShortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        beside = self.shortcut if self.project is None else self.project
        return F.relu((x if beside is None else beside(x)) + y)


class CifarResNet(nn.Module):
    """ResNet of 6n+2 layers for 32x32 images (He et al. 2016, section 4.2)."""

    def __init__(self, blocks: int, num_classes: int, width: float, in_channels: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        channels = scaled(16, width)
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        stages = []
        for stage, base in enumerate((16, 32, 64)):
            out, layers = scaled(base, width), []
            for block in range(blocks):
                layers.append(BasicBlock(channels, out, 2 if stage and not block else 1, shortcut, first=not block))
                channels = out
            stages.append(nn.Sequential(*layers))
        self.stage1, self.stage2, self.stage3 = stages
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(images)))
        return self.head(self.stage3(self.stage2(self.stage1(x))).mean((2, 3)))


@checked
def build_model(
    name: str, *, num_classes: Classes, width: Width = 1.0, in_channels: Channels = 3, shortcut: Literal["A", "B"] = "A"
) -> nn.Module:
    """A network with new random weights, drawn from torch's global generator.

    ``name``: ``vgg16``, ``vgg19``, ``resnet20|32|44|56|110``, ``torchvision/NAME``, ``timm:NAME``, or ``module:function`` of your
    own, which is imported and called, and so runs your code (``builders.build_elsewhere``). ``width`` multiplies
    every layer's channels; ``shortcut`` is He et al.'s option for the CIFAR ResNets. At most 100,000 classes,
    8 times the width and images of 10,000 channels are taken, so that no slip of the hand asks for all memory.

    Raises StudyError for an unknown name or a value the network cannot take.
    """
    if shortcut != "A" and name not in RESNET_BLOCKS:
        raise refuse("shortcut", shortcut, f"'A' for {name}: only {', '.join(RESNET_BLOCKS)} have a choice")
    if is_elsewhere(name):
        if width != 1.0:
            raise refuse("width", width, f"1.0 for {name}, whose channels are fixed")
        return build_elsewhere(name, num_classes, in_channels)
    if name in VGG:
        network: nn.Module = CifarVGG(VGG[name], num_classes, width, in_channels)
    elif name in RESNET_BLOCKS:
        network = CifarResNet(RESNET_BLOCKS[name], num_classes, width, in_channels, shortcut)
    else:
        raise refuse("network", name, ", ".join([*VGG, *RESNET_BLOCKS, "torchvision/NAME", "timm:NAME", "MODULE:FUNCTION"]))
    _initialise_convolutions(network)
    return network


def _initialise_convolutions(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def initialise(network: nn.Module, seed: int) -> None:
    """Draw new weights in place, as ``build_model`` does, for a network of any widths."""
    with shared, torch.random.fork_rng(devices=[]):
        seed_draws(seed)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
        _initialise_convolutions(network)


def build_seeded(seed: int, name: str, **options: object) -> nn.Module:
    """``build_model`` with weights from a seed; torch's global generator does not change."""
    with shared, torch.random.fork_rng(devices=[]):
        seed_draws(seed)
        return build_model(name, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Cost:
    """params: trainable parameters. macs: multiply-adds for one image. bytes: size of the weights as safetensors."""

    params: int
    macs: int
    bytes: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def count_macs(model: nn.Module, example: Inputs) -> int:
    """Multiply-adds of convolutions and matrix products for one image; example: (N, C, ...)."""
    return all_macs(model, example)[0]


def module_macs(model: nn.Module, example: Inputs) -> dict[str, int]:
    """Multiply-adds of one image by convolution or linear layer; example: (N, C, ...)."""
    return all_macs(model, example)[1]


def all_macs(model: nn.Module, example: Inputs, shapes_only: bool = False) -> tuple[int, dict[str, int]]:
    """What ``count_macs`` and ``module_macs`` return, of one forward pass.

    shapes_only: that pass runs on the device meta. It takes less time for a large network, and many networks do not run there.
    """
    image = moved(first_of(example), torch.device("meta")) if shapes_only else first_of(example)
    with torch.no_grad(), without_numbers(model) if shapes_only else untouched(model), MacsCounter(model) as counter:
        run_network(model, image)
    layers = [name for name, one in model.named_modules() if isinstance(one, (nn.modules.conv._ConvNd, nn.Linear))]
    return counter.found["Global"], {name: macs for name in layers if (macs := counter.found[name])}


def measure_cost(model: nn.Module, example: Inputs) -> Cost:
    """Parameters, MACs and bytes of a network for one image of example's shape (N, C, ...)."""
    size = len(save(untied(model.state_dict())[0]))
    return Cost(sum(p.numel() for p in model.parameters()), count_macs(model, example), size)


@torch.no_grad()
def images_at_once(model: nn.Module, images: Inputs, most: int = 256) -> int:
    """How many images go through a network at once in eval mode: ``most``, or fewer where memory is short.

    images: (N, C, ...). Where they may need much, one image is tried: a network holds about twice what its largest layer reads and
    writes. Raises StudyError where the network does not run on it.
    """
    parts, most = parts_of(images), min(most, count_of(images))
    device, size = parts[0].device, sum(one[0].numel() * one.element_size() for one in parts)
    if fitting_batch(most, 100 * size, device) == most:
        return most  # no network takes a hundred times its image, or nearly none
    largest = 0

    def look(_module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(one.numel() * one.element_size() for one in tensors_in((inputs, output))))

    with untouched(model):
        for module in model.modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(look)
        run_network(model, first_of(images))
    return fitting_batch(most, 2 * largest, device)


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` of tensors from a file, which keeps no versions; some networks, such as MNASNet, ask for theirs."""
    own = network.state_dict()
    versions = own._metadata  # type: ignore[attr-defined]
    named = OrderedDict(state)
    named._metadata = versions  # type: ignore[attr-defined]
    network.load_state_dict(named)
