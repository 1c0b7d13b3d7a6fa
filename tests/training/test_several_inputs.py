"""``fit`` on networks with several inputs: the same steps as where one tensor holds them all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs
from fcs_utils.training.evaluate import evaluate
from fcs_utils.training.loop import Callbacks, fit
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import Execution, training_passes

TWICE = Training(epochs=2, learning_rate=0.05, batch_size=6)
IMAGES, MASKS = torch.randn(12, 3, 6, 6), torch.rand(12, 1, 6, 6)
LABELS = torch.arange(12) % 4


class Two(nn.Module):
    """Images under masks; a single tensor (N, 4, H, W) holds both."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        image, mask = (image[:, :3], image[:, 3:]) if mask is None else (image, mask)
        return self.body(image * mask)


def built(seed: int) -> Two:
    torch.manual_seed(seed)
    return Two()


KINDS: dict[str, Any] = {
    "one tensor": lambda rows: torch.cat([IMAGES[rows], MASKS[rows]], 1),
    "in order": lambda rows: (IMAGES[rows], MASKS[rows]),
    "by name": lambda rows: {"mask": MASKS[rows], "image": IMAGES[rows]},
}


def fed(kind: str) -> list[tuple[Inputs, Tensor]]:
    return [(KINDS[kind](rows), LABELS[rows]) for rows in (slice(0, 6), slice(6, 12))]


@pytest.mark.parametrize("arm", ["tft", "mlft", "kd"])
def test_training_and_measures_are_those_of_one_tensor(arm: str) -> None:
    found = {}
    for kind in KINDS:
        networks: list[nn.Module] = [built(0), built(1)][: 1 if arm == "tft" else 2]
        start, batches = copy.deepcopy(networks[0].state_dict()), fed(kind)
        also = Callbacks(evaluate=lambda nets, batches=batches: evaluate(nets, batches))
        history = fit(networks, TWICE, lambda seed, epoch, batches=batches: batches, arm, callbacks=also)
        assert not start["body.0.weight"].equal(networks[0].state_dict()["body.0.weight"])
        found[kind] = history, networks
    for history, networks in found.values():
        for one, other in zip(networks, found["one tensor"][1], strict=True):
            assert all(value.equal(other.state_dict()[name]) for name, value in one.state_dict().items())
        assert [(e.loss, e.validation, e.peer_kl, e.training_macs) for e in history] == [
            (e.loss, e.validation, e.peer_kl, e.training_macs) for e in found["one tensor"][0]
        ]


WRONG: dict[str, tuple[Any, str]] = {
    "other rows": ((IMAGES[:6], MASKS[:5]), r"float32 \(6, 3, 6, 6\), torch.float32 \(5, 1, 6, 6\).*; allowed: float images"),
    "no inputs": ((), r"\['tuple', 'Tensor'\]; allowed: \(images, labels\), or \(inputs, labels\) with several tensors"),
    "no tensors": ({"image": IMAGES[:6], "mask": [1]}, r"\['dict', 'Tensor'\]"),
    "another argument": ({"image": IMAGES[:6], "masks": MASKS[:6]}, "does not run on images"),
}


@pytest.mark.parametrize(("inputs", "message"), WRONG.values(), ids=WRONG)
def test_other_inputs_are_refused_before_a_step(inputs: Any, message: str) -> None:
    network = built(0)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(StudyError, match=message):
        fit([network], TWICE, lambda seed, epoch: [(inputs, LABELS[:6])])
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_graphs_are_of_one_input() -> None:
    with (
        pytest.raises(StudyError, match=r"passes='graphs' is not allowed; allowed: plain, compiled \(graphs"),
        training_passes([built(0)], 1, (IMAGES, MASKS), Execution(passes="graphs")),
    ):
        pass
