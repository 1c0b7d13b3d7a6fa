"""What cannot be cut exactly stays whole, with its name and its reason, and the rest of the network is pruned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune as cut
from tests.pruning.test_tracing import pruned_exactly
from tests.pruning.toys import Net, conv, mean

# Layers that hold more than weights


def with_norm(norm: nn.Module) -> nn.Module:
    return Net(
        lambda n, x: n.head(mean(n.c(n.norm(n.b(n.a(x).relu())).relu()).relu())),
        a=conv(3, 6),
        b=conv(6, 8),
        norm=norm,
        c=conv(8, 6),
        head=nn.Linear(6, 2),
    )


class Affine(nn.Module):
    def __init__(self, shape: tuple[int, ...], buffer: bool = False) -> None:
        super().__init__()
        (self.register_buffer if buffer else self.register_parameter)("scale", nn.Parameter(torch.rand(shape) + 0.5))
        self.register_buffer("one", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.reshape(1, -1, 1, 1) * self.one


def frozen() -> nn.Module:
    norm = torchvision.ops.FrozenBatchNorm2d(8)
    for tensor in norm.buffers():
        tensor.copy_(torch.rand(8) + 0.5)
    return norm


def instance() -> nn.Module:
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    norm.running_mean.copy_(torch.randn(8))
    norm.running_var.copy_(torch.rand(8) + 0.5)
    return norm


VECTORS = {
    "frozen batch norm": frozen,
    "instance norm": instance,
    "layer scale": lambda: Affine((8, 1, 1)),
    "scale of buffers": lambda: Affine((1, 8, 1, 1), buffer=True),
    "slopes": lambda: nn.PReLU(8),
    "a block's parameter": lambda: Holder(False),
}


@pytest.mark.parametrize("case", VECTORS)
def test_modules_of_one_number_a_channel_are_cut(case: str) -> None:
    net, images = with_norm(VECTORS[case]()), torch.randn(3, 3, 8, 8)
    plan = pruned_exactly(net, images)
    assert set(plan.kept) == {"a", "b", "c"}
    norm = cut(net, plan).norm
    assert all(t.numel() in (1, 4) for t in [*norm.parameters(), *norm.buffers()])
    assert all(t.numel() in (1, 8) for t in [*net.norm.parameters(), *net.norm.buffers()])


class Blur(nn.Module):
    """A fixed filter for each channel, as anti-aliased networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(8, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=8)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,nchw->nohw", self.weights, x)


class Holder(nn.Module):
    """A block whose own parameter or buffer meets the channels of the layers inside it."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.inside = nn.ReLU()
        (self.register_buffer if buffer else self.register_parameter)("gain", nn.Parameter(torch.rand(8, 1, 1) + 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) * self.gain


WHOLE = {
    "filters of buffers": (Blur, "norm.kernel"),
    "a matrix of its own": (Mixture, "norm.weights"),
    "a block's buffer": (lambda: Holder(True), "norm.gain"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_cannot_be_cut_is_named_and_the_rest_is_pruned(case: str) -> None:
    build, name = WHOLE[case]
    plan = pruned_exactly(with_norm(build()), torch.randn(3, 3, 8, 8))
    assert set(plan.kept) == {"a", "c"} and name in plan.skipped["b"]


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": spectral_norm,
    "mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "mask of biases": lambda layer: prune.random_unstructured(layer, "bias", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("case", COMPUTED)
@pytest.mark.parametrize("layer", ["b", "c", "head"])
def test_layers_with_computed_weights_are_left_whole(case: str, layer: str) -> None:
    net, images = with_norm(nn.BatchNorm2d(8)), torch.randn(3, 3, 8, 8)
    COMPUTED[case](net.get_submodule(layer))
    with torch.no_grad():
        net.eval()(images)
    plan = make_plan(net, images, importance("random", model=net), ratio=0.5)
    whole = {"b": {"a", "b"}, "c": {"b", "c"}, "head": {"c"}}[layer]  # what it writes and what it reads
    assert set(plan.skipped) == whole and set(plan.kept) == {"a", "b", "c"} - whole
    kind = "bias" if "bias" in case else "weight"
    assert all(f"the {kind} of {layer} is computed" in reason for reason in plan.skipped.values())


# Readers of one dimension, recurrent readers, routes that depend on the image, compiled networks

ODD: dict[str, Callable[[], Net]] = {
    "GRU": lambda: Net(
        lambda n, x: n.head(n.read(n.b(n.a(x).relu()).relu().flatten(2).transpose(1, 2))[0][:, -1]),
        **{"a": conv(3, 6), "b": conv(6, 8), "read": nn.GRU(8, 5, batch_first=True), "head": nn.Linear(5, 3)},
    ),
    "LSTM": lambda: Net(
        lambda n, x: n.head(n.read(n.b(n.a(x).relu()).relu().mean(3).transpose(1, 2))[0][:, -1]),
        **{"a": conv(3, 6), "b": conv(6, 8), "read": nn.LSTM(8, 5, batch_first=True), "head": nn.Linear(5, 3)},
    ),
    "squeezed": lambda: Net(
        lambda n, x: n.head(n.b(n.a(x).relu()).relu().mean((2, 3)).squeeze()),
        **{"a": conv(3, 6), "b": conv(6, 8), "head": nn.Linear(8, 3)},
    ),
    "filters from a mean": lambda: Net(
        lambda n, x: mean(F.conv2d(h := n.b(n.a(x).relu()).relu(), n.make(h.mean((0, 2, 3))).view(3, 8, 1, 1))),
        **{"a": conv(3, 6), "b": conv(6, 8), "make": nn.Linear(8, 24)},
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_an_odd_reader_reads_stays_whole_and_the_rest_is_pruned(case: str) -> None:
    torch.manual_seed(0)
    plan = pruned_exactly(ODD[case]().eval(), torch.randn(3, 3, 4, 4))
    assert set(plan.kept) == {"a"} and set(plan.skipped) == {"b"} and "is computed" not in plan.skipped["b"]


class Standardised(nn.Conv2d):
    """Weight standardisation with a gain, as in NFNets (Brock et al. 2021)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) * self.gain, self.bias, padding=1)


