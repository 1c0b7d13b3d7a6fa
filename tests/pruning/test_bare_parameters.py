"""Parameters that a network multiplies or adds itself: narrowed with the channels that they lie along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.errors import StudyError
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import export_onnx, has_onnx, load_compact, save_compact
from fcs_utils.pruning.kinds import held_axis
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune, recalibrate
from tests.pruning.axes import settled
from tests.pruning.toys import Net, conv, mean

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def scaled(shape: tuple[int, ...], use: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], Net]:
    """A convolution of six channels and a residual block whose output meets a parameter of the network."""

    def build() -> Net:
        net = Net(lambda n, x: mean(n.b((y := n.a(x).relu()) + use(n, n.d(n.c(y).relu())))), **layers())
        net.scale = nn.Parameter(torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5)
        return net

    return build


def layers() -> dict[str, nn.Module]:
    return {"a": conv(3, 6), "c": conv(6, 4), "d": nn.Sequential(conv(4, 6), nn.BatchNorm2d(6)), "b": conv(6, 5)}


NETS: dict[str, Callable[[], Net]] = {
    "a layer scale": scaled((6, 1, 1), lambda n, x: n.scale * x),
    "a vector": scaled((6,), lambda n, x: x * n.scale.reshape(1, -1, 1, 1)),
    "a map": scaled((6, 8, 8), lambda n, x: x + n.scale),
    "in the last axis": scaled((6,), lambda n, x: (x.permute(0, 2, 3, 1) * n.scale).permute(0, 3, 1, 2)),
    "used twice": scaled((1, 6, 1, 1), lambda n, x: n.scale * x + n.scale),
}


@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:merge left out")
def test_surgery_is_exact_and_narrows_the_parameter(kind: str, tmp_path: Path) -> None:
    build = NETS[kind]
    torch.manual_seed(0)
    net = settled(build(), IMAGES)
    net.scale.requires_grad_(False)
    statistics = collect_statistics(net, IMAGES)
    scores = importance("fcs_linear", model=net, statistics=statistics)
    plan = make_plan(net, IMAGES, scores, ratio=0.5, scope="all")
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"a": 3, "c": 2, "d.0": 3}
    compact = prune(net, plan)
    assert inexactness(net, compact, IMAGES[:1]) is None
    axis = net.scale.shape.index(6)
    assert compact.scale.equal(net.scale.index_select(axis, torch.tensor(plan.kept["a"]))) and not compact.scale.requires_grad
    recalibrate(compact, IMAGES)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    assert load_compact(tmp_path / "compact.safetensors", build()).eval()(IMAGES).equal(compact(IMAGES))
    merged = prune(net, plan, compensate="merge", statistics=statistics)
    assert merged.scale.shape == compact.scale.shape and merged(IMAGES).isfinite().all()


def test_the_axis_that_lies_along_the_channels_by_hand() -> None:
    for shape, indices, axis in (((6, 1, 1), range(6), 0), ((1, 4, 6), [2, 1, 0, 3, 1], 1), ((6, 6), range(6), None)):
        assert held_axis(torch.zeros(shape), [*indices]) == axis
    # Some of a vector, as where it scales several layers side by side; of anything else, which axis it is cannot be told.
    assert held_axis(torch.zeros(1, 6, 1), range(2, 5)) == 1
    assert held_axis(torch.zeros(6, 2), range(2, 5)) is None and held_axis(torch.zeros(6), [*range(5), 7]) is None


def twice() -> Net:
    net = NETS["a layer scale"]()
    net.other = nn.Module()
    net.other.scale = net.scale
    return net


WHOLE: dict[str, tuple[Callable[[], Net], str]] = {
    "as many rows as channels": (
        scaled((6, 6, 6), lambda n, x: F.pad(x[:, :, :6, :6] * n.scale, (0, 2, 0, 2))),
        "its channels meet scale, a parameter that does not lie along them alone",
    ),
    "in two modules": (twice, "its channels meet scale, a parameter that does not lie along them alone"),
    "along the rows": (
        scaled((6, 1), lambda n, x: F.pad(x[:, :, :6] * n.scale, (0, 0, 0, 2))),
        "without some of its channels the network does not run",
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_stays_whole_and_why(case: str) -> None:
    build, says = WHOLE[case]
    net = settled(build(), IMAGES)
    scores = {name: torch.arange(float(layer.channels)) for name, layer in trace_layers(net, IMAGES).items()}
    plan = make_plan(net, IMAGES, scores, ratio=0.5, scope="all")
    assert [*plan.kept] == ["c"] and says in plan.skipped["d.0"] and inexactness(net, prune(net, plan), IMAGES[:1]) is None


def test_a_plan_by_hand_takes_the_numbers_along() -> None:
    net = settled(NETS["a vector"](), IMAGES)
    compact = prune(net, plan_by_hand(net, IMAGES, {"a": [1, 4], "d.0": [1, 4]}))
    assert compact.scale.equal(net.scale[[1, 4]])
    with pytest.raises(StudyError, match="the channels of its residual sum"):
        plan_by_hand(net, IMAGES, {"a": [1, 4], "d.0": [1, 5]})


@pytest.mark.slow
@torch.no_grad()
def test_onnx(tmp_path: Path) -> None:
    if not has_onnx():
        pytest.skip("needs onnx")
    net = settled(NETS["a layer scale"](), IMAGES)
    plan = make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5, scope="all")
    assert export_onnx(prune(net, plan), tmp_path / "net.onnx", IMAGES).exists()
