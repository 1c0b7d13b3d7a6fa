"""FCS inside Torch-Pruning's own pruner."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
import torchvision
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.counts import keep_count, select
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.layers import prunable_layers
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.torch_pruning import FCSImportance
from tests.conftest import warm


@pytest.fixture
def resnet() -> nn.Module:
    """The first two stages of ResNet-18: the others have the same blocks, and channels by the hundred."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    network.layer3, network.layer4, network.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 10)
    return warm(network, images=16)


IMAGES = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("criterion", ["fcs", "fcs_greedy", "fcs_linear", "chip"])
def test_one_line_in_a_torch_pruning_script(resnet: nn.Module, criterion: str) -> None:
    kernel = resnet.layer1[0].conv1.weight.detach().clone()
    layers = list(prunable_layers(resnet, IMAGES, "all"))
    extras = ("chip",) if criterion == "chip" else ()
    statistics = collect_statistics(resnet, IMAGES, layers=layers, extras=extras)
    scores = importance(criterion, model=resnet, statistics=statistics)
    pruner = tp.pruner.BasePruner(
        resnet, IMAGES[:1], importance=FCSImportance(resnet, IMAGES, criterion), pruning_ratio=0.5, ignored_layers=[resnet.fc]
    )
    pruner.step()
    # An inner group keeps what this study's own criterion keeps; so does a coupled group, except for ties.
    kept = select(scores["layer1.0.conv1"], keep_count(64, 0.5))
    assert resnet.layer1[0].conv1.out_channels == 32
    stem = select(torch.stack([scores[n] for n in ("conv1", "layer1.0.conv2", "layer1.1.conv2")]).mean(0), 32)
    torch.testing.assert_close(resnet.layer1[0].conv1.weight, kernel[kept][:, stem])
    assert resnet(IMAGES[:2]).shape == (2, 10)


def test_statistics_are_collected_once_a_step(resnet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    monkeypatch.setattr(FCSImportance, "_score", lambda self, real=FCSImportance._score: passes.append(1) or real(self))
    pruner = tp.pruner.BasePruner(
        resnet,
        IMAGES[:1],
        importance=FCSImportance(resnet, IMAGES),
        pruning_ratio=0.5,
        iterative_steps=2,
        ignored_layers=[resnet.fc],
    )
    for _ in range(2):
        pruner.step()
    assert len(passes) == 2 and resnet.layer2[1].conv1.out_channels == 64


def test_what_it_cannot_score_is_refused(resnet: nn.Module) -> None:
    with pytest.raises(StudyError, match="needs labels"):
        FCSImportance(resnet, IMAGES, "taylor")
    with pytest.raises(StudyError, match="bins"):
        FCSImportance(resnet, IMAGES, bins="four")
