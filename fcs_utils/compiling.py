"""torch.compile for training passes: an option, since compiling takes as long as some trainings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fcs_utils.errors import is_out_of_memory

Pass = Callable[[Tensor], Tensor]


def compiled(network: nn.Module) -> Pass:
    """The network's forward pass through torch.compile, kernels for its backward pass included; weights stay its own.

    Equal to the plain pass up to rounding. Where compiling fails, such as on a machine without a C++ compiler, it
    warns once and is the plain pass.
    """
    # Runs side by side have a thread each already; on a lone GPU run compiling may take all.
    if torch.get_num_threads() == 1:
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    attempt: Pass = torch.compile(network)
    tried = False

    def forward(images: Tensor) -> Tensor:
        nonlocal attempt, tried
        if tried:
            return attempt(images)
        tried = True
        state = {name: value.clone() for name, value in network.named_buffers()}  # an attempt must leave no trace
        try:
            return attempt(images)
        except RuntimeError as error:  # of which all of the compiler's are
            if is_out_of_memory(error):
                raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            warnings.warn(f"torch.compile failed, training goes on without it: {first}", stacklevel=2)
            attempt = network
            with torch.no_grad():
                for name, value in network.named_buffers():
                    value.copy_(state[name])
            return attempt(images)

    return forward
