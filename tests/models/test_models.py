"""Networks: published parameter and MAC counts; bad names and widths."""

from __future__ import annotations

import pytest
import torch

from fcs_utils.errors import StudyError
from fcs_utils.models import build_model, count_macs


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("resnet56", 0.85e6, 125.5e6), ("resnet110", 1.72e6, 252.9e6), ("vgg16", 14.7e6, 313e6), ("resnet20", 0.27e6, 40.5e6)],
)
def test_published_sizes(name: str, params: float, macs: float) -> None:
    model = build_model(name, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(params, rel=0.01)
    assert count_macs(model, torch.zeros(1, 3, 32, 32)) == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg17", {}, "network='vgg17'"),
        ("torchvision/none", {}, "network="),
        ("vgg16", {"width": 0}, "width=0"),
        ("vgg16", {"shortcut": "B"}, "shortcut='B'"),
        ("torchvision/resnet18", {"width": 0.5}, "width=0.5"),
    ],
)
def test_bad_networks_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        build_model(name, num_classes=10, **options)
