"""Branches whose gradients end before the network's results: what they read is known, what they write stays whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune, recalibrate
from tests.pruning.test_tracing import pruned_exactly
from tests.pruning.toys import Net, conv, counts, mean

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WHOLE = "its channels flow on without gradients, as behind a detach, and cannot be followed"


@torch.no_grad()
def unseen(layer: nn.Module, y: Tensor) -> Tensor:
    return layer(y)


def largest(branch: Tensor, table: nn.Embedding) -> Tensor:
    """Vectors looked up by the index of the largest channel, as in a quantising autoencoder."""
    return table(mean(branch).argmax(1))


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "detached": lambda n, y: n.main(y) * n.side(y).detach().sigmoid().mean((1, 2, 3), keepdim=True),
    "detached behind a second layer": lambda n, y: n.main(y) * n.last(n.side(y).relu()).detach().sigmoid(),
    "the index of the largest": lambda n, y: n.main(y) + largest(n.side(y), n.table)[:, :, None, None],
    "compared": lambda n, y: n.main(y) * (1.0 + (n.side(y).mean((1, 2, 3), keepdim=True) > 0)),
}


def branched(way: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Net(
        lambda n, x: n.head(mean(way(n, n.b(n.a(x).relu()).relu()).relu())),
        a=conv(3, 8),
        b=conv(8, 12),
        main=conv(12, 6),
        side=nn.Conv2d(12, 10, 1),
        last=nn.Conv2d(10, 1, 1),
        table=nn.Embedding(10, 6),
        head=nn.Linear(6, 5),
    ).eval()


LEFT = {"detached behind a second layer": {"a": 4, "b": 6, "main": 3, "side": 5}, "the index of the largest": {"a": 4, "b": 6}}


@pytest.mark.parametrize("way", WAYS)
def test_the_layer_before_both_branches_is_cut_for_both(way: str) -> None:
    net = branched(WAYS[way])
    plan, layers = pruned_exactly(net, IMAGES), trace_layers(net, IMAGES)
    assert counts(plan) == LEFT.get(way, {"a": 4, "b": 6, "main": 3})
    assert plan.skipped["last" if "side" in plan.kept else "side"] == WHOLE
    assert [one.name for one in layers["b"].consumers] == ["main", "side"]
    compact = prune(net, plan)
    assert compact.side.in_channels == 6 and inexactness(net, compact, IMAGES[:1]) is None


def test_statistics_merging_and_recalibration_know_both_readers() -> None:
    net = branched(WAYS["detached"])
    statistics = collect_statistics(net, IMAGES)
    scores = importance("fcs_linear", model=net, statistics=statistics)
    assert {"a", "b", "main"} <= scores.keys() and all(one.isfinite().all() for one in scores.values())
    plan = pruned_exactly(net, IMAGES)
    with pytest.warns(UserWarning, match="merge left out"):
        merged = prune(net, plan, compensate="merge", statistics=statistics, example=IMAGES)
    recalibrate(merged, IMAGES)
    assert merged(IMAGES).shape == (4, 5) and merged.side.weight.shape == (10, 6, 1, 1)


def test_a_layer_that_runs_without_gradients_is_no_part_of_the_graph() -> None:
    net = branched(lambda n, y: n.main(y) * unseen(n.side, y).sigmoid().mean((1, 2, 3), keepdim=True))
    layers = trace_layers(net, IMAGES)
    assert layers["side"].barrier == "the forward pass does not lead through it"
    assert "b" not in pruned_exactly(net, IMAGES).kept  # which the check of exactness finds


class Pair(nn.Conv2d):
    """Returns its maps and their mean, as some layers return their bias beside."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x)
        return y, mean(y)


def test_a_layer_may_return_more_than_its_maps() -> None:
    net = branched(lambda n, y: n.main(y) * n.pair(y)[0].detach().sigmoid().mean((1, 2, 3), keepdim=True))
    net.pair = Pair(12, 4, 1)
    plan = pruned_exactly(net, IMAGES)
    assert len(plan.kept["b"]) == 6 and plan.skipped["pair"] == WHOLE


def test_a_network_that_answers_by_an_index_alone_is_pruned() -> None:
    net = Net(lambda n, x: mean(n.b(n.a(x).relu())).argmax(1), a=conv(3, 8), b=conv(8, 12)).eval()
    layers = trace_layers(net, IMAGES)
    assert layers["a"].barrier is None and layers["b"].barrier == WHOLE
