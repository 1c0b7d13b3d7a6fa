"""Surgery proves itself: what looks at the index or number of channels is found, named and left whole, and the rest is pruned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.cutting import Cuts
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.proof import SMALL, Proof
from fcs_utils.pruning.surgery import prune
from tests.pruning.toys import Net, conv, mean, zeroed

SHAPE = (3, 8, 8)
IMAGES = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(7))
Op = Callable[[nn.Module, Tensor], Tensor]


class Standardised(nn.Conv2d):
    """Weights of mean 0 and deviation 1 over all that a filter reads (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


class UnitFilters(nn.Conv2d):
    """Every filter has length 1, over all that it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, F.normalize(self.weight.flatten(1), dim=1).view_as(self.weight), self.bias, padding=1)


class ByFanIn(nn.Conv2d):
    """Divides by the number of channels that it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.shape[1])


def network(op: Op = lambda _net, h: h, reader: type[nn.Conv2d] = nn.Conv2d, training: Op | None = None) -> Net:
    """a, an operation, a reader b of its output, and c, which nothing disturbs; ``training`` adds an output in train mode."""

    def route(net: nn.Module, x: Tensor) -> Tensor:
        h = net.a(x).relu()
        out = net.head(mean(net.c(net.b(op(net, h)).relu()).relu()))
        return (out, training(net, h)) if training and net.training else out  # type: ignore[return-value]

    net = Net(route, a=conv(3, 8), b=reader(8, 6, 3, padding=1), c=conv(6, 5), head=nn.Linear(5, 4), more=nn.Linear(8, 3)).eval()
    net.register_buffer("shift", torch.linspace(-1, 1, 8)[:, None, None])
    net.register_buffer("mix", torch.eye(8) + 0.1)
    return net


def blanked(_net: nn.Module, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 2] = 0
    return h


def largest_wins(_net: nn.Module, h: Tensor) -> Tensor:
    return h * (h >= h.topk(3, dim=1).values[:, -1:])


INEXACT: dict[str, Callable[[], Net]] = {
    "divided by their number": lambda: network(lambda _n, h: h / h.shape[1]),
    "one blanked by index": lambda: network(blanked),
    "winners over channels": lambda: network(largest_wins),
    "argmax over channels": lambda: network(lambda _n, h: h * (h.argmax(1, keepdim=True) == 0)),
    "detached mean": lambda: network(lambda _n, h: h - h.detach().mean(1, keepdim=True)),
    "detached length": lambda: network(lambda _n, h: h / (1 + h.detach().norm(dim=1, keepdim=True))),
    "ramp by their number": lambda: network(lambda _n, h: h * torch.linspace(0, 1, h.shape[1])[:, None, None]),
    "a buffer of the old width": lambda: network(lambda n, h: h + n.shift),
    "a matrix of the old width": lambda: network(lambda n, h: torch.einsum("nchw,cd->ndhw", h, n.mix)),
    "a branch on their number": lambda: network(lambda _n, h: h if h.shape[1] > 6 else 2 * h),
    "weight standardisation": lambda: network(reader=Standardised),
    "filters of length one": lambda: network(reader=UnitFilters),
    "a reader that counts": lambda: network(reader=ByFanIn),
}


