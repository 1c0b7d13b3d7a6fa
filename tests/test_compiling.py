"""Training through torch.compile: the same steps up to rounding; where it fails, the plain pass."""

from __future__ import annotations

import shutil

import pytest
import torch

from fcs_utils.config import Training
from fcs_utils.data import Dataset
from fcs_utils.finetune import Epoch, fit, mutual
from tests.test_finetune import Tiny, tiny

ONCE = Training(epochs=1, learning_rate=0.05, batch_size=128)


def pair(digits: Dataset, *, compile_passes: bool) -> tuple[list[Tiny], Epoch]:
    networks = [tiny(), tiny(1)]
    history = fit(networks, digits, ONCE, seed=3, losses=mutual(), compile_passes=compile_passes)
    return networks, history[-1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_both_networks_of_mlft_train_the_same_up_to_rounding(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    passes = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: passes.append(real(network)) or passes[-1])
    plain, expected = pair(digits, compile_passes=False)
    assert not passes
    fast, found = pair(digits, compile_passes=True)
    assert len(passes) == 2 and not [w for w in recwarn if "torch.compile" in str(w.message)]
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    for one, other in zip(plain, fast, strict=True):
        assert one.state_dict().keys() == other.state_dict().keys()
        for name, tensor in one.state_dict().items():
            assert torch.allclose(tensor, other.state_dict()[name], rtol=1e-3, atol=1e-3), name


def test_a_compiler_that_fails_leaves_no_trace_but_a_warning(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: Tiny):
        def forward(images: torch.Tensor) -> torch.Tensor:
            network(images)  # BatchNorm has seen the batch when the error comes
            raise RuntimeError("No working C++ compiler found\nmany more lines")

        return forward

    plain, expected = pair(digits, compile_passes=False)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="goes on without it: No working C.. compiler found$"):
        fallen, found = pair(digits, compile_passes=True)
    assert found.loss == expected.loss
    for one, other in zip(plain, fallen, strict=True):
        assert all(tensor.equal(other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_want_of_memory_is_no_failure_to_compile(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(network: Tiny):
        return lambda images: torch.empty(2**50)

    monkeypatch.setattr(torch, "compile", greedy)
    with pytest.raises(RuntimeError, match="memory"):
        pair(digits, compile_passes=True)
