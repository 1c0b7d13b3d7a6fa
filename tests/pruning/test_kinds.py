"""Linear layers and transposed convolutions shrink like convolutions, whichever axis holds their channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.inputs import moved
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, save_compact
from fcs_utils.pruning.kinds import channel_axis, check_axes, depthwise, grouped, kernel, multiplier
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.statistics import collect_statistics, feature_maps
from fcs_utils.pruning.surgery import prune, recalibrate
from tests.conftest import warm
from tests.pruning.toys import Net, conv, mean, zeroed

IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


def squeezed(net: nn.Module, x: Tensor) -> Tensor:
    h = net.a(x).relu()
    gate = net.up(net.down(mean(h)).relu()).sigmoid()
    return mean(net.b(h * gate[:, :, None, None]))


def hidden(net: nn.Module, x: Tensor) -> Tensor:
    """ConvNeXt's block without its norm: linear layers on (N, H, W, C)."""
    h = net.a(x).permute(0, 2, 3, 1)
    return mean(net.b(net.second(F.gelu(net.first(h))).permute(0, 3, 1, 2) + h.permute(0, 3, 1, 2)))


# By name: a network, the linear and transposed layers that shrink, and those that follow others.
NETS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "behind a flattened map": (
        lambda: Net(
            lambda n, x: n.c(n.b(n.a(x).relu().flatten(1)).relu()), a=conv(3, 6), b=nn.Linear(6 * 64, 10), c=nn.Linear(10, 3)
        ),
        {"a", "b"},
    ),
    "with BatchNorm1d": (
        lambda: Net(
            lambda n, x: n.c(n.g(n.b(mean(n.a(x).relu()))).relu()),
            a=conv(3, 6),
            b=nn.Linear(6, 10, bias=False),
            g=nn.BatchNorm1d(10),
            c=nn.Linear(10, 3),
        ),
        {"a", "b"},
    ),
    "channels last": (
        lambda: Net(hidden, a=conv(3, 6), first=nn.Linear(6, 16), second=nn.Linear(16, 6), b=conv(6, 3)),
        {"a", "first", "second"},
    ),
    "squeeze and excite by linear layers": (
        lambda: Net(squeezed, a=conv(3, 12), down=nn.Linear(12, 6), up=nn.Linear(6, 12), b=conv(12, 3)),
        {"a", "down", "up"},
    ),
    "transposed convolution": (
        lambda: Net(
            lambda n, x: mean(n.c(n.b(n.a(x).relu()).relu())), a=conv(3, 6), b=nn.ConvTranspose2d(6, 8, 2, 2), c=conv(8, 3)
        ),
        {"a", "b"},
    ),
    "transposed convolution beside a skip": (
        lambda: Net(
            lambda n, x: mean(n.c(torch.cat([n.b(n.d(s := n.a(x).relu()).relu()), s], 1))),
            a=conv(3, 6),
            d=nn.Conv2d(6, 8, 3, 2, 1),
            b=nn.ConvTranspose2d(8, 5, 2, 2),
            c=conv(11, 3),
        ),
        {"a", "d", "b"},
    ),
}


@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_surgery_is_exact_by_every_criterion(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shrinking = NETS[kind]
    net = warm(build(), 8).eval()
    statistics = collect_statistics(net, IMAGES, extras=("apoz", "hrank", "chip"))
    for criterion in ("kernel_l1", "fpgm", "random", "fcs", "fcs_linear", "feature_norm", "taylor", "apoz", "hrank", "chip"):
        scores = importance(criterion, model=net, statistics=statistics, images=IMAGES, labels=LABELS)
        plan = make_plan(net, IMAGES, scores, ratio=0.5, scope="all")
        assert plan.kept.keys() == shrinking
        compact, want = prune(net, plan), zeroed(net, plan, IMAGES)
        assert (compact(IMAGES) - want).norm() < 1e-5 * want.norm() < (net(IMAGES) - want).norm()
    recalibrate(compact, IMAGES)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    assert load_compact(tmp_path / "compact.safetensors", build()).eval()(IMAGES).equal(compact(IMAGES))


def test_the_last_linear_layer_is_no_candidate_and_others_need_statistics() -> None:
    net = NETS["behind a flattened map"][0]().eval()
    assert set(trace_layers(net, IMAGES)) == {"a", "b"}
    assert set(importance("kernel_l1", model=net)) == {"a"}
    plan = make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5)
    assert plan.kept.keys() == {"a"} and plan.skipped == {"b": "no importance given"}


