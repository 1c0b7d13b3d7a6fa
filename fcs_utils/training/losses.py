"""Logits in, one loss per network out: cross-entropy (M10) and mutual learning (M11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

# Logits of every network -> one loss per network.
Losses = Callable[[Sequence[Tensor], Tensor], list[Tensor]]


def cross_entropy(logits: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """(M10) TFT: logits (B, K) of one network, labels (B,) -> its mean cross-entropy."""
    return [F.cross_entropy(one, labels) for one in logits]


def distance(own: Tensor, peer: Tensor, temperature: float) -> Tensor:
    """T^2 KL(peer || own) of softened predictions, mean over the batch; the peer is a fixed target.

    T^2 keeps the gradient's size when T changes (Hinton et al. 2015).
    """
    target = F.log_softmax(peer.detach() / temperature, 1)
    return temperature**2 * F.kl_div(F.log_softmax(own / temperature, 1), target, reduction="batchmean", log_target=True)


def mutual(temperature: float = 1.0, strength: float = 1.0) -> Losses:
    """(M11) MLFT: each network learns from the labels and from the other (Zhang et al. 2018)."""

    def losses(logits: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        compact, peer = logits
        return [
            F.cross_entropy(compact, labels) + strength * distance(compact, peer, temperature),
            F.cross_entropy(peer, labels) + strength * distance(peer, compact, temperature),
        ]

    return losses
