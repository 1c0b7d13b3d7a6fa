"""Weights that several layers share: they stay shared through surgery, are merged once, or are left whole with the reason."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.linear import reconstruction
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import ChannelStatistics, collect_statistics
from fcs_utils.pruning.surgery import prune

IMAGES = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers by name, and a function that says how the images flow through them."""

    def __init__(self, flow: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.flow = flow
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.flow(self, images)


def conv(inputs: int, outputs: int, kernel: int = 1, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)  # type: ignore[arg-type]


def two_readers(first: nn.Module, second: nn.Module) -> Net:
    """Both readers of ``a`` have one weight."""

    def flow(net: nn.Module, images: Tensor) -> Tensor:
        maps = net.a(images).relu()
        return net.head(torch.cat([net.one(maps).relu().mean((2, 3)), net.two(maps).relu().mean((2, 3))], 1))

    torch.manual_seed(0)
    net = Net(flow, a=conv(3, 8, 3), one=first, two=second, head=nn.Linear(8, 2)).eval()
    net.two.weight = net.one.weight
    return net


def two_heads() -> Net:
    """Two linear layers with one weight behind a flatten."""

    def flow(net: nn.Module, images: Tensor) -> Tensor:
        flat = net.a(images).relu().flatten(1)
        return net.one(flat) + net.two(flat).relu()

    torch.manual_seed(0)
    net = Net(flow, a=conv(3, 6, 3, stride=2), one=nn.Linear(54, 4), two=nn.Linear(54, 4)).eval()
    net.two.weight = net.one.weight
    return net


def a_sum() -> Net:
    """Two layers with one weight and one bias, whose outputs are added."""

    def flow(net: nn.Module, images: Tensor) -> Tensor:
        return net.head((net.one(images) + net.two(images.flip(3))).relu()).mean((2, 3))

    torch.manual_seed(0)
    net = Net(flow, one=conv(3, 6, 3), two=conv(3, 6, 3), head=conv(6, 4)).eval()
    net.two.weight, net.two.bias = net.one.weight, net.one.bias
    return net


def two_names() -> Net:
    """One layer under two names."""
    net = two_readers(conv(8, 4), conv(8, 4))
    net.alias, net.also = net.a, net.one
    return net


def plan_of(net: nn.Module, scope: str = "inner") -> PruningPlan:
    return make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5, scope=scope)  # type: ignore[arg-type]


@torch.no_grad()
def zeroed(net: nn.Module, plan: PruningPlan) -> Tensor:
    """The dense network's logits without the dropped channels of layers that a ReLU follows."""
    hooks = []
    for name, kept in plan.kept.items():
        mask = torch.zeros(plan.channels[name])
        mask[kept] = 1
        hook = net.get_submodule(name).register_forward_hook(lambda _m, _i, out, mask=mask: out * mask[:, None, None])
        hooks.append(hook)
    logits = net(IMAGES)
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize(
    ("net", "scope", "pairs"),
    [
        (two_readers(conv(8, 4), conv(8, 4)), "inner", ["one.weight", "two.weight"]),
        (two_readers(conv(8, 4, 3), conv(8, 4, 3, padding=2, dilation=2, bias=False)), "inner", ["one.weight", "two.weight"]),
        (two_heads(), "inner", ["one.weight", "two.weight"]),
        (a_sum(), "all", ["one.weight", "two.weight", "one.bias", "two.bias"]),
        (two_names(), "inner", ["one.weight", "two.weight", "also.weight", "also.bias", "one.bias"]),
    ],
    ids=["readers", "readers of two kinds", "linear", "sum", "two names"],
)
def test_shared_weights_stay_shared_and_surgery_is_exact(net: Net, scope: str, pairs: list[str]) -> None:
    plan = plan_of(net, scope)
    compact = prune(net, plan)
    shared = {name: parameter for name, parameter in compact.named_parameters(remove_duplicate=False)}
    assert all(shared[name] is shared[pairs[0]] for name in pairs if name.endswith("weight"))
    assert all(shared[name] is shared["one.bias"] for name in pairs if name.endswith("bias"))
    assert len(list(compact.parameters())) == len(list(net.parameters()))
    torch.testing.assert_close(compact(IMAGES), zeroed(net, plan), rtol=1e-5, atol=1e-5)
    assert compact.one is not net.one and net.one.weight is net.two.weight  # the original is as it was


