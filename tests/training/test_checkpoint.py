"""A training that was cut off goes on bit for bit, with the optimiser of this machine."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fcs_utils.data.dataset import Dataset
from fcs_utils.errors import OutOfTime
from fcs_utils.files import read_tensors, write_tensors
from fcs_utils.models import build_seeded
from fcs_utils.training.checkpoint import Checkpoint, _fits, _is_epoch, _plain
from fcs_utils.training.loop import Epoch
from fcs_utils.training.optimiser import Optimiser, Training
from tests.training.test_loop import mlft, tiny, train

TRAINING = Training(epochs=4, learning_rate=0.05, batch_size=128)


class Dropping(nn.Module):
    """Its dropout draws from the global generator in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = tiny(), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.body(x))


def rows(history: list[Epoch]) -> list[dict[str, object]]:
    return [{k: v for k, v in vars(epoch).items() if k != "seconds"} for epoch in history]


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("updates", ["simultaneous", "sequential"])
def test_a_training_cut_off_goes_on_bit_for_bit(digits: Dataset, tmp_path: Path, stop: int, updates: str) -> None:
    def try_once(checkpoint: Checkpoint | None, stop: int | None) -> tuple[list[nn.Module], list[Epoch]]:
        networks: list[nn.Module] = [Dropping(), tiny(1)]
        networks[0].load_state_dict({f"body.{k}": v for k, v in tiny().state_dict().items()})
        epochs = 0

        def on_epoch(macs: int) -> None:
            nonlocal epochs
            epochs += 1
            if epochs == stop:
                raise OutOfTime("enough")

        arm = mlft(updates=updates, peer_learning_rate=0.02)
        history = train(networks, digits, TRAINING, arm, seed=3, on_epoch=on_epoch, checkpoint=checkpoint)
        return networks, history

    whole, expected = try_once(None, None)
    with pytest.raises(OutOfTime):
        try_once(Checkpoint(tmp_path / "c.safetensors", "run"), stop)
    parts, history = try_once(Checkpoint(tmp_path / "c.safetensors", "run"), None)
    assert rows(history) == rows(expected) and not (tmp_path / "c.corrupt").exists()  # it did not start over
    assert [epoch.seconds for epoch in history] == sorted(epoch.seconds for epoch in history)
    for one, other in zip(whole, parts, strict=True):
        for name, tensor in one.state_dict().items():
            assert tensor.equal(other.state_dict()[name]), name


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_checkpoint_is_set_aside_and_the_training_starts_over(digits: Dataset, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.safetensors"

    def stop(macs: int) -> None:
        raise OutOfTime("enough")

    with pytest.raises(OutOfTime):
        train([tiny()], digits, TRAINING, seed=3, on_epoch=stop, checkpoint=Checkpoint(path, "run"))
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-1000] ^= 1
    elif damage == "empty":
        content = bytearray()
    path.write_bytes(content)
    network = tiny()
    with pytest.warns(UserWarning, match="starts over"):
        checkpoint = Checkpoint(path, "other" if damage == "foreign" else "run")
        history = train([network], digits, TRAINING, seed=3, checkpoint=checkpoint)
    alone = tiny()
    assert rows(history) == rows(train([alone], digits, TRAINING, seed=3))
    assert network.conv.weight.equal(alone.conv.weight) and path.with_suffix(".corrupt").exists()


def test_a_checkpoint_is_saved_when_it_is_due_and_never_for_the_last_epoch(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "c.safetensors", [0.0]
    monkeypatch.setattr("fcs_utils.training.checkpoint.time", SimpleNamespace(monotonic=lambda: clock[0]))
    train([tiny()], digits, TRAINING, checkpoint=Checkpoint(path, "run"))  # no time goes by
    assert not path.exists()
    saved: list[int] = []
    real = Checkpoint.save

    def save(self: Checkpoint, networks: Any, optimisers: Any, history: Any) -> None:
        saved.append(len(history))
        real(self, networks, optimisers, history)

    monkeypatch.setattr(Checkpoint, "save", save)
    checkpoint = Checkpoint(path, "run")

    def on_epoch(macs: int) -> None:
        clock[0] += 30  # seconds: every second epoch is due

    train([tiny()], digits, TRAINING.model_copy(update={"epochs": 6}), on_epoch=on_epoch, checkpoint=checkpoint)
    assert saved == [2, 4] and path.exists()


def test_a_checkpoint_of_a_gpu_goes_on_without_one(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(macs: int) -> None:
        raise OutOfTime("enough")

    path = tmp_path / "c.safetensors"
    with pytest.raises(OutOfTime):
        train([tiny()], digits, TRAINING, seed=3, on_epoch=stop, checkpoint=Checkpoint(path, "run"))
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors | {"dropout.cuda": torch.zeros(16, dtype=torch.uint8)}, metadata)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: pytest.fail("there is no GPU"))
    history = train([tiny()], digits, TRAINING, seed=3, checkpoint=Checkpoint(path, "run"))
    assert rows(history) == rows(train([tiny()], digits, TRAINING, seed=3))


