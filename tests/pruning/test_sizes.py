"""Networks whose route through their layers depends on the size of the images: surgery is proved at more sizes than the plan's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune
from tests.pruning.toys import Net, conv, mean, zeroed

Op = Callable[[Net, Tensor], Tensor]
SIZE = 12  # other sizes that are tried: 6 and 18


def network(op: Op) -> Net:
    """a, an operation, a reader b of its output, and c, which nothing disturbs."""

    def route(net: nn.Module, x: Tensor) -> Tensor:
        return net.head(mean(net.c(net.b(op(net, net.a(x).abs())).abs()).abs()))  # no channel is dead

    layers = {"a": conv(3, 8), "b": conv(8, 6), "c": conv(6, 5), "head": nn.Linear(5, 4), "more": conv(8, 8)}
    return Net(route, **layers).eval()


def plan_of(net: nn.Module, height: int = SIZE, width: int = SIZE) -> PruningPlan:
    return make_plan(net, torch.zeros(1, 3, height, width), importance("kernel_l1", model=net), ratio=0.5)


BY_SIZE: dict[str, Op] = {
    "rolled where large": lambda _n, h: h.roll(1, 1) if h.shape[-1] > 12 else h,
    "rolled by as many as pixels are more": lambda _n, h: h.roll(max(0, h.shape[-1] - 12), 1),
    "divided by their number where small": lambda _n, h: h / h.shape[1] if h.shape[-1] < 8 else h,
    "by the height": lambda _n, h: h * (h.argmax(1, keepdim=True) == 0) if h.shape[-2] >= 16 else h,
    "one more layer where large": lambda n, h: n.more(h).relu() if h.shape[-1] > 12 else h,
    "one more layer where small": lambda n, h: n.more(h).relu() if h.shape[-1] < 10 else h,
}


@pytest.mark.parametrize("case", BY_SIZE)
@torch.no_grad()
def test_a_layer_that_only_one_size_lets_cut_is_left_whole_with_the_size(case: str) -> None:
    net = network(BY_SIZE[case])
    plan = plan_of(net)
    assert plan.kept.keys() == {"b", "c"}
    assert plan.skipped["a"].partition(" images of ")[2].startswith(("6 x 6 pixels", "18 x 18 pixels"))
    for size in (6, 12, 18, 30):
        images = torch.randn(2, 3, size, size)
        torch.testing.assert_close(prune(net, plan, example=images)(images), zeroed(net, plan, images))


@pytest.mark.parametrize("case", BY_SIZE)
def test_a_plan_that_another_size_breaks_is_refused_with_the_size(case: str) -> None:
    plan = plan_of(network(lambda _n, h: h))
    assert plan.kept.keys() == {"a", "b", "c"}
    with pytest.raises(StudyError, match=r"^a cannot be cut as planned: .* on images of (6 x 6|18 x 18) pixels: "):
        prune(network(BY_SIZE[case]), plan)


def test_sides_of_images_are_halved_each_by_itself() -> None:
    net = network(lambda _n, h: h / h.shape[1] if h.shape[-2:] == (5, 10) else h)
    assert "on images of 5 x 10 pixels" in plan_of(net, 11, 20).skipped["a"]  # 5.5 x 10


@pytest.mark.parametrize("size", [40, 5])
def test_images_of_the_users_size_are_proved_too(size: int) -> None:
    net = network(lambda _n, h: h.flip(1) if h.shape[-1] == size else h)
    plan = plan_of(net)
    assert "a" in plan.kept and prune(net, plan).a.out_channels == 4  # nobody has seen that size
    with pytest.raises(StudyError, match=f"^a cannot be cut as planned: .* on images of {size} x {size} pixels: "):
        prune(net, plan, example=torch.randn(1, 3, size, size))


def test_where_one_and_a_half_times_the_size_does_not_run_twice_the_size_is_tried() -> None:
    def by_eights(net: Net, h: Tensor) -> Tensor:
        assert h.shape[-1] % 8 == 0
        return h.roll(1, 1) if h.shape[-1] == 16 else h

    assert "on images of 16 x 16 pixels" in plan_of(network(by_eights), 8, 8).skipped["a"]


def test_a_network_of_one_size_is_pruned_as_ever() -> None:
    net = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), nn.Flatten(), nn.Linear(4 * SIZE**2, 2)).eval()
    assert prune(net, plan_of(net))[0].out_channels == 3


def test_one_pixel_is_never_halved_to_none() -> None:
    sizes = []

    def count(_net: Net, h: Tensor) -> Tensor:
        sizes.append(h.shape[-1])
        return h

    prune(network(count), plan_of(network(lambda _n, h: h), 1, 1))
    assert set(sizes) == {1}  # and one and a half pixels are one


def helped(net: Net, h: Tensor) -> Tensor:
    """An auxiliary head in training, whose pooling needs 16 pixels, as Inception's needs 299."""
    if net.training:
        net.aside = F.avg_pool2d(net.more(h), 16)
    return h


def test_what_only_training_on_larger_images_uses_is_followed() -> None:
    plan = plan_of(network(helped))
    assert plan.kept.keys() == {"b", "c"} and " in train mode on images of 18 x 18 pixels: " in plan.skipped["a"]
    prune(network(helped), plan).train()(torch.randn(2, 3, 16, 16))


def test_training_that_needs_still_larger_images_is_left_out_with_a_warning() -> None:
    net = network(helped)
    with pytest.warns(UserWarning, match="checked in eval mode only, since in train mode the network fails: .*7x7"):
        assert prune(net, plan_of(net, 7, 7)).a.out_channels == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization")
@torch.no_grad()
def test_inception_trains_at_its_own_size_though_it_was_planned_at_half() -> None:
    import torchvision

    net = torchvision.models.inception_v3(num_classes=4, aux_logits=True, init_weights=False).eval()
    scores = {f"Mixed_6e.{name}.conv": torch.arange(192.0) for name in ("branch1x1", "branch7x7_2")}
    plan = make_plan(net, torch.zeros(1, 3, 150, 150), scores, ratio=0.5)
    assert list(plan.kept) == ["Mixed_6e.branch7x7_2.conv"]  # which the auxiliary head does not read
    assert " in train mode on images of 300 x 300 pixels: " in plan.skipped["Mixed_6e.branch1x1.conv"]
    compact, images = prune(net, plan), torch.randn(2, 3, 299, 299)
    want = zeroed(net, plan, images)
    assert (compact(images) - want).norm() / want.norm() < 1e-5
    assert compact.train()(images)[1].shape == (2, 4)
