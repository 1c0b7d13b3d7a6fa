"""A network is left as it was, whatever happens while it runs; threads do not disturb one another."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded, count_macs, module_macs
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune
from fcs_utils.running import evaluating, memory_format, run_network, seed_draws, shared, tensors_in, untouched


def network(number: int) -> nn.Module:
    """One of four small networks, with weights of a seed."""
    with shared, torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        kind, width = number % 4, 4 + number
        if kind < 2:
            return build_seeded(number, ["vgg16", "resnet20"][kind], num_classes=3, width=0.0625 * (1 + number // 4), in_channels=1)
        norm = nn.BatchNorm2d(width) if kind == 2 else nn.Identity()
        body = [nn.Conv2d(1, width, 3), norm, nn.ReLU(inplace=True), nn.Conv2d(width, 6, 3, groups=1), nn.ReLU()]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def at_once(work: Callable[[int], Any], count: int) -> list[Any]:
    """Results of ``work(0), work(1), ...``, each in a thread of its own, all let go at one moment."""
    gate = threading.Barrier(count)

    def wait(number: int) -> Any:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return [*pool.map(wait, range(count))]


def test_macs_by_layer_are_those_of_the_threads_own_network() -> None:
    networks, image = [network(number) for number in range(8)], torch.zeros(1, 1, 32, 32)
    alone = [(module_macs(one, image), count_macs(one, image)) for one in networks]
    assert at_once(lambda n: (module_macs(networks[n], image), count_macs(networks[n], image)), 8) == alone
    # Threads that share a network take turns.
    assert at_once(lambda _n: (module_macs(networks[1], image), count_macs(networks[1], image)), 4) == [alone[1]] * 4


def test_plans_made_in_threads_equal_plans_made_one_by_one() -> None:
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def plan(number: int, one: nn.Module | None = None) -> str:
        one = one or network(number)
        statistics = collect_statistics(one, images)
        scores = importance("fcs_linear", model=one, statistics=statistics)
        return make_plan(one, images, scores, macs=0.6).model_dump_json()

    assert at_once(plan, 6) == [plan(number) for number in range(6)]
    one = network(3).train()
    assert at_once(lambda _n: plan(3, one), 4) == [plan(3)] * 4
    assert all(module.training for module in one.modules())


def test_weights_of_a_seed_do_not_depend_on_other_threads() -> None:
    def weights(number: int) -> float:
        one = build_seeded(number, "vgg16", num_classes=3, width=0.0625)
        return sum(p.double().abs().sum().item() for p in one.parameters())

    assert at_once(weights, 6) == [weights(number) for number in range(6)]


class Restless(nn.Module):
    """A forward pass that leaves traces in everything that a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[Tensor] = []
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.conv(x)
        self.seen.append(self.last)
        self.cache["x"] = x
        self.conv.register_forward_hook(lambda *_: None)
        self.training = True
        return self.last.mean((2, 3))


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_pass_leaves_behind_is_taken_back(fails: bool) -> None:
    net = Restless().eval()
    with torch.no_grad():
        before = net(torch.zeros(1, 3, 8, 8))
    kept = net.last
    try:
        with untouched(net):
            net(torch.ones(2, 3, 8, 8))
            assert net.last is not kept and len(net.seen) == 2
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert net.last is kept and net.seen == [kept] and net.calls == 1 and len(net.conv._forward_hooks) == 1 and net.training
    assert net.cache["x"].shape == (1, 3, 8, 8) and before.shape == (1, 4)
    net.conv._forward_hooks.clear()  # of the class's own lambda, which no file can hold
    torch.save(net, io.BytesIO())


def test_evaluating_keeps_what_a_pass_writes_into_buffers() -> None:
    norm = nn.BatchNorm2d(2)
    with evaluating(norm):
        norm.train()(torch.ones(2, 2, 2, 2))
    assert norm.num_batches_tracked == 1 and norm.training
    with untouched(norm):
        norm.train()(torch.ones(2, 2, 2, 2))
    assert norm.num_batches_tracked == 1 and norm.running_mean.tolist() == pytest.approx([0.1, 0.1])


def test_the_error_is_the_networks_own() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(StudyError, match=r"does not run on images torch.float32 \(1, 3, 8, 8\) on cpu: .*mat1 and mat2 shapes"):
        run_network(net, torch.zeros(1, 3, 8, 8))
    with pytest.raises(StudyError, match="RuntimeError: .*(dtype|type)"):
        run_network(net, torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    assert run_network(net, torch.zeros(1, 3, 4, 4)).shape == (1, 2)


def test_networks_that_view_their_maps_get_contiguous_batches() -> None:
    flat, rows = nn.Module(), nn.Module()
    flat.forward = lambda x: x.view(len(x), -1)  # type: ignore[method-assign]
    rows.forward = lambda x: x.view(-1, 8, 8)  # type: ignore[method-assign]  # one image could be viewed, two cannot
    assert memory_format(flat, torch.zeros(4, 3, 8, 8)) == memory_format(rows, torch.zeros(4, 3, 8, 8)) == torch.contiguous_format
    assert memory_format(nn.Conv2d(3, 2, 1), torch.zeros(4, 3, 8, 8)) == torch.channels_last


@dataclass
class Answer:
    logits: Tensor
    more: dict[str, Any]


def test_tensors_are_found_in_any_answer() -> None:
    one, two, three = torch.zeros(1), torch.ones(2), torch.ones(3)
    assert [*map(len, tensors_in(Answer(one, {"a": [two, None, 3], "b": (three, "text")})))] == [1, 2, 3]
    loop: list[Any] = [one]
    loop.append(loop)
    assert tensors_in(loop) == [one] and tensors_in(None) == tensors_in(7) == []


@pytest.mark.parametrize("part", ["", "0", "3"])
def test_what_compile_made_of_a_network_is_not_run(part: str) -> None:
    images, scores = torch.randn(2, 1, 8, 8), {"0": torch.arange(6.0)}
    net = network(2).eval()
    wanted = make_plan(net, images, scores, ratio=0.5)

    def compiled(*_: object) -> None:
        raise AssertionError("hooks may not be seen here")

    net.get_submodule(part)._compiled_call_impl = compiled  # as module.compile() does
    assert make_plan(net, images, scores, ratio=0.5) == wanted
    assert collect_statistics(net, images).keys() == {"0", "3"} and prune(net, wanted)[0].out_channels == 3
    assert net.get_submodule(part)._compiled_call_impl is compiled


def test_on_the_cpu_other_devices_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    seed_draws(5)
    assert torch.rand(3).equal(wanted)
    monkeypatch.setattr(torch, "manual_seed", lambda _: pytest.fail("all devices were seeded"))
    net = build_seeded(1, "vgg16", num_classes=3, width=0.0625)
    images = torch.rand(8, 3, 32, 32)
    scores = importance("fcs", model=net, statistics=collect_statistics(net, images))
    assert prune(net, make_plan(net, images, scores, ratio=0.5)).features.conv1.out_channels == 2
