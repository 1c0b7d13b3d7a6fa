"""Calls of one layer that do not agree: it stays whole, with its name and its reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from tests.pruning.toys import Net, conv, mean

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def in_turn(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        still = net.b(net.a(x.flip(3)).relu())
    return mean(net.b(net.a(x).relu()) + still)


APART: dict[str, tuple[Callable[[], Net], dict[str, str]]] = {
    "once on the images": (
        lambda: Net(lambda n, x: mean(n.b(n.a(n.a(x).relu()).relu())), a=conv(3, 3), b=conv(3, 2)),
        {"a": "a is called more than once in a forward pass, and not each time with channels that go together"},
    ),
    "a normalisation once of the images": (
        lambda: Net(lambda n, x: mean(n.b(n.norm(n.a(n.norm(x))).relu())), a=conv(3, 3), b=conv(3, 2), norm=nn.BatchNorm2d(3)),
        {"a": "norm is called more than once in a forward pass, and not each time with channels that go together"},
    ),
    "a state that begins with zeros": (
        lambda: Net(
            lambda n, x: mean(n.b((n.a(x) + n.c((n.a(x) + n.c(torch.zeros(len(x), 4, 8, 8))).relu())).relu())),
            **{"a": conv(3, 4), "c": conv(4, 4), "b": conv(4, 2)},
        ),
        dict.fromkeys("ac", "c is called more than once in a forward pass, and not each time with channels that go together"),
    ),
    "once an output": (
        lambda: Net(lambda n, x: (mean(n.b(n.a(x).relu())), n.a(x.flip(3))), a=conv(3, 4), b=conv(4, 2)),
        {"a": "its channels are the network's outputs"},
    ),
    "a linear layer once an output": (
        lambda: Net(lambda n, x: n.fc(n.up(n.fc(mean(n.a(x)))).relu()), a=conv(3, 4), fc=nn.Linear(4, 4), up=nn.Linear(4, 4)),
        {"fc": "its channels are the network's outputs"},
    ),
    "mixed in one call": (
        lambda: Net(lambda n, x: mean(n.b(n.a(x).relu()) + n.b(n.a(x.flip(3)).softmax(1))), a=conv(3, 4), b=conv(4, 2)),
        {"a": "channels mix on the way to b"},
    ),
    "a gate in one call": (
        lambda: Net(
            lambda n, x: mean(n.b((y := n.a(x).relu()) * n.up(y).sigmoid()) + n.b(n.up(y))),
            **{"a": conv(3, 4), "up": conv(4, 4), "b": conv(4, 2)},
        ),
        {name: "up is called more than once in a forward pass, and only some of its calls gate" for name in ("a", "up")},
    ),
    "once without gradients": (
        lambda: Net(in_turn, a=conv(3, 4), b=conv(4, 2)),
        {"a": "a is called more than once in a forward pass, and not each time with gradients"},
    ),
}


@pytest.mark.parametrize("case", APART)
def test_calls_that_disagree_leave_the_layer_whole_with_the_reason(case: str) -> None:
    build, says = APART[case]
    layers = trace_layers(build().eval(), IMAGES)
    for name, reason in says.items():
        assert reason in str(layers[name].obstacle("all"))
    scores = {name: torch.arange(float(layers[name].channels)) for name in says}
    with pytest.raises(StudyError, match="nothing to prune: .*"):
        make_plan(build().eval(), IMAGES, scores, ratio=0.5, scope="all")
