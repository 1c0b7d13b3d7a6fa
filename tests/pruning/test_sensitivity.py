"""Curves of harm and the way down along them, worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.counts import Limits, distinct_ratios, network_counts
from fcs_utils.pruning.options import PlanOptions
from fcs_utils.pruning.sensitivity import Descent, evaluated, evaluated_curve
from fcs_utils.pruning.shares import ANY, Shares


class Kept(nn.Module):
    def __init__(self, kept: dict[str, list[int]]) -> None:
        super().__init__()
        self.kept = kept


def curve(score: Tensor, shares: Shares, measures: dict[int, float], best: float) -> tuple[list[float], list[dict[str, list[int]]]]:
    """The curve of two convolutions, with a measure by the number of channels; and what was tried."""
    tried: list[dict[str, list[int]]] = []

    def evaluate(network: Any) -> float:
        tried.append(network.kept)
        return measures[len(network.kept["a"])]

    cuts: Any = SimpleNamespace(compact=Kept)
    return evaluated_curve(cuts, lambda kept: {"a": kept, "b": kept}, score, shares, evaluate, best).tolist(), tried


def test_a_measure_at_three_counts_and_straight_between() -> None:
    # Of 8 channels 6, 4 and 2 are tried: 1 worse than 10, half better, which counts as none, and 4 worse. Fewer channels are never
    # better, so 4 channels count as 6. Below 2 it goes on as between 2 and 4, by 1.5 a channel.
    found, tried = curve(torch.arange(8.0), ANY, {6: 9.0, 4: 10.5, 2: 6.0}, 10.0)
    assert found == [7, 5.5, 4, 2.5, 1, 1, 1, 0.5, 0]
    assert tried == [dict.fromkeys(("a", "b"), kept) for kept in ([2, 3, 4, 5, 6, 7], [4, 5, 6, 7], [6, 7])]


def test_counts_are_whole_steps_and_each_is_tried_once() -> None:
    found, tried = curve(torch.arange(8.0), Shares(unit=4), {4: 9.0}, 10.0)
    assert tried == [dict.fromkeys(("a", "b"), [4, 5, 6, 7])] and found == [2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25, 0]
    assert curve(torch.ones(1), ANY, {}, 10.0) == ([0, 0], [])
    found, tried = curve(torch.tensor([1.0, 0.0]), ANY, {1: 7.0}, 10.0)
    assert found == [6, 3, 0] and tried == [dict.fromkeys(("a", "b"), [0])]
    assert curve(torch.arange(4.0), ANY, {3: 11.0, 2: 12.0, 1: 13.0}, 10.0)[0] == [0] * 5


def test_a_measure_is_a_finite_number_of_a_network_in_eval_mode() -> None:
    seen: list[bool] = []
    assert evaluated(lambda net: seen.append(net.training) or torch.tensor(2.5), nn.Linear(1, 1), "evaluate") == 2.5
    assert seen == [False]
    for bad, said in ((float("inf"), "a finite number, got inf"), (-float("inf"), "a finite number"), ([1], "a number, got list")):
        with pytest.raises(StudyError, match=f"measure must return {said}"):
            evaluated(lambda net, bad=bad: bad, nn.Linear(1, 1), "measure")


def linear(width: int) -> Tensor:
    return torch.arange(width, -1, -1).double()


@pytest.mark.parametrize(
    ("width", "limits", "least", "steps"),
    [
        (4, Limits(), 1, [3, 2, 1]),
        (4, Limits(), 3, [3]),
        (4, Limits(), 4, []),
        (63, Limits(), 60, [62, 61, 60]),
        (64, Limits(), 59, [62, 60, 59]),  # in 32 steps, and down to the fewest
        (64, Limits(), 60, [62, 60]),
        (96, Limits(), 88, [93, 90, 88]),
        (5, Limits(2), 2, [4, 2]),
        (20, Limits(8), 8, [16, 8]),
        (20, Limits(8), 16, [16]),
        (16, Limits(8), 8, [8]),
    ],
)
def test_counts_on_the_way_down(width: int, limits: Limits, least: int, steps: list[int]) -> None:
    found = Descent._steps(linear(width), limits, least)
    assert [count for count, _ in found] == steps and all(loss == pytest.approx(1) for _, loss in found)


def test_each_channel_costs_what_the_hull_says() -> None:
    # Three channels lose 6 at once, two 7 and one 8: by the hull 8 / 3 a channel all the way. What falls counts as free.
    assert Descent._steps(torch.tensor([9.0, 8, 7, 6, 0]), Limits(), 1) == [(count, pytest.approx(8 / 3)) for count in (3, 2, 1)]
    assert Descent._steps(torch.tensor([9.0, 8, 3, 1, 0]), Limits(), 1) == [(3, 1), (2, 2), (1, 5)]
    assert Descent._steps(torch.tensor([0.0, 0, 0, -1, 0]), Limits(), 1) == [(3, 0), (2, 0.5), (1, 0.5)]


def two(share: float = 2.0) -> Descent:
    """Both layers of 4 lose 0.1 a channel; a channel of b saves ``share`` times the MACs."""
    curves = {name: 0.1 * linear(4) for name in "ab"}
    return Descent(curves, lambda found: (found["a"] + share * found["b"]) / 12, dict.fromkeys("ab", Limits()), {"a": 1, "b": 2})


def test_levels_and_the_last_step_that_takes_no_more() -> None:
    descent = two()
    assert [(one["a"], one["b"]) for one in descent.path] == [(4, 4), (4, 3), (4, 2), (3, 2), (2, 2), (1, 2)]
    assert descent.levels() == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8])
    for ratio, counts in (
        (0.1, (4, 4)),
        (0.125, (4, 3)),
        (0.125 - 1e-10, (4, 3)),
        (0.125 - 1.5e-9, (4, 4)),
        (0.24, (4, 3)),
        (0.3, (4, 2)),
        (0.9, (1, 2)),
    ):
        found = descent.counts(ratio)
        assert (found["a"], found["b"]) == counts
    assert [(one["a"], one["b"]) for one in two(0.5).path[:4]] == [(4, 4), (3, 4), (2, 4), (1, 4)]
    assert [(one["a"], one["b"]) for one in two(1.0).path[:3]] == [(4, 4), (3, 4), (2, 4)]  # of equals the first
    assert [(one["a"], one["b"]) for one in two(0.0).path[-3:]] == [(1, 4), (1, 3), (1, 2)]  # what saves nothing goes last


def test_a_step_of_two_channels_costs_what_both_do() -> None:
    # One channel of a loses 1 and two of b lose 3, for twice the MACs.
    curves, limits = {"a": linear(4), "b": 1.5 * linear(4)}, {"a": Limits(), "b": Limits(2)}
    path = Descent(curves, lambda found: (found["a"] + found["b"]) / 8, limits, {"a": 1, "b": 1}).path
    assert [(one["a"], one["b"]) for one in path] == [(4, 4), (3, 4), (2, 4), (1, 4), (1, 2)]


def test_ratios_follow_from_what_decides() -> None:
    descent = two()
    assert PlanOptions(allocation="sensitivity").ratios([4, 4], descent) == descent.levels()
    assert PlanOptions().ratios([2, 3], None) == distinct_ratios({2, 3})
    assert PlanOptions(ranking="network").ratios([2, 3], None) == distinct_ratios({5})
    assert PlanOptions(allocation="global").ratios([2, 3], None) == distinct_ratios({5})


def test_floors_and_counts_under_one_threshold() -> None:
    assert [PlanOptions().floor(width) for width in (1, 10, 11, 20, 21)] == [1, 1, 2, 2, 3]  # a tenth, rounded up
    assert [PlanOptions(limits=Limits(1, 3)).floor(width) for width in (2, 4, 40)] == [2, 3, 4]
    scores = {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.tensor([5.0, 6, 7, 8])}
    assert network_counts(scores, 0.5) == {"a": 1, "b": 3}  # 1, 2, 3 and 5: each keeps one
    assert network_counts(scores, 0.5, {"a": 3, "b": 2}) == {"a": 3, "b": 2}  # no more than 1, 5 and 6 can go
    assert network_counts(scores, 0.5, {"a": 9, "b": 1}) == {"a": 4, "b": 1}
    assert network_counts({"a": torch.tensor([1.0, 5]), "b": torch.tensor([5.0, 9])}, 0.5) == {"a": 1, "b": 1}
    limits = {"a": Limits(2), "b": Limits()}
    assert PlanOptions(ranking="network").counts(scores, 0.5, None, limits) == {"a": 2, "b": 3}
    assert PlanOptions(rates={"a": 0.5, "b": 0.3}).counts(scores, None, None, limits) == {"a": 2, "b": 3}
    assert PlanOptions(rates={"a": 0.5, "b": 0.3}, rounding="chip").counts(scores, None, None, limits) == {"a": 2, "b": 2}
    assert PlanOptions().counts(scores, 0.7, None, limits) == {"a": 2, "b": 1}
