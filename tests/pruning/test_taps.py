"""Where a layer's channels can be seen, on networks small enough to be read off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.pruning.flow import Tap
from fcs_utils.pruning.layers import trace_layers
from tests.pruning.toys import Net, conv, mean

IMAGE = torch.zeros(1, 3, 8, 8)


def tap_of(way: Callable[[Any, Tensor, Tensor], Tensor], **layers: nn.Module) -> Tap:
    """Of layer ``a``, whose output the way leads to the last linear layer."""
    net = Net(lambda n, x: n.head(way(n, n.a(x), x)), **{"a": conv(3, 8), **layers, "head": nn.Linear(2, 2)}).eval()
    layer = trace_layers(net, IMAGE)["a"]
    assert layer.barrier is None
    return layer.tap


def seen(tap: Tap) -> tuple[str, str, list[list[int]] | None, tuple[int, ...] | None, int]:
    return tap.module, tap.side, None if tap.positions is None else tap.positions.tolist(), tap.size, tap.axis


def twice_in_part(y: Tensor) -> Tensor:
    return torch.cat([y, y.chunk(2, 1)[0]], 1)


WRITTEN = ("a", "output", None, None, 1)
BEHIND_ONE = ("b", "input", [[n + 1] for n in range(8)], None, 1)


@pytest.mark.parametrize(
    ("way", "reads", "where"),
    [
        (lambda n, y, x: mean(n.b(y)), 8, ("b", "input", None, None, 1)),
        (lambda n, y, x: mean(n.b(y.relu())), 8, ("b", "input", None, None, 1)),
        (lambda n, y, x: mean(n.b(torch.cat([n.c(x), y], 1))), 9, BEHIND_ONE),
        (lambda n, y, x: mean(n.b(torch.cat([n.c(x[..., :1, :1]), n.one(y).relu()], 1))), 9, BEHIND_ONE),  # of one position
        (lambda n, y, x: mean(n.b(torch.cat([y, y], 1))), 16, WRITTEN),  # each channel in two places
        (lambda n, y, x: mean(n.b(twice_in_part(y))), 12, WRITTEN),  # some in two places
        (lambda n, y, x: mean(n.b(n.shuffle(y))), 2, WRITTEN),  # several in one place
    ],
)
def test_a_reader_shows_the_channels_that_it_reads_once(way: Any, reads: int, where: Any) -> None:
    more = {"c": conv(3, 1), "one": nn.AdaptiveAvgPool2d(1), "shuffle": nn.PixelShuffle(2)}
    assert seen(tap_of(way, b=conv(reads, 2), **more)) == where


def test_vectors_are_seen_behind_the_last_module_that_shows_them() -> None:
    net = Net(lambda n, x: n.c(twice_in_part(n.act(n.b(mean(n.a(x)))))), a=conv(3, 8), b=nn.Linear(8, 4), c=nn.Linear(6, 2))
    net.act = nn.ReLU()
    assert seen(trace_layers(net.eval(), IMAGE)["b"].tap) == ("act", "output", None, None, -1)


@pytest.mark.parametrize("size", [(1, 2), (3, 2), (8, 8)])
def test_a_flattened_map_has_the_sides_that_a_module_shows(size: tuple[int, int]) -> None:
    count = size[0] * size[1]
    rows = torch.arange(8 * count).reshape(8, count).tolist()
    b, pool = nn.Linear(8 * count, 2), nn.AdaptiveAvgPool2d(size)
    assert seen(tap_of(lambda n, y, x: n.b(n.pool(y).relu().flatten(1)), b=b, pool=pool)) == ("b", "input", rows, size, -1)


def test_the_sides_of_a_flattened_map_that_no_module_shows_are_unknown() -> None:
    b = nn.Linear(48, 2)
    tap = tap_of(lambda n, y, x: n.b(F.adaptive_avg_pool2d(y, (3, 2)).flatten(1)), b=b)
    assert (tap.module, tap.size, tap.positions is None) == ("b", None, False)
    for size in ((3, 2), (2, 3)):  # of both calls, or not
        tap = tap_of(
            lambda n, y, x, size=size: n.b(n.p(y).flatten(1)) + n.b(n.q(y).flatten(1)), b=b, p=pooled(3, 2), q=pooled(*size)
        )
        assert tap.size is None


def pooled(*size: int) -> nn.Module:
    return nn.AdaptiveAvgPool2d(size)
