"""Statistics of layers that run more than once in a forward pass, against literal computations over all their positions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.statistics import collect_statistics, feature_maps
from fcs_utils.pruning.sums import EXTRAS, READINGS, Sums
from tests.pruning.test_sums import MAPS
from tests.pruning.toys import Net, conv, mean

IMAGES = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def sizes(inplace: bool = False) -> Net:
    """One layer on images of two sizes, read by one layer."""
    torch.manual_seed(1)
    return Net(
        lambda n, x: mean(n.b(F.relu(n.a(x), inplace))) + mean(n.b(F.relu(n.a(F.max_pool2d(x, 2)), inplace))),
        a=conv(3, 5),
        b=conv(5, 4),
    ).eval()


@torch.no_grad()
def calls(net: Net, read: bool = True) -> list[Tensor]:
    """The maps (N, C, H, W) of the two calls, in float64."""
    found = [net.a(IMAGES), net.a(F.max_pool2d(IMAGES, 2))]
    return [(one.relu() if read else one).double() for one in found]


@pytest.mark.parametrize("tap", ["reader", "convolution"])
@pytest.mark.parametrize("inplace", [False, True])
def test_all_positions_of_all_calls_count(tap: str, inplace: bool) -> None:
    net = sizes(inplace)
    got = collect_statistics(net, IMAGES, readings=READINGS, extras=EXTRAS, tap=tap, batch_size=3)["a"]
    maps = calls(net, tap == "reader")
    flat = torch.cat([one.flatten(2) for one in maps], 2)  # (7, 5, 64 + 16)
    assert (got.count, got.positions) == (7 * 80, 80)
    torch.testing.assert_close(got.gram, torch.einsum("nip,njp->ij", flat, flat), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.l1, flat.abs().sum((0, 2)) / 7, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.mean, flat.mean((0, 2)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.mean_map, flat.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.extras["apoz"], (flat == 0).double().mean((0, 2)))
    cosines = [F.cosine_similarity(image[:, None], image[None], dim=2) for image in flat]
    torch.testing.assert_close(got.per_image, torch.stack(cosines).mean(0), rtol=1e-5, atol=1e-5)
    ranks = [[np.linalg.matrix_rank(one.float().numpy()) for one in image] for call in maps for image in call]
    assert got.extras["hrank"].tolist() == pytest.approx(np.mean(ranks, 0).tolist())  # each image has two ranks
    drops = torch.zeros(5).double()
    for image, channel in itertools.product(flat, range(5)):
        without = image.clone()
        without[channel] = 0
        drops[channel] += (image.norm(p="nuc") - without.norm(p="nuc")) / 7
    torch.testing.assert_close(got.extras["chip"], drops, rtol=1e-5, atol=1e-5)


def test_sums_of_two_calls_by_hand() -> None:
    """The maps of ``test_sums``, one position a call: all but the ranks is as of one map with both positions."""
    found, whole = Sums(READINGS, EXTRAS, calls=2), Sums(READINGS, EXTRAS)
    whole.add(MAPS)
    for call in MAPS.split(1, 2):
        found.add(call)
    assert (found.images, found.positions, found.passes) == (2, 2, 1)
    for name in whole.sums.keys() - {"hrank"}:
        torch.testing.assert_close(found.sums[name], whole.sums[name])
    # Of the first image all maps of one pixel have rank 1; of the second only channel 0 has, in its first call.
    assert found.mean("hrank", 2).tolist() == [0.75, 0.5]
    found.check(1)
    found.add(MAPS[:, :, :1])
    with pytest.raises(StudyError, match="how often it is called in a forward pass depends on the images"):
        found.check(2)


@torch.no_grad()
def test_maps_to_look_at_are_those_of_the_first_call() -> None:
    net = sizes()
    torch.testing.assert_close(feature_maps(net, IMAGES, "a").double(), calls(net)[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_several_calls_lead_to_is_taken_where_it_is_read() -> None:
    """Two calls whose difference is read once."""
    net = Net(lambda n, x: mean(n.b((n.a(x) - n.a(x.flip(3))).abs())), a=conv(3, 5), b=conv(5, 4)).eval()
    got = collect_statistics(net, IMAGES)["a"]
    flat = (net.a(IMAGES) - net.a(IMAGES.flip(3))).abs().double().flatten(2)
    assert got.count == 7 * 64
    torch.testing.assert_close(got.gram, torch.einsum("nip,njp->ij", flat, flat), rtol=1e-5, atol=1e-4)


def test_layers_with_one_reader_are_measured_each_by_itself() -> None:
    net = Net(
        lambda n, x: mean(n.b(n.r1(n.a(x))) + n.b(n.r2(n.c(x)))),
        a=conv(3, 4),
        c=conv(3, 4),
        b=conv(4, 2),
        r1=nn.ReLU(),
        r2=nn.ReLU(),
    ).eval()
    got = collect_statistics(net, IMAGES)
    for name in ("a", "c"):
        rows = net.get_submodule(name)(IMAGES).relu().detach().double().movedim(1, -1).reshape(-1, 4)
        torch.testing.assert_close(got[name].gram, rows.T @ rows, rtol=1e-5, atol=1e-5)


def test_taylor_sums_over_all_calls() -> None:
    net, labels = sizes(), torch.arange(7) % 4
    found = importance("taylor", model=net, statistics=collect_statistics(net, IMAGES), images=IMAGES, labels=labels)["a"]
    seen: list[Tensor] = []
    with net.b.register_forward_pre_hook(lambda _m, args: seen.append(args[0])):
        logits = net(IMAGES)
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), seen)
    want = sum((one * gradient).sum((2, 3)) for one, gradient in zip(seen, gradients, strict=True)).abs().sum(0)
    torch.testing.assert_close(found, (want / want.norm()).double(), rtol=1e-5, atol=1e-6)


def test_calls_that_cannot_be_added_are_refused_by_name() -> None:
    odd = Net(lambda n, x: mean(n.b(n.a(x).relu())) + mean(n.b(n.a(x[:1]).relu())), a=conv(3, 5), b=conv(5, 4)).eval()
    with pytest.raises(StudyError, match="layer a is called with 7 images and with 1 in one forward pass: statistics need equally"):
        collect_statistics(odd, IMAGES)

    def route(n: nn.Module, x: Tensor) -> Tensor:
        return sum(mean(n.b(n.a(x).relu())) for _ in range(3 if x.mean() > 0 else 2))

    images = torch.cat([torch.full((1, 3, 8, 8), one) for one in (-1.0, -1.0, 1.0)])
    changing = Net(route, a=conv(3, 5), b=conv(5, 4)).eval()
    with pytest.raises(StudyError, match="layer a: how often it is called in a forward pass depends on the images"):
        collect_statistics(changing, images, batch_size=1)
