"""Channels that cross on their way to a reader are found in either direction, on small networks whose crossing is planted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning import segments as segments_module
from fcs_utils.pruning.segments import Segments
from fcs_utils.pruning.shares import Shares
from tests.pruning.toys import Net, conv, mean

IN_ORDER = torch.arange(6)[:, None]
HALF = torch.tensor([True, True, True, False, False, False])


def segments(between: Callable[[Tensor], Tensor]) -> Segments:
    """a of six channels, an operation, and b that reads its output."""
    torch.manual_seed(0)
    net = Net(lambda n, x: mean(n.b(between(n.a(x)))), a=conv(3, 6), b=conv(6, 4)).eval()
    return Segments(net, torch.zeros(1, 3, 6, 6), ["a", "b"])


def one_way(source: int, target: int) -> Callable[[Tensor], Tensor]:
    """Adds one channel to another."""
    mix = torch.eye(6)
    mix[source, target] = 1
    return lambda h: torch.einsum("nchw,cd->ndhw", h, mix)


@pytest.mark.parametrize(
    ("between", "at", "crosses"),
    [
        (lambda h: h.relu(), IN_ORDER, False),
        (lambda h: h.flip(2), IN_ORDER, False),  # positions may mix
        (one_way(0, 5), IN_ORDER, True),
        (one_way(5, 0), IN_ORDER, True),
        (lambda h: h.flip(1), IN_ORDER, True),
        (lambda h: h.flip(1), IN_ORDER.flip(0), False),
        (lambda h: h, IN_ORDER + 1, True),  # b has no seventh input
        (lambda h: h.detach(), IN_ORDER, False),  # what has no gradient is the proof's
        (lambda h: h.detach(), IN_ORDER + 1, True),
        (lambda h: h[:, [0, 1, 2, 3, 4, 0]], IN_ORDER, True),
    ],
)
def test_crossing_channels_are_found_in_either_direction(between: Callable[[Tensor], Tensor], at: Tensor, crosses: bool) -> None:
    found = segments(between)
    assert found.suspects({"a": {"b": at}}, {"a": HALF}) == ({"a"} if crosses else set())
    readers = [segments(between).crossing("a", {"b": at}) for _ in range(2)]
    assert readers == (["b"] * 2 if crosses else [None] * 2)


def test_a_reader_that_was_not_seen_crosses() -> None:
    found = segments(lambda h: h)
    assert found.suspects({"a": {"c": IN_ORDER}}, {"a": HALF}) == {"a"} and found.crossing("a", {"c": IN_ORDER}) == "c"
    assert found.crossing("a", {"b": IN_ORDER, "c": IN_ORDER}) == "c"
    first = torch.full((6, 1), -1).index_fill(0, torch.tensor(0), 0)  # its first channel alone
    assert found.suspects({"a": {"c": first}}, {"a": HALF}) == {"a"} and found.crossing("a", {"c": first}) == "c"


def test_a_reader_of_one_axis_in_one_of_its_calls_crosses() -> None:
    def route(net: nn.Module, x: Tensor) -> Tensor:
        h = mean(net.a(x))
        return net.b(h) + net.b(h[0])

    found = Segments(Net(route, a=conv(3, 6), b=nn.Linear(6, 4)).eval(), torch.zeros(1, 3, 6, 6), ["a", "b"])
    assert found.suspects({"a": {"b": IN_ORDER}}, {"a": HALF}) == {"a"} and found.crossing("a", {"b": IN_ORDER}) == "b"


def test_calls_that_do_not_reach_a_reader_hide_no_crossing() -> None:
    torch.manual_seed(0)
    net = Net(lambda n, x: mean(n.b(n.a(x)) + n.b(one_way(5, 0)(n.a(x.flip(2))))), a=conv(3, 6), b=conv(6, 4)).eval()
    found = Segments(net, torch.zeros(1, 3, 6, 6), ["a", "b"])
    assert found.crossing("a", {"b": IN_ORDER}) == "b" and found.suspects({"a": {"b": IN_ORDER}}, {"a": HALF}) == {"a"}


def test_a_map_of_one_pixel_has_enough_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "SPARE", 0)
    net = Net(lambda n, x: mean(n.b(n.a(x))), a=conv(3, 6), b=conv(6, 4)).eval()
    found = Segments(net, torch.zeros(1, 3, 1, 1), ["a", "b"])
    assert {found.crossing("a", {"b": IN_ORDER}) for _ in range(30)} == {None}


def test_images_must_be_any_numbers_and_other_inputs_need_not() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 6), conv(6, 4)

        def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
            h = self.a(x)
            if (x[:, :1] if time is None else time).abs().sum() not in (0, 1):
                raise ValueError("no such image")
            return mean(self.b(h))

    image = torch.zeros(1, 3, 6, 6)
    with pytest.raises(StudyError, match="no such image"):
        Segments(Picky().eval(), image, ["a", "b"])
    found = Segments(Picky().eval(), (image, torch.ones(1)), ["a", "b"])
    assert [len(calls[name]) for calls in (found.outputs, found.inputs) for name in "ab"] == [1, 1, 1, 1]


def test_neighbours_of_one_unit_may_mix() -> None:
    found = segments(one_way(2, 3))
    assert {found.crossing("a", {"b": IN_ORDER}, Shares(unit=2)) for _ in range(20)} == {None}
    assert {found.crossing("a", {"b": IN_ORDER}) for _ in range(20)} == {None, "b"}  # by chance in one half or in two


def test_a_half_begins_in_and_ends_out_and_keeps_units_together() -> None:
    found = segments(lambda h: h)
    for unit in (1, 2, 5):
        halves = torch.stack([found.half(1000, Shares(unit)) for _ in range(10)])
        assert halves.shape == (10, 1000) and halves[:, 0].all() and not halves[:, -1].any()
        parts = halves.reshape(10, -1, unit)
        assert parts.any(2).equal(parts.all(2)) and 4500 < halves.sum() < 5500
        assert not halves[0].equal(halves[1])


def test_channels_of_linear_layers_lie_last() -> None:
    def run(between: Callable[[Tensor], Tensor]) -> Segments:
        torch.manual_seed(0)
        net = Net(lambda n, x: n.b(between(n.a(x.movedim(1, -1)))).mean((1, 2)), a=nn.Linear(3, 6), b=nn.Linear(6, 4)).eval()
        return Segments(net, torch.zeros(1, 3, 6, 6), ["a", "b"])

    for between, crosses in ((lambda h: h.flip(1), False), (lambda h: h.flip(-1), True), (lambda h: h.softmax(-1), True)):
        assert run(between).suspects({"a": {"b": IN_ORDER}}, {"a": HALF}) == ({"a"} if crosses else set())
        assert run(between).crossing("a", {"b": IN_ORDER}) == ("b" if crosses else None)


def test_each_layer_is_judged_by_itself() -> None:
    torch.manual_seed(0)
    layers = {"a": conv(3, 6), "b": conv(6, 6), "c": conv(6, 4), "lost": conv(3, 6)}
    net = Net(lambda n, x: mean(n.c(one_way(5, 0)(n.b(n.a(x)))) + 0 * n.lost(x).sum()), **layers).eval()
    found = Segments(net, torch.zeros(1, 3, 6, 6), [*layers])
    readers = {"a": {"b": IN_ORDER}, "b": {"c": IN_ORDER}, "lost": {"c": IN_ORDER}}
    assert found.suspects(readers, dict.fromkeys(readers, HALF)) == {"b"}
    assert [found.crossing(name, own) for name, own in readers.items()] == [None, "c", None]
    assert found.suspects({}, {}) == set()
