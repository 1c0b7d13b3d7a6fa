"""Compact networks: recalibration, their files, and the README's example of making one."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.files import write_tensors
from fcs_utils.models import build_seeded
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, save_compact
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.surgery import prune, recalibrate
from tests.conftest import ROOT


@torch.no_grad()
def test_recalibration_estimates_exact_means_and_puts_momentum_back() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2, momentum=0.1)
    model = nn.Sequential(norm).eval()
    images = 3 + 2 * torch.randn(50, 2, 4, 4)
    recalibrate(model, images, batch_size=25)
    # Two equal batches: the average of their means is the mean of all.
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))
    assert norm.momentum == 0.1 and not norm.training


def test_recalibration_without_batchnorm_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recalibrate(model, torch.randn(4, 1, 8, 8))
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def saved(small_vgg: nn.Module, tmp_path: Path) -> tuple[nn.Module, Path]:
    plan = make_plan(small_vgg, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=small_vgg), ratio=0.3)
    compact = prune(small_vgg, plan)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    return compact, tmp_path / "compact.safetensors"


def test_a_compact_network_reloads_bit_equal(saved: tuple[nn.Module, Path]) -> None:
    compact, path = saved
    again = load_compact(path, build_seeded(77, "vgg16", num_classes=5, width=0.125).eval())
    assert again.state_dict().keys() == compact.state_dict().keys()
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in compact.state_dict().items())
    images = torch.randn(3, 3, 32, 32)
    assert again(images).equal(compact(images))


def test_damaged_compact_files_are_refused(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, path = saved
    dense = build_seeded(0, "vgg16", num_classes=5, width=0.125)
    (tmp_path / "short").write_bytes(path.read_bytes()[:-100])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "pickle").write_bytes(b"\x80\x04cos\nsystem\n" + bytes(64))
    (tmp_path / "huge").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    (tmp_path / "plain").write_bytes(save({"w": torch.ones(2)}))
    for name, message in [
        ("short", "cannot be read"),
        ("empty", "cannot be read"),
        ("pickle", "cannot be read"),
        ("huge", "cannot be read"),
        ("missing", "cannot read"),
        ("plain", "has no checksum"),
    ]:
        with pytest.raises(StudyError, match=message):
            load_compact(tmp_path / name, dense)
    write_tensors(tmp_path / "weights", {"w": torch.ones(2)})
    with pytest.raises(StudyError, match="no pruning plan"):
        load_compact(tmp_path / "weights", dense)
    with pytest.raises(StudyError, match="head.weight does not fit|head.bias does not fit"):
        load_compact(path, build_seeded(0, "vgg16", num_classes=9, width=0.125))
    with pytest.raises(StudyError, match="does not fit this network"):
        load_compact(path, build_seeded(0, "vgg16", num_classes=5, width=0.25))


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_readmes_first_example_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES[0], names)  # noqa: S102 - our own README
    assert abs(names["plan"].macs_left - 0.5) < 0.05
    printed = capsys.readouterr().out
    assert "layer4.1.conv1" in printed and "50.0% was the goal" in printed


@pytest.mark.slow
def test_the_readmes_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec("\n".join(EXAMPLES), names)  # noqa: S102 - our own README
    images = names["images"]
    assert names["reloaded"].eval()(images).equal(names["compact"].eval()(images))
    assert names["compact"].layer1[0].conv1.out_channels == len(names["plan"].kept["layer1.0.conv1"]) < 64
