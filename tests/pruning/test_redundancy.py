"""The null of claim C1: few near-duplicates by chance at any width, and dead channels do not count."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fcs_utils.pruning import redundancy
from fcs_utils.pruning.redundancy import best_match, near_duplicate_shares, null_similarity, pairs
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.study.networks import Bench
from fcs_utils.study.records import Store
from fcs_utils.study.runs import Reference
from fcs_utils.training.optimiser import Training


def relay(channels: int, dead: int = 0, copies: int = 0) -> nn.Module:
    """A convolution that hands its input channels on, some of them zeroed and some of them copied."""
    net = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.ReLU(), nn.Conv2d(channels, 2, 1))
    weight = torch.eye(channels)
    weight[:dead] = 0
    for copy in range(copies):
        weight[channels - 1 - copy] = 0.5 * weight[channels - 1 - copies - copy]
    net[0].weight.data = weight[:, :, None, None]
    return net.eval()


def noise(channels: int) -> torch.Tensor:
    return torch.randn(40, channels, 6, 6, generator=torch.Generator().manual_seed(0))


def test_best_match_and_pairs_by_hand() -> None:
    similarity = torch.tensor([[1.0, 0.2, 0.9], [0.2, 1.0, 0.3], [0.9, 0.3, 1.0]])
    assert best_match(similarity).tolist() == pytest.approx([0.9, 0.3, 0.9])
    assert similarity.diagonal().tolist() == [1, 1, 1]  # as it was
    assert pairs(similarity).tolist() == pytest.approx([0.2, 0.9, 0.3])


@pytest.mark.parametrize(("channels", "dead"), [(16, 0), (128, 0), (128, 64)])
def test_unrelated_channels_have_few_near_duplicates(channels: int, dead: int) -> None:
    share = near_duplicate_shares(relay(channels, dead), noise(channels), 0.99, seed=1)["0"]
    assert share["twins"] <= 0.12 and share["live"] == (channels - dead) / channels


@pytest.mark.parametrize("dead", [0, 40])
def test_copies_are_found_beside_dead_channels(dead: int) -> None:
    share = near_duplicate_shares(relay(64, dead, copies=6), noise(64), 0.99, seed=1)["0"]
    assert share["twins"] >= 12 / (64 - dead)  # six copies and their originals


def test_layers_of_two_live_channels_count_and_those_of_one_or_of_one_position_do_not() -> None:
    assert near_duplicate_shares(relay(3, dead=1), noise(3), 0.99, seed=1)["0"]["live"] == 2 / 3
    assert near_duplicate_shares(relay(3), 0.01 * noise(3), 0.99, seed=1)["0"]["live"] == 1  # faint is not dead
    assert near_duplicate_shares(relay(3, dead=2), noise(3), 0.99, seed=1) == {}
    assert near_duplicate_shares(relay(3), noise(3)[..., :1, :1], 0.99, seed=1) == {}


def test_shares_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Channel 1 is twice channel 0 and channel 2 is unlike both: two of three channels have a near-duplicate, one of three pairs.
    net = relay(3)
    net[0].weight.data[1] = 2 * net[0].weight.data[0]
    share = near_duplicate_shares(net, noise(3), 0.99, seed=1)["0"]
    assert (share["twins"], share["pairs"], share["live"]) == (2 / 3, pytest.approx(1 / 3), 1)
    null = null_similarity(net, noise(3), seed=1)["0"]
    assert share["threshold"] == best_match(null).quantile(0.99).item() < 0.9
    # Similar is what is above the threshold: at the null's highest, what is as high as that is not.
    monkeypatch.setattr(redundancy, "null_similarity", lambda *_: {"0": collect_statistics(net, noise(3))["0"].similarity()})
    level = near_duplicate_shares(net, noise(3), 1.0, seed=1)["0"]
    assert (level["twins"], level["pairs"]) == (0, 0) and level["threshold"] == pytest.approx(1)
    monkeypatch.undo()
    # Of the bests of three channels, the median is the second.
    assert near_duplicate_shares(net, noise(3), 0.5, seed=1)["0"]["threshold"] == best_match(null).sort().values[1].item()


def test_batchnorm_of_an_untrained_network_is_estimated_on_the_images(tmp_path) -> None:
    bench = Bench(Store(tmp_path, "t"), "digits", None, torch.device("cpu"))
    training = Training(epochs=1, learning_rate=0.1)
    reference = Reference(dataset="digits", network="vgg16", width=0.125, seed=0, training=training, precision="fp32")
    images = bench.calibration_images(reference, 64)
    made, seen = bench.untrained(reference), bench.untrained(reference, images)
    assert made.features.conv1.weight.equal(seen.features.conv1.weight)
    assert made.features.bn1.running_mean.abs().max() == 0
    want = seen.features.conv1(images).mean((0, 2, 3))
    torch.testing.assert_close(seen.features.bn1.running_mean, want, rtol=1e-3, atol=1e-4)
