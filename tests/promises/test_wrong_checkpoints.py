"""A checkpoint with wrong content is named and set aside: the training starts over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fcs_utils.errors import OutOfTime
from fcs_utils.files import read_tensors, write_tensors
from fcs_utils.training.checkpoint import Checkpoint
from fcs_utils.training.loop import Callbacks, fit
from fcs_utils.training.optimiser import Training
from tests.training.test_loop import tiny

CHECKPOINTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "no history": lambda tensors, content: content.pop("history"),
    "history is no list": lambda tensors, content: content.update(history={"epoch": 1}),
    "epochs in another order": lambda tensors, content: content["history"][0].update(epoch=2),
    "an epoch of words": lambda tensors, content: content["history"][0].update(loss="small"),
    "a later epoch of words": lambda tensors, content: content["history"].append(
        {**content["history"][0], "epoch": 2, "loss": "small"}
    ),
    "negative MACs": lambda tensors, content: content["history"][0].update(training_macs=-1),
    "a stranger's field": lambda tensors, content: content["history"][0].update(colour="red"),
    "no schedules": lambda tensors, content: content.update(schedules=[]),
    "a schedule of words": lambda tensors, content: content["schedules"][0]["cycle"].update(last_epoch="one"),
    "a phase of words": lambda tensors, content: content["schedules"][0]["cycle"]["_schedule_phases"][1].update(end_step="one"),
    "no groups": lambda tensors, content: content["schedules"][0].update(groups=None),
    "no network": lambda tensors, content: [tensors.pop(name) for name in list(tensors) if name.startswith("network")],
    "a network more": lambda tensors, content: tensors.update({"network.1.x": torch.zeros(1)}),
    "NaN weights": lambda tensors, content: tensors["network.0.conv.weight"].fill_(float("nan")),
    "whole weights": lambda tensors, content: tensors.update(
        {"network.0.conv.weight": tensors["network.0.conv.weight"].to(torch.int64)}
    ),
    "momenta of another shape": lambda tensors, content: tensors.update({"momentum.0.0": torch.zeros(3)}),
    "no generator": lambda tensors, content: tensors.pop("dropout"),
}


@pytest.mark.parametrize("wrong", CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_set_aside_and_nothing_of_it_is_used(tmp_path: Path, wrong: str) -> None:
    path, training = tmp_path / "c.safetensors", Training(epochs=2, learning_rate=0.01)
    batch = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)

    def train(network: torch.nn.Module, **more: Any) -> list[float]:
        callbacks = Callbacks(checkpoint=Checkpoint(path, "run"), **more)
        return [epoch.loss for epoch in fit([network], training, lambda seed, epoch: [batch], callbacks=callbacks)]

    def stop(macs: int) -> None:
        raise OutOfTime("enough")

    expected = train(tiny())
    with pytest.raises(OutOfTime):
        train(tiny(), on_epoch=stop)
    tensors, metadata = read_tensors(path)
    content = json.loads(metadata["training"])
    CHECKPOINTS[wrong](tensors, content)
    write_tensors(path, tensors, {"training": json.dumps(content)})
    with pytest.warns(UserWarning, match=r"c.safetensors.*the training starts over \(set aside as c.corrupt\)"):
        assert train(tiny()) == expected


@pytest.mark.parametrize("text", ["[]", "{", "null", '"run"'])
def test_a_checkpoint_without_its_text_is_set_aside(tmp_path: Path, text: str) -> None:
    write_tensors(tmp_path / "c.safetensors", {"x": torch.zeros(1)}, {"training": text})
    with pytest.warns(UserWarning, match="set aside"):
        assert Checkpoint(tmp_path / "c.safetensors", "run").restore([], []) == []
