"""Large images are proved by small ones only where the network does the same with both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.proof import SMALL, Proof
from fcs_utils.pruning.routes import same_route
from fcs_utils.pruning.surgery import prune
from tests.pruning.test_proof import CHANCE, INEXACT, TRAINING, network
from tests.pruning.test_sizes import BY_SIZE
from tests.pruning.test_sizes import network as sized
from tests.pruning.toys import Net

LARGE = 2 * SMALL
IMAGE = torch.randn(1, 3, LARGE, LARGE, generator=torch.Generator().manual_seed(3))
SCORES = {"a": torch.arange(8.0), "b": torch.arange(6.0), "c": torch.arange(5.0)}
PLAN = PruningPlan(
    kept={"a": [0, 2, 5], "b": [1, 4], "c": [0, 3]}, channels={"a": 8, "b": 6, "c": 5}, input_shape=(3, LARGE, LARGE), ratio=0.5
)


def in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcs_utils.pruning.proof.SMALL", LARGE)


PLANTED: dict[str, Callable[[], Net]] = {
    **INEXACT,
    **{name: lambda op=op: network(training=op) for name, op in TRAINING.items()},
    **{name: lambda op=op: network(op) for name, op in CHANCE.items()},
    **{name: lambda op=op: sized(lambda n, h: op(n, F.avg_pool2d(h, 10, ceil_mode=True))) for name, op in BY_SIZE.items()},
    "by a value": lambda: network(lambda _n, h: h / h.shape[1] if h.mean() > 0.1 else h),
    "by the plan's size": lambda: network(lambda _n, h: h.flip(1) if h.shape[-1] == LARGE else h),
    "as many as pixels": lambda: network(
        lambda _n, h: torch.cat([0 * h[:, : h.shape[-1] // LARGE], h[:, h.shape[-1] // LARGE :]], 1)
    ),
    "by the number of pixels": lambda: network(lambda _n, h: h * (1 + (h.shape[1] - 8) * (h.shape[-1] // LARGE))),
    "compact and large": lambda: network(lambda _n, h: h + 1 if h.shape[1] < 8 and h.shape[-1] > SMALL else h),
    "nothing": lambda: network(),
}


@pytest.mark.parametrize("case", PLANTED)
def test_small_images_find_what_large_ones_find(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome() -> tuple[object, str]:
        net = PLANTED[case]()
        plan = make_plan(net, IMAGE, SCORES, ratio=0.5)
        try:
            return plan, str([module.weight.shape for module in prune(net, PLAN).children()])
        except StudyError as error:
            return plan, str(error)

    torch.manual_seed(0)
    found = outcome()
    in_full(monkeypatch)
    torch.manual_seed(0)
    assert found == outcome()


@pytest.mark.parametrize("side", [LARGE, LARGE + 20])
def test_one_large_image_and_the_rest_small(side: int) -> None:
    """The large one is that of the user, where there is one."""
    seen: Counter[tuple[bool, tuple[int, ...]]] = Counter()

    def look(net: nn.Module, h: Tensor) -> Tensor:
        if h.dtype == torch.float64 and not h.is_meta:
            seen[net.training, (len(h), *h.shape[2:])] += 1
        return h

    prune(network(look), PLAN, example=None if side == LARGE else torch.zeros(1, 3, side, side))
    small, large = (SMALL, SMALL), (side, side)
    assert seen == Counter({(False, (1, *small)): 2, (False, (1, *large)): 2, (True, (2, *small)): 2})


def test_a_plan_for_large_images_runs_the_network_on_small_ones_alone() -> None:
    seen: set[tuple[int, ...]] = set()

    def look(_n: nn.Module, h: Tensor) -> Tensor:
        if not h.is_meta:
            seen.add(tuple(h.shape[2:]))
        return h

    plan = make_plan(network(look), IMAGE, SCORES, ratio=0.5)
    assert seen == {(SMALL, SMALL)} and plan.input_shape == (3, LARGE, LARGE)


@pytest.mark.parametrize("training", [False, True])
def test_a_plan_that_only_small_images_prove_is_refused_by_prune(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the same operations ever do another thing at full size."""
    monkeypatch.setattr("fcs_utils.pruning.proof.same_route", lambda *_: True)
    picky = network(lambda n, h: h + h.shape[1] if h.shape[-1] == LARGE and n.training is training else h)
    plan = make_plan(picky, IMAGE, SCORES, ratio=0.5)
    if training:  # images of full size are compared in eval mode
        prune(picky, plan)
    else:
        with pytest.raises(StudyError, match="cannot be cut as planned"):
            prune(picky, plan)


@pytest.mark.parametrize(
    ("op", "same"),
    [
        (lambda _n, h: h.relu(), True),
        (lambda _n, h: F.interpolate(F.avg_pool2d(h, h.shape[-2:]), h.shape[-2:]), True),
        (lambda _n, h: h.flatten(2).softmax(2).view(h.shape), True),
        (lambda _n, h: h.relu() if h.shape[-1] > SMALL else h, False),
        (lambda _n, h: h.roll(h.shape[-1], 1), False),  # by a number of pixels
        (lambda _n, h: h / h.shape[-1], False),
        (lambda _n, h: h + (h if h.shape[-1] > SMALL else h.abs()), False),
        (lambda _n, h: h.relu() + (h.relu() if h.shape[-1] > SMALL else h), False),
        (lambda _n, h: (h.relu(), h.abs())[h.shape[-1] > SMALL], False),  # both are made, and one is used
        (lambda _n, h: torch.add(h, h, alpha=h.shape[-1]), False),
        (lambda _n, h: F.batch_norm(h, torch.zeros_like(h[0, :, 0, 0]), torch.ones_like(h[0, :, 0, 0])), True),
        (lambda _n, h: h if h.sum() > 0 else -h, False),  # asks for a value
        (lambda _n, h: h + torch.ones(1, 8, 1, 1), False),  # a tensor that holds numbers
    ],
)
def test_the_same_operations_on_the_same_tensors(op: Callable[[nn.Module, Tensor], Tensor], same: bool) -> None:
    net = network(op)
    before = [(id(one), one.clone()) for one in (*net.parameters(), *net.buffers())]
    assert same_route(net, [IMAGE[..., :SMALL, :SMALL], IMAGE]) == same
    after = (*net.parameters(), *net.buffers())
    assert all(id(one) == name and one.equal(value) for one, (name, value) in zip(after, before, strict=True))


def test_images_that_are_not_large_prove_themselves() -> None:
    assert Proof(network(), IMAGE[..., 1:]).small == Proof(network(), IMAGE[..., 1:, :]).small == []
    (small,) = Proof(network(), IMAGE).small
    assert small.shape == (2, 3, SMALL, SMALL)
    (small,) = Proof(network(), torch.zeros(1, 3, 256, 192)).small
    assert small.shape[2:] == (85, 64)


def test_the_plans_size_and_one_and_a_half_times_that_are_looked_at_beside_an_image_of_another_size() -> None:
    other = IMAGE[..., :40, :40]
    assert len(Proof(network(), IMAGE, other).small) == 1
    for side in (LARGE, LARGE * 3 // 2):
        picky = network(lambda n, h, side=side: h + 1 if h.shape[-1] == side and not n.training else h)
        assert Proof(picky, IMAGE, other).small == []


def test_a_batchnorm_does_the_same_at_every_size() -> None:
    """Its stand-in holds no numbers and must be as wide as the channels."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)).eval()
    images = [torch.randn(2, 3, side, side) for side in (6, 12)]
    assert same_route(net, images, images)
