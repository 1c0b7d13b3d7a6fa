"""How a plan settles: why layers stay whole, what a group's loss is, and what a copy shares with its network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning import draft as draft_module
from fcs_utils.pruning.cutting import Cuts, duplicate
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.statistics import collect_statistics
from tests.pruning.test_plan import EXAMPLE, chain
from tests.pruning.test_residual_sums import Sum
from tests.pruning.toys import SCORES, Net, conv, counts, mean


def test_why_a_layer_stays_whole_names_its_step() -> None:
    for multiple, rate, words in ((1, 0.02, "rounds to none"), (2, 0.05, "in multiples of 2 rounds to none")):
        plan = make_plan(chain(20, 12), EXAMPLE, SCORES, rates={"0": rate, "2": 0.5}, multiple=multiple)
        assert counts(plan) == {"2": 6} and plan.skipped["0"] == f"ratio {rate:g} of 20 channels {words}"
    uniform = make_plan(chain(20, 12), EXAMPLE, SCORES, ratio=0.04)  # 0.8 channels round to one, 0.48 to none
    assert counts(uniform) == {"0": 19} and uniform.skipped["2"] == "ratio 0.04 of 12 channels rounds to none"


def test_a_group_of_several_layers_loses_the_mean_of_what_they_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    # MACs of a position: 3 * 5, 5 * 4 * 9, 5 * 4 and 4 * 2. A channel of the sum saves 45 + 5 + 2 = 52 of them, and one of the
    # inner layer 3 + 36 + 4 = 43. Every channel loses 0.1 in its layer, so one of the sum goes first.
    def curve(model: nn.Module, known: object, order: list[int]) -> Tensor:
        return 0.1 * torch.arange(len(order), -1, -1).double()

    monkeypatch.setattr(draft_module, "reconstruction_curve", curve)
    net, images = Sum().eval(), torch.randn(3, 3, 6, 6)
    scores = {"inner": torch.arange(5.0), "a": torch.arange(4.0), "b": torch.arange(4.0)}
    known = collect_statistics(net, images)
    plan = make_plan(net, images, scores, ratio=1 / 9, scope="all", allocation="sensitivity", statistics=known)
    assert counts(plan) == {"a": 3, "b": 3}


def test_a_copy_shares_no_memory_with_what_its_network_has_computed() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = conv(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.last = [self.a(x)]
            return self.last[0]

    net = Keeping()
    before = net(torch.ones(1, 3, 4, 4)).detach().clone()
    copy = duplicate(net)
    copy.last[0].zero_()
    assert net.last[0].equal(before) and not copy.last[0].requires_grad and copy.a.weight.data_ptr() != net.a.weight.data_ptr()


def test_a_copy_of_another_precision_shares_no_memory_and_keeps_flags() -> None:
    net = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4))
    net[0].weight.requires_grad_(False)
    for kind in (torch.float32, torch.float64):
        copy = duplicate(net, like=torch.zeros((), dtype=kind))
        pairs = [*zip(copy.state_dict().values(), net.state_dict().values(), strict=True)]
        assert all(one.data_ptr() != two.data_ptr() and one.to(two).equal(two) for one, two in pairs)
        assert {one.dtype for one in copy.parameters()} == {kind} and copy[1].num_batches_tracked.dtype == torch.int64
        assert [one.requires_grad for one in copy.parameters()] == [False, True, True, True]


def test_layers_that_are_cut_together_are_one_group_whichever_of_them_are_named() -> None:
    cuts = Cuts(Sum().eval(), ["a", "b", "inner"], torch.zeros(1, 3, 6, 6))
    assert {name: sorted(group) for name, group in cuts.groups.items()} == {"a": ["a", "b"], "inner": ["inner"]}


def test_a_layer_that_is_not_reached_has_its_own_output_as_tap_and_nothing_parts_there() -> None:
    net = Net(lambda n, x: mean(n.b(x)), a=conv(3, 4), b=conv(3, 2)).eval()
    for layer in trace_layers(net, torch.zeros(1, 3, 6, 6)).values():
        assert (
            layer.barrier and not layer.parted and (layer.tap.module, layer.tap.side, layer.linear) == (layer.name, "output", False)
        )


def test_a_network_of_which_nothing_can_be_cut_is_refused_with_the_reason() -> None:
    net = Net(lambda n, x: mean(n.b((h := n.a(x).relu()) / h.shape[1])), a=conv(3, 8), b=conv(8, 4)).eval()
    goals: list[dict[str, Any]] = [{"ratio": 0.5}, {"macs": 0.5}, {"macs": 0.97}, {"latency": 0.5, "measure": lambda network: 1.0}]
    for goal in goals:
        with pytest.raises(StudyError, match="nothing to prune: a: the network looks at the index or number of its channels"):
            make_plan(net, torch.randn(1, 3, 8, 8), {"a": torch.arange(8.0)}, **goal)
