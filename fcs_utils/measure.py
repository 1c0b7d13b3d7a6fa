"""What a network costs, measured on the network itself: parameters, MACs, bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fcs_utils.structure import evaluating


@dataclass(frozen=True)
class Cost:
    """params: trainable numbers. macs: multiply-adds of one image. bytes: of the weights as safetensors."""

    params: int
    macs: int
    bytes: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@torch.no_grad()
def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of convolutions and linear layers for one image; example: (N, C, H, W)."""
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(example[:1])
    return counter.get_total_flops() // 2  # one multiply-add is two operations


@torch.no_grad()
def module_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-adds of one image by convolution or linear layer; example: (N, C, H, W)."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(example[:1])
    # The counter's names start with the network's class.
    counts = {name.partition(".")[2]: sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    return {name: counts[name] for name in names if counts.get(name)}


def measure_cost(model: nn.Module, example: Tensor) -> Cost:
    """Parameters, MACs and bytes of a network for one image of example's shape (N, C, H, W)."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return Cost(sum(p.numel() for p in model.parameters()), count_macs(model, example), len(save(state)))
