"""Layers through which the forward pass of only some images leads stay whole, with that reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune
from tests.pruning.toys import Net, conv, mean


def bright(n: nn.Module, x: Tensor) -> Tensor:
    h = n.a(x).relu()
    return mean(n.c(n.b(h).relu() if x.mean() > 1 else n.d(h).relu()))


def test_a_layer_that_only_some_images_reach_stays_whole() -> None:
    net = Net(bright, a=conv(3, 6), b=conv(6, 6), d=conv(6, 6), c=conv(6, 4)).eval()
    images = torch.rand(2, 3, 8, 8) + 2
    scores = {name: torch.arange(6.0) for name in ("a", "b", "d")}
    with pytest.raises(StudyError, match="b: whether the forward pass leads through it depends on the image"):
        make_plan(net, images, scores, ratio=0.5)
    plan = make_plan(net, images - 2, scores, ratio=0.5)  # another route: b waits for bright images
    assert "b" not in plan.kept
    made = PruningPlan(kept={"b": [0, 1]}, channels={"b": 6}, input_shape=(3, 8, 8), ratio=0.5)
    with pytest.raises(StudyError, match="b cannot be cut as planned: the forward pass of a plain image does not lead through it"):
        prune(net, made)


def test_a_layer_that_an_image_of_zeros_does_not_reach_stays_whole() -> None:
    """Random images reach it, so that its channels can be followed; surgery follows those of zeros."""

    def lit(n: nn.Module, x: Tensor) -> Tensor:
        h = n.a(x).relu()
        return mean(n.c(n.d(n.b(h)).relu() if x.abs().max() > 0 else n.d(h).relu()))

    net = Net(lit, a=conv(3, 6), b=conv(6, 6), d=conv(6, 6), c=conv(6, 4)).eval()
    plan = make_plan(net, torch.rand(2, 3, 8, 8), {name: torch.arange(6.0) for name in ("a", "b", "d")}, ratio=0.5)
    assert set(plan.kept) == {"d"} and plan.skipped["b"] == "whether the forward pass leads through it depends on the image"
