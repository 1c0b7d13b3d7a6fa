"""How many channels each layer loses by one ranking of all layers, by sensitivity and by a user's measure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.counts import Limits
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.sensitivity import Descent, reconstruction_curve
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune
from tests.pruning.test_plan import EXAMPLE, chain
from tests.pruning.toys import SCORES, counts


def test_one_ranking_over_layers_after_scaling() -> None:
    # Layer 0 has a hundredth of the numbers of layer 2; scaled, only its even spread counts. Layer 2 has few that matter.
    scores = {"0": torch.full((20,), 0.01), "2": torch.tensor([1.0] * 2 + [0.01] * 10)}
    net = chain(20, 12)
    assert counts(make_plan(net, EXAMPLE, scores, ratio=10 / 32, ranking="network")) == {"0": 10}  # equals: the first layer's go
    plan = make_plan(net, EXAMPLE, scores, ratio=10 / 32, allocation="global")
    assert counts(plan) == {"2": 2} and plan.kept["2"] == [0, 1] and plan.allocation == "global"
    assert plan.skipped["0"] == "its channels lie above the threshold"
    # A tenth of each layer stays, rounded up: 2 of 20 and 2 of 12, or as many as are asked for.
    assert counts(make_plan(net, EXAMPLE, scores, ratio=0.95, allocation="global")) == {"0": 2, "2": 2}
    assert counts(make_plan(net, EXAMPLE, scores, ratio=0.95, allocation="global", min_channels=5)) == {"0": 5, "2": 5}


def test_scores_are_scaled_by_the_root_of_their_mean_square() -> None:
    # Layer 0 has 16 times 0.5 and 4 times 0.25, of root mean square 0.461; layer 2 has 12 times 8, and one of them is 7. Scaled
    # by sums, roots of means or squares instead, the channels of the one layer would lie below those of the other.
    scores = {"0": torch.tensor([0.5] * 16 + [0.25] * 4), "2": torch.tensor([8.0] * 11 + [7.0])}
    net = chain(20, 12)
    assert counts(make_plan(net, EXAMPLE, scores, ratio=5 / 32, allocation="global")) == {"0": 16, "2": 11}
    dead = {"0": torch.zeros(20), "2": torch.arange(12.0)}
    assert counts(make_plan(net, EXAMPLE, dead, ratio=5 / 32, allocation="global")) == {"0": 15}


def test_what_reconstruction_loses_by_hand() -> None:
    """Channels 0 and 1 are equal, 2 is orthogonal to them; each has energy 1 an image and is read by a weight of 1, 2 and 3."""
    net = chain(3)
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.zero_()
        for channel, source in enumerate((0, 0, 1)):
            net[0].weight[channel, source] = 1
        net[2].weight.zero_()
        net[2].weight[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    images = torch.eye(2)[:, :, None, None].expand(2, 2, 4, 4).contiguous()
    (known,) = collect_statistics(net, images).values()
    # The reader's input has energy (1 + 2)^2 + 3^2 = 18. Without 1, channel 0 stands in; without 2 the half is lost.
    torch.testing.assert_close(
        reconstruction_curve(net, known, [2, 0, 1]), torch.tensor([1, 0.5, 0, 0]).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        reconstruction_curve(net, known, [0, 1, 2]), torch.tensor([1, 0.5, 0.5, 0]).double(), atol=1e-5, rtol=0
    )
    # How strong the maps are does not count; where all are zero, nothing is lost.
    weak = reconstruction_curve(net, replace(known, gram=known.gram * 1e-200), [2, 0, 1])
    torch.testing.assert_close(weak, torch.tensor([1, 0.5, 0, 0]).double(), atol=1e-5, rtol=0)
    assert reconstruction_curve(net, replace(known, gram=torch.zeros(3, 3).double(), count=7), [2, 0, 1]).tolist() == [0] * 4
    # With too few positions nothing is rebuilt: without 1 its energy is missed, 2^2.
    few = reconstruction_curve(net, replace(known, count=7), [2, 0, 1])
    torch.testing.assert_close(few, torch.tensor([1, 9 / 18, 4 / 18, 0]).double())


def test_a_descent_weighs_harm_against_macs_by_hand() -> None:
    """Both layers lose 0.1 a channel; a channel of b saves twice the MACs. A dear step with free ones behind it is taken as one."""
    curves = {"a": torch.tensor([0.4, 0.3, 0.2, 0.1, 0]).double(), "b": torch.tensor([0.4, 0.3, 0.3, 0.3, 0]).double()}
    share = lambda found: (found["a"] + 2 * found["b"]) / 12  # noqa: E731
    path = Descent(curves, share, dict.fromkeys("ab", Limits()), {"a": 1, "b": 1}).path
    assert [(one["a"], one["b"]) for one in path] == [(4, 4), (4, 3), (4, 2), (4, 1), (3, 1), (2, 1), (1, 1)]
    steep = {**curves, "b": 10 * curves["b"]}
    path = Descent(steep, share, dict.fromkeys("ab", Limits(2)), {"a": 1, "b": 1}).path
    assert [(one["a"], one["b"]) for one in path] == [(4, 4), (2, 4), (2, 2)]
    path = Descent(steep, share, {"a": Limits(), "b": Limits(2)}, {"a": 1, "b": 1}).path
    assert [(one["a"], one["b"]) for one in path] == [(4, 4), (3, 4), (2, 4), (1, 4), (1, 2)]


@torch.no_grad()
def test_each_allocation_makes_another_plan_and_sensitivity_rebuilds_better() -> None:
    """Half of the channels of two of five layers are copies of the others: those can go without loss."""
    widths, layers = (3, 16, 16, 16, 16, 16), list[nn.Module]()
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    for conv in (layers[2], layers[6]):
        conv.weight[8:], conv.bias[8:] = conv.weight[:8], conv.bias[:8]
    net = nn.Sequential(*layers, nn.Conv2d(16, 4, 3), nn.Flatten()).eval()
    images, fresh = torch.randn(2, 32, 3, 8, 8)
    statistics, scores = collect_statistics(net, images), importance("random", model=net, seed=3)
    ways: dict[str, dict[str, Any]] = {"uniform": {}, "global": {}, "sensitivity": {"statistics": statistics}}
    plans = {way: make_plan(net, images, scores, macs=0.6, allocation=way, **more) for way, more in ways.items()}
    assert len({json.dumps(counts(plan)) for plan in plans.values()}) == 3
    assert all(plan.macs_left == pytest.approx(0.6, abs=0.04) for plan in plans.values())
    wanted = net(fresh)
    gaps = {
        way: (prune(net, plan, compensate="merge", statistics=statistics)(fresh) - wanted).square().sum().item()
        for way, plan in plans.items()
    }
    assert gaps["sensitivity"] < 0.7 * gaps["uniform"]
    again = PruningPlan.from_json(plans["sensitivity"].model_dump_json())
    assert again == plans["sensitivity"] and again.allocation == "sensitivity"


def test_sensitivity_by_a_users_measure() -> None:
    """The measure falls with the channels of layer 0 alone: so layer 2 is pruned to its floor first."""
    seen: list[tuple[int, int]] = []

    def evaluate(network: nn.Module) -> float:
        seen.append((network[0].out_channels, network[2].out_channels))
        return float(network[0].out_channels)

    net = chain(20, 12)
    plan = make_plan(net, EXAMPLE, SCORES, ratio=10 / 32, allocation="sensitivity", evaluate=evaluate)
    assert counts(plan) == {"2": 2} and plan.skipped["0"] == "other layers save MACs at less harm"
    assert seen == [(20, 12), (15, 12), (10, 12), (5, 12), (20, 9), (20, 6), (20, 3)] and net[0].out_channels == 20
    for bad, says in (
        (lambda net: "good", "must return a number, got str"),
        (lambda net: float("nan"), "must return a finite number, got nan"),
    ):
        with pytest.raises(StudyError, match=f"evaluate {says}"):
            make_plan(net, EXAMPLE, SCORES, ratio=0.5, allocation="sensitivity", evaluate=bad)  # type: ignore[arg-type]


def test_channels_of_multiples_follow_sensitivity_too() -> None:
    net = chain(20, 12)
    plan = make_plan(
        net,
        EXAMPLE,
        SCORES,
        macs=0.4,
        multiple=4,
        allocation="sensitivity",
        statistics=collect_statistics(net, torch.randn(8, 2, 4, 4)),
    )
    assert all(count % 4 == 0 for count in counts(plan).values()) and plan.macs_left == pytest.approx(0.4, abs=0.1)
