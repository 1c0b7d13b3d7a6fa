"""Logits in, one loss per network out: cross-entropy (M10) and mutual learning (M11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fcs_utils.config import NotNegative, Positive, checked
from fcs_utils.errors import refuse

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


def check_logits(logits: Sequence[Tensor], labels: Tensor) -> None:
    """Raises StudyError for logits that are not (B, K) with one K, and labels that are not (B,) int64 of 0 to K - 1."""
    for one in logits:
        if not isinstance(one, Tensor) or one.dim() != 2:
            found = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
            raise refuse("logits", str(found), "a tensor (B, K); of networks with auxiliary heads build one without them")
    sizes = {one.shape[1] for one in logits}
    if len(sizes) > 1:
        raise refuse("logits", f"of {' and '.join(map(str, sorted(sizes)))} classes", "networks with equal classes")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or any(labels.shape != one.shape[:1] for one in logits):
        raise refuse("labels", labels, f"an int64 tensor {tuple(logits[0].shape[:1])}, one label an image")
    if on_the_host(labels):
        check_range(labels, min(sizes))


def on_the_host(labels: Tensor) -> bool:
    """Whether labels can be looked at without a wait: those on a GPU come after all that it still has to do."""
    return labels.device.type == "cpu"


def check_range(labels: Tensor, classes: int) -> None:
    """Raises StudyError for labels (B,) outside 0 to ``classes`` - 1."""
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise refuse("labels", f"{int(labels.min())} to {int(labels.max())}", f"0 to {classes - 1}, the classes of the logits")


@checked
def mutual(temperature: Positive = 1.0, strength: NotNegative = 1.0) -> Losses:
    """(M11) The loss of mutual learning: two networks learn from the labels and from each other.

    Returns a function of the logits of two networks, (B, K) each, and labels (B,). It gives one scalar loss for each
    network, in nats: its cross-entropy plus ``strength`` times T^2 KL(other || own), with T the ``temperature``. Each
    takes the other's predictions as a fixed target, so each loss has gradients in its own network only.

    Raises StudyError for a temperature or strength that is no such number, and where the function is given the logits of
    fewer or more than two networks, of different classes, or labels that do not fit them. Whether labels on a GPU are of
    these classes is not looked at, because each step would have to wait; ``fit`` looks.

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
        if len(logits) != 2:
            raise refuse("logits", f"of {len(logits)} networks", "those of two networks")
        check_logits(logits, labels)
        compact, peer = logits
        return [
            F.cross_entropy(compact, labels) + strength * distance(compact, peer, temperature),
            F.cross_entropy(peer, labels) + strength * distance(peer, compact, temperature),
        ]

    return losses
