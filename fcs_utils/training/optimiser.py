"""SGD with Nesterov momentum under a one-cycle learning rate."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fcs_utils.config import Config, Count, NotNegative, Positive


class Training(Config):
    """A schedule: so many epochs of SGD with Nesterov momentum; ``learning_rate`` is the peak of the one cycle.

    batch_size: images a step; the data set makes batches of that size, batches of your own have theirs.
    """

    epochs: Count
    learning_rate: Positive
    batch_size: Count = 128
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4


class Optimiser:
    """Updates one network.

    steps: batches in the whole schedule. layout: of the weights, but not of those of volumes; see ``fitting.layout_of``.
    """

    def __init__(
        self,
        network: nn.Module,
        training: Training,
        learning_rate: float,
        steps: int,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        if layout is torch.channels_last and not any(parameter.dim() == 5 for parameter in network.parameters()):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sgd = torch.optim.SGD(
            network.parameters(),
            learning_rate,
            training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.momentum > 0,
            fused=next(network.parameters()).device.type == "cuda",
        )
        # Total steps of 1 leave OneCycle no room between its phases.
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(self.sgd, learning_rate, total_steps=max(2, steps), cycle_momentum=False)

    def update(self, loss: Tensor) -> None:
        """One step down a scalar loss."""
        self.sgd.zero_grad()
        with torch.autocast(loss.device.type, enabled=False):  # the caller's own would reach into the backward pass
            loss.backward()
        self.sgd.step()
        self.cycle.step()
