"""Random networks on signals and volumes, with one input or two: surgery is exact, or the layer stays whole."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs
from fcs_utils.pruning.criteria import importance, scoring
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune
from tests.pruning.axes import settled
from tests.pruning.test_properties import Residual

# By the number of axes: convolutions, their transposed form, norms, pooling, and the sides of an input.
KINDS: dict[int, tuple[Any, ...]] = {
    1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.AvgPool1d, (12,)),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.AvgPool3d, (4, 3, 6)),
}


class Joined(nn.Module):
    """A body behind one input, or behind two that each pass a convolution and then are added, multiplied or concatenated."""

    def __init__(self, body: nn.Module, stems: list[nn.Module], how: str) -> None:
        super().__init__()
        self.body, self.stems, self.how = body, nn.ModuleList(stems), how

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        maps = [stem(one) for stem, one in zip(self.stems, (first, second), strict=False)]
        if len(maps) == 1:
            return self.body(maps[0])
        joined = {"add": maps[0] + maps[1], "times": maps[0] * maps[1].sigmoid()} if self.how != "cat" else {}
        return self.body(joined[self.how] if joined else torch.cat(maps, 1))


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(draw(st.integers(0, 10_000)))
    axes = draw(st.sampled_from([1, 3]))
    conv, transposed, batch, instance, pool, sides = KINDS[axes]

    def unit(inputs: int, outputs: int, groups: int = 1) -> list[nn.Module]:
        divided = [nn.GroupNorm(n, outputs) for n in range(2, outputs + 1) if outputs % n == 0]
        norm = draw(st.sampled_from([[], [batch(outputs)], [instance(outputs, affine=True)], divided[:1]]))
        activation = draw(st.sampled_from([nn.ReLU(), nn.PReLU(outputs), nn.GELU(), nn.Identity()]))
        kernel = draw(st.sampled_from([1, 3]))
        return [conv(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=draw(st.booleans())), *norm, activation]

    how = draw(st.sampled_from(["one", "add", "times", "cat"]))
    width = draw(st.integers(3, 6))
    stems = [nn.Sequential(*unit(2, width)) for _ in range(1 if how == "one" else 2)]
    layers, channels = [], 2 * width if how == "cat" else width
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["plain", "residual", "depthwise", "grouped", "transposed", "pool"]))
        if kind == "plain":
            layers += unit(channels, channels := draw(st.integers(2, 8)))
        elif kind == "residual":
            layers.append(Residual(nn.Sequential(*unit(channels, inside := draw(st.integers(2, 5))), *unit(inside, channels))))
        elif kind == "depthwise":
            layers += unit(channels, channels, channels)
        elif kind == "grouped":
            layers += [*unit(channels, 12), *unit(12, channels := draw(st.sampled_from([6, 12])), draw(st.sampled_from([2, 3])))]
        elif kind == "transposed":
            layers.append(transposed(channels, channels := draw(st.integers(2, 6)), 3, padding=1))
        else:
            layers.append(pool(3, 1, 1))
    layers += unit(channels, 5)
    flat = draw(st.booleans())
    pooled = nn.Identity() if flat else (nn.AdaptiveAvgPool1d if axes == 1 else nn.AdaptiveAvgPool3d)(1)
    body = nn.Sequential(*layers, pooled, nn.Flatten(), nn.Linear(5 * torch.tensor(sides).prod().item() if flat else 5, 3))
    images = tuple(torch.randn(6, 2, *sides) for _ in stems)
    if len(images) == 1:
        given_as: Inputs = images[0]
    else:
        given_as = draw(st.sampled_from([images, dict(zip(("first", "second"), images, strict=True))]))
    return settled(Joined(body, stems, how), given_as), given_as


@given(networks(), st.sampled_from([one for one in scoring() if one not in ("hrank", "bn_scale")]), st.floats(0.2, 0.8))
@torch.no_grad()
def test_surgery_is_exact_and_plans_survive_json(case: tuple[nn.Module, Inputs], criterion: str, ratio: float) -> None:
    network, images = case
    statistics = collect_statistics(network, images, readings=("pooled", "per_image"), extras=("apoz", "chip"))
    scores = importance(criterion, model=network, statistics=statistics, images=images, labels=torch.arange(6) % 3)
    try:
        plan = make_plan(network, images, scores, ratio=ratio, scope="all")
    except StudyError as error:
        assert str(error).startswith("nothing to prune: ") and "rounds to none" in str(error)
        reject()
    assert PruningPlan.from_json(plan.model_dump_json()) == plan
    compact = prune(network, plan)
    try:
        assert inexactness(network, compact, images) is None
    except StudyError as error:  # as where an InstanceNorm is averaged, so that nothing reaches the output
        assert str(error).startswith("the check sees nothing")
        reject()
