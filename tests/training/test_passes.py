"""Training through torch.compile and CUDA graphs: the same steps up to rounding; where they fail, the plain pass."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.data.dataset import Dataset, Split
from fcs_utils.errors import OutOfTime, StudyError
from fcs_utils.models import RESNET_BLOCKS, build_seeded
from fcs_utils.study.study import Study
from fcs_utils.training.arms import ARMS, Arm
from fcs_utils.training.checkpoint import Checkpoint
from fcs_utils.training.loop import Epoch
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import Execution, Mode, check_mode
from tests.training.test_loop import Tiny, mlft, tiny, train

ONCE = Training(epochs=1, learning_rate=0.05, batch_size=128)


def pair(digits: Dataset, passes: Mode = "plain", arm: Arm = ARMS["mlft"], precision: str = "fp32") -> tuple[list[Tiny], Epoch]:
    networks = [tiny(), tiny(1)]
    history = train(networks, digits, ONCE, arm, seed=3, execution=Execution(precision, passes))
    return networks, history[-1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_both_networks_of_mlft_train_the_same_up_to_rounding(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    made = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: made.append(real(network)) or made[-1])
    plain, expected = pair(digits)
    assert not made
    fast, found = pair(digits, "compiled")
    assert len(made) == 2 and not [w for w in recwarn if "torch.compile" in str(w.message)]
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    for one, other in zip(plain, fast, strict=True):
        assert one.state_dict().keys() == other.state_dict().keys()
        for name, tensor in one.state_dict().items():
            assert torch.allclose(tensor, other.state_dict()[name], rtol=1e-3, atol=1e-3), name


def test_every_training_of_a_process_is_compiled(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    real = torch.compile

    def count(module: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend=count))
    monkeypatch.setitem(RESNET_BLOCKS, "resnet20", 1)  # one block a stage: a third to trace
    few = replace(digits, train=Split(digits.train.images[:128], digits.train.labels[:128]))
    for channels in range(4, 14):  # PyTorch's own limit is 8 of a class
        network = build_seeded(0, "resnet20", num_classes=10, width=channels / 16, in_channels=1)
        train([network], few, ONCE, seed=3, execution=Execution(passes="compiled"))
    assert len(compiled) == 10


def test_a_compiler_that_fails_leaves_no_trace_but_a_warning(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: Tiny):
        def forward(images: Tensor) -> Tensor:
            network(images)  # BatchNorm has seen the batch when the error comes
            raise RuntimeError("No working C++ compiler found\nmany more lines")

        return forward

    plain, expected = pair(digits)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="goes on without it: No working C.. compiler found$"):
        fallen, found = pair(digits, "compiled")
    assert found.loss == expected.loss
    for one, other in zip(plain, fallen, strict=True):
        assert all(tensor.equal(other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_want_of_memory_is_no_failure_to_compile(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(network: Tiny):
        return lambda images: torch.empty(2**50)

    monkeypatch.setattr(torch, "compile", greedy)
    with pytest.raises(RuntimeError, match="memory"):
        pair(digits, "compiled")


def equal(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(tensor.equal(states[1][name]) for name, tensor in states[0].items())


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Stands in for PyTorch's capturing where there is no GPU; returns the shapes that were replayed.

    Like the real one it warms up with three passes in the network's mode, takes over the instance's ``forward`` in that
    mode alone, reads its input from one buffer, refuses autocast's cache, and captures the arithmetic of that moment.
    """
    shapes: list[tuple[int, ...]] = []

    def capture(network: nn.Module, sample: tuple[Tensor, ...]) -> nn.Module:
        if torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled():
            raise RuntimeError("make_graphed_callables does not support the autocast caching")
        (buffer,), plain, mode, half = sample, network.forward, network.training, torch.is_autocast_enabled("cpu")
        places = [parameter.data_ptr() for parameter in network.parameters()]
        for _ in range(3):
            plain(buffer)

        def forward(images: Tensor) -> Tensor:
            if network.training != mode:
                return plain(images)
            assert images.shape == buffer.shape
            assert places == [parameter.data_ptr() for parameter in network.parameters()]  # a graph reads addresses, not names
            shapes.append(tuple(images.shape))
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = plain(buffer.copy_(images))
            if logits.requires_grad:
                logits.register_hook(backward)
            return logits

        def backward(gradient: Tensor) -> None:  # a replay overwrites the gradients and adds nothing
            assert all(parameter.grad is None for parameter in network.parameters())

        network.forward = forward  # type: ignore[method-assign]
        return network

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr("fcs_utils.training.loop.check_mode", lambda way, device: None)  # no GPU here
    return shapes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("updates", ["simultaneous", "sequential"])
