"""A copy of a network stands by itself, or nothing is made of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning import apart
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.export import export_onnx
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.proof import SMALL
from fcs_utils.pruning.surgery import prune
from tests.pruning.toys import Net, conv, mean

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SCORES = {"a": torch.arange(6.0)}
PLAN = PruningPlan(kept={"a": [0, 2]}, channels={"a": 6}, input_shape=(3, 8, 8), ratio=0.5)


def network(use: Callable[[Net, Tensor], Tensor] = lambda net, x: net.b(x)) -> Net:
    torch.manual_seed(0)
    return Net(lambda net, x: mean(net.c(use(net, net.a(x).relu()).relu())), a=conv(3, 6), b=conv(6, 5), c=conv(5, 4)).eval()


def kept_by_a_lambda() -> tuple[Net, str]:
    net = network(lambda net, x: net.b(x) + net.shift())
    net.offset = nn.Parameter(torch.rand(1))
    net.shift = lambda: net.offset
    return net, "offset"


def a_buffer_of_a_lambda() -> tuple[Net, str]:
    net = network(lambda net, x: net.scaled(net.b(x)))
    net.register_buffer("scale", torch.rand(1))
    net.scaled = lambda x: x * net.scale
    return net, "scale"


def a_layer_of_a_lambda() -> tuple[Net, str]:
    net = network(lambda net, x: net.second(x))
    net.second = lambda x: net.b(x)
    return net, "b.weight"


def a_hook() -> tuple[Net, str]:
    net = network()
    net.b.register_forward_hook(lambda _module, _images, maps: maps * net.b.bias.detach().mean())
    return net, "b.bias"


class Whole(nn.Conv2d):
    def __deepcopy__(self, memo: dict[int, Any]) -> Whole:
        return self


def a_part_that_stays() -> tuple[Net, str]:
    net = network()
    net.c = Whole(5, 4, 3, padding=1)
    return net, "c.weight"


@pytest.mark.parametrize("make", [kept_by_a_lambda, a_buffer_of_a_lambda, a_layer_of_a_lambda, a_hook, a_part_that_stays])
def test_a_copy_that_leads_back_to_the_network_is_refused(make: Callable[[], tuple[Net, str]]) -> None:
    net, name = make()
    for call in (
        lambda: make_plan(net, IMAGES, SCORES, ratio=0.5),
        lambda: plan_by_hand(net, IMAGES, {"a": [0, 2]}),
        lambda: prune(net, PLAN),
    ):
        with pytest.raises(StudyError, match=f"^a copy of the network still computes with the network's own {name}"):
            call()


@pytest.mark.parametrize(
    ("use", "size"),
    [
        (lambda net, x: net.second(x.index_select(1, torch.zeros(6, dtype=torch.long))), 8),
        (lambda net, x: net.b(x) if net.training else net.second(x), 8),
        (lambda net, x: net.second(x.reshape(len(x), 6, 128, 128)), 128),  # a smaller image does not come so far
    ],
    ids=["an argument by name", "eval mode", "one size"],
)
def test_what_leads_back_is_found_wherever_it_is(use: Callable[[Net, Tensor], Tensor], size: int) -> None:
    net = network(use)
    net.second = lambda x: net.b(x)
    with pytest.raises(StudyError, match="still computes with the network's own b.weight"):
        apart.check_apart(net, torch.zeros(1, 3, size, size))


@pytest.mark.parametrize(
    ("size", "tried"), [((8, 8), (8, 8)), ((SMALL // 2, 4 * SMALL),) * 2, ((2 * SMALL, 4 * SMALL), (SMALL, 2 * SMALL))]
)
def test_images_that_are_larger_than_small_ones_are_not_tried(size: tuple[int, int], tried: tuple[int, int]) -> None:
    seen = []
    net = network(lambda net, x: seen.append(tuple(x.shape[2:])) or net.b(x))
    apart.check_apart(net, torch.zeros(1, 3, *size))
    assert seen == [tried]


def test_hooks_and_memory_that_lead_nowhere_are_taken() -> None:
    net, seen = network(), list[Tensor]()
    net.b.register_forward_hook(lambda module, _images, maps: maps * module.bias.mean())
    net.c.register_forward_hook(lambda _module, _images, maps: seen.append(maps))
    memory, at = torch.empty(sum(one.numel() for one in net.parameters())), 0
    for one in net.parameters():  # all in one piece of memory, as some optimisers lay them out
        part = memory[at : at + one.numel()].view_as(one).copy_(one.detach())
        one.data, at = part, at + one.numel()
    plan = make_plan(net, IMAGES, SCORES, ratio=0.5)
    assert prune(net, plan).a.out_channels == 3 and plan.kept == {"a": [3, 4, 5]}


@pytest.mark.parametrize("name", ["lock", "words"])
def test_what_python_cannot_copy_is_named(name: str) -> None:
    net = network()
    setattr(net.b, name, threading.Lock() if name == "lock" else (word for word in "ab"))
    said = rf"^the network cannot be copied: b\.{name} is a (lock|generator): cannot pickle"
    for call in (
        lambda: make_plan(net, IMAGES, SCORES, ratio=0.5),
        lambda: prune(net, PLAN),
        lambda: export_onnx(net, "nowhere", IMAGES),
    ):
        with pytest.raises(StudyError, match=said):
            call()


@pytest.mark.parametrize("flat", [False, True], ids=["any size", "one size"])
def test_images_that_take_more_memory_than_there_is_are_refused(flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # 6 channels of 128 x 128 numbers: 98,304, which read and written in float64 take 1.57 MB.
    net = network(lambda net, x: net.b(x) if not flat or x.shape[2] == 128 else net.b(x.reshape(len(x), 6, 128, 128)))
    large = PLAN.model_copy(update={"input_shape": (3, 128, 128)})
    monkeypatch.setattr(apart, "free_memory", lambda device: 1_572_864)
    assert prune(net, large).a.out_channels == 2
    monkeypatch.setattr(apart, "free_memory", lambda device: 1_500_000)
    for call in (lambda: prune(net, large), lambda: make_plan(net, torch.zeros(1, 3, 128, 128), SCORES, ratio=0.5)):
        with pytest.raises(StudyError, match="^an image of 128 x 128 takes some 0.00157 GB .*, and 0.0015 GB are free"):
            call()


def test_large_weights_do_not_grow_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    head = nn.Linear(3, 100_000)  # the transposed weight has 300,000 numbers at any size of the images
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    monkeypatch.setattr(apart, "free_memory", lambda device: 7_000_000)  # logits count as a map: 400,000 numbers
    apart.check_apart(net, torch.zeros(1, 3, 128, 128))
    monkeypatch.setattr(apart, "free_memory", lambda device: 6_000_000)
    with pytest.raises(StudyError, match="an image of 128 x 128 takes some 0.0064 GB"):
        apart.check_apart(net, torch.zeros(1, 3, 128, 128))
