"""Merge: exact on scaled copies and linear combinations, better than plain surgery otherwise, and it names what it skips."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune
from tests.conftest import warm
from tests.pruning.test_layers import branching


def two_layers(consumer: nn.Module, norm: bool) -> nn.Sequential:
    """conv -> ReLU -> consumer -> (BatchNorm); channel 1 is 3 times channel 0, channel 4 a constant."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(inplace=True), consumer]
    net = nn.Sequential(*layers, *([nn.BatchNorm2d(3)] if norm else [nn.Identity()]), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 3 * net[0].weight[0], 3 * net[0].bias[0]
        net[0].weight[4], net[0].bias[4] = 0.0, 2.0
        if norm:
            net[3].running_mean.normal_()
            net[3].running_var.uniform_(0.5, 2)
    return net


def plan_without(net: nn.Module, channel: int, size: int = 8) -> PruningPlan:
    scores = {"0": torch.ones(5).double()}
    scores["0"][channel] = 0
    return make_plan(net, torch.zeros(1, 2, size, size), scores, ratio=0.2)


CONSUMERS = {
    "padded": lambda: nn.Conv2d(5, 3, 3, padding=1),
    "padded, no bias": lambda: nn.Conv2d(5, 3, 3, padding=1, bias=False),
    "padded above and below": lambda: nn.Conv2d(5, 3, 3, padding=(1, 0)),
    "unpadded": lambda: nn.Conv2d(5, 3, 3),
    "unpadded, no bias": lambda: nn.Conv2d(5, 3, 3, bias=False),
    "valid": lambda: nn.Conv2d(5, 3, 3, padding="valid"),
    "reflecting": lambda: nn.Conv2d(5, 3, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("norm", [True, False], ids=["BatchNorm", "none"])
@pytest.mark.parametrize("kind", CONSUMERS)
@torch.no_grad()
def test_a_scaled_copy_is_merged_exactly(kind: str, norm: bool) -> None:
    net, images = two_layers(CONSUMERS[kind](), norm), torch.randn(20, 2, 8, 8)
    plan, statistics = plan_without(net, 1), collect_statistics(net, images)
    want, plain = net(images), prune(net, plan)(images)
    merged = prune(net, plan, compensate="merge", statistics=statistics)(images)
    assert (merged - want).norm() / want.norm() < 1e-4 < (plain - want).norm() / want.norm()


@pytest.mark.parametrize(
    ("kind", "norm"),
    [("unpadded", False), ("unpadded", True), ("unpadded, no bias", True), ("valid", True), ("reflecting", False)],
)
@torch.no_grad()
def test_a_constant_goes_into_the_bias_or_the_batchnorm(kind: str, norm: bool) -> None:
    net, images = two_layers(CONSUMERS[kind](), norm), torch.randn(20, 2, 8, 8)
    plan, statistics = plan_without(net, 4), collect_statistics(net, images)
    want = net(images)
    merged = prune(net, plan, compensate="merge", statistics=statistics)(images)
    assert (merged - want).norm() / want.norm() < 1e-4


@torch.no_grad()
def test_without_a_place_for_the_constant_none_is_fitted() -> None:
    # Zero padding makes a constant wrong at the borders; no bias and no BatchNorm leave it nowhere to go.
    for kind, norm in (("padded", True), ("padded above and below", True), ("unpadded, no bias", False)):
        net, images = two_layers(CONSUMERS[kind](), norm), torch.randn(20, 2, 8, 8)
        plan = plan_without(net, 4)
        compact = prune(net, plan, compensate="merge", statistics=collect_statistics(net, images))
        plain = prune(net, plan)
        if norm:
            assert compact[3].running_mean.equal(plain[3].running_mean) and compact[2].bias.equal(plain[2].bias)
        assert not compact[2].weight.equal(plain[2].weight)


@torch.no_grad()
def test_a_linear_layer_behind_a_flatten_is_merged() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 16, 4)).eval()
    net[0].weight[1], net[0].bias[1] = 0.5 * net[0].weight[0], 0.5 * net[0].bias[0]
    images = torch.randn(30, 2, 8, 8)
    plan = plan_without(net, 1)
    merged = prune(net, plan, compensate="merge", statistics=collect_statistics(net, images))
    torch.testing.assert_close(merged(images), net(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_depthwise_convolution_on_the_way_is_no_layer_to_merge() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 3, groups=5), nn.ReLU(), nn.Conv2d(5, 3, 1)).eval()
    images, plan = torch.randn(4, 2, 8, 8), plan_without(net, 1)
    assert plan.kept.keys() == {"0", "2"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compact = prune(net, plan, compensate="merge", statistics=collect_statistics(net, images))
    assert not compact[4].weight.equal(prune(net, plan)[4].weight)


@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
@torch.no_grad()
def test_merge_comes_nearer_on_a_whole_network(name: str) -> None:
    net = warm(build_seeded(2, name, num_classes=5, width=0.25))
    images = torch.randn(350, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    statistics = collect_statistics(net, images[:300])
    plan = make_plan(net, images, importance("kernel_l1", model=net), ratio=0.2)
    want = net(images[300:])
    errors = [
        F.mse_loss(prune(net, plan, compensate=c, statistics=statistics)(images[300:]), want).item() for c in ("none", "merge")
    ]  # type: ignore[arg-type]
    assert errors[1] < 0.5 * errors[0]


def test_layers_that_cannot_be_merged_are_named() -> None:
    net, images = branching(pool=True), torch.randn(6, 3, 8, 8)
    plan = make_plan(net, images, importance("kernel_l1", model=net, statistics=collect_statistics(net, images)), ratio=0.5)
    with pytest.warns(UserWarning, match=r"merge left out 1 of 1 layers: a \(its consumers read different tensors\)"):
        compact = prune(net, plan, compensate="merge", statistics=collect_statistics(net, images))
    assert compact.b.weight.equal(prune(net, plan).b.weight)
    resnet = build_seeded(0, "resnet20", num_classes=2, width=0.25, shortcut="B").eval()
    example = torch.randn(4, 3, 32, 32)
    plan = make_plan(resnet, example, importance("kernel_l1", model=resnet), ratio=0.5, scope="all")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prune(resnet, plan, compensate="merge", statistics=collect_statistics(resnet, example))
    said = str(caught[0].message)
    assert len(caught) == 1 and "stage1.0.conv2" in said and said.count("a residual sum reads") == 1  # one reason for all of them


@pytest.mark.parametrize(
    ("arguments", "message"), [({"compensate": "glue"}, "compensate='glue'"), ({"compensate": "merge"}, "needs statistics")]
)
def test_bad_compensation_is_refused(small_vgg: nn.Module, arguments: dict[str, str], message: str) -> None:
    plan = make_plan(small_vgg, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=small_vgg), ratio=0.5)
    with pytest.raises(StudyError, match=message):
        prune(small_vgg, plan, **arguments)


def test_maps_that_no_layer_reads_are_refused() -> None:
    net, images = two_layers(CONSUMERS["padded"](), norm=True), torch.randn(8, 2, 8, 8)
    statistics = collect_statistics(net, images, tap="convolution")
    with pytest.raises(StudyError, match="merging needs the maps that readers see; .* collected with tap='convolution'"):
        prune(net, plan_without(net, 1), compensate="merge", statistics=statistics)


def test_merge_leaves_the_dense_network_alone(small_vgg: nn.Module) -> None:
    images: Tensor = torch.randn(8, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in small_vgg.state_dict().items()}
    statistics = collect_statistics(small_vgg, images)
    plan = make_plan(small_vgg, images, importance("fcs", model=small_vgg, statistics=statistics), ratio=0.5)
    prune(small_vgg, plan, compensate="merge", statistics=statistics)
    assert all(tensor.equal(before[name]) for name, tensor in small_vgg.state_dict().items())


def test_statistics_of_other_weights_are_refused() -> None:
    """Those of another network of the same widths, and those from before a training."""
    one, other = (build_seeded(seed, "resnet20", num_classes=3, width=0.25).eval() for seed in (0, 1))
    images = torch.randn(40, 3, 16, 16)
    statistics = collect_statistics(one, images)
    plan = make_plan(one, images, importance("fcs", model=one, statistics=statistics), ratio=0.5)
    said = r"statistics are of other weights than this network has now, first in (conv|stage1.0.conv1): collect them again"
    for call in (
        lambda: importance("fcs", model=other, statistics=statistics),
        lambda: prune(other, plan, compensate="merge", statistics=statistics),
    ):
        with pytest.raises(StudyError, match=said):
            call()
    with torch.no_grad():
        one.stage2[1].conv1.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(StudyError, match="first in stage2.1.conv1"):
        importance("fcs", model=one, statistics=statistics)
    again = collect_statistics(one, images)
    assert importance("fcs", model=copy.deepcopy(one).double(), statistics=again).keys() == again.keys()
