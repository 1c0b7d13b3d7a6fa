"""Files of compact networks: whatever can be pruned loads bit-equal from its file and the original architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, tensors_sum, write_tensors
from fcs_utils.models import build_seeded, load_state, measure_cost
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, save_compact
from fcs_utils.pruning.layers import Scope
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune
from fcs_utils.training.checkpoint import Checkpoint
from tests.conftest import warm
from tests.pruning.tied import IMAGES, a_sum, conv, plan_of, two_heads, two_names, two_norms, two_readers
from tests.pruning.toys import Net


def assert_equal_bits(found: nn.Module, wanted: nn.Module) -> None:
    assert tensors_sum(found.state_dict()) == tensors_sum(wanted.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("torchvision/mnasnet0_5", 32),  # its state has versions
        ("torchvision/resnet18", 32),
        ("torchvision/squeezenet1_1", 40),
        ("torchvision/mobilenet_v2", 32),
        ("torchvision/densenet121", 32),
    ],
)
def test_torchvisions_networks_load_bit_equal(name: str, size: int, tmp_path: Path) -> None:
    net = warm(build_seeded(0, name, num_classes=5), size, images=8)
    plan = make_plan(net, torch.zeros(1, 3, size, size), importance("kernel_l1", model=net), ratio=0.3)
    compact = prune(net, plan)
    save_compact(tmp_path / "file", compact, plan)
    again = load_compact(tmp_path / "file", build_seeded(7, name, num_classes=5).eval())
    assert_equal_bits(again, compact)
    images = torch.randn(2, 3, size, size)
    assert again(images).equal(compact(images))


TIED = {
    "readers": lambda: two_readers(conv(8, 4), conv(8, 4)),
    "linear": two_heads,
    "two names": two_names,
}


@pytest.mark.parametrize("make", TIED.values(), ids=TIED)
def test_networks_with_shared_weights_load_bit_equal_and_shared(make: Callable[[], Net], tmp_path: Path) -> None:
    net = make()
    plan = plan_of(net)
    compact = prune(net, plan)
    save_compact(tmp_path / "file", compact, plan)
    again = load_compact(tmp_path / "file", make())
    assert_equal_bits(again, compact)
    assert again.one.weight is again.two.weight and again(IMAGES).equal(compact(IMAGES))
    shared = sum(parameter.numel() * 4 for parameter in compact.parameters())
    assert shared < (tmp_path / "file").stat().st_size < shared + 3000  # what is shared is written once


def test_a_sum_of_tied_layers_loads_bit_equal(tmp_path: Path) -> None:
    net = a_sum()
    plan = plan_of(net, "all")
    compact = prune(net, plan)
    save_compact(tmp_path / "file", compact, plan)
    again = load_compact(tmp_path / "file", a_sum())
    assert_equal_bits(again, compact)
    assert again.one.bias is again.two.bias


@pytest.mark.parametrize(("times", "scope"), [(2, "inner"), (3, "inner"), (3, "all")])
def test_a_network_pruned_several_times_loads_from_its_file_alone(times: int, scope: Scope, tmp_path: Path) -> None:
    net = warm(build_seeded(0, "resnet20", num_classes=3, width=0.5), images=8)
    compact, plans = net, []
    for number in range(times):
        scores = importance("random", model=compact, seed=number)
        chosen = {name: score for name, score in scores.items() if number != 1 or "stage2" in name}  # not all layers each time
        plans.append(make_plan(compact, torch.zeros(1, 3, 32, 32), chosen, ratio=0.3, scope=scope))
        compact = prune(compact, plans[-1])
    save_compact(tmp_path / "file", compact, plans)
    again = load_compact(tmp_path / "file", build_seeded(5, "resnet20", num_classes=3, width=0.5).eval())
    assert_equal_bits(again, compact)
    assert again(torch.ones(2, 3, 32, 32)).equal(compact(torch.ones(2, 3, 32, 32)))


def pruned_twice() -> tuple[nn.Module, nn.Module, list[PruningPlan]]:
    net = two_heads()
    first = plan_of(net)
    once = prune(net, first)
    second = plan_of(once)
    return once, prune(once, second), [first, second]


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        (lambda plans: plans[0], "the plan did not make this network: by the plan, a has 3 channels"),
        (lambda plans: plans[::-1], "the plans do not follow one another: before the next, a has 1 channels"),
        (lambda plans: [plans[0], plans[0]], "the plans do not follow one another"),
        (lambda plans: [], "plan=.* is not allowed"),
        (lambda plans: plans[0].model_dump(), "plan={.* is not allowed"),
        (lambda plans: [plans[0], None], "plan=.* is not allowed"),
        (lambda plans: plans[0].model_dump_json(), "plan=.* is not allowed"),
    ],
)
def test_plans_that_did_not_make_the_network_are_refused(pick: Callable[[list], object], message: str, tmp_path: Path) -> None:
    _, twice, plans = pruned_twice()
    with pytest.raises(StudyError, match=message):
        save_compact(tmp_path / "file", twice, pick(plans))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_the_architecture_are_refused(tmp_path: Path) -> None:
    net = two_readers(conv(8, 4), conv(8, 4))
    plan = plan_of(net)
    compact = prune(net, plan)
    compact.two.weight = nn.Parameter(compact.two.weight + 1)  # no longer shared
    save_compact(tmp_path / "apart", compact, plan)
    save_compact(tmp_path / "double", prune(net, plan).double(), plan)
    with pytest.raises(StudyError, match="apart belongs to another architecture, whose layers do not share the same weights"):
        load_compact(tmp_path / "apart", net)
    with pytest.raises(StudyError, match="double does not fit: its .* is torch.float64, the architecture's torch.float32"):
        load_compact(tmp_path / "double", net)
    again = load_compact(tmp_path / "double", two_readers(conv(8, 4), conv(8, 4)).double())
    assert again.one.weight.dtype == torch.float64


def test_a_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Noted(nn.Linear):
        def get_extra_state(self) -> str:
            return "note"

        def set_extra_state(self, state: str) -> None:
            pass

    net = Net(lambda net, images: net.head(net.a(images).relu().mean((2, 3))), a=conv(3, 6), head=Noted(6, 2)).eval()
    plan = make_plan(net, IMAGES, {"a": torch.arange(6.0)}, ratio=0.5)
    with pytest.raises(StudyError, match="its head._extra_state is no tensor"):
        save_compact(tmp_path / "file", prune(net, plan), plan)


# -- the files below -----------------------------------------------------------------------------------------------------


def test_shared_memory_is_written_once_and_views_in_full(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors: dict[str, Tensor] = {
        "whole": whole,
        "same": whole,
        "row": whole[1],
        "turned": whole.T,
        "none": whole[:0],
        "nil": whole[:0],
    }
    write_tensors(tmp_path / "file", tensors, {"note": "x"})
    again, metadata = read_tensors(tmp_path / "file")
    assert again.keys() == tensors.keys() and all(again[name].equal(tensor) for name, tensor in tensors.items())
    assert metadata == {"note": "x"}


def test_ties_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    for ties in ('{"b": "c"}', '{"a": "a"}', '{"b": ["a"]}', "[]", "{"):
        write_tensors(tmp_path / "file", {"a": torch.ones(2)}, {"ties": ties})
        with pytest.raises(StudyError, match="file"):
            read_tensors(tmp_path / "file")


def test_a_checkpoint_holds_shared_weights_and_states_with_versions(tmp_path: Path) -> None:
    for net, other in ((two_norms(), two_norms()), (build_seeded(0, "torchvision/mnasnet0_5", num_classes=3),) * 2):
        checkpoint = Checkpoint(tmp_path / "file", "key")
        checkpoint.save([net], [], [])
        assert checkpoint.restore([other], []) == []
        assert_equal_bits(other, net)


def test_the_cost_of_shared_weights_is_counted_once() -> None:
    net = two_readers(conv(8, 4), conv(8, 4))
    cost = measure_cost(net, IMAGES[:1])
    assert cost.params == 3 * 8 * 9 + 8 + 8 * 4 + 2 * 4 + 8 * 2 + 2
    assert 4 * cost.params < cost.bytes < 4 * cost.params + 1500
    load_state(net, net.state_dict())