def test_graphs_replay_training_and_nothing_else(
    digits: Dataset, replays: list[tuple[int, ...]], precision: str, updates: str
) -> None:
    arm = mlft(updates=updates)
    plain, expected = pair(digits, arm=arm, precision=precision)
    assert not replays
    fast, found = pair(digits, "graphs", arm, precision)
    assert found.loss == expected.loss and found.validation_loss == expected.validation_loss
    assert all(equal(one, other) for one, other in zip(plain, fast, strict=True))
    steps = len(digits.train) // ONCE.batch_size
    assert replays == [(ONCE.batch_size, 1, 32, 32)] * steps * (3 if updates == "sequential" else 2)
    assert all("forward" not in vars(network) for network in fast)  # a copy would go on replaying the original


def test_graphs_go_on_from_a_checkpoint(digits: Dataset, replays: list[tuple[int, ...]], tmp_path: Path) -> None:
    training, graphs = ONCE.model_copy(update={"epochs": 2}), Execution(passes="graphs")
    plain, fast = tiny(), tiny()
    expected = train([plain], digits, training, seed=3)

    def stop(macs: int) -> None:
        raise OutOfTime("enough")

    checkpoint = Checkpoint(tmp_path / "c.safetensors", "run")
    with pytest.raises(OutOfTime):
        train([tiny()], digits, training, seed=3, execution=graphs, on_epoch=stop, checkpoint=checkpoint)
    found = train([fast], digits, training, seed=3, execution=graphs, checkpoint=checkpoint)
    assert [epoch.loss for epoch in found] == [epoch.loss for epoch in expected] and equal(plain, fast) and replays


def test_a_frozen_teacher_is_not_captured(digits: Dataset, replays: list[tuple[int, ...]]) -> None:
    plain, expected = pair(digits, arm=ARMS["kd"])
    fast, found = pair(digits, "graphs", ARMS["kd"])
    assert found.loss == expected.loss and equal(plain[0], fast[0])
    assert len(replays) == len(digits.train) // ONCE.batch_size


def test_a_capture_that_fails_leaves_no_trace_but_a_warning(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: Tiny, sample: tuple[Tensor, ...]) -> None:
        network(*sample)
        network.forward = None  # type: ignore[method-assign,assignment]
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    plain, expected = pair(digits)
    monkeypatch.setattr("fcs_utils.training.loop.check_mode", lambda way, device: None)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", broken)
    with pytest.warns(UserWarning, match="capturing a CUDA graph failed, .* without it: operation not permitted .* capturing$"):
        fallen, found = pair(digits, "graphs")
    assert found.loss == expected.loss and all(equal(one, other) for one, other in zip(plain, fallen, strict=True))


def test_graphs_are_refused_without_a_gpu_before_any_work(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="passes='graphs' is not allowed; allowed: plain, compiled .graphs need a CUDA device"):
        Study("smoke", tmp_path, device="cpu", passes="graphs")
    with pytest.raises(StudyError, match="passes='graphs'"):
        pair(digits, "graphs")
    with pytest.raises(StudyError, match="passes='fast' is not allowed"):
        check_mode("fast", torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_train_as_plain_passes_do_on_a_gpu(digits: Dataset, precision: str, recwarn: pytest.WarningsRecorder) -> None:
    on_gpu, losses, weights = digits.to(torch.device("cuda")), {}, {}
    for way in ("plain", "graphs"):
        networks = [tiny().cuda(), tiny(1).cuda()]
        losses[way] = train(networks, on_gpu, ONCE, "mlft", seed=3, execution=Execution(precision, way))[-1].loss
        weights[way] = torch.cat([tensor.flatten().float() for network in networks for tensor in network.state_dict().values()])
    assert not [w for w in recwarn if "capturing" in str(w.message)]
    close = 1e-3 if precision == "fp32" else 2e-2
    assert losses["graphs"] == pytest.approx(losses["plain"], rel=close)
    assert torch.allclose(weights["graphs"], weights["plain"], rtol=close, atol=close)
