"""SGD under a one-cycle learning rate, and the schedule that it follows."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fcs_utils.config import Config, Count, Positive


class Training(Config):
    """SGD with Nesterov momentum under a one-cycle schedule; the same for references and fine-tuning."""

    epochs: Count
    learning_rate: Positive
    batch_size: Count = 128
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4


class Optimiser:
    """SGD with momentum under a one-cycle learning rate."""

    def __init__(self, network: nn.Module, training: Training, rate: float, batches: int) -> None:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sgd = torch.optim.SGD(network.parameters(), rate, training.momentum, weight_decay=training.weight_decay,
                                   nesterov=training.momentum > 0,
                                   fused=next(network.parameters()).device.type == "cuda")  # fmt: skip
        # Total steps of 1 leave OneCycle no room between its phases.
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(
            self.sgd, rate, total_steps=max(2, training.epochs * batches), cycle_momentum=False
        )

    def update(self, loss: Tensor) -> None:
        """One step down a loss."""
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        self.cycle.step()
