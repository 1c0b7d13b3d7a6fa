"""Fixtures of studies of a network whose weights are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from fcs_utils.data.dataset import Dataset
from fcs_utils.models import RESNET_BLOCKS, build_seeded
from fcs_utils.pruning.surgery import recalibrate
from fcs_utils.study.networks import Bench
from tests.conftest import warm
from tests.study.given import FILE, by_hand


@pytest.fixture(scope="module")
def short_resnets() -> Iterator[None]:
    """ResNets of one block a stage: what is tested here does not depend on their depth."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("resnet20", "resnet32"):
            patch.setitem(RESNET_BLOCKS, name, 1)
        yield


@pytest.fixture(scope="module")
def given_network(short_resnets: None, digits: Dataset) -> nn.Module:
    """A network that tells images apart where they are normalised as it asks for."""
    network = warm(build_seeded(5, "resnet20", num_classes=10, width=0.25, in_channels=1), size=8, channels=1)
    recalibrate(network, by_hand(digits.train.images[:200, 8:24, 8:24]))
    network.head.weight.data *= 10
    return network


@pytest.fixture
def given_data(given_network: nn.Module, tmp_path: Path) -> Path:
    """A data folder with the weights of one small network."""
    folder = tmp_path / "data"
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in given_network.state_dict().items()}, folder / FILE)
    return folder


@pytest.fixture
def never_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "train_reference", lambda *_: pytest.fail("trained"))
