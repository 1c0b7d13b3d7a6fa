"""Which channels a plan keeps, what it says besides, and which plans are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.criteria import importance, ranking_of
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune
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
        with pytest.raises(StudyError, match=f"macs={bad} is not allowed; allowed: above 0 and below 1"):
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept": {"a": [False, True]}}, "valid integer"),
        ({"kept": {"a": [0.0, 1.0]}}, "valid integer"),
        ({"kept": {"a": ["0", "1"]}}, "valid integer"),
        ({"skipped": {"a": "too small"}}, "a cannot lose channels and stay whole"),
        ({"macs_left": 1.5}, "more MACs than there were"),
        ({"macs_left": float("nan")}, "finite"),
        ({"layer_macs": {"a": [-3, -4]}}, "greater than or equal to 0"),
        ({"layer_macs": {"a": [10, 5], "b": [10, 20]}}, "more MACs than there were"),
        ({"ratio": 3}, "above 0 and below 1"),
        ({"ratio": None, "rates": {"a": 1.5}}, "rates must be 0 or above and below 1"),
        ({"ratio": None, "rates": {"a": 0.5, "b": 1.0}}, "rates must be 0 or above and below 1"),
        ({"input_shape": (5, 2**14, 2**14)}, "one image has more than 1,073,741,824 numbers"),
        ({"inputs": [{"shape": shape, "dtype": "float32"} for shape in ((3, 8, 8), (5, 2**14, 2**14))]}, "one image has more"),
        ({"input_shape": (3,)}, "input_shape must be"),
        ({"input_shape": (3, 8, 8, 8, 8)}, "input_shape must be"),
    ],
)
def test_a_plan_states_nothing_that_cannot_be(change: dict[str, Any], said: str) -> None:
    good = {"kept": {"a": [0, 2]}, "channels": {"a": 3}, "input_shape": (3, 8, 8), "ratio": 0.5}
    with pytest.raises(StudyError, match=f"^not a pruning plan: .*{said}"):
        PruningPlan.from_data({**good, **change})


@pytest.mark.parametrize(
    ("name", "scope"),
    [("vgg16", "inner"), ("resnet20", "inner"), pytest.param("torchvision/mobilenet_v2", "all", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("target", [0.8, 0.5, 0.25])
def test_macs_find_the_nearest_reachable_network(name: str, scope: str, target: float) -> None:
    model = build_seeded(0, name, num_classes=3, **({} if "/" in name else {"width": 0.25})).eval()
    example = torch.zeros(1, 3, 32, 32)
    scores = importance("kernel_l1", model=model)
    plan = make_plan(model, example, scores, macs=target, scope=scope)
    left = count_macs(prune(model, plan), example) / count_macs(model, example)
    assert plan.macs == target and plan.macs_left == pytest.approx(left)
    # No ratio near it comes nearer, and the share falls as the ratio grows.
    others = [make_plan(model, example, scores, ratio=plan.ratio + step, scope=scope).macs_left for step in (-0.02, 0.02)]
    assert others[0] > left > others[1]
    assert abs(left - target) <= min(abs(other - target) for other in others) + 1e-12


def test_plan_keeps_the_most_important_and_names_what_stays_whole() -> None:
    model, images = build_seeded(0, "resnet20", num_classes=2, width=0.25), torch.zeros(1, 3, 32, 32)
    scores = {"stage1.0.conv1": torch.tensor([0.1, 0.4, 0.3, 0.2])}
    plan = make_plan(model, images, scores, ratio=0.5)
    assert plan.kept == {"stage1.0.conv1": [1, 2]} and plan.channels == {"stage1.0.conv1": 4}
    assert plan.skipped["stage1.1.conv1"] == "no importance given"
    assert "residual sum" in plan.skipped["stage1.0.conv2"]


def test_a_printed_plan_shows_channels_before_and_after_and_the_macs_left() -> None:
    plan = PruningPlan(
        kept={"features.conv1": [0, 2, 3], "head": [1]},
        channels={"features.conv1": 64, "head": 8},
        skipped={"conv9": "called twice"},
        input_shape=(3, 32, 32),
        ratio=0.5,
        macs=0.5,
        macs_left=0.5123,
    )
    assert str(plan).splitlines() == [
        "layer           kept  of",
        "features.conv1     3  64",
        "head               1   8",
        "conv9            all      called twice",
        "51.2% of the MACs are left, 50.0% was the goal",
    ]
    bare = plan.model_copy(update={"macs": None, "macs_left": None, "skipped": {}})
    assert str(bare).splitlines() == str(plan).splitlines()[:3]


def test_plan_goes_to_json_and_back(small_vgg: nn.Module) -> None:
    plan = make_plan(small_vgg, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=small_vgg), ratio=0.3)
    assert PruningPlan.from_json(plan.model_dump_json()) == plan
    with pytest.raises(StudyError, match="not a pruning plan"):
        PruningPlan.from_json(plan.model_dump_json()[:-40])


@pytest.mark.parametrize("kept", [[], [3, 1], [0, 0], [-1, 2], [0, 8], None])
def test_an_edited_plan_is_refused(small_vgg: nn.Module, kept: list[int] | None) -> None:
    plan = make_plan(small_vgg, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=small_vgg), ratio=0.5)
    data = json.loads(plan.model_dump_json())
    if kept is None:
        del data["channels"]["features.conv1"]
    else:
        data["kept"]["features.conv1"] = kept
    with pytest.raises(StudyError, match="damaged"):
        PruningPlan.from_data(data)
    with pytest.raises(StudyError, match="damaged"):
        PruningPlan.from_json(json.dumps(data))


def test_nothing_to_prune_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(StudyError, match="network's outputs"):
        make_plan(model, torch.zeros(1, 3, 8, 8), {"0": torch.ones(4)}, ratio=0.5)


def test_one_channel_is_never_removed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    plan = make_plan(model, torch.zeros(1, 3, 12, 12), importance("kernel_l1", model=model), ratio=0.9)
    assert plan.skipped["0"] == "one channel only" and len(plan.kept["2"]) == 1


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        ({}, {"ratio": 1.5}, "ratio=1.5"),
        ({}, {"ratio": 0.5, "scope": "outer"}, "scope='outer'"),
        ({}, {"macs": 1.0}, "macs=1.0"),
        ({}, {"macs": -0.1}, "macs=-0.1"),
        ({}, {}, "one of ratio, macs, rates and latency"),
        ({}, {"ratio": 0.5, "macs": 0.5}, "one of ratio, macs, rates and latency"),
        ({"nowhere": torch.ones(3)}, {"ratio": 0.5}, "nowhere"),
        ({"features.conv1": torch.ones(3)}, {"ratio": 0.5}, "8 finite numbers"),
        ({"features.conv1": torch.full((8,), torch.nan)}, {"ratio": 0.5}, "8 finite numbers"),
        ({"features.conv1": torch.tensor([1.0] * 7 + [torch.inf])}, {"ratio": 0.5}, "8 finite numbers"),
    ],
)
def test_bad_plans_are_refused(small_vgg: nn.Module, scores: dict, arguments: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        make_plan(small_vgg, torch.zeros(1, 3, 32, 32), scores, **arguments)


def test_a_plan_by_hand_remembers_height_and_width() -> None:
    plan = plan_by_hand(chain(4), torch.zeros(2, 2, 4, 6), {"0": [3, 0]})
    assert (plan.input_shape, plan.kept) == ((2, 4, 6), {"0": [0, 3]})