class LowRank(nn.Linear):
    """A linear layer with LoRA's two matrices (Hu et al. 2022)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


def test_a_layer_with_further_parameters_stays_whole_and_its_reason_names_them() -> None:
    torch.manual_seed(0)
    net = Net(lambda n, x: mean(n.c(n.b(n.a(x).relu()).relu())), a=conv(3, 6), b=Standardised(6, 8), c=conv(8, 4)).eval()
    with pytest.raises(StudyError, match="b: b, a Standardised, has gain, a parameter that is not cut") as refused:
        make_plan(net, torch.randn(2, 3, 8, 8), {"a": torch.arange(6.0), "b": torch.arange(8.0)}, ratio=0.5)
    assert "a: the network looks at the index or number of its channels" in str(refused.value)  # the mean over inputs
    net = Net(lambda n, x: n.d(n.c(n.b(mean(n.a(x).relu())).relu()).relu()), a=conv(3, 6), b=LowRank(6, 8)).eval()
    net.c, net.d = nn.Linear(8, 6), nn.Linear(6, 2)
    scores = {"a": torch.arange(6.0), "b": torch.arange(8.0), "c": torch.arange(6.0)}
    plan = make_plan(net, torch.randn(2, 3, 8, 8), scores, ratio=0.5, scope="all")
    assert set(plan.kept) == {"c"} and plan.skipped["a"].endswith(
        "b, a LowRank, has down, a parameter that is not cut with the channels"
    )
    assert plan.skipped["b"].startswith("b, a LowRank, has up, a parameter")


@pytest.mark.parametrize("part", ["all", "a part"])
def test_a_compiled_network_is_refused_by_name(part: str) -> None:
    net = Net(lambda n, x: mean(n.b(n.a(x).relu())), a=conv(3, 6), b=conv(6, 4)).eval()
    plan, images = make_plan(net, torch.randn(2, 3, 8, 8), {"a": torch.arange(6.0)}, ratio=0.5), torch.randn(2, 3, 8, 8)
    assert set(plan.kept) == {"a"}
    if part == "all":
        net = torch.compile(net, backend="eager")
    else:
        net.b = torch.compile(net.b, backend="eager")
    for call in (lambda: collect_statistics(net, images), lambda: make_plan(net, images, {}, ratio=0.5)):
        with pytest.raises(StudyError, match="made by torch.compile.*_orig_mod"):
            call()


def test_a_layer_named_twice_is_counted_once_and_importances_are_real() -> None:
    net, images = Net(lambda n, x: mean(n.b(n.a(x).relu())), a=conv(3, 6), b=conv(6, 4)).eval(), torch.randn(2, 3, 8, 8)
    once, twice = (collect_statistics(net, images, layers=layers)["a"] for layers in (["a"], ["a", "a"]))
    assert once.count == twice.count == 2 * 8 * 8 and once.gram.equal(twice.gram)
    for kind in (torch.complex64, torch.complex128):
        with pytest.raises(StudyError, match="importance of a must be 6 finite numbers, got torch.complex"):
            make_plan(net, images, {"a": torch.zeros(6, dtype=kind)}, ratio=0.5)
