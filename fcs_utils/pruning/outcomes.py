"""What networks yield for images, with constants in place of chance, and how far it is from what others yield."""

from __future__ import annotations

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
        result = func(*args, **(kwargs or {}))
        return result.fill_(0.5) if func.overloadpacket in DRAWS else result


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
