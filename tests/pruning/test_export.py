"""ONNX files give PyTorch's logits at any batch, or are not written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import export_onnx, session
from fcs_utils.pruning.layers import Scope
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.surgery import prune
from tests.conftest import warm

pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scope"), [("vgg16", "inner"), ("resnet20", "inner"), ("resnet20", "all")])
def test_an_exported_compact_network_agrees_at_every_batch(tmp_path: Path, name: str, scope: Scope) -> None:
    dense = warm(build_seeded(0, name, num_classes=5, width=0.25))
    plan = make_plan(dense, torch.zeros(1, 3, 32, 32), importance("random", model=dense), ratio=0.5, scope=scope)
    compact = prune(dense, plan)
    path = export_onnx(compact.train(), tmp_path / "compact.onnx", torch.randn(4, 3, 32, 32))
    assert compact.training  # as it came
    for batch in (1, 3, 64):
        images = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            want = compact.eval()(images)
        (found,) = session(path).run(["logits"], {"images": images.numpy()})
        np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-4)
    assert list(tmp_path.iterdir()) == [path]


class Other:
    """A runtime whose logits are a little off."""

    def __init__(self, content: bytes) -> None:
        self.real = session(content)

    def run(self, *arguments: object) -> list[np.ndarray]:
        return [logits + np.float32(1.5e-4) for logits in self.real.run(*arguments)]


def test_a_network_that_does_not_agree_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(192, 2)).train()
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(StudyError, match="differ from PyTorch's by up to 0.00015.*: not written"),
    ):
        patch.setattr("fcs_utils.pruning.export.session", Other)
        export_onnx(network, tmp_path / "net.onnx", 0.01 * torch.randn(2, 3, 8, 8))
    with pytest.raises(StudyError, match=r"^Sequential cannot be exported to ONNX: mat1 and mat2 [^\x1b\n]+$"):
        export_onnx(network, tmp_path / "net.onnx", torch.randn(2, 3, 9, 9))  # does not fit the linear layer
    with pytest.raises(StudyError, match=r"\(1, 3, 8, 8\) is not allowed; allowed: two images or more"):
        export_onnx(network, tmp_path / "net.onnx", torch.randn(1, 3, 8, 8))
    assert not list(tmp_path.iterdir())
    made, images = export_onnx(network, tmp_path / "net.onnx", torch.randn(2, 3, 8, 8)), torch.randn(5, 3, 8, 8)
    session_here = session(made, 2)
    # A measurement that follows must find both cores free.
    assert session_here.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"
    (found,) = session_here.run(["logits"], {"images": images.numpy()})  # at another batch than the example's
    np.testing.assert_allclose(found, network.eval()(images).detach().numpy(), rtol=1e-4, atol=1e-4)
    for threads in (1, 2):
        options = (session(made) if threads == 1 else session(made.read_bytes(), threads)).get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, threads)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(StudyError, match=r"ONNX needs onnxruntime: pip install -e \.\[deploy\]"):
        export_onnx(network, tmp_path / "net.onnx", torch.randn(2, 3, 8, 8))
