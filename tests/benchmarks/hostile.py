"""Networks that cannot be pruned, and some that their process does not survive; ``fcs-mlft networks`` must."""

from __future__ import annotations

import os
import sys
import time

import torch
from torch import Tensor, nn


class Aborting(nn.Conv2d):
    """Ends its process as a fault in native code does, in the first forward pass."""

    def forward(self, images: Tensor) -> Tensor:
        os.abort()


def all_outputs() -> nn.Module:
    print("no result, and no end of the line: ", end="")
    return nn.Sequential(nn.Conv2d(3, 4, 3))


def hangs() -> nn.Module:
    while True:
        time.sleep(1)


def aborts() -> nn.Module:
    return Aborting(3, 4, 1)


def leaves() -> nn.Module:
    sys.exit(0)


def greedy() -> nn.Module:
    return nn.Linear(1, torch.empty(2**44, dtype=torch.uint8).numel())
