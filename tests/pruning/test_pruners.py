"""Torch-Pruning's own pruners: what they prune, as this study's plans."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded
from fcs_utils.pruning.counts import select
from fcs_utils.pruning.criteria import CRITERIA, importance, ranking_of, reading_of, scoring
from fcs_utils.pruning.cutters import cutters
from fcs_utils.pruning.draft import REACH
from fcs_utils.pruning.layers import prunable_layers
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.pruners import Library, _nearest, pruner_plan
from fcs_utils.pruning.surgery import prune
from tests.conftest import warm
from tests.pruning.test_moves import PartAttention

PRUNERS = [name for name, found in CRITERIA.items() if found.reads == "pruner"]


def set_weights(net: nn.Module, **weights: list[list[float]]) -> None:
    for name, rows in weights.items():
        net.get_submodule(name.removeprefix("n")).weight.data = torch.tensor(rows)[:, :, None, None]


def plain(*widths: int, norm: bool = False) -> nn.Sequential:
    """1x1 convolutions of these widths one after the other, with ReLU between them, and the mean over positions."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 1, bias=False), *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


IMAGES = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(12) % 2


def pruned(net: nn.Module, name: str, macs: float, images: Tensor = IMAGES, **more: str) -> PruningPlan:
    return pruner_plan(name, model=net, images=images, labels=LABELS[: len(images)], macs=macs, **more)


@pytest.mark.parametrize("name", ["tp_group_norm", "tp_group_norm_global"])
@pytest.mark.parametrize(("macs", "kept"), [(0.75, [0, 1, 2]), (0.52, [0, 2]), (0.3, [0])])
def test_group_norm_by_hand(name: str, macs: float, kept: list[int]) -> None:
    # Squares of the filters: 1, 4, 4.5, 0; of the weights that read them: 9, 1, 2, 2. Means: 5, 2.5, 3.25, 1. By third powers the
    # second would come before the third: 4.5 and 4.375.
    net = plain(2, 4, 2)
    set_weights(net, n0=[[1.0, 0], [0, 2], [1.5, 1.5], [0, 0]], n2=[[3.0, 0, 1, 1], [0, 1, 1, 1]])
    plan = pruned(net, name, macs)
    assert plan.kept == {"0": kept} and plan.macs_left == len(kept) / 4 and plan.macs == macs
    assert (plan.ranking, plan.rounding) == (("network", "study") if name.endswith("_global") else ("layer", "chip"))


def test_bn_scale_by_hand() -> None:
    net = plain(2, 4, 2, norm=True)
    net[1].weight.data = torch.tensor([0.5, -2.0, 0.0, 1.0])
    assert pruned(net, "tp_bn_scale", 0.5).kept == {"0": [1, 3]}
    with pytest.raises(StudyError, match="criterion 'tp_bn_scale' finds no importance in any layer"):
        pruned(plain(2, 4, 2), "tp_bn_scale", 0.5)


def test_taylor_and_hessian_are_their_formulas_on_all_images() -> None:
    torch.manual_seed(1)
    net, images, labels = plain(2, 16, 2), torch.randn(70, 2, 4, 4), torch.arange(70) % 2  # batches of 64 and of 6 images
    images[64:] *= 2  # so that either batch alone, and both of them counted alike, would keep other channels
    of_mean, squares = [], [torch.zeros(16, 2), torch.zeros(2, 16)]
    weights = [net[0].weight, net[2].weight]
    of_mean = [g.flatten(1) for g in torch.autograd.grad(F.cross_entropy(net(images), labels), weights)]
    for image, label in zip(images, labels, strict=True):
        for total, gradient in zip(
            squares, torch.autograd.grad(F.cross_entropy(net(image[None]), label[None]), weights), strict=True
        ):
            total += gradient.flatten(1).square() / len(images)
    first, second = (weight.detach().flatten(1) for weight in weights)
    taylor = (first * of_mean[0]).abs().sum(1) + (second * of_mean[1]).abs().sum(0)
    hessian = (first.square() * squares[0]).sum(1) + (second.square() * squares[1]).sum(0)
    for parameter in net.parameters():
        parameter.grad = 1e3 * torch.randn_like(parameter)  # of the user's own, which do not count
    for name, score in (("tp_group_taylor", taylor), ("tp_group_hessian", hessian)):
        for ending in ("", "_global"):
            plan = pruner_plan(name + ending, model=net, images=images, labels=labels, macs=0.5)
            assert plan.kept == {"0": select(score, 8)}
    assert all(parameter.grad.abs().max() > 100 for parameter in net.parameters())