def chain() -> Net:
    """A weight that is read and written: cutting its outputs in one layer would cut them in the other."""
    torch.manual_seed(0)
    net = Net(
        lambda net, images: net.head(net.two(net.one(net.stem(images).relu()).relu()).relu().mean((2, 3))),
        stem=conv(3, 6),
        one=conv(6, 6),
        two=conv(6, 6),
        head=nn.Linear(6, 2),
    ).eval()
    net.two.weight = net.one.weight
    return net


def two_norms() -> Net:
    """BatchNorms of different layers with one scale."""
    torch.manual_seed(0)
    net = Net(
        lambda net, images: net.head(net.n2(net.two(net.n1(net.one(images)).relu())).relu().mean((2, 3))),
        one=conv(3, 6),
        n1=nn.BatchNorm2d(6),
        two=conv(6, 6),
        n2=nn.BatchNorm2d(6),
        head=nn.Linear(6, 2),
    ).eval()
    net.n2.weight = net.n1.weight
    return net


def outside() -> Net:
    """A layer's weight that the network itself has as well."""
    net = two_readers(conv(8, 4), conv(8, 4))
    net.extra = net.a.weight
    return net


@pytest.mark.parametrize(
    ("make", "layer", "names"),
    [
        (chain, "stem", "one.weight, two.weight"),
        (chain, "two", "one.weight, two.weight"),
        (two_norms, "one", "n1.weight, n2.weight"),
        (two_norms, "two", "n1.weight, n2.weight"),
        (outside, "a", "extra, a.weight"),
    ],
)
def test_layers_that_would_not_shrink_alike_stay_whole(make: Callable[[], Net], layer: str, names: str) -> None:
    net = make()
    with pytest.raises(StudyError, match=f"{layer}: shares a parameter that would not shrink alike: .*{names}"):
        plan_of(net)


def test_a_plan_by_hand_that_cuts_a_shared_weight_in_one_place_is_refused() -> None:
    net = two_norms()
    plan = PruningPlan(kept={"one": [0, 1, 2]}, channels={"one": 6}, input_shape=(3, 8, 8), ratio=0.5)
    with pytest.raises(StudyError, match="two layers share a weight, and it cuts them differently"):
        prune(net, plan)
    assert net.n1.weight is net.n2.weight and len(net.n1.weight) == 6


# -- merge ---------------------------------------------------------------------------------------------------------------


def folded(weight: Tensor, statistics: ChannelStatistics, kept: list[int], intercept: bool) -> tuple[Tensor, Tensor]:
    """What a pointwise reader's weight (O, C) becomes, and the constant (O,), worked out again: W_K + W_D A and W_D b."""
    gone = [channel for channel in range(weight.shape[1]) if channel not in kept]
    blend, offset = reconstruction(statistics, kept, intercept)
    return weight[:, kept] + weight[:, gone] @ blend, weight[:, gone] @ offset


