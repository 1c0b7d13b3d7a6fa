"""Surgery is proved for outputs of any kind, and for networks that are odd to copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.surgery import prune
from tests.pruning.test_proof import IMAGES, Op, plan_of
from tests.pruning.toys import Net, conv, mean, zeroed


class OwnPrecision(nn.Module):
    """Runs in float32 only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 6), conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return mean(self.b(self.a(x.float()).float().relu()))


class KeepsMaps(OwnPrecision):
    """Remembers its last maps, which autograd computed."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = [self.a(x).relu()]
        return mean(self.b(self.last[0]))


@dataclass
class Answer:
    logits: Tensor
    found: Tensor


OUTPUTS: dict[str, Callable[[Tensor], object]] = {
    "a mask": lambda y: {"logits": y, "found": y > 0, "number": 3},
    "indices": lambda y: [y, (y.argmax(1), None)],
    "a spectrum": lambda y: (torch.fft.fft(y),),
    "a dataclass": lambda y: Answer(y, y.sum(1) > 0),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_of_any_kind_are_compared(case: str) -> None:
    def build(op: Op) -> Net:
        return Net(lambda n, x: OUTPUTS[case](mean(n.b(op(n, n.a(x).relu())))), a=conv(3, 8), b=conv(8, 4)).eval()

    plan = make_plan(build(lambda _n, h: h), IMAGES, {"a": torch.arange(8.0)}, ratio=0.5)
    assert prune(build(lambda _n, h: h), plan).a.out_channels == 4
    with pytest.raises(StudyError, match="^a cannot be cut as planned"):
        prune(build(lambda _n, h: h / h.shape[1]), plan)


@pytest.mark.parametrize("build", [OwnPrecision, KeepsMaps])
def test_odd_networks_can_be_copied_and_compared(build: type[OwnPrecision]) -> None:
    net = build().eval()
    net(IMAGES)
    plan = plan_of(net)
    assert prune(net, plan)(IMAGES).allclose(zeroed(net, plan, IMAGES), atol=1e-6)


def test_outputs_that_are_not_finite_prove_nothing() -> None:
    net = Net(lambda n, x: mean(n.b(n.a(x.log()).relu())), a=conv(3, 6), b=conv(6, 4)).eval()
    scores = {"a": torch.arange(6.0)}
    plan = make_plan(net, IMAGES.abs() + 0.1, scores, ratio=0.5)  # images that it can take
    assert prune(net, plan, example=IMAGES.abs() + 0.1).a.out_channels == 3
    with pytest.raises(StudyError, match="cannot be checked"):
        prune(net, plan)