def plan_of(net: nn.Module, **options: object) -> PruningPlan:
    scores = {
        name: torch.arange(module.out_channels).double() for name, module in net.named_modules() if isinstance(module, nn.Conv2d)
    }
    return make_plan(net, IMAGES, scores, **{"ratio": 0.5, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("case", INEXACT)
@torch.no_grad()
def test_what_looks_across_channels_is_left_whole_and_the_rest_is_pruned(case: str) -> None:
    net = INEXACT[case]()
    plan = plan_of(net)
    assert plan.kept.keys() == {"b", "c"} and set(plan.skipped) == {"a", "more"}
    torch.testing.assert_close(prune(net, plan)(IMAGES), zeroed(net, plan, IMAGES))


@pytest.mark.parametrize("case", INEXACT)
def test_a_plan_that_cannot_be_exact_is_refused_with_the_layer(case: str) -> None:
    plan = plan_of(network())
    assert plan.kept.keys() == {"a", "b", "c"}
    with pytest.raises(StudyError, match="^a cannot be cut as planned: "):
        prune(INEXACT[case](), plan)


def test_a_fault_is_said_in_full_unless_any_words_will_do() -> None:
    """Also of images so large that smaller ones are compared first."""
    net, images = INEXACT["one blanked by index"](), torch.randn(1, 3, 2 * SMALL, 2 * SMALL)
    plan, proof = plan_of(network()), Proof(net, images)
    cuts = Cuts(net, plan.kept, images)
    said = proof.fault(cuts.compact(plan.kept), cuts.lost_inputs(plan.kept))
    assert said and said.startswith("the network looks at the index or number of its channels")


def test_several_layers_are_found_and_the_goal_is_sought_without_them() -> None:
    kinds = [nn.Conv2d, nn.Conv2d, Standardised, nn.Conv2d, nn.Conv2d, Standardised]
    layers = [kind(6 if index else 3, 6, 3, padding=1) for index, kind in enumerate(kinds)]
    net = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(net, nn.Linear(6, 2)).eval()
    plan = plan_of(net, ratio=None, macs=0.6)
    assert set(plan.skipped) == {"0.2", "0.8"}  # read by a standardised convolution
    assert plan.macs_left == pytest.approx(0.6, abs=0.1)
    prune(net, plan)


def branching(limit: float) -> Net:
    def by_value(_net: nn.Module, h: Tensor) -> Tensor:
        return h / h.shape[1] if h.mean() > limit else h

    return network(by_value)


@pytest.mark.parametrize("scale", [500.0, 1e4])
def test_images_of_the_user_are_tried_too(scale: float) -> None:
    net, large = branching(5.0), IMAGES.abs() * scale
    plan = plan_of(net)
    assert "a" in plan.kept  # no random image comes so far
    prune(net, plan)
    with pytest.raises(StudyError, match="^a cannot be cut as planned"):
        prune(net, plan, example=large)
    scores = {name: torch.arange(net.get_submodule(name).out_channels).double() for name in "abc"}
    assert set(make_plan(net, large, scores, ratio=0.5).skipped) == {"a", "more"}
    with pytest.raises(StudyError, match="example="):
        prune(net, plan, example=torch.zeros(1, 2, 8, 8))


TRAINING: dict[str, Op] = {
    "an auxiliary head": lambda n, h: n.more(mean(h)),
    "maps as outputs": lambda _n, h: h,
    "a loss on the maps": lambda _n, h: (h - h.flip(1)).square().mean(),
    "the number of channels": lambda _n, h: mean(h).sum(1) / h.shape[1],
}


@pytest.mark.parametrize("case", TRAINING)
def test_what_only_training_uses_is_followed_too(case: str) -> None:
    net = network(training=TRAINING[case])
    plan = plan_of(net)
    assert plan.kept.keys() == {"b", "c"} and "train mode" in plan.skipped["a"]
    compact, again = prune(net, plan).train(), net.train()(IMAGES)
    assert [part.shape for part in compact(IMAGES)] == [part.shape for part in again]
    whole = plan_of(network())
    with pytest.raises(StudyError, match="^a cannot be cut as planned: .* train mode"):
        prune(net.eval(), whole)


def stochastic_depth(net: nn.Module, h: Tensor) -> Tensor:
    return h * torch.empty(len(h), 1, 1, 1).bernoulli_(0.5) if net.training else h


CHANCE: dict[str, Op] = {
    "dropout": lambda n, h: F.dropout(h, 0.3, n.training),
    "dropped channels": lambda n, h: F.dropout2d(h, 0.3, n.training),
    "stochastic depth": stochastic_depth,
    "noise": lambda n, h: h + torch.randn_like(h) if n.training else h,
    "random slopes": lambda n, h: F.rrelu(h - 0.2, training=n.training),
    "dropout at all times": lambda _n, h: F.dropout(h, 0.3, True),
}


@pytest.mark.parametrize("case", CHANCE)
def test_chance_in_training_is_no_fault_and_the_generator_stays(case: str) -> None:
    net, state = network(CHANCE[case]), torch.random.get_rng_state()
    plan = plan_of(net)
    assert plan.kept.keys() == {"a", "b", "c"} and prune(net, plan).a.out_channels == 4
    assert case == "dropout at all times" or torch.random.get_rng_state().equal(state)


def test_a_network_that_fails_in_train_mode_is_pruned_with_a_warning() -> None:
    net = network(training=lambda _n, _h: torch.ones(2) @ torch.ones(3))
    with pytest.warns(UserWarning, match="checked in eval mode only"):
        assert prune(net, plan_of(net)).a.out_channels == 4


def test_nothing_of_the_model_changes() -> None:
    net = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4), nn.Flatten(), nn.Linear(256, 2)).train()
    net[3].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    compact = prune(net, plan_of(net))
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items()) and net.training and compact.training
    assert [p.requires_grad for p in compact.parameters()] == [p.requires_grad for p in net.parameters()]
    assert not any(module._forward_pre_hooks or module._forward_hooks for network in (net, compact) for module in network.modules())
    assert compact[1].num_batches_tracked == 0 and compact[1].running_mean.equal(before["1.running_mean"][plan_of(net).kept["0"]])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_auxiliary_heads_of_torchvision_still_train() -> None:
    import torchvision

    net = torchvision.models.googlenet(num_classes=4, aux_logits=True, init_weights=False).eval()
    plan = make_plan(net, torch.zeros(1, 3, 64, 64), importance("kernel_l1", model=net), ratio=0.5)
    assert sum("train mode" in why for why in plan.skipped.values()) == 8  # the two heads read four branches each
    assert len(prune(net, plan).train()(torch.randn(2, 3, 64, 64))) == 3


def test_the_networks_of_the_study_lose_no_layer_to_the_proof() -> None:
    net = build_seeded(0, "resnet20", num_classes=10, width=0.25).eval()
    plan = make_plan(net, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=net), ratio=0.5)
    assert list(plan.kept) == [f"stage{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