def test_where_more_is_left_at_a_higher_ratio_the_first_that_meets_the_goal_is_taken() -> None:
    left = {0.1: 0.9, 0.2: 0.6, 0.3: 0.42, 0.4: 0.45}
    assert _nearest([*left], left.get, 0.45) == 0.3
    assert _nearest([*left], left.get, 0.4) == 0.3  # the goal is met nowhere, and is near enough to the least
    with pytest.raises(StudyError, match=r"macs=0.3 is not allowed; allowed: 0.420 to 0.900"):
        _nearest([*left], left.get, 0.3)


@pytest.mark.parametrize(
    ("left", "macs", "chosen"),
    [
        ([0.8, 0.3], 0.65, 0),
        ([0.6, 0.9, 0.5], 0.65, 0),  # those behind the first that meets the goal do not count
        ([0.2, 0.3], 0.25, 0),
        ([0.7, 0.8, 0.1], 0.7, 0),
        ([0.6, 0.5, 0.5], 0.45, 1),  # the goal is met nowhere: the first that leaves least
        ([0.4, 0.7], 0.36, 0),
        ([0.6], 0.6 - REACH, 0),  # at the ends of what is allowed
        ([0.5], 0.5 + REACH, 0),
        # Of more than sixteen ratios every second is looked at first, and the last.
        ([1 - n / 20 for n in range(18)], 1 - 17 / 20, 17),
        ([0.9, 0.8, 0.8, *[0.5] * 14], 0.8, 1),
        ([*[0.9] * 15, 0.1, 0.1], 0.08, 16),
    ],
)
def test_which_of_the_ratios_is_taken_by_the_macs_that_they_leave(left: list[float], macs: float, chosen: int) -> None:
    assert _nearest(range(len(left)), left.__getitem__, macs) == chosen


def test_a_layer_that_would_lose_everything_stays_whole_as_the_library_does() -> None:
    # Of layer 0 every channel has the mean importance, and of layer 2 the first has nearly all: 1, 1, 1, 1 against 4, 0, 0, 0. A
    # threshold of 1 would empty layer 0, so the library leaves it. MACs: 2 a + a b + 2 b, 32 with four and four channels.
    net = plain(2, 4, 4, 2)
    set_weights(net, n0=[[1.0, 0]] * 4, n2=[[3.0] * 4, *[[0.1] * 4] * 3], n4=[[1.0, 0, 0, 0]] * 2)
    plan = pruned(net, "tp_group_norm_global", 0.45)
    assert plan.kept == {"2": [0]} and plan.macs_left == 14 / 32 and plan.skipped["0"] == "the pruner leaves it whole"
    # The three others are equal, and the library prunes equals together.
    for far in (0.2, 0.9):
        with pytest.raises(StudyError, match=f"macs={far} is not allowed; allowed: 0.438 to 0.438, which this pruner leaves"):
            pruned(net, "tp_group_norm_global", far)


def network(name: str) -> nn.Module:
    shortcut = {"shortcut": "B"} if name == "resnet20" else {}
    return warm(build_seeded(2, name.removesuffix(" A"), num_classes=2, width=0.25, **shortcut), images=16)


BIG = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "scope", "ranking"),
    [
        ("vgg16", "inner", "network"),
        ("resnet20", "inner", "layer"),
        ("resnet20", "all", "layer"),
        ("resnet20", "all", "network"),
        ("resnet20 A", "all", "network"),
    ],
)
def test_surgery_leaves_the_librarys_own_network(name: str, scope: str, ranking: str) -> None:
    net = network(name)
    plan = pruned(net, "tp_group_norm" + ("_global" if ranking == "network" else ""), 0.5, BIG, scope=scope)
    able = prunable_layers(net, BIG, scope)
    own = copy.deepcopy(net)
    tp.pruner.BasePruner(
        own,
        BIG[:1],
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=ranking == "network",
        pruning_ratio=plan.ratio,
        customized_pruners=cutters(own),
        ignored_layers=[m for n, m in own.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n not in able],
    ).step()
    ours, theirs = prune(net, plan).state_dict(), own.state_dict()
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
    # The layers that make_plan would prune, and MACs within those of one channel of one layer (the whole network ranked) or of
    # one channel of every layer of a width (each layer ranked).
    assert {*plan.kept} <= {*able} and abs(plan.macs_left - 0.5) < (0.02 if ranking == "network" else 0.08)
    counts = {(plan.channels[layer], len(kept)) for layer, kept in plan.kept.items()}
    assert (len(counts) > len({width for width, _ in counts})) == (ranking == "network")