def test_the_generator_of_a_gpu_is_put_back_where_the_file_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state, put_back = tmp_path / "c.safetensors", torch.arange(16, dtype=torch.uint8), list[torch.Tensor]()
    parts = [tiny()], [Optimiser(tiny(), TRAINING, 0.05, steps=4)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Checkpoint(path, "run").save(*parts, [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put_back.append)
    assert Checkpoint(path, "run").restore(*parts) == [] and not put_back
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors | {"dropout.cuda": state}, metadata)
    assert Checkpoint(path, "run").restore(*parts) == [] and [one.equal(state) for one in put_back] == [True]


def test_what_a_checkpoint_may_hold() -> None:
    assert _fits(torch.tensor([1.0, 2.0]), torch.zeros(2))
    assert not any(_fits(found, torch.zeros(2)) for found in (torch.tensor([1.0, math.nan]), torch.ones(3), torch.ones(2).long()))
    assert _is_epoch({"epoch": 2, "macs": 0, "loss": 0.5, "peer": None}, 2, ()) and _is_epoch({"epoch": 1}, 1, ["epoch"])
    wrong: list[Any] = [{"epoch": 1}, {"epoch": 2, "macs": -1}, {"epoch": 2, "macs": True}, {"epoch": 2, "loss": "0"}, [2]]
    assert not any(_is_epoch(entry, 2, ()) for entry in wrong) and not _is_epoch({"epoch": 2}, 2, ["epoch", "loss"])


def test_what_json_has_no_word_for_becomes_a_number_or_a_text() -> None:
    assert _plain(torch.tensor(2.5)) == 2.5 and _plain(Path("a")) == "a"


def vgg_cut_off(
    data: Dataset, path: Path, monkeypatch: pytest.MonkeyPatch | None, fused: tuple[bool, bool]
) -> tuple[nn.Module, nn.Module]:
    """One VGG trained whole, one cut off after an epoch; fused: the optimiser before and after the cut, on a CPU."""
    device, training, optimisers = data.mean.device, TRAINING.model_copy(update={"epochs": 2, "learning_rate": 0.001}), []
    real = torch.optim.SGD

    def train_one(fuse: bool, **options: Any) -> nn.Module:
        def sgd(*args: Any, **more: Any) -> torch.optim.SGD:
            optimisers.append(real(*args, **{**more, "fused": fuse}))
            return optimisers[-1]

        if monkeypatch:
            monkeypatch.setattr(torch.optim, "SGD", sgd)
        network = build_seeded(0, "vgg16", num_classes=10, width=0.125, in_channels=1).to(device)
        train([network], data, training, seed=3, **options)
        return network

    def stop(macs: int) -> None:
        raise OutOfTime("enough")

    with pytest.raises(OutOfTime):
        train_one(fused[0], on_epoch=stop, checkpoint=Checkpoint(path, "run"))
    parts = train_one(fused[1], checkpoint=Checkpoint(path, "run"))
    for optimiser in optimisers[1:]:
        assert optimiser.param_groups[0]["fused"] is fused[1]
        for parameter, state in optimiser.state.items():
            assert state["momentum_buffer"].stride() == parameter.stride()  # which a fused step on a GPU requires
    return train_one(fused[1]), parts


@pytest.mark.parametrize("fused", [(True, True), (True, False), (False, True)])
def test_momenta_and_the_kind_of_step_are_those_of_this_machine(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: tuple[bool, bool]
) -> None:
    whole, parts = vgg_cut_off(digits, tmp_path / "c.safetensors", monkeypatch, fused)
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert one.equal(other) if fused[0] == fused[1] else torch.allclose(one, other, atol=1e-4), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_on_a_gpu_goes_on(digits: Dataset, tmp_path: Path) -> None:
    whole, parts = vgg_cut_off(digits.to(torch.device("cuda")), tmp_path / "c.safetensors", None, (True, True))
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4), name
