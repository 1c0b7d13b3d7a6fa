"""What networks yield for images, with constants in place of chance, and how far it is from what others yield."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fcs_utils.inputs import Inputs, call, placed
from fcs_utils.running import EagerMode, seed_draws, shared, tensors_in

aten = torch.ops.aten
DRAWS = {aten.bernoulli, aten.bernoulli_, aten.uniform_, aten.normal_, aten.rand, aten.rand_like, aten.randn, aten.randn_like}


class ForwardPass(NamedTuple):
    """What a network yields for images."""

    training: bool
    images: Inputs
    outputs: list[Tensor]


class _Constants(EagerMode):
    """Puts 0.5 in place of every random number: networks of other widths would draw others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if func is aten.rrelu_with_noise.default:
            return func(*args[:4], False)
        if func is aten.convolution.default and _is_slow(*args):
            return _depthwise(*args[:6])
        result = func(*args, **(kwargs or {}))
        return result.fill_(0.5) if func.overloadpacket in DRAWS else result


def _is_slow(maps: Tensor, weight: Tensor, *options: Any) -> bool:
    """Whether torch makes a convolution of one call a channel: a depthwise one in float64 on a CPU."""
    _, *windows, transposed, _, groups = options
    depthwise = groups == len(weight) == maps.shape[1] > 1 and not transposed
    plane = maps.dim() == 4 and all(len(one) == 2 for one in windows)
    return depthwise and plane and maps.dtype is torch.float64 and maps.device.type == "cpu"


def _depthwise(
    maps: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """A depthwise convolution (N, C, H, W) as a sum over its kernel's positions, ten times as fast on small maps."""
    maps = nn.functional.pad(maps, (padding[1], padding[1], padding[0], padding[0]))
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    total: Tensor | None = None
    for row, column in itertools.product(*map(range, weight.shape[2:])):
        top, left = row * dilation[0], column * dilation[1]
        seen = maps[:, :, top : maps.shape[2] - spans[0] + top : stride[0], left : maps.shape[3] - spans[1] + left : stride[1]]
        part = seen * weight[:, 0, row, column].view(-1, 1, 1)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total if bias is None else total.add_(bias.view(-1, 1, 1))


def first_run(model: nn.Module, choices: Sequence[Inputs], training: bool) -> tuple[list[ForwardPass], Exception | None]:
    """What a network yields for the first of these images on which it runs; where it runs on none, why not on the first."""
    failure: Exception | None = None
    for images in choices:
        try:
            return [ForwardPass(training, images, outputs_of(model, images, training))], None
        except Exception as error:  # noqa: BLE001 - the network is the user's: it can raise anything
            failure = failure or error
    return [], failure


def outputs_of(model: nn.Module, images: Inputs, training: bool) -> list[Tensor]:
    model.train(training)
    weight = next(model.parameters())
    with shared, torch.random.fork_rng([weight.device] if weight.is_cuda else []), torch.no_grad(), _Constants():
        seed_draws(0, weight.device)
        return tensors_in(call(model, placed(images, weight)))


def gap_between(wanted: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference as a share of the largest value; infinite where shapes or places of NaN differ."""
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in got]:
        return float("inf")
    worst = 0.0
    for one, other in zip(wanted, got, strict=True):
        one, other = one.to(torch.complex128), other.to(torch.complex128)  # outputs may be masks, indices or spectra
        finite = one.isfinite()
        if not other.isfinite().equal(finite):
            return float("inf")
        if finite.any():
            far, scale = (one - other)[finite].abs().max().item(), one[finite].abs().max().item()
            worst = max(worst, far / scale if scale else far)
    return worst


def defined_in(outputs: Sequence[Tensor]) -> bool:
    return any(bool(tensor.isfinite().any()) for tensor in outputs)
