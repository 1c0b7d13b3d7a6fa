"""Merge leaves a layer out where the calibration images have few positions for it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune
from tests.pruning.tied import IMAGES, plan_of


def two_layers() -> nn.Sequential:
    """Positions: 1 for each image at the second layer, 4 x 4 at the first; each keeps 16 of 32 channels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 32, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("images", "left_out"),
    [(1, {"0": 16, "2": 1}), (2, {"0": 32, "2": 2}), (3, {"2": 3}), (39, {"2": 39}), (40, {})],
)
@torch.no_grad()
def test_layers_with_few_positions_are_left_out_by_name(images: int, left_out: dict[str, int]) -> None:
    net = two_layers()
    statistics, plan = collect_statistics(net, IMAGES[:images]), plan_of(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compact, plain = prune(net, plan, compensate="merge", statistics=statistics), prune(net, plan)
    why = "positions for 16 kept channels; at least 40 are needed: take more images"
    assert [str(one.message).partition(": ")[2] for one in caught] == (
        ["; ".join(f"{name} ({count} {why})" for name, count in left_out.items())] if left_out else []
    )
    assert all(one.filename == __file__ for one in caught)  # it names the user's line
    assert [compact[reader].weight.equal(plain[reader].weight) for reader in (2, 5)] == ["0" in left_out, "2" in left_out]


@torch.no_grad()
def test_merging_on_few_images_is_never_much_worse_than_not_merging() -> None:
    net, held_out = two_layers(), torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    plan, want = plan_of(net), net(held_out)
    plain = (prune(net, plan)(held_out) - want).norm()
    for images in (1, 2, 4, 8, 15, 16, 17, 24, 32, 60):
        statistics = collect_statistics(net, IMAGES[:images])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = (prune(net, plan, compensate="merge", statistics=statistics)(held_out) - want).norm()
        assert merged < 1.2 * plain, images
