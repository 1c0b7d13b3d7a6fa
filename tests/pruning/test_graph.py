"""Which indices of which operations go with a convolution's channels, worked out by hand."""

from __future__ import annotations

import torch
from torch import nn

from fcs_utils.pruning.graph import dependency_graph, traceable, walk


def test_a_flattened_channel_takes_its_positions_along_up_to_a_bound() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    with traceable(net):
        graph = dependency_graph(net, torch.zeros(1, 1, 2, 2))
        found = walk(graph, net[0])
        assert found is not None and walk(graph, net[0], largest=12) is not None
        assert walk(graph, net[0], largest=11) is None  # the last index is 11, though of three channels only
    (own, channels), *_ = [pairs.tolist() for step, pairs in found if step.target.module is net[3]]
    assert own == [*range(12)] and channels == [0] * 4 + [1] * 4 + [2] * 4
    first, pairs = found[0]
    assert first.target.module is net[0] and pairs.tolist() == [[0, 1, 2], [0, 1, 2]]
