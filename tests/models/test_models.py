"""Networks: exact parameter and MAC counts; shortcuts, fresh weights and modes; bad names and widths."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save
from torch import nn

from fcs_utils import machine
from fcs_utils.errors import StudyError
from fcs_utils.models import (
    BasicBlock,
    build_model,
    build_seeded,
    count_macs,
    images_at_once,
    initialise,
    load_state,
    measure_cost,
    module_macs,
    network_title,
    scaled,
)
from fcs_utils.running import evaluating


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("resnet56", 0.85e6, 125.5e6), ("resnet110", 1.72e6, 252.9e6), ("vgg16", 14.7e6, 313e6), ("resnet20", 0.27e6, 40.5e6)],
)
def test_published_sizes(name: str, params: float, macs: float) -> None:
    model = build_model(name, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(params, rel=0.01)
    assert count_macs(model, torch.zeros(1, 3, 32, 32)) == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg17", {}, "network='vgg17'"),
        ("torchvision/none", {}, "network="),
        ("vgg16", {"width": 0}, "width=0"),
        ("vgg16", {"shortcut": "B"}, "shortcut='B'"),
        ("torchvision/resnet18", {"width": 0.5}, "width=0.5"),
    ],
)
def test_bad_networks_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        build_model(name, num_classes=10, **options)


def test_sizes_worked_by_hand() -> None:
    # Of one 3x3 convolution from a to b channels: 9ab weights, 9ab times the positions of its output MACs; BatchNorm: 2b.
    blocks = [16] * 7 + [32] * 6 + [64] * 6  # ResNet-20: the widths of 19 convolutions
    weights = [9 * before * after for before, after in zip([3, *blocks], blocks, strict=False)]
    positions = [32 * 32] * 7 + [16 * 16] * 6 + [8 * 8] * 6  # a stage's first convolution halves the map
    network = build_model("resnet20", num_classes=10)
    cost = measure_cost(network, torch.zeros(2, 3, 32, 32))
    assert cost.params == sum(weights) + 2 * sum(blocks) + 64 * 10 + 10 == 269_722
    assert cost.macs == sum(w * p for w, p in zip(weights, positions, strict=True)) + 64 * 10 == 40_551_040
    assert cost.bytes == len(save(network.state_dict())) > 4 * cost.params
    assert cost.as_dict() == {"params": cost.params, "macs": cost.macs, "bytes": cost.bytes}
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]  # VGG-16
    weights = [9 * before * after for before, after in zip([3, *widths], widths, strict=False)]
    positions = [1024] * 2 + [256] * 2 + [64] * 3 + [16] * 3 + [4] * 3
    cost = measure_cost(build_model("vgg16", num_classes=10), torch.zeros(1, 3, 32, 32))
    assert cost.params == sum(weights) + 2 * sum(widths) + 512 * 10 + 10 == 14_724_042
    assert cost.macs == sum(w * p for w, p in zip(weights, positions, strict=True)) + 512 * 10
    # VGG-19 has one more convolution in each of the last three stages.
    more = 9 * (256**2 + 2 * 512**2) + 2 * (256 + 2 * 512)
    assert sum(p.numel() for p in build_model("vgg19", num_classes=10).parameters()) == cost.params + more


def test_macs_by_layer_leave_out_what_does_not_run() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 6, 1, stride=2, groups=3)
            self.unused, self.head = nn.Linear(4, 4), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.norm(self.a(x))).mean((2, 3)))

    network = Net().train()
    # 7x7 images: a has 5x5 positions of 3 * 2 * 9, b has 3x3 positions of 6 * 1 (three groups), the head 6 * 5.
    assert module_macs(network, torch.randn(4, 2, 7, 7)) == {"a": 25 * 54, "b": 9 * 6, "head": 30}
    assert count_macs(network, torch.randn(4, 2, 7, 7)) == 25 * 54 + 54 + 30
    assert network.norm.training and network.norm.num_batches_tracked == 0


@torch.no_grad()
def test_shortcuts_take_every_second_pixel_and_pad_channels_or_project() -> None:
    images = torch.randn(2, 3, 6, 6)
    padded = BasicBlock(3, 6, 2, "A").eval()
    nn.init.zeros_(padded.bn2.weight)  # the shortcut alone is left
    want = torch.zeros(2, 6, 3, 3)
    want[:, 1:4] = images[:, :, ::2, ::2].relu()  # of three further channels one comes before, two after
    assert padded.project is None and padded(images).equal(want)
    for block, want in (  # pixels without channels, and channels without pixels
        (BasicBlock(3, 3, 2, "A").eval(), images[:, :, ::2, ::2].relu()),
        (BasicBlock(3, 5, 1, "A").eval(), torch.cat([zero := torch.zeros(2, 1, 6, 6), images.relu(), zero], 1)),
    ):
        nn.init.zeros_(block.bn2.weight)
        assert block(images).equal(want)
    for block in (BasicBlock(3, 3, 1, "A").eval(), BasicBlock(3, 3, 1, "B").eval()):  # nothing to adapt
        nn.init.zeros_(block.bn2.weight)
        assert block.project is block.shortcut is None and block(images).equal(images.relu())
    for block in (BasicBlock(3, 6, 1, "B").eval(), BasicBlock(3, 3, 2, "B").eval()):
        nn.init.zeros_(block.bn2.weight)
        assert block.project is not None and block.project[0].bias is None and block.project[0].kernel_size == (1, 1)
        torch.testing.assert_close(block(images), block.project(images).relu())
        assert block(images).shape == (2, block.conv2.out_channels, *([3, 3] if block.stride == 2 else [6, 6]))


@pytest.mark.parametrize(("name", "blocks"), [("resnet44", 7), ("resnet56", 9), ("resnet110", 18)])
def test_a_resnets_name_counts_its_layers(name: str, blocks: int) -> None:
    network = build_model(name, num_classes=2, width=0.0625)
    assert [len(network.stage1), len(network.stage2), len(network.stage3)] == [blocks] * 3
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == int(name.removeprefix("resnet"))


def test_stages_begin_with_a_stride_but_for_the_first() -> None:
    network = build_model("resnet32", num_classes=3, width=0.5, in_channels=1)
    strides = [[block.stride for block in stage] for stage in (network.stage1, network.stage2, network.stage3)]
    assert strides == [[1] * 5, [2, 1, 1, 1, 1], [2, 1, 1, 1, 1]]
    assert [network.conv.out_channels, network.stage2[0].conv1.out_channels, network.head.in_features] == [8, 16, 32]
    assert [block.shortcut is not None for block in network.stage1] == [True, False, False, False, False]  # to be narrowed


def test_widths_round_and_leave_a_channel() -> None:
    assert [scaled(16, 0.25), scaled(10, 0.26), scaled(16, 0.01), scaled(64, 1.5)] == [4, 3, 1, 96]


def test_fresh_weights_have_the_spread_of_kaiming_and_follow_the_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_seeded(seed, "vgg16", num_classes=4, width=0.5) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(state)
    weights = [network.features.conv5.weight for network in (first, again, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    for network in (first, other):
        # Variance 2 / fan-out, which is 9 times the filters: conv5 has 128 of them. conv1 has 32 filters of 27 weights.
        assert network.features.conv5.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.03)
        assert network.features.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.1)


@torch.no_grad()
def test_initialise_draws_everything_again() -> None:
    used = [build_seeded(0, "resnet20", num_classes=4, width=0.5) for _ in range(3)]
    for network in used:
        for tensor in network.state_dict().values():
            tensor.fill_(7)
    state = torch.get_rng_state()
    for network, seed in zip(used, (1, 1, 2), strict=True):
        initialise(network, seed)
    assert torch.get_rng_state().equal(state)
    first, again, other = (network.state_dict() for network in used)
    assert all(tensor.equal(again[name]) for name, tensor in first.items())
    assert not any(tensor.equal(other[name]) for name, tensor in first.items() if "conv" in name or "head" in name)
    assert not first["bn.running_mean"].any() and (first["bn.weight"] == 1).all() and first["bn.num_batches_tracked"] == 0
    # Variance 2 / fan-out: stage2's convolutions have 16 filters of 9 * 16 weights at half the width.
    assert first["stage2.1.conv1.weight"].std().item() == pytest.approx(math.sqrt(2 / (9 * 16)), rel=0.06)
    assert first["head.weight"].abs().max() <= 1 / math.sqrt(32)  # PyTorch's own range for a linear layer of 32 inputs


def test_torchvisions_networks_take_other_images_and_keep_all_else() -> None:
    grey, colour = (build_seeded(3, "torchvision/resnet18", num_classes=6, in_channels=count) for count in (1, 3))
    assert grey.conv1.weight.shape == (64, 1, 7, 7) and grey.conv1.in_channels == 1 and colour.conv1.weight.shape == (64, 3, 7, 7)
    assert grey.layer1[0].conv1.weight.equal(colour.layer1[0].conv1.weight) and grey.fc.out_features == 6
    assert grey.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 6)
    assert grey.conv1.weight.isfinite().all() and grey.conv1.weight.std() > 0


def test_every_module_gets_its_own_mode_back_whatever_happens() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2).eval())).train()
    network[1][1].eval()
    modes = [module.training for module in network.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(network):
        assert not any(module.training for module in network.modules())
        raise ZeroDivisionError
    assert [module.training for module in network.modules()] == modes == [True, True, True, True, False]


@pytest.mark.parametrize("option", [{"num_classes": 0}, {"in_channels": 0}, {"width": float("nan")}, {"width": float("inf")}])
def test_numbers_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(StudyError, match=next(iter(option))):
        build_model("resnet20", **{"num_classes": 1, **option})
    assert build_model("resnet20", num_classes=1, in_channels=1, width=0.01).head.out_features == 1


def test_titles_of_networks() -> None:
    assert [network_title(name) for name in ("vgg16", "resnet20", "torchvision/resnet50", "mine:build")] == [
        "VGG-16", "ResNet-20", "ResNet-50", "mine:build",
    ]  # fmt: skip
    assert [network_title(f"torchvision/{name}") for name in ("resnet18", "vgg16_bn", "mobilenet_v2")] == [
        "ResNet-18", "VGG-16", "MobileNetV2",
    ]  # fmt: skip
    assert network_title("vgg16", 0.25) == "VGG-16 x0.25"


@torch.no_grad()
@pytest.mark.parametrize(("name", "last", "ones"), [("vgg16", "features.bn13", slice(0, 32)), ("resnet20", "bn", slice(1, 2))])
def test_the_head_reads_the_mean_of_a_map_of_any_size(name: str, last: str, ones: slice) -> None:
    network = build_seeded(0, name, num_classes=3, width=0.0625).eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight.zero_()
    network.get_submodule(last).bias.fill_(1)  # in the ResNet, only its one channel goes on, by the shortcuts
    network.head.weight.copy_(torch.arange(network.head.weight.numel()).view_as(network.head.weight))
    wanted = network.head.weight[:, ones].sum(1) + network.head.bias
    for size in (32, 64):
        torch.testing.assert_close(network(torch.randn(2, 3, size, size)), wanted.expand(2, 3))
    network.get_submodule(last).bias.fill_(-1)
    torch.testing.assert_close(network(torch.randn(1, 3, 32, 32))[0], network.head.bias)  # what is negative becomes 0


def test_images_at_once_follow_from_what_the_largest_layer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(network: nn.Module, count: int, free: int) -> int:
        monkeypatch.setattr(machine, "free_memory", lambda device=None: free)
        return images_at_once(network, torch.zeros(count, 1, 4, 4))

    assert at_once(nn.Identity(), 300, 2**40) == 256 and at_once(nn.Identity(), 1, 0) == 1
    # One image has 64 bytes; 20 times a hundred of them are just a quarter of the memory, or else the network is tried.
    broken = nn.Linear(5, 5)
    assert at_once(broken, 20, 4 * 6400 * 20) == 20
    with pytest.raises(StudyError):
        at_once(broken, 20, 4 * 6400 * 20 - 1)
    # A part that reads and writes one channel of 64 bytes, and has eight inside: a layer holds nine of them.
    inside = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 1, 1))
    outside = nn.Sequential(nn.Conv2d(8, 1, 1), nn.Conv2d(1, 8, 1))  # this one reads and writes eight
    assert at_once(nn.Sequential(inside, nn.Conv2d(1, 8, 1), outside), 20, 4 * (2 * 9 * 64) * 7) == 7


def test_a_state_from_a_file_is_loaded_as_one_of_this_version() -> None:
    state = {name: torch.full_like(tensor, 3) for name, tensor in nn.BatchNorm2d(2).state_dict().items()}
    network = nn.BatchNorm2d(2)
    load_state(network, state)
    assert network.weight.tolist() == network.running_var.tolist() == [3, 3]
    del state["num_batches_tracked"]  # which the first version of BatchNorm had not
    with pytest.raises(RuntimeError, match="Missing key.*num_batches_tracked"):
        load_state(network, state)
