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
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return warm(torchvision.models.resnet18(num_classes=10), size=64, images=16)


IMAGES = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("criterion", ["fcs", "fcs_greedy", "fcs_linear", "chip"])
def test_one_line_in_a_torch_pruning_script(resnet18: nn.Module, criterion: str) -> None:
    kernel = resnet18.layer1[0].conv1.weight.detach().clone()
    layers = list(prunable_layers(resnet18, IMAGES, "all"))
    extras = ("chip",) if criterion == "chip" else ()
    statistics = collect_statistics(resnet18, IMAGES, layers=layers, extras=extras)
    scores = importance(criterion, model=resnet18, statistics=statistics)
    pruner = tp.pruner.BasePruner(
        resnet18, IMAGES[:1], importance=FCSImportance(resnet18, IMAGES, criterion), pruning_ratio=0.5, ignored_layers=[resnet18.fc]
    )
    pruner.step()
    # An inner group keeps what this study's own criterion keeps; so does a coupled group, except for ties.
    kept = select(scores["layer1.0.conv1"], keep_count(64, 0.5))
    assert resnet18.layer1[0].conv1.out_channels == 32
    stem = select(torch.stack([scores[n] for n in ("conv1", "layer1.0.conv2", "layer1.1.conv2")]).mean(0), 32)
    torch.testing.assert_close(resnet18.layer1[0].conv1.weight, kernel[kept][:, stem])
    assert resnet18(IMAGES[:2]).shape == (2, 10)


def test_statistics_are_collected_once_a_step(resnet18: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    monkeypatch.setattr(FCSImportance, "_score", lambda self, real=FCSImportance._score: passes.append(1) or real(self))
    pruner = tp.pruner.BasePruner(
        resnet18,
        IMAGES[:1],
        importance=FCSImportance(resnet18, IMAGES),
        pruning_ratio=0.5,
        iterative_steps=2,
        ignored_layers=[resnet18.fc],
    )
    for _ in range(2):
        pruner.step()
    assert len(passes) == 2 and resnet18.layer4[1].conv1.out_channels == 256


def test_what_it_cannot_score_is_refused(resnet18: nn.Module) -> None:
    with pytest.raises(StudyError, match="needs labels"):
        FCSImportance(resnet18, IMAGES, "taylor")
    with pytest.raises(StudyError, match="bins"):
        FCSImportance(resnet18, IMAGES, bins="four")