@torch.no_grad()
def test_maps_of_linear_layers_have_their_channels_in_front() -> None:
    net = NETS["channels last"][0]().eval()
    maps = feature_maps(net, IMAGES[:2], "first")
    by_hand = F.gelu(net.first(net.a(IMAGES[:2]).permute(0, 2, 3, 1)))
    torch.testing.assert_close(maps, by_hand.permute(0, 3, 1, 2))
    statistics = collect_statistics(net, IMAGES[:2], layers=["first"])["first"]
    torch.testing.assert_close(statistics.l1, by_hand.abs().sum((0, 1, 2)).double() / 2, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_kernels_stand_outputs_first() -> None:
    layer = nn.ConvTranspose2d(4, 7, 3)
    assert kernel(layer).shape == (7, 4, 3, 3) and kernel(layer)[5, 2].equal(layer.weight[2, 5])
    kernel(layer)[0, 0] = 3.0
    assert (layer.weight[0, 0] == 3).all()  # merging writes into it


def test_kinds_of_layers_by_their_groups() -> None:
    direct = (conv(4, 4), conv(4, 6, groups=2), conv(4, 4, groups=4), conv(2, 4, groups=2), conv(1, 3))
    layers = (*direct, nn.ConvTranspose2d(4, 4, 1, groups=4), nn.Linear(4, 4), nn.ReLU())
    assert [multiplier(layer) for layer in layers] == [0, 0, 1, 2, 0, 0, 0, 0]
    assert [depthwise(layer) for layer in layers] == [False, False, True, True, *[False] * 4]
    assert [grouped(layer) for layer in layers] == [False, True, *[False] * 6]
    assert [channel_axis(layer) for layer in layers] == [*[1] * 6, -1, 1]


TWO_KINDS = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Conv3d(1, 2, 1))  # which read signals and volumes


@pytest.mark.parametrize(
    "images", [None, torch.zeros(1, 3, 8), torch.zeros(1, 1, 2, 2, 2), [torch.zeros(2, 3).long()], {"x": torch.zeros(0)}]
)
def test_images_that_fit_are_taken(images: Any) -> None:
    check_axes(TWO_KINDS, images, home=IMAGES.device)
    check_axes(TWO_KINDS, None if images is None else moved(images, torch.device("meta")))  # at any place
    check_axes(nn.Linear(3, 2), images, home=IMAGES.device)  # without convolutions there are no axes


@pytest.mark.parametrize(
    ("images", "home", "allowed"),
    [
        (torch.zeros(1, 3, 8, 8), None, "a float tensor (N, C, L) or (N, C, D, H, W) with N of 1 or more"),
        (torch.zeros(1, 3, 8).long(), None, "a float tensor (N, C, L) or (N, C, D, H, W) with N of 1 or more"),
        (torch.zeros(0, 3, 8), IMAGES.device, "a float tensor (N, C, L) or (N, C, D, H, W) with N of 1 or more on cpu"),
        (
            torch.zeros(1, 3, 8, device="meta"),
            IMAGES.device,
            "a float tensor (N, C, L) or (N, C, D, H, W) with N of 1 or more on cpu",
        ),
        ([torch.zeros(1, 3, 8), torch.zeros(1, device="meta")], IMAGES.device, "tensors on cpu"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_what_would(images: Any, home: torch.device | None, allowed: str) -> None:
    with pytest.raises(StudyError) as caught:
        check_axes(TWO_KINDS, images, "example", home)
    assert str(caught.value).startswith("example=") and str(caught.value).endswith(f"allowed: {allowed}")


@pytest.mark.parametrize("kind", ["behind a flattened map", "channels last", "with BatchNorm1d"])
@torch.no_grad()
def test_merging_rebuilds_a_copy_in_front_of_a_linear_layer(kind: str) -> None:
    torch.manual_seed(0)
    net = warm(NETS[kind][0](), 8).eval()
    layer = "first" if kind == "channels last" else "b"
    module = net.get_submodule(layer)
    module.weight[1] = module.weight[0]
    if module.bias is not None:
        module.bias[1] = module.bias[0]
    if kind == "with BatchNorm1d":
        for values in (net.g.weight, net.g.bias, net.g.running_mean, net.g.running_var):
            values[1] = values[0]
    scores = {layer: torch.ones(len(module.weight))}
    scores[layer][1] = 0
    plan = make_plan(net, IMAGES, scores, ratio=1.2 / len(module.weight))
    assert 1 not in plan.kept[layer] and len(plan.kept[layer]) == len(module.weight) - 1
    want, plain = net(IMAGES), prune(net, plan)(IMAGES)
    merged = prune(net, plan, compensate="merge", statistics=collect_statistics(net, IMAGES, batch_size=40))(IMAGES)
    assert (merged - want).norm() < 1e-3 * want.norm() < (plain - want).norm()


@torch.no_grad()
def test_merging_rebuilds_a_copy_in_front_of_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    net = NETS["transposed convolution"][0]().eval()
    net.a.weight[1], net.a.bias[1] = 2 * net.a.weight[0], 2 * net.a.bias[0]
    scores = {"a": torch.tensor([1.0, 0, 1, 1, 1, 1])}
    plan = make_plan(net, IMAGES, scores, ratio=0.2)
    want, plain = net(IMAGES), prune(net, plan)(IMAGES)
    merged = prune(net, plan, compensate="merge", statistics=collect_statistics(net, IMAGES))(IMAGES)
    assert (merged - want).norm() < 1e-4 * want.norm() < (plain - want).norm()
