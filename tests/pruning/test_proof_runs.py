"""What a proof runs, how large a difference it lets pass, and chance that it cannot replace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.proof import Proof
from fcs_utils.pruning.surgery import prune
from tests.conftest import warm
from tests.pruning.toys import Net, conv, mean

PLAN = PruningPlan(kept={"a": [0, 1, 4]}, channels={"a": 6}, input_shape=(3, 8, 8), ratio=0.5)
Op = Callable[[Net, Tensor], Tensor]


def network(op: Op, precision: torch.dtype | None = None) -> Net:
    """a, an operation, and b that reads its output and has no bias: what changes its input by a share changes its output alike."""

    def route(net: nn.Module, x: Tensor) -> Tensor:
        return mean(net.b(op(net, net.a(x.to(precision) if precision else x).relu())))

    return Net(route, a=conv(3, 6), b=conv(6, 4, bias=False)).eval()


@pytest.mark.parametrize("example", [None, torch.randn(4, 3, 8, 8), torch.randn(1, 3, 5, 7)])
def test_eight_passes_and_two_more_with_an_example(example: Tensor | None) -> None:
    seen: Counter[tuple[bool, tuple[int, ...]]] = Counter()

    def look(net: Net, h: Tensor) -> Tensor:
        if h.dtype == torch.float64:  # nothing else runs in it
            seen[net.training, (len(h), *h.shape[2:])] += 1
        return h

    prune(network(look), PLAN, example=example)
    wanted = Counter({(False, (1, 8, 8)): 2, (False, (1, 4, 4)): 2, (False, (1, 12, 12)): 2, (True, (16, 8, 8)): 2})
    if example is not None:
        wanted[False, (min(2, len(example)), *example.shape[2:])] += 2
    assert seen == wanted


@pytest.mark.parametrize(("sides", "count"), [((8, 8), 16), ((16, 32), 16), ((32, 32), 8), ((48, 64), 2), ((90, 90), 2)])
def test_batchnorm_sees_more_images_where_they_are_small(sides: tuple[int, int], count: int) -> None:
    assert Proof(network(lambda _n, h: h), torch.zeros(1, 3, *sides)).noise.shape == (count, 3, *sides)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v2", "torchvision/mnasnet1_0"])
def test_rounding_is_no_fault_where_the_last_maps_have_one_position(name: str) -> None:
    """With two images in train mode, layers of these networks were left whole."""
    net = warm(build_seeded(1, name, num_classes=5), 32, images=8)
    plan = make_plan(net, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=net), ratio=0.3)
    assert not [why for why in plan.skipped.values() if "looks at" in why] and prune(net, plan) is not net


@pytest.mark.parametrize("share", [0.5, 0.9, 1.1, 1.5])
def test_a_millionth_is_rounding_and_more_is_none(share: float) -> None:
    for precision, rounding in ((None, 1e-6), (torch.float32, 1e-4)):  # in its own precision a network rounds more

        def grow(net: Net, h: Tensor, rounding: float = rounding) -> Tensor:
            return h if h.shape[1] == 6 else h * (1 + share * rounding)

        if share < 1:
            assert prune(network(grow, precision), PLAN).a.out_channels == 3
        else:
            with pytest.raises(StudyError, match="^a cannot be cut as planned: the network looks at the index or number"):
                prune(network(grow, precision), PLAN)


def test_whole_numbers_of_chance_are_drawn_alike() -> None:
    net = network(lambda n, h: h.roll(int(torch.randint(0, 8, ())), 3) if n.training else h)
    before = torch.random.get_rng_state()
    assert prune(net, PLAN).a.out_channels == 3 and torch.random.get_rng_state().equal(before)


def test_one_output_that_is_finite_proves_and_none_does_not() -> None:
    whole = network(lambda n, h: h)
    inner = whole.route
    whole.route = lambda net, x: (inner(net, x), torch.full((2,), torch.nan))
    assert prune(whole, PLAN).a.out_channels == 3
    whole.route = lambda net, x: (inner(net, x) * torch.tensor([1.0, torch.nan, torch.nan, torch.nan]).to(x),)
    assert prune(whole, PLAN).a.out_channels == 3
    whole.route = lambda net, x: (inner(net, x) * torch.nan,)
    with pytest.raises(StudyError, match="surgery cannot be checked: all outputs of the network are NaN, infinite or no tensors"):
        prune(whole, PLAN)


def test_a_network_in_train_mode_that_only_runs_in_eval_mode_is_cut() -> None:
    net = network(lambda n, h: h)
    inner = net.route

    def route(n: nn.Module, x: Tensor) -> Tensor:
        if n.training:
            raise RuntimeError("not here")
        return inner(n, x)

    net.route = route
    with pytest.warns(UserWarning, match="checked in eval mode only, since in train mode the network fails: not here"):
        compact = prune(net.train(), PLAN)
    assert compact.training and net.training and compact.a.out_channels == 3
