"""Statistics against literal computations on stored maps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded
from fcs_utils.pruning.layers import prunable_layers
from fcs_utils.pruning.statistics import ChannelStatistics, collect_statistics, feature_maps, shuffle_pixels
from fcs_utils.pruning.sums import EXTRAS, READINGS, Extra, Sums
from tests.conftest import warm


class Chain(nn.Module):
    """conv -> ReLU -> pool -> flatten -> linear: the consumer reads four positions a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(4)
        self.head = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.conv(x).relu()).flatten(1))


def literal(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gram, L1 and mean as (M1) and (M3) write them, in float64, from all maps (N, C, ...) at once."""
    flat = maps.double().flatten(2)
    return torch.einsum("nip,njp->ij", flat, flat), flat.abs().sum((0, 2)) / len(flat), flat.mean((0, 2))


def test_the_consumer_behind_a_flatten_sees_pooled_maps() -> None:
    torch.manual_seed(0)
    model, images = Chain().eval(), torch.randn(10, 1, 8, 8)
    got = collect_statistics(model, images, batch_size=4)["conv"]
    maps = model.pool(model.conv(images).relu())
    gram, l1, mean = literal(maps)
    torch.testing.assert_close(got.gram, gram, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.l1, l1, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.mean, mean, rtol=1e-5, atol=1e-6)
    assert (got.count, got.positions, [c.name for c in got.consumers]) == (40, 4, ["head"])
    # The linear layer reads channel c at its inputs 4c to 4c + 3.
    assert got.consumers[0].positions.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("inplace", [True, False])
def test_the_switch_takes_the_convolutions_own_output(inplace: bool) -> None:
    # Weights 1 and -1 on the pixels 1 to 4: the second map is minus the first, and nothing of it gets past the ReLU.
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=inplace), nn.Conv2d(2, 1, 1))
    net[0].weight.data = torch.tensor([1.0, -1.0])[:, None, None, None]
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    raw, read = (collect_statistics(net, image, tap=tap, readings=READINGS)["0"] for tap in ("convolution", "reader"))
    assert raw.gram.tolist() == [[30, -30], [-30, 30]] and raw.l1.tolist() == [10, 10] and raw.mean.tolist() == [2.5, -2.5]
    assert read.gram.tolist() == [[30, 0], [0, 0]] and read.l1.tolist() == [10, 0] and read.mean.tolist() == [2.5, 0]
    for reading in READINGS:
        torch.testing.assert_close(raw.similarity(reading), torch.tensor([[1.0, -1], [-1, 1]]).double())
    assert (raw.tap, read.tap) == ("convolution", "reader") and [one.name for one in raw.consumers] == ["2"]


@torch.no_grad()
def test_the_own_output_of_a_linear_layer_has_its_channels_last() -> None:
    """As in ConvNeXt, a linear layer reads maps (N, H, W, C)."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"stem": nn.Conv2d(1, 3, 1), "up": nn.Linear(3, 5), "down": nn.Linear(5, 2)}).eval()
    net.forward = lambda x: net["down"](net["up"](net["stem"](x).movedim(1, -1)).relu()).mean((1, 2))
    images = torch.randn(4, 1, 6, 7)
    got = collect_statistics(net, images, tap="convolution")["up"]
    gram, l1, mean = literal(net["up"](net["stem"](images).movedim(1, -1)).movedim(-1, 1))
    assert (got.count, got.positions) == (4 * 42, 42)
    for found, want in ((got.gram, gram), (got.l1, l1), (got.mean, mean)):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_every_layer_of_a_network_in_one_pass(name: str) -> None:
    model = warm(build_seeded(1, name, num_classes=4, width=0.25))
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    statistics = collect_statistics(model, images, batch_size=7)
    assert len(statistics) == {"vgg16": 13, "resnet20": 19}[name]
    for layer, got in statistics.items():
        gram, l1, _ = literal(feature_maps(model, images, layer))
        torch.testing.assert_close(got.gram, gram, rtol=1e-5, atol=1e-5 * gram.max().item())
        torch.testing.assert_close(got.l1, l1, rtol=1e-5, atol=1e-6)


class Flattening(nn.Module):
    """Its linear layer reads what no module's output shows."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 5, 3, padding=1), nn.Linear(5 * positions, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.max_pool2d(self.conv(x), 4).flatten(1))


@pytest.mark.parametrize(("size", "shape"), [((8, 8), (2, 2)), ((8, 12), (1, 6)), ((4, 4), (1, 1))])
def test_maps_before_a_linear_layer_are_laid_out_to_be_looked_at(size: tuple[int, int], shape: tuple[int, int]) -> None:
    model, images = Flattening(shape[0] * shape[1]), torch.randn(2, 1, *size)
    maps = feature_maps(model, images, "conv")
    assert maps.shape == (2, 5, *shape)
    assert maps.flatten().equal(nn.functional.max_pool2d(model.conv(images), 4).flatten())


@pytest.fixture(scope="module", params=["wide maps", "many channels"])
def maps_and_sums(request: pytest.FixtureRequest) -> tuple[torch.Tensor, ChannelStatistics]:
    """Rectified maps (N, C, H, W), with a dead channel and zero maps, and their statistics from one pass in two batches."""
    torch.manual_seed(1)
    channels, size = (5, 7) if request.param == "wide maps" else (11, 3)
    model = nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(channels, 2, 1)).eval()
    model[0].bias.data[0] = -1e3  # dead
    model[0].weight.data[2] = 0.1 * model[0].weight.data[2]
    model[0].bias.data[2] = -0.15  # zero maps on some images
    model[0].weight.data[3] = torch.outer(torch.ones(2), torch.tensor([1.0, 0, -1]).repeat(3)).reshape(2, 3, 3) / 9
    images = torch.randn(9, 2, size, size)
    statistics = collect_statistics(model, images, readings=READINGS, extras=EXTRAS, batch_size=5)["0"]
    maps = model[1](model[0](images)).detach()
    assert (maps.flatten(2).amax(2) == 0).any(0)[2]
    return maps.double(), statistics


def test_per_image_similarity_divides_by_all_images(maps_and_sums: tuple[torch.Tensor, ChannelStatistics]) -> None:
    maps, statistics = maps_and_sums
    want = torch.zeros(maps.shape[1], maps.shape[1]).double()
    for image in maps.flatten(2):
        for i, j in itertools.product(range(len(image)), repeat=2):
            if image[i].norm() and image[j].norm():
                want[i, j] += image[i] @ image[j] / (image[i].norm() * image[j].norm()) / len(maps)
    torch.testing.assert_close(statistics.similarity("per_image"), want, rtol=1e-5, atol=1e-6)


def test_mean_map_similarity_compares_averages(maps_and_sums: tuple[torch.Tensor, ChannelStatistics]) -> None:
    maps, statistics = maps_and_sums
    average = maps.mean(0).flatten(1)
    want = nn.functional.cosine_similarity(average[:, None], average[None], dim=2)  # 0 for the dead one
    torch.testing.assert_close(statistics.similarity("mean_map"), want, rtol=1e-5, atol=1e-6)


def test_apoz_is_the_share_of_zeros(maps_and_sums: tuple[torch.Tensor, ChannelStatistics]) -> None:
    maps, statistics = maps_and_sums
    torch.testing.assert_close(statistics.extras["apoz"], (maps == 0).double().mean((0, 2, 3)))
    assert statistics.extras["apoz"][0] == 1


def test_hrank_equals_numpys_ranks(maps_and_sums: tuple[torch.Tensor, ChannelStatistics]) -> None:
    maps, statistics = maps_and_sums
    tolerance = maps.shape[2] * torch.finfo(torch.float32).eps
    want = [[np.linalg.matrix_rank(one.numpy(), rtol=tolerance) for one in image] for image in maps]
    assert statistics.extras["hrank"].tolist() == np.mean(want, 0).tolist()


def test_chip_equals_one_decomposition_a_channel(maps_and_sums: tuple[torch.Tensor, ChannelStatistics]) -> None:
    maps, statistics = maps_and_sums
    want = torch.zeros(maps.shape[1]).double()
    for image in maps.flatten(2):
        for channel in range(len(image)):
            without = image.clone()
            without[channel] = 0
            want[channel] += (image.norm(p="nuc") - without.norm(p="nuc")) / len(maps)
    torch.testing.assert_close(statistics.extras["chip"], want, rtol=1e-5, atol=1e-6 * want.max().item())
    assert want.max() > 100 * want[0].abs()  # drops of live channels are far above the tolerance


def test_a_hundred_thousand_images_lose_no_precision_and_take_no_room() -> None:
    generator = torch.Generator().manual_seed(0)
    sums, gram, sizes = Sums(("pooled", "per_image", "mean_map"), ("apoz",)), torch.zeros(6, 6).double(), set()
    for _ in range(25):
        maps = torch.rand(4000, 6, 4, 4, generator=generator).sub_(0.3).relu_()
        sums.add(maps)
        rows = maps.double().movedim(1, -1).reshape(-1, 6)
        gram += rows.T @ rows
        sizes.add(sum(value.numel() for value in sums.sums.values()))
    assert sums.images == 100_000 and len(sizes) == 1
    assert ((sums.gram_of("gram", 1) - gram) / gram).abs().max() < 1e-5


def test_batch_size_does_not_matter(small_vgg: nn.Module) -> None:
    images = torch.randn(30, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    whole, split = collect_statistics(small_vgg, images), collect_statistics(small_vgg, images, batch_size=11)
    for layer, one in whole.items():
        torch.testing.assert_close(one.gram, split[layer].gram, rtol=1e-5, atol=1e-5 * one.gram.max().item())


def test_similarity_is_a_cosine_and_a_dead_channel_has_none() -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    model.conv.weight.data[1] = 2 * model.conv.weight.data[0]
    model.conv.bias.data[:] = 0
    model.conv.weight.data[2] = 0  # dead
    similarity = collect_statistics(model, torch.randn(6, 1, 8, 8))["conv"].similarity()
    # ReLU(2x) = 2 ReLU(x): a scaled copy has cosine 1.
    torch.testing.assert_close(similarity, torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]]).double())


def test_the_pass_leaves_mode_and_statistics_alone(small_vgg: nn.Module) -> None:
    small_vgg.train()
    before = {name: tensor.clone() for name, tensor in small_vgg.state_dict().items()}
    collect_statistics(small_vgg, torch.randn(4, 3, 32, 32))
    assert small_vgg.training and all(tensor.equal(before[name]) for name, tensor in small_vgg.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in small_vgg.modules())
    small_vgg.eval()


def test_shuffling_keeps_values_and_destroys_places() -> None:
    maps = torch.arange(24.0).reshape(2, 3, 2, 2)
    shuffled = shuffle_pixels(maps, torch.Generator().manual_seed(0))
    assert shuffled.sort(2).values.equal(maps.flatten(2)) and not shuffled.equal(maps.flatten(2))


def test_inner_scope_leaves_residual_sums_whole() -> None:
    layers = prunable_layers(build_seeded(0, "resnet20", num_classes=2), torch.zeros(1, 3, 32, 32))
    assert all(name.endswith("conv1") for name in layers) and len(layers) == 9


@pytest.mark.parametrize("extras", [(), EXTRAS])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_the_layer(bad: float, extras: tuple[Extra, ...]) -> None:
    model = Chain().eval()
    model.conv.bias.data[0] = bad
    with pytest.raises(StudyError, match="layer conv"):
        collect_statistics(model, torch.randn(2, 1, 8, 8), extras=extras)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["conv9"]}, "conv9"),
        ({"readings": ("pooled", "median")}, "readings.1='median'"),
        ({"extras": ("rank",)}, "extras.0='rank'"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        collect_statistics(Chain(), torch.randn(2, 1, 8, 8), **arguments)


@pytest.mark.parametrize(
    "images",
    [
        torch.randn(0, 1, 8, 8),
        torch.randn(2, 3, 8, 8),
        torch.randn(2, 8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.empty(2, 1, 8, 8, device="meta"),
        torch.randn(2, 1, 9, 40),
    ],
    ids=["none", "channels", "shape", "uint8", "device", "size"],
)
def test_images_that_do_not_fit_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(StudyError, match="images"):
        collect_statistics(Chain(), images)
