"""No call changes a network of the user, whether it ends well, fails half-way or is interrupted."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import export_onnx, save_compact
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import collect_statistics, feature_maps
from fcs_utils.pruning.surgery import prune as cut
from fcs_utils.pruning.torch_pruning import FCSImportance
from tests.pruning.toys import conv


class Failing(nn.Module):
    """Raises when the module of a number runs; 0 is the first."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.parts = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4), nn.Flatten(), nn.Linear(256, 3))
        self.at, self.error = at, error
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        for number, part in enumerate(self.parts):
            if number == self.at:
                raise self.error
            x = self.latest = part(x)
        return x


def state(net: nn.Module) -> list[Any]:
    """Everything that a network holds, by value or identity."""
    tensors = {n: (id(t), t.detach().clone(), t.requires_grad, t.grad) for n, t in [*net.named_parameters(), *net.named_buffers()]}
    tables = [
        (name, key, [*value.items()] if isinstance(value, dict) else value)
        for name, module in net.named_modules()
        for key, value in vars(module).items()
    ]
    return [tensors, tables]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.equal(two)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one is two or one == two


IMAGES, LABELS = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
PLAN = PruningPlan(kept={"parts.0": [0, 2]}, channels={"parts.0": 6}, input_shape=(3, 8, 8), ratio=0.5)
CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "collect_statistics": lambda net: collect_statistics(net, IMAGES, batch_size=3),
    "feature_maps": lambda net: feature_maps(net, IMAGES, "parts.0"),
    "importance": lambda net: importance("taylor", model=net, images=IMAGES, labels=LABELS),
    "importance of weights": lambda net: importance("kernel_l1", model=net),
    "make_plan": lambda net: make_plan(net, IMAGES, {"parts.0": torch.arange(6.0)}, macs=0.7),
    "make_plan of nothing": lambda net: make_plan(net, IMAGES, {"parts.9": torch.arange(6.0)}, ratio=0.5),
    "prune": lambda net: cut(net, PLAN),
    "prune with a damaged plan": lambda net: cut(net, PLAN.model_copy(update={"channels": {"parts.0": 7}})),
    "FCSImportance": lambda net: FCSImportance(net, IMAGES)._score(),
    "trace_layers": lambda net: trace_layers(net, IMAGES),
    "trace_layers of wrong images": lambda net: trace_layers(net, IMAGES[:, :2]),
    "save_compact": lambda net: save_compact("compact.safetensors", net, PLAN),
    "export_onnx": lambda net: export_onnx(net, "compact.onnx", IMAGES[:1]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyError, KeyboardInterrupt], ids=repr)
@pytest.mark.parametrize("at", [0, 3, 5])
def test_no_call_changes_a_network(
    call: str, error: type[BaseException] | None, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = Failing(at if error else -1, (error or ValueError)("half-way")).train()  # a new error each time: it gathers frames
    net.parts[1].eval()
    net.parts[3].weight.requires_grad_(False)
    net.parts[0].weight.grad = torch.ones_like(net.parts[0].weight)
    net.parts[3].register_forward_hook(print_nothing)
    before, generator = state(net), torch.random.get_rng_state()
    for _ in range(2):
        try:
            CALLS[call](net)
        except (StudyError, RuntimeError, KeyError, KeyboardInterrupt) as raised:
            assert isinstance(raised, StudyError | KeyboardInterrupt), repr(raised)
    assert same(state(net), before)
    assert torch.random.get_rng_state().equal(generator)
    net.error = None  # type: ignore[assignment]
    torch.save(net, io.BytesIO())


def print_nothing(*_: object) -> None:
    """A hook of the user's own."""
