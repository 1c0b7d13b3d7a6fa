"""Weights that several layers share: they stay shared through surgery, or are left whole with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning import ties
from fcs_utils.pruning.cutting import duplicate
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.surgery import prune
from tests.pruning.tied import IMAGES, a_sum, conv, plan_of, two_heads, two_names, two_norms, two_readers
from tests.pruning.toys import Net


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


def test_weights_stay_shared_where_a_device_does_not_tell_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    net = two_heads()
    monkeypatch.setattr(ties, "memory_of", lambda parameter: 0)
    compact = prune(net, plan_of(net, "inner"))
    assert compact.one.weight is compact.two.weight and compact.one.weight.shape != net.one.weight.shape


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


def swapped() -> Net:
    """Readers with one weight, of which one has the two layers the other way round."""

    def flow(net: nn.Module, images: Tensor) -> Tensor:
        a, b = net.a(images).relu(), net.b(images).relu()
        return net.head(torch.cat([net.one(torch.cat([a, b], 1)), net.two(torch.cat([b, a], 1))], 1).mean((2, 3)))

    torch.manual_seed(0)
    net = Net(flow, a=conv(3, 4), b=conv(3, 4), one=conv(8, 4), two=conv(8, 4), head=nn.Linear(8, 2)).eval()
    net.two.weight = net.one.weight
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
        (swapped, "a", "one.weight, two.weight"),
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


def test_a_bias_is_not_cut_where_its_layer_loses_inputs() -> None:
    net = two_readers(conv(8, 4), conv(8, 4))
    net.stranger = conv(3, 4)  # which loses nothing
    net.stranger.bias = net.one.bias
    compact = prune(net, plan_of(net))
    assert compact.one.in_channels == 4 and compact.stranger.bias is compact.one.bias and len(compact.one.bias) == 4


def test_memory_that_two_parameters_share_stays_shared() -> None:
    net = two_readers(conv(8, 4), conv(8, 4))
    net.two.weight = nn.Parameter(net.one.weight.data)
    plan = plan_of(net)
    compact = prune(net, plan)
    assert compact.one.in_channels == 4 and compact.two.weight.data_ptr() == compact.one.weight.data_ptr()
    torch.testing.assert_close(compact(IMAGES), zeroed(net, plan), rtol=1e-5, atol=1e-5)


def test_a_copy_holds_as_much_of_shared_memory_as_the_parameters_span() -> None:
    """From the tenth number to the thirtieth, where the memory ends."""
    memory, net = torch.arange(30.0), nn.Module()
    net.first, net.second = nn.Parameter(memory[10:25]), nn.Parameter(memory[15:30])
    copied = duplicate(net)
    assert copied.first.equal(net.first) and copied.second.equal(net.second)
    assert copied.first.untyped_storage().nbytes() == 20 * 4 and copied.second.storage_offset() == 5


def test_the_places_of_parameters_by_hand() -> None:
    memory, net = torch.arange(6.0), nn.Module()
    net.first, net.second = nn.Parameter(memory[:3]), nn.Parameter(memory[3:])  # side by side, and none in the other's
    assert ties.tied_parameters(net) == []
    net.again = net.second
    assert ties.tied_parameters(net) == [[(net, "second"), (net, "again")]]
    net.both = nn.Parameter(memory[2:4])
    assert ties.tied_parameters(net) == [[(net, "first"), (net, "both"), (net, "second"), (net, "again")]]


def test_where_memory_begins_and_that_none_has_no_place() -> None:
    assert ties.memory_of(torch.arange(6.0)[2:]) % 4 == 0 < ties.memory_of(torch.arange(6.0)[2:])
    assert ties.memory_of(torch.zeros(3, device="meta")) == 0


def test_other_views_of_one_memory_are_no_matter_where_nothing_of_it_is_cut() -> None:
    net, memory = two_readers(conv(8, 4), conv(8, 4)), torch.arange(5.0)
    net.stranger, net.other = conv(3, 4), conv(3, 4)
    net.stranger.bias, net.other.bias = nn.Parameter(memory[:4]), nn.Parameter(memory[1:])
    compact = prune(net, plan_of(net))
    assert compact.stranger.bias.tolist() == [0, 1, 2, 3] and compact.other.bias.tolist() == [1, 2, 3, 4]
    assert ties.memory_of(compact.stranger.bias) == ties.memory_of(compact.other.bias)


@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "a part"])
def test_another_view_of_a_weight_stays_whole(transposed: bool) -> None:
    def flow(net: nn.Module, images: Tensor) -> Tensor:
        maps = net.a(images).relu()
        return net.head(torch.cat([net.one(maps), net.two(maps)[:, :4]], 1).mean((2, 3)))

    torch.manual_seed(0)
    net = Net(flow, a=conv(3, 8, 3), one=conv(8, 8), two=conv(8, 8 if transposed else 4), head=nn.Linear(12, 2)).eval()
    shared = net.one.weight.data
    net.two.weight = nn.Parameter(shared.transpose(0, 1) if transposed else shared[4:])
    with pytest.raises(StudyError, match="shares a parameter that would not shrink alike: one.weight, two.weight"):
        plan_of(net)
