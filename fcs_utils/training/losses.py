"""Logits in, one loss per network out: cross-entropy (M10) and mutual learning (M11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

# Logits (B, K) of every network and labels (B,) -> one loss for every network.
Losses = Callable[[Sequence[Tensor], Tensor], list[Tensor]]


def cross_entropy(logits: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """(M10) The mean cross-entropy of each network, in nats: logits (B, K) each, labels (B,)."""
    return [F.cross_entropy(one, labels) for one in logits]


def distance(own: Tensor, peer: Tensor, temperature: float) -> Tensor:
    """T^2 KL(peer || own) of softened predictions in nats, mean over the batch; logits (B, K).

    The peer is a fixed target: no gradient reaches it. T^2 keeps the gradient's size when T changes (Hinton et al. 2015).
    """
    target = F.log_softmax(peer.detach() / temperature, 1)
    return temperature**2 * F.kl_div(F.log_softmax(own / temperature, 1), target, reduction="batchmean", log_target=True)


def mutual(temperature: float = 1.0, strength: float = 1.0) -> Losses:
    """(M11) The loss of mutual learning: two networks learn from the labels and from each other.

    Returns a function of the logits of two networks, (B, K) each, and labels (B,). It gives one scalar loss for each
    network, in nats: its cross-entropy plus ``strength`` times T^2 KL(other || own), with T the ``temperature``. Each
    takes the other's predictions as a fixed target, so each loss has gradients in its own network only.

    Raises ValueError where it is given the logits of fewer or more than two networks.

    Source: Zhang, Xiang, Hospedales, Lu, Deep Mutual Learning, CVPR 2018; the temperature is from Hinton, Vinyals,
    Dean, Distilling the Knowledge in a Neural Network, 2015.

    >>> import torch
    >>> from fcs_utils import mutual
    >>> logits, labels = [torch.randn(8, 10), torch.randn(8, 10)], torch.arange(8)
    >>> compact, peer = mutual(temperature=2.0, strength=0.5)(logits, labels)
    >>> compact.shape, peer.shape
    (torch.Size([]), torch.Size([]))
    """

    def losses(logits: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        compact, peer = logits
        return [
            F.cross_entropy(compact, labels) + strength * distance(compact, peer, temperature),
            F.cross_entropy(peer, labels) + strength * distance(peer, compact, temperature),
        ]

    return losses
