"""Why layers stay whole, in one line, however many they are."""

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.reasons import every_reason, without_names


def test_few_layers_are_named_one_by_one() -> None:
    assert (
        every_reason({"b": "read by a, a Norm", "a": "writes"}, nn.ModuleDict({"a": nn.ReLU()}))
        == "b: read by a, a Norm; a: writes"
    )


def test_more_than_eight_layers_are_many() -> None:
    said = [every_reason({f"x{n}": "writes" for n in range(count)}, nn.ReLU()) for count in (8, 9)]
    assert said == ["; ".join(f"x{n}: writes" for n in range(8)), "x0 and 8 more layers: writes"]


def test_many_layers_are_counted_by_reason_and_a_single_one_keeps_its_names() -> None:
    network = nn.ModuleDict({f"norm{n}": nn.ReLU() for n in range(9)})
    whole = {"stem": "read by norm8, which mixes"} | {f"conv{n}": f"read by norm{n}, a Norm" for n in range(8)} | {"head": "writes"}
    assert every_reason(whole, network) == (
        "conv0 and 7 more layers: read by ..., a Norm; stem: read by norm8, which mixes; head: writes"
    )
    assert "conv0 and 1 more layer: " in every_reason({**{f"x{n}": str(n) for n in range(8)}, "conv0": "w", "conv1": "w"}, network)


@pytest.mark.parametrize("blocks", [4, 40])
def test_a_refusal_does_not_grow_with_the_network(blocks: int) -> None:
    parts = [part for _ in range(blocks) for part in (nn.Conv2d(4, 4, 1), nn.LayerNorm([4, 6, 6]))]
    network = nn.Sequential(*parts, nn.Flatten(), nn.Linear(144, 2)).eval()
    scores = {str(2 * n): torch.arange(4.0) for n in range(blocks)}
    with pytest.raises(StudyError, match="nothing to prune: 0") as caught:
        make_plan(network, torch.randn(2, 4, 6, 6), scores, ratio=0.5)
    assert len(str(caught.value)) < 400
    assert (" more layers: read by ..., a LayerNorm" in str(caught.value)) == (blocks == 40)


WHYS = {
    "read by the grouped convolution a.0.b": "read by the grouped convolution ...",
    "shares a residual sum with a.0.b, conv1 and 7 more": "shares a residual sum with ...",
    "shares a residual sum with a.0.b, whose channels do not match one to one": "shares a residual sum with ..., whose channels do "
    "not match one to one",
    "without head the network ends": "without head the network ends",  # a word that is a name, too, after no such word
    "channels mix on the way to head": "channels mix on the way to ...",
    "the network looks at its channels: without some, its output is off by 3.2e-05": "the network looks at its channels: without "
    "some, its output",
}


@pytest.mark.parametrize("why", WHYS)
def test_equal_reasons_of_different_layers_are_one(why: str) -> None:
    assert without_names(why, {"a.0.b", "conv1", "head", "network"}) == WHYS[why]