@pytest.mark.parametrize(
    ("first", "second", "intercept"),
    [
        (lambda: conv(8, 4), lambda: conv(8, 4), True),
        (lambda: conv(8, 4), lambda: conv(8, 4, padding=1), False),  # the border of the second would be wrong
        (lambda: conv(8, 4), lambda: conv(8, 4, bias=False), False),  # no place for the second's constant
    ],
    ids=["both", "one pads", "one without a bias"],
)
@torch.no_grad()
def test_a_shared_weight_is_folded_once(first: Callable[[], nn.Module], second: Callable[[], nn.Module], intercept: bool) -> None:
    net = two_readers(first(), second())
    plan, statistics = plan_of(net), collect_statistics(net, IMAGES)
    compact = prune(net, plan, compensate="merge", statistics=statistics)
    weight, constant = folded(net.one.weight[:, :, 0, 0].double(), statistics["a"], plan.kept["a"], intercept)
    assert compact.one.weight is compact.two.weight
    torch.testing.assert_close(compact.one.weight[:, :, 0, 0].double(), weight, rtol=1e-5, atol=1e-6)
    for before, after in ((net.one, compact.one), (net.two, compact.two)):
        if before.bias is not None:
            torch.testing.assert_close(after.bias.double(), before.bias.double() + constant, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_two_readers_of_one_weight_are_merged_as_well_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net = two_readers(conv(8, 4), conv(8, 4))
    apart = copy.deepcopy(net)
    apart.two.weight = nn.Parameter(apart.two.weight.clone())
    plan, statistics = plan_of(net), collect_statistics(net, IMAGES)
    assert apart(IMAGES).equal(net(IMAGES))
    shared, single = (prune(one, plan, compensate="merge", statistics=statistics)(IMAGES) for one in (net, apart))
    torch.testing.assert_close(shared, single)


@torch.no_grad()
def test_a_bias_that_a_stranger_shares_takes_no_constant() -> None:
    net = two_readers(conv(8, 4), conv(8, 4))
    net.two.weight = nn.Parameter(net.two.weight.clone())
    net.flow = lambda net, images: net.head(
        torch.cat([net.one(net.a(images).relu()), net.two(images[:, [0] * 8, 1:-1, 1:-1])], 1).mean((2, 3))
    )
    net.two.bias = net.one.bias
    plan, statistics = plan_of(net), collect_statistics(net, IMAGES)
    compact = prune(net, plan, compensate="merge", statistics=statistics)
    assert compact.two.bias is compact.one.bias and compact.one.bias.equal(net.one.bias)
    weight, _ = folded(net.one.weight[:, :, 0, 0].double(), statistics["a"], plan.kept["a"], intercept=False)
    torch.testing.assert_close(compact.one.weight[:, :, 0, 0].double(), weight, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_batchnorm_that_two_layers_use_takes_no_constant() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda net, images: net.head(
            torch.cat([net.norm(net.two(images)), net.norm(net.one(net.a(images).relu()))], 1).relu().mean((2, 3))
        ),
        a=conv(3, 8),
        one=conv(8, 4, bias=False),
        two=conv(3, 4, bias=False),
        norm=nn.BatchNorm2d(4),
        head=nn.Linear(8, 2),
    ).eval()
    plan = make_plan(net, IMAGES, {"a": torch.arange(8.0)}, ratio=0.5)
    compact = prune(net, plan, compensate="merge", statistics=collect_statistics(net, IMAGES))
    assert compact.norm.running_mean.equal(net.norm.running_mean) and not compact.one.weight.equal(prune(net, plan).one.weight)


# -- few positions -------------------------------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    """Positions: 1 for each image at the second layer, 4 x 4 at the first; each keeps 16 of 32 channels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 32, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("images", "left_out"),
    [(1, {"0": 16, "2": 1}), (2, {"0": 32, "2": 2}), (3, {"2": 3}), (39, {"2": 39}), (40, {})],
)
@torch.no_grad()
def test_layers_with_few_positions_are_left_out_by_name(images: int, left_out: dict[str, int]) -> None:
    net = two_layers()
    statistics, plan = collect_statistics(net, IMAGES[:images]), plan_of(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compact, plain = prune(net, plan, compensate="merge", statistics=statistics), prune(net, plan)
    why = "positions for 16 kept channels; at least 40 are needed: take more images"
    assert [str(one.message).partition(": ")[2] for one in caught] == (
        ["; ".join(f"{name} ({count} {why})" for name, count in left_out.items())] if left_out else []
    )
    assert all(one.filename == __file__ for one in caught)  # it names the user's line
    assert [compact[reader].weight.equal(plain[reader].weight) for reader in (2, 5)] == ["0" in left_out, "2" in left_out]


@torch.no_grad()
def test_merging_on_few_images_is_never_much_worse_than_not_merging() -> None:
    net, held_out = two_layers(), torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    plan, want = plan_of(net), net(held_out)
    plain = (prune(net, plan)(held_out) - want).norm()
    for images in (1, 2, 4, 8, 15, 16, 17, 24, 32, 60):
        statistics = collect_statistics(net, IMAGES[:images])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = (prune(net, plan, compensate="merge", statistics=statistics)(held_out) - want).norm()
        assert merged < 1.2 * plain, images