def test_the_goal_is_met_within_one_channel() -> None:
    net = network("vgg16")
    for macs in (0.7, 0.3):
        assert abs(pruned(net, "tp_bn_scale_global", macs, BIG).macs_left - macs) < 0.01


@pytest.mark.parametrize("name", PRUNERS)
def test_the_same_plan_twice_and_the_network_stays_as_it_was(name: str) -> None:
    net = warm(plain(2, 8, 8, 2, norm=True), size=4, channels=2).train()
    net[0].weight.requires_grad_(False)
    before, drawn = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    first, second = (pruned(net, name, 0.6) for _ in range(2))
    assert first == second and PruningPlan.from_json(first.model_dump_json()) == first
    after = net.state_dict()
    assert all(after[key].equal(before[key]) for key in before) and torch.get_rng_state().equal(drawn)
    assert all(module.training and not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["0.weight"]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_choice_that_the_plan_does_not_say_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(self: Library, ratio: float, real: object = Library.kept) -> dict[str, list[int]]:
        return {name: [*range(len(kept))] for name, kept in real(self, ratio).items()}

    monkeypatch.setattr(Library, "kept", others)
    with pytest.raises(StudyError, match="no plan says what Torch-Pruning prunes: its network has another features.conv1.weight"):
        pruned(network("vgg16"), "tp_group_norm", 0.5, BIG)


def test_a_choice_that_cuts_layers_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert pruned(net.eval(), "tp_group_norm", 0.5).kept.keys() == {"0", "1"}
    monkeypatch.setattr(Library, "kept", lambda self, ratio: {"0": [0, 1], "1": [2, 3]})
    with pytest.raises(StudyError, match="1 must lose the same channels as 0, which it follows"):
        pruned(net, "tp_group_norm", 0.5)


def test_names_readings_and_refusals() -> None:
    assert len(PRUNERS) == 8 and not {*PRUNERS} & {*scoring()}
    assert reading_of("tp_group_norm") == "Torch-Pruning's group L2 norm, ranked in each layer"
    assert reading_of("tp_group_hessian_global") == "Torch-Pruning's group Hessian, ranked over the whole network"
    assert (ranking_of("tp_bn_scale"), ranking_of("tp_bn_scale_global")) == ("layer", "network")
    net = plain(2, 4, 2)
    with pytest.raises(StudyError, match="'tp_group_norm' is a pruner of Torch-Pruning: it chooses channels and scores none"):
        importance("tp_group_norm", model=net)
    with pytest.raises(StudyError, match="criterion='fcs' is not allowed; allowed: tp_group_norm_global|tp_group_norm"):
        pruned(net, "fcs", 0.5)
    with pytest.raises(StudyError, match="criterion='tp_magic' is not allowed"):
        pruned(net, "tp_magic", 0.5)
    with pytest.raises(StudyError, match=r"labels='torch.int64 \(3,\)' is not allowed; allowed: int64 \(12,\)"):
        pruner_plan("tp_group_norm", model=net, images=IMAGES, labels=LABELS[:3], macs=0.5)
    with pytest.raises(StudyError, match="labels='0 to 2' is not allowed; allowed: classes of logits"):
        pruner_plan("tp_group_taylor", model=net, images=IMAGES, labels=torch.arange(12) % 3, macs=0.5)
    with pytest.raises(StudyError, match="macs=1.5"):
        pruned(net, "tp_group_norm", 1.5)
    net[0].weight.data[1] = 1e30  # whose square is infinite
    with pytest.raises(StudyError, match="importance of 0 has NaN or infinite values"):
        pruned(net, "tp_group_norm", 0.5)
    net[0].weight.data.zero_()
    net[2].weight.data.zero_()
    with pytest.raises(StudyError, match="importance of 0 has NaN or infinite values"):
        pruned(net, "tp_group_norm", 0.5)


def test_a_network_at_which_the_library_fails_is_refused_in_one_line() -> None:
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    with pytest.raises(StudyError, match="^Torch-Pruning's pruner fails on this network: ZeroDivisionError: "):
        pruned(PartAttention().eval(), "tp_group_norm", 0.8, images)
