"""Where merging puts a constant, what a proof calls different, and what a plan says of itself, case by case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.flow import Consumer
from fcs_utils.pruning.merge import _obstacle, _place
from fcs_utils.pruning.outcomes import gap_between
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.proof import zeroed
from tests.pruning.toys import Net, conv, mean

PLACES: dict[str, tuple[nn.Module, str | None]] = {
    "a bias": (nn.Conv2d(5, 3, 3), "bias"),
    "padding 0": (nn.Conv2d(5, 3, 3, padding=(0, 0)), "bias"),
    "valid": (nn.Conv2d(5, 3, 3, padding="valid"), "bias"),
    "zeros around": (nn.Conv2d(5, 3, 3, padding=1), None),
    "zeros on one side": (nn.Conv2d(5, 3, 3, padding=(0, 1)), None),
    "same": (nn.Conv2d(5, 3, 3, padding="same"), None),
    "reflected": (nn.Conv2d(5, 3, 3, padding=1, padding_mode="reflect"), "bias"),
    "without a bias": (nn.Conv2d(5, 3, 3, bias=False), "mean"),
    "reflected without a bias": (nn.Conv2d(5, 3, 3, padding=1, padding_mode="circular", bias=False), "mean"),
    "transposed": (nn.ConvTranspose2d(5, 3, 2, 2), None),
    "linear": (nn.Linear(5, 3), "bias"),
    "linear without a bias": (nn.Linear(5, 3, bias=False), "mean"),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_takes_up_a_constant(case: str) -> None:
    module, what = PLACES[case]
    net = nn.Sequential(module, nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    norms: dict[str, Any] = {norm: {"0": SimpleNamespace(norm=norm)} for norm in ("1", "2", None)}
    found = _place(net, norms["1"], "0", {module})
    if what is None:
        assert found is None
        return
    assert found is not None and found[1] == {"bias": 1, "mean": -1}[what]
    assert found[0] is (module.bias if what == "bias" else net[1].running_mean)
    for layers in ({}, norms[None], norms["2"]):  # no BatchNorm behind it, or one that has no mean of its own
        other = _place(net, layers, "0", {module})
        assert (other is None) if what == "mean" else (other is not None and other[0] is module.bias)


def test_a_bias_that_others_use_takes_up_no_constant() -> None:
    net = nn.Sequential(nn.Conv2d(5, 3, 1), nn.Conv2d(5, 3, 1), nn.Conv2d(5, 3, 1))
    net[1].bias = net[0].bias
    for readers, place in (({net[0]}, None), ({net[0], net[1]}, net[0].bias), ({net[0], net[2]}, None)):
        found = _place(net, {}, "0", readers)
        assert found is None if place is None else found is not None and found[0] is place and found[1] == 1


def test_why_a_layer_is_not_merged() -> None:
    def why(count: int | None = 8, kept: int = 3, **changes: Any) -> str | None:
        reader, tap = Consumer("c", torch.arange(3)[:, None]), SimpleNamespace(axis=1)
        layer: Any = SimpleNamespace(coupled=(), again=False, parted=False, consumers=[reader], tap=tap)
        vars(layer).update(changes)
        statistics: Any = None if count is None else SimpleNamespace(count=count)
        return _obstacle(layer, statistics, kept)

    assert why() is None  # 2.5 positions for each of three channels are 7.5
    assert why(count=7) == "7 positions for 3 kept channels; at least 8 are needed: take more images"
    assert why(count=5, kept=2) is None and why(count=4, kept=2) is not None
    assert why(coupled=("b",)) == "a residual sum reads its channels besides the consumers"
    assert why(coupled=("b",), again=True) == "other layers share its consumers"
    laid_out, plain = (Consumer("c", torch.tensor(at)[:, None]) for at in ((0, 0, 1), (0, 1, 2)))
    for consumers in ([laid_out], [laid_out, plain], [plain, laid_out]):
        assert why(consumers=consumers) == "several of its channels become one on the way to a consumer"
    assert why(parted=True) == "its consumers read different tensors"
    twice = Consumer("c", torch.arange(6).reshape(3, 2))
    assert why(consumers=[twice]) == "a consumer reads some of its channels in several places"
    assert why(consumers=[twice], tap=SimpleNamespace(axis=-1)) is None
    assert why(count=None) == "no statistics of it"


def tensors(*values: Any) -> list[Tensor]:
    return [torch.tensor(value) for value in values]


@pytest.mark.parametrize(
    ("wanted", "got", "gap"),
    [
        (tensors([1.0, -4.0]), tensors([1.0, -4.0]), 0),
        (tensors([1.0, -4.0]), tensors([1.5, -4.0]), 0.125),  # of the largest value, 4
        (tensors([1.0, -4.0]), tensors([1.0, 4.0]), 2),
        (tensors([0.0, 0.0]), tensors([0.0, 0.5]), 0.5),  # of nothing
        (tensors([2.0], [8.0]), tensors([3.0], [9.0]), 0.5),  # the worse of 1 / 2 and 1 / 8
        (tensors([8.0], [2.0]), tensors([9.0], [3.0]), 0.5),
        (tensors([1.0, 2.0]), tensors([[1.0, 2.0]]), float("inf")),
        (tensors([1.0]), [], float("inf")),
        (tensors([1.0, float("nan")]), tensors([1.0, float("nan")]), 0),
        (tensors([1.0, float("inf")]), tensors([1.5, float("inf")]), 0.5),
        (tensors([1.0, float("nan")]), tensors([1.0, 2.0]), float("inf")),
        (tensors([1.0, 2.0]), tensors([1.0, float("nan")]), float("inf")),
        (tensors([float("nan")]), tensors([float("nan")]), 0),
        (tensors([True, False]), tensors([True, True]), 1),
        (tensors([4, 2]), tensors([4, 3]), 0.25),
        (tensors([1j]), tensors([-1j]), 2),
        ([], [], 0),
    ],
)
def test_the_gap_between_outputs(wanted: list[Tensor], got: list[Tensor], gap: float) -> None:
    assert gap_between(wanted, got) == pytest.approx(gap)


def test_zeros_take_the_place_of_an_inputs_channels() -> None:
    net = Net(lambda n, x: mean(n.a(x)), a=conv(3, 2)).eval()
    images = torch.randn(2, 3, 5, 5)
    blank = images.clone()
    blank[:, [0, 2]] = 0
    with zeroed(net, {"a": [0, 2]}):
        assert net(images).equal(mean(net.a.forward(blank)))
        assert net.a(input=images).equal(net.a.forward(blank))  # by keyword, too
    assert not net.a._forward_pre_hooks and net(images).equal(mean(net.a.forward(images)))
    line = nn.Sequential(nn.Linear(3, 2))
    rows = torch.randn(2, 4, 3)
    with zeroed(line, {"0": [1]}):
        assert line(rows).equal(line[0].forward(rows * torch.tensor([1.0, 0, 1])))
        assert line(rows[0, 0]).equal(line[0].forward(rows[0, 0] * torch.tensor([1.0, 0, 1])))


PLAN: dict[str, Any] = {"kept": {"a": [0, 2]}, "channels": {"a": 3}, "input_shape": (3, 8, 8), "ratio": 0.5}


def test_a_plan_has_one_goal_of_its_own() -> None:
    rates = {"a": 0.3}
    for change in ({}, {"ratio": None, "rates": rates}, {"ratio": None, "allocation": "hand"}):
        assert PruningPlan.from_data({**PLAN, **change}).kept == {"a": [0, 2]}
    for change in (
        {"rates": rates},
        {"ratio": None},
        {"allocation": "hand"},
        {"ratio": None, "rates": rates, "allocation": "hand"},
    ):
        with pytest.raises(StudyError, match="it must have either a ratio or rates, or allocation='hand'"):
            PruningPlan.from_data({**PLAN, **change})


def test_a_plan_cannot_be_changed() -> None:
    plan = PruningPlan(**PLAN)
    with pytest.raises(ValidationError, match="frozen"):
        plan.ratio = 0.4
    assert plan.ratio == 0.5


def test_what_a_printed_plan_says_of_latency_and_of_long_reasons() -> None:
    plan = PruningPlan(**PLAN, latency="12.5ms", latency_left=12.34, macs_left=0.5, skipped={"b": "x" * 60, "c": "y" * 61})
    assert str(plan).splitlines() == [
        "layer  kept  of",
        "a         2   3",
        "b       all      " + "x" * 60,
        "c       all      " + "y" * 57 + "...",
        "50.0% of the MACs are left",
        "12.3ms of the latency is left, 12.5ms was the goal",
    ]
    share = PruningPlan(**PLAN, latency=0.6, latency_left=0.6123)
    assert str(share).splitlines()[2:] == ["61.2% of the latency is left, 60.0% was the goal"]
    whole = PruningPlan(**PLAN, skipped={"b": "why"}, layer_macs={"b": (30, 15), "a": (10, 5), "head": (60, 60)})
    assert str(whole).splitlines() == [
        "layer  kept  of  MACs (%)  left (%)",
        "b       all          30.0      15.0  why",
        "a         2   3      10.0       5.0",
    ]
