"""How tensors flow: what a tap shows, and what lies on every path, on graphs that are drawn by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.pruning.flow import Consumer, Flow, Tap, run_once
from fcs_utils.pruning.groups import CHANNELWISE
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.taps import _shows as shows
from tests.pruning.toys import Net, conv, mean


def test_what_a_tap_shows_of_a_tensor() -> None:
    maps = torch.arange(12.0).reshape(2, 3, 2, 1)
    assert Tap("m", "input").view(maps).equal(maps) and Tap("m", "input").calls == 1
    assert Tap("m", "input", torch.tensor([[2], [0]])).view(maps).equal(maps[:, [2, 0]])
    assert Tap("m", "input").view(maps[:, :, 0, 0]).shape == (2, 3, 1)  # one position a channel
    flat = torch.arange(8.0).reshape(1, 8)
    rows = torch.tensor([[4, 5, 6, 7], [0, 1, 2, 3]])
    assert Tap("m", "input", rows).view(flat).tolist() == [[[4, 5, 6, 7], [0, 1, 2, 3]]]
    assert Tap("m", "input", rows, size=(2, 2)).view(flat).tolist() == [[[[4, 5], [6, 7]], [[0, 1], [2, 3]]]]
    last = torch.arange(6.0).reshape(1, 2, 3)
    assert Tap("m", "output", axis=-1).view(last).equal(last.permute(0, 2, 1))


def test_a_consumer_that_reads_an_index_twice_reads_channels_laid_out_in_space() -> None:
    assert [Consumer("c", torch.tensor(at)).laid_out for at in ([[0], [1]], [[0, 1], [2, 3]], [[0], [0]])] == [False, False, True]


def test_a_consumer_may_read_some_channels_less_often() -> None:
    even, odd = Consumer("c", torch.tensor([[0, 1], [2, 3]])), Consumer("c", torch.tensor([[0, -1], [2, -1], [1, 3]]))
    assert even.even and not odd.even and not odd.laid_out and odd.read.tolist() == [0, 2, 1, 3]


class Node:
    def __init__(self, number: int, name: str) -> None:
        self.number, self.called, self.next_functions = number, name, list[tuple[Any, int]]()

    def _sequence_nr(self) -> int:
        return self.number

    def name(self) -> str:
        return self.called


def drawn(*arrows: str, **names: str) -> tuple[Flow, dict[str, Any]]:
    """A flow of nodes in the order of the alphabet. arrows: such as ``ab``, from a to b. names: of nodes, in autograd's words."""
    letters = sorted({letter for arrow in arrows for letter in arrow})
    nodes = {letter: Node(number, names.get(letter, "ReluBackward0")) for number, letter in enumerate(letters)}
    flow = Flow.__new__(Flow)
    flow.users, flow.order = {}, [*nodes.values()]
    for start, end in arrows:
        flow.users.setdefault(nodes[start], []).append(nodes[end])
        nodes[end].next_functions.append((nodes[start], 0))
    return flow, nodes


def letters(nodes: Mapping[str, Any], found: Any) -> str:
    return "".join(letter for one in found for letter, node in nodes.items() if node is one)


@pytest.mark.parametrize(
    ("arrows", "ends", "passed"),
    [
        (("ab", "bc"), "c", "cba"),
        (("ab", "ac", "bd", "cd", "de"), "e", "eda"),  # two ways that meet in d
        (("ab", "ac", "bd", "cd", "de"), "d", "da"),
        (("ab", "ac", "bd", "cd", "de"), "be", "a"),  # none behind the first end
        (("ab", "bc", "ac", "cd"), "d", "dca"),  # one way is longer
        (("ab", "bc"), "a", "a"),
    ],
)
def test_nodes_that_every_path_passes(arrows: tuple[str, ...], ends: str, passed: str) -> None:
    flow, nodes = drawn(*arrows)
    assert letters(nodes, flow.narrows(nodes["a"], {nodes[end] for end in ends})) == passed


def test_an_end_that_no_path_reaches_is_passed_by_none() -> None:
    flow, nodes = drawn("ab", "cd")
    assert flow.narrows(nodes["a"], {nodes["d"]}) == []


def test_what_is_reached_and_what_leads_there_stop_at_walls() -> None:
    flow, nodes = drawn("ab", "bc", "cd", "bx", "yd")
    for walls, reached, leading in (("", "abcdx", "abcdy"), ("c", "abx", "cdy"), ("ad", "abcx", "d"), ("xy", "abcd", "abcdy")):
        closed = {nodes[wall] for wall in walls}
        assert "".join(sorted(letters(nodes, flow.reach([nodes["a"]], closed)))) == reached
        assert "".join(sorted(letters(nodes, flow.leading_to([nodes["d"]], closed)))) == leading


