"""Networks on signals (N, C, L) and volumes (N, C, D, H, W) are scored, planned, pruned, merged and saved like those on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.errors import StudyError
from fcs_utils.models import count_macs, module_macs
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import export_onnx, has_onnx, load_compact, save_compact
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.pruners import pruner_plan
from fcs_utils.pruning.statistics import collect_statistics, feature_maps
from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.training.loop import fit
from fcs_utils.training.optimiser import Training
from tests.pruning.axes import LABELS, NETWORKS, SIGNALS, VOLUMES, settled, volumes
from tests.pruning.toys import Net

CRITERIA = ("kernel_l1", "kernel_l2", "fpgm", "random", "fcs", "fcs_greedy", "fcs_linear", "feature_norm", "taylor", "apoz", "chip")


def made(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, images, _ = NETWORKS[kind]
    return settled(build(), images), images


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_surgery_is_exact_by_every_criterion(kind: str, tmp_path: Path) -> None:
    net, images = made(kind)
    statistics = collect_statistics(net, images, readings=("pooled", "per_image", "mean_map"), extras=("apoz", "chip"))
    for criterion in CRITERIA:
        scores = importance(criterion, model=net, statistics=statistics, images=images, labels=LABELS)
        plan = make_plan(net, images, scores, ratio=0.5, scope="all")
        assert plan.kept.keys() == NETWORKS[kind][2] and plan.input_shape == images.shape[1:]
        compact = prune(net, plan, example=images)
        assert inexactness(net, compact, images) is None
    assert plan.macs_left == pytest.approx(count_macs(compact, images) / count_macs(net, images))
    assert PruningPlan.from_json(plan.model_dump_json()) == plan and all(name in str(plan) for name in plan.kept)
    recalibrate(compact, images)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    again = load_compact(tmp_path / "compact.safetensors", NETWORKS[kind][0]()).eval()
    assert again(images).equal(compact(images)) and not compact(images).isnan().any()


@pytest.mark.parametrize("kind", ["residual network of signals", "volumes"])
def test_a_goal_in_macs_is_reached_and_layers_of_a_sum_stay_whole_in_the_inner_scope(kind: str) -> None:
    net, images = made(kind)
    plan = make_plan(net, images, importance("kernel_l1", model=net), macs=0.6)
    assert plan.macs_left == pytest.approx(0.6, abs=0.08) and inexactness(net, prune(net, plan), images) is None
    if kind != "volumes":
        assert plan.kept.keys() == {f"{n}.conv1" for n in (4, 5, 6)} and "residual sum with 4.conv2" in plan.skipped["0"]


def test_multiply_adds_by_hand() -> None:
    # 8 places of 4 filters over 2 channels and 3 taps; 2 x 3 x 4 places of 2 filters over 27; 10 places that each feed 3 x 2.
    assert count_macs(nn.Conv1d(2, 4, 3), torch.zeros(3, 2, 10)) == 8 * 4 * 2 * 3
    assert count_macs(nn.Conv3d(1, 2, 3), torch.zeros(1, 1, 4, 5, 6)) == 2 * 3 * 4 * 2 * 27
    assert module_macs(nn.Sequential(nn.ConvTranspose1d(1, 3, 2, 2)), torch.zeros(1, 1, 10)) == {"0": 10 * 3 * 2}


@torch.no_grad()
def test_statistics_by_hand() -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Linear(6, 2)).eval()
    net[0].weight.copy_(torch.tensor([[[1.0]], [[-2.0]]]))
    images = torch.tensor([[[1.0, -1.0, 3.0]], [[0.0, -2.0, -1.0]]])
    known = collect_statistics(net, images, layers=["0"])["0"]
    # The maps are (1, 0, 3) and (0, 2, 0) of the first signal, (0, 0, 0) and (0, 4, 2) of the second.
    assert known.gram.tolist() == [[10.0, 0.0], [0.0, 24.0]] and known.l1.tolist() == [2.0, 4.0]
    assert (known.count, known.positions) == (6, 3) and known.similarity().tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert feature_maps(net, images, "0").tolist() == [[[1, 0, 3], [0, 2, 0]], [[0, 0, 0], [0, 4, 2]]]
    # Two rows at right angles: without one, the nuclear norm falls by its length.
    drops = collect_statistics(net, images, layers=["0"], extras=("chip",))["0"].extras["chip"]
    assert drops.tolist() == pytest.approx([10**0.5 / 2, (2 + 20**0.5) / 2])


@torch.no_grad()
def test_dropped_channels_of_a_signal_are_zeros_for_the_reader() -> None:
    net, images = made("signals flattened")
    plan = plan_by_hand(net, images, {"4": [0, 3]})
    with net[7].register_forward_pre_hook(
        lambda _m, seen: (seen[0].view(-1, 5, 9).index_fill(1, torch.tensor([1, 2, 4]), 0).flatten(1),)
    ):
        want = net(images)
    torch.testing.assert_close(prune(net, plan)(images), want)
    assert (net(images) - want).norm() > 1e-2 * want.norm()


@torch.no_grad()
def test_maps_of_volumes_keep_their_axes_in_front_of_a_linear_layer() -> None:
    net, images = made("transposed volumes")
    assert trace_layers(net, images)["up"].tap.size == (6, 4, 8)
    flat = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 3 * 6, 3)).eval()
    assert feature_maps(flat, images, "0").equal(flat[0](images).relu())


@torch.no_grad()
def test_a_copy_is_rebuilt_by_merging() -> None:
    torch.manual_seed(0)
    for kind, images, axes in ((nn.Conv1d, SIGNALS, 1), (nn.Conv3d, VOLUMES, 3)):
        net = nn.Sequential(kind(2, 6, 3), nn.ReLU(), kind(6, 4, 2), nn.Flatten(2)).eval()
        net = nn.Sequential(net, Net(lambda _n, x: x.mean(2)), nn.Linear(4, 3)).eval()
        net[0][0].weight[1], net[0][0].bias[1] = 2 * net[0][0].weight[0], 2 * net[0][0].bias[0]
        plan = make_plan(net, images, {"0.0": torch.tensor([1.0, 0, 1, 1, 1, 1])}, ratio=0.2)
        assert len(plan.input_shape) == axes + 1 and plan.kept == {"0.0": [0, 2, 3, 4, 5]}
        want, plain = net(images), prune(net, plan)(images)
        merged = prune(net, plan, compensate="merge", statistics=collect_statistics(net, images))(images)
        assert (merged - want).norm() < 1e-4 * want.norm() < (plain - want).norm()


def eca(net: nn.Module, x: Tensor) -> Tensor:
    """Efficient channel attention (Wang et al. 2020): a Conv1d along the channels, which it takes for positions."""
    h = net.a(x).relu()
    gate = net.along(h.mean((2, 3))[:, None])[:, 0].sigmoid()
    return net.c(net.b(h * gate[:, :, None, None]).relu()).mean((2, 3))


def test_a_convolution_along_the_channels_leaves_them_whole() -> None:
    layers = {"a": nn.Conv2d(3, 8, 3), "along": nn.Conv1d(1, 1, 3, padding=1), "b": nn.Conv2d(8, 6, 3), "c": nn.Conv2d(6, 3, 1)}
    net, images = Net(eca, **layers).eval(), torch.randn(4, 3, 8, 8)
    plan = make_plan(net, images, importance("kernel_l1", model=net), ratio=0.5, scope="all")
    assert plan.kept.keys() == {"b"} and plan.skipped["a"] == "read by along, a Conv1d, which mixes channels"
    assert inexactness(net, prune(net, plan), images) is None


def test_what_looks_across_channels_is_left_whole_with_the_size() -> None:
    def rolled(net: nn.Module, x: Tensor) -> Tensor:
        h = net.a(x).abs()
        return net.c(net.b(h.roll(1, 1) if h.shape[-1] > 24 else h).abs()).mean(2)

    net = Net(rolled, a=nn.Conv1d(2, 8, 3, padding=1), b=nn.Conv1d(8, 6, 1), c=nn.Conv1d(6, 3, 1)).eval()
    plan = make_plan(net, SIGNALS, importance("kernel_l1", model=net), ratio=0.5)
    assert plan.kept.keys() == {"b"} and " on images of 36 positions: " in plan.skipped["a"]


@pytest.mark.parametrize("kind", ["residual network of signals", "volumes in a row"])
@pytest.mark.parametrize("name", ["tp_group_norm", "tp_group_taylor_global"])
def test_pruners_of_the_library_give_plans(kind: str, name: str) -> None:
    net, images = made(kind)
    plan = pruner_plan(name, model=net, images=images, labels=LABELS, macs=0.6, scope="all")
    assert inexactness(net, prune(net, plan), images) is None


@pytest.mark.skipif(not has_onnx(), reason="needs the extra deploy")
@pytest.mark.parametrize("kind", ["residual network of signals", "volumes"])
def test_onnx_files_hold_the_same_network(kind: str, tmp_path: Path) -> None:
    net, images = made(kind)
    compact = prune(net, make_plan(net, images, importance("kernel_l1", model=net), ratio=0.5, scope="all"))
    assert export_onnx(compact, tmp_path / "compact.onnx", images[:3]).exists()


def test_a_network_on_volumes_is_tuned() -> None:
    net = settled(volumes(), VOLUMES)
    compact = prune(net, make_plan(net, VOLUMES, importance("kernel_l1", model=net), ratio=0.5))
    history = fit([compact, net], Training(epochs=2, learning_rate=0.05), lambda seed, epoch: [(VOLUMES, LABELS)] * 4, "mlft")
    assert history[-1].loss < history[0].loss


PLAN = (
    '{"kept":{"0":[0,2]},"channels":{"0":6},"skipped":{},"input_shape":[3,8,8],'
    '"ratio":0.5,"scope":"inner","macs":null,"macs_left":null}'
)


def test_plans_so_far_keep_their_text() -> None:
    plan = PruningPlan.from_json(PLAN)
    assert plan.input_shape == (3, 8, 8) and plan.model_dump_json() == PLAN


IMAGE = torch.zeros(2, 2, 8, 8)


def bad_plan(shape: list[int]) -> PruningPlan:
    return PruningPlan.from_data({"kept": {"0": [1]}, "channels": {"0": 8}, "input_shape": shape, "ratio": 0.5})


REFUSED: list[tuple[str, Any, str]] = [
    ("images for signals", lambda net: collect_statistics(net, IMAGE), "images='torch.float32 (2, 2, 8, 8) on cpu' is not allowed"),
    ("what is allowed", lambda net: collect_statistics(net, IMAGE), "; allowed: a float tensor (N, C, L) with N of 1 or more"),
    (
        "one signal alone",
        lambda net: make_plan(net, SIGNALS[0], {}, ratio=0.5),
        "example=Tensor torch.float32 (2, 24) is not",
    ),
    ("volumes for signals", lambda net: recalibrate(net, VOLUMES), "allowed: a float tensor (N, C, L) with"),
    ("taylor on images", lambda net: importance("taylor", model=net, images=IMAGE, labels=LABELS[:2]), "images="),
    (
        "hrank",
        lambda net: collect_statistics(net, SIGNALS, extras=("hrank",)),
        "allowed: apoz or chip: 0 is a Conv1d, and HRank",
    ),
    ("a plan for images", lambda net: prune(net, bad_plan([2, 8, 8])), "do not read images of (2, 8, 8)"),
    ("a shape of one number", lambda net: bad_plan([3]), "not a pruning plan"),
    ("an empty side", lambda net: bad_plan([3, 0, 8]), "not a pruning plan"),
]


@pytest.mark.parametrize(("call", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(call: Any, said: str) -> None:
    net, _ = made("residual network of signals")
    with pytest.raises(StudyError) as caught:
        call(net)
    assert said in str(caught.value) and "\n" not in str(caught.value)
