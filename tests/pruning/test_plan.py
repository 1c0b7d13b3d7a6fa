"""What a plan says besides the channels that it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import importance, ranking_of
from fcs_utils.pruning.plan import PruningPlan, make_plan
from tests.pruning.test_fcs import toy


def chain(*widths: int) -> nn.Module:
    """1x1 convolutions one after the other, from two channels to two classes."""
    layers: list[nn.Module] = []
    for before, after in zip((2, *widths), (*widths, 2), strict=True):
        layers += [nn.Conv2d(before, after, 1), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


EXAMPLE = torch.zeros(1, 2, 4, 4)


def test_a_layer_too_narrow_for_the_ratio_is_named() -> None:
    net = chain(3, 10)
    plan = make_plan(net, EXAMPLE, {"0": torch.arange(3.0), "2": torch.arange(10.0)}, ratio=0.1)
    # 0.1 of 3 channels rounds to none, 0.1 of 10 to one: the least important.
    assert plan.kept == {"2": list(range(1, 10))} and plan.skipped["0"] == "ratio 0.1 of 3 channels rounds to none"
    assert plan.input_shape == (2, 4, 4) and (plan.ratio, plan.scope, plan.macs) == (0.1, "inner", None)
    # MACs of a position: 2 * 3 + 3 * 10 + 10 * 2 = 56, then 2 * 3 + 3 * 9 + 9 * 2 = 51.
    assert plan.macs_left == pytest.approx(51 / 56)
    with pytest.raises(StudyError, match="nothing to prune: .*0: ratio 0.1 of 3 channels rounds to none"):
        make_plan(chain(3), EXAMPLE, {"0": torch.arange(3.0)}, ratio=0.1)


def test_the_ratio_for_a_share_of_macs_by_hand() -> None:
    # One layer of 4 channels: 2 * 4 + 4 * 2 = 16 MACs a position, a quarter less with every channel.
    net, scores = chain(4), {"0": torch.arange(4.0)}
    for macs, kept in ((0.79, 3), (0.75, 3), (0.63, 3), (0.62, 2), (0.5, 2), (0.26, 1), (0.21, 1)):
        plan = make_plan(net, EXAMPLE, scores, macs=macs)
        assert len(plan.kept["0"]) == kept and plan.macs_left == kept / 4 and plan.macs == macs
    # Half of the way between two: the one that leaves more.
    plan = make_plan(net, EXAMPLE, scores, macs=0.625)
    assert plan.kept["0"] == [1, 2, 3] and plan.macs_left - plan.macs == pytest.approx(0.125)
    for far in (0.99, 0.81, 0.19, 0.01):  # more than 0.05 away from what one to three channels leave
        with pytest.raises(StudyError, match=f"macs={far} is not allowed; allowed: 0.250 to 0.750, which pruning 1 of 2 conv"):
            make_plan(net, EXAMPLE, scores, macs=far)
    for bad in (0, 1):
        with pytest.raises(StudyError, match=f"macs={bad} is not allowed"):
            make_plan(net, EXAMPLE, scores, macs=bad)


TWO = {"0": torch.tensor([0.1, 0.2, 0.3, 0.9]), "2": torch.tensor([0.25, 0.5, 0.6, 0.7])}


@pytest.mark.parametrize(
    ("ratio", "kept", "left"),
    [
        # MACs of a position: 2 a + a b + 2 b for widths a and b; 32 with four channels each.
        (1 / 8, {"0": [1, 2, 3]}, 26),
        (3 / 8, {"0": [2, 3], "2": [1, 2, 3]}, 16),  # 0.1, 0.2 and 0.25 lie below the threshold
        (1 / 2, {"0": [3], "2": [1, 2, 3]}, 11),
        (5 / 8, {"0": [3], "2": [2, 3]}, 8),
        (7 / 8, {"0": [3], "2": [3]}, 5),  # each layer keeps its most important channel
    ],
)
def test_one_threshold_decides_for_all_layers(ratio: float, kept: dict[str, list[int]], left: int) -> None:
    plan = make_plan(chain(4, 4), EXAMPLE, TWO, ratio=ratio, ranking="network")
    assert plan.kept == kept and plan.macs_left == pytest.approx(left / 32) and plan.ratio == ratio
    assert plan.ranking == "network" and PruningPlan.from_json(plan.model_dump_json()) == plan
    reached = make_plan(chain(4, 4), EXAMPLE, TWO, macs=left / 32 + 0.001, ranking="network")
    assert reached.kept == kept and reached.macs_left == plan.macs_left
    if len(kept) == 1:
        assert plan.skipped["2"] == "its channels lie above the threshold"


def test_of_equals_at_the_threshold_the_first_layer_loses_its_higher_indices() -> None:
    scores = {"0": torch.ones(4), "2": torch.ones(4)}
    for gone, kept in ((2, {"0": [0, 1]}), (4, {"0": [0], "2": [0, 1, 2]})):
        assert make_plan(chain(4, 4), EXAMPLE, scores, ratio=gone / 8, ranking="network").kept == kept


def test_a_plan_that_ranks_each_layer_does_not_speak_of_it() -> None:
    plan = make_plan(chain(4, 4), EXAMPLE, TWO, ratio=0.5)
    assert plan.kept == {"0": [2, 3], "2": [2, 3]} and "ranking" not in plan.model_dump(mode="json")
    with pytest.raises(StudyError, match="ranking='global'"):
        make_plan(chain(4, 4), EXAMPLE, TWO, ratio=0.5, ranking="global")


def test_a_layer_of_near_duplicates_loses_more_under_one_threshold() -> None:
    # In layer 0 every pair has cosine 0.9, in layer 2 0.1. Greedy keeps one of four copies, whose redundancy is -1.
    statistics = {
        name: toy([1.0, 2.0, 3.0, 4.0], torch.full((4, 4), s).fill_diagonal_(1).tolist()) for name, s in (("0", 0.9), ("2", 0.1))
    }
    options = {"quota": "global", "bins": 1}
    scores = importance("fcs_greedy", model=chain(4, 4), statistics=statistics, **options)
    assert ranking_of("fcs_greedy", options) == "network" and ranking_of("fcs_greedy") == ranking_of("kernel_l1") == "layer"
    plan = make_plan(chain(4, 4), EXAMPLE, scores, ratio=3 / 8, ranking="network")
    assert plan.kept == {"0": [3]}  # the threshold lies between 0.1 and 0.9
    plan = make_plan(chain(4, 4), EXAMPLE, scores, ratio=4 / 8, ranking="network")
    assert plan.kept == {"0": [3], "2": [1, 2, 3]}


def test_a_plan_names_each_layer_with_its_width() -> None:
    good = {"kept": {"a": [0, 2]}, "channels": {"a": 3}, "input_shape": (3, 8, 8), "ratio": 0.5}
    assert PruningPlan.from_data(good).kept == {"a": [0, 2]}
    for change in ({"kept": {}, "channels": {}}, {"channels": {"a": 3, "b": 3}}, {"channels": {"a": 2}}, {"kept": {"a": [0, 3]}}):
        with pytest.raises(StudyError, match="the plan is damaged"):
            PruningPlan.from_data({**good, **change})