@pytest.mark.parametrize(
    ("arrows", "walls", "gates"),
    [
        (("ab", "bd"), "", "a"),  # a, squashed by b, into the product d
        (("ab", "bd"), "b", ""),
        (("ab", "bd", "ax"), "", ""),  # a is used elsewhere
        (("ab", "bd", "bx"), "", ""),  # and what is squashed
        (("ab", "bc", "cd"), "", "a"),
        (("ab", "bc", "cd"), "c", ""),
        (("ac", "cd"), "", ""),  # not squashed
        (("Aa", "ab", "bc", "cd"), "", "Aa"),
        (("ad",), "", ""),
    ],
)
def test_gates_flow_unbranched_through_a_squashing_function_into_a_product(arrows: tuple[str, ...], walls: str, gates: str) -> None:
    flow, nodes = drawn(*arrows, b="SigmoidBackward0", d="MulBackward0")
    assert "".join(sorted(letters(nodes, flow.gates({nodes[wall] for wall in walls})))) == gates


def with_buffer(buffer: Tensor, channels: int = 2) -> Net:
    """A buffer multiplies the maps between two layers."""
    net = Net(lambda n, x: mean(n.b(n.a(x) * n.gain)), a=conv(3, channels), b=conv(channels, 4)).eval()
    net.register_buffer("gain", buffer)
    return net


@pytest.mark.parametrize(
    ("buffer", "meets"),
    [
        (torch.tensor([1.0, 2.0]).reshape(2, 1, 1), True),  # two numbers are enough
        (torch.rand(1, 2, 8, 8), True),
        (torch.rand(8, 1), False),  # a row of the map has a number, and no channel
        (torch.ones(()), False),
        (torch.tensor([1, 2]).reshape(2, 1, 1), False),  # of whole numbers: the proof sees them
    ],
)
def test_a_buffer_of_the_channels_width_that_meets_them_is_a_barrier(buffer: Tensor, meets: bool) -> None:
    barrier = trace_layers(with_buffer(buffer), torch.zeros(1, 3, 8, 8))["a"].barrier
    assert barrier == ("its channels meet gain, a buffer of a Net that cannot be cut" if meets else None)


def test_buffers_are_followed_beside_those_of_a_batchnorm() -> None:
    net = with_buffer(torch.rand(2, 1, 1))
    net.norm, net.route = nn.BatchNorm2d(2).eval(), lambda n, x: mean(n.b(n.norm(n.a(x)) * n.gain))
    assert trace_layers(net, torch.zeros(1, 3, 8, 8))["a"].barrier == "its channels meet gain, a buffer of a Net that cannot be cut"


def test_what_a_flow_says_of_one_image() -> None:
    net = Net(lambda n, x: mean(n.b(n.act(n.a(x)))) + n.a(x).mean(), a=conv(3, 6), act=nn.ReLU(), b=conv(6, 4)).eval()
    flow = run_once(net, torch.zeros(1, 3, 4, 5), CHANNELWISE)
    assert flow.calls == {"": 1, "a": 2, "act": 1, "b": 1} and flow.largest == 6 * 4 * 5
    assert flow.shapes["b", "input"] == [(1, 6, 4, 5)] and flow.shapes["b", "output"] == [(1, 4, 4, 5)]
    assert flow.shapes["a", "output"] == [(1, 6, 4, 5)] * 2 and len({*flow.outputs["a"]}) == 2
    assert [flow.shown[node] for node in (*flow.outputs["a"], *flow.outputs["act"])] == [["a"], ["a"], ["act"]]
    assert flow.inputs["act"] == flow.outputs["a"][:1] and flow.inputs["b"] == flow.outputs["act"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_buffer_that_flows_in_by_two_ways_is_listed_once() -> None:
    flow, nodes = drawn("ab", "ac", "bd", "cd", "de", "xe", e="CatBackward0")
    flow.buffers = {nodes["a"]: ("norm.scale", (1, 8, 1, 1)), nodes["x"]: ("beside", (8,))}
    region = {nodes["d"], nodes["e"]}
    assert flow.met_buffers(region, set()) == [("norm.scale", (1, 8, 1, 1))]  # what is concatenated is beside it
    assert flow.met_buffers(region, {nodes["b"]}) == flow.met_buffers(region, set())  # one way is enough
    assert flow.met_buffers(region, {nodes["b"], nodes["c"]}) == []
    flow.buffers[nodes["c"]] = ("other", (2,))
    assert flow.met_buffers(region, set()) == [("norm.scale", (1, 8, 1, 1)), ("other", (2,))]  # by name


def test_a_module_shows_one_node_of_each_way() -> None:
    ways: list[Any] = [{"a", "b"}, {"c"}]
    assert shows(["a", "c"], ways) and shows(["b", "c"], ways)
    assert not shows(["a", "b"], ways)  # two of the first way, none of the second one
    assert not shows(["a"], ways) and not shows(["a", "x"], ways) and not shows(["a", "b", "c"], ways)
    assert not shows(["a", "c"], [{"a", "c"}, {"c"}]) and not shows(["a", "a"], ways) and not shows(["a", "c", "a"], ways)
    assert shows(["c"], [{"c"}]) and shows(["c"], [{"a", "c"}, {"b", "c"}]) and not shows(["a", "c"], [{"a"}])
