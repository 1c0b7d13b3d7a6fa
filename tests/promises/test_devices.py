"""Checks of GPU behaviour that need no GPU: no operation mixes devices, and no step of an epoch waits for the host."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import backend_registration

from fcs_utils.data.dataset import Dataset, Split
from fcs_utils.models import build_seeded
from fcs_utils.training import loop as finetune
from fcs_utils.training.arms import ARMS
from fcs_utils.training.loop import Callbacks, fit
from fcs_utils.training.losses import mutual
from fcs_utils.training.optimiser import Training
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs a device that is written in Python"
)
def test_scoring_and_pruning_never_mix_devices_and_find_the_same_elsewhere(smoke: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.promises.other_device", str(smoke), str(tmp_path / "copy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 9  # runs: similarity, five criteria and merged channels on one network, fcs and merged on the other


def on_a_gpu(known: Tensor) -> Tensor:
    """A tensor without values that says it is on a GPU; to be called under FakeTensorMode."""
    return torch.empty_strided(known.shape, known.stride(), dtype=known.dtype, device="cuda")


def moved(network: nn.Module) -> nn.Module:
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(on_a_gpu(parameter))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = on_a_gpu(buffer)
    return network


def fakes_are_like_real_ones() -> bool:
    """Older versions of PyTorch ask the driver when such a tensor is sliced."""
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda")[:1]
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not fakes_are_like_real_ones(), reason="needs a newer PyTorch or a GPU")
@pytest.mark.parametrize("network", ["vgg16", "resnet20"])
def test_no_batch_waits_for_the_host(digits: Dataset, monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    """Tensors without values cannot be looked at: the first look is after the last batch. They refuse to mix devices too."""
    networks = [build_seeded(seed, network, num_classes=10, width=0.125, in_channels=1) for seed in (0, 1)]
    batches: list[int] = []

    def backward(loss: Tensor) -> None:  # the engine wants a real device
        assert loss.requires_grad and loss.device.type == "cuda"

    def train(losses: Callable[..., list[Tensor]]) -> list[traceback.FrameSummary]:
        with pytest.raises(DataDependentOutputException) as looked, FakeTensorMode():
            gpu = {
                part: Split(on_a_gpu(s.images), on_a_gpu(s.labels))
                for part in ("train", "validation", "test")
                if (s := getattr(digits, part))
            }
            data = replace(digits, **gpu, mean=on_a_gpu(digits.mean), std=on_a_gpu(digits.std), flip=True)
            arm, callbacks = replace(ARMS["mlft"], loss=lambda: losses), Callbacks(on_batch=lambda: batches.append(1))
            bare = inspect.unwrap(fit)  # without the check of arguments, which refuses fakes
            bare([moved(one) for one in networks], training, data.batches(training.batch_size), arm, callbacks=callbacks)
        return [frame for frame in traceback.extract_tb(looked.value.__traceback__) if "fcs_utils" in frame.filename]

    training = Training(epochs=1, learning_rate=0.1, batch_size=100)
    monkeypatch.setattr(finetune, "autocast", lambda *_: nullcontext())  # bf16 needs a real device too
    # What is tried and counted before the first step looks, too.
    monkeypatch.setattr(finetune, "check_fit", lambda *_: 10)
    monkeypatch.setattr(finetune, "count_macs", lambda *_: 1)
    monkeypatch.setattr(finetune, "layout_of", lambda *_: torch.channels_last)
    monkeypatch.setattr(torch.random, "fork_rng", lambda **_: nullcontext())
    monkeypatch.setattr(nn.Module, "to", lambda self, **_: self)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    assert "isfinite" in (train(mutual())[-1].line or "") and len(batches) == len(digits.train) // 100
    batches.clear()

    def looking(logits: list[Tensor], labels: Tensor) -> list[Tensor]:
        found = mutual()(logits, labels)
        return found if found[0].item() else found

    train(looking)
    assert len(batches) == 1  # reading a loss on the host is detected
