"""Predictions and top-1 accuracy, in eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.data.dataset import Dataset, Split
from fcs_utils.inputs import call, moved
from fcs_utils.running import evaluating
from fcs_utils.training.fitting import InputBatch
from fcs_utils.training.losses import distance
from fcs_utils.training.passes import autocast


@torch.no_grad()
def predict(networks: Sequence[nn.Module], batches: Iterable[InputBatch], precision: str = "fp32") -> tuple[list[Tensor], Tensor]:
    """Logits (N, K) float32 of each network and labels (N,), from one pass over the batches in eval mode, which is put back."""
    device = next((parameter.device for parameter in networks[0].parameters()), torch.device("cpu"))
    found: list[list[Tensor]] = [[] for _ in networks]
    truth = []
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(evaluating(network))
        stack.enter_context(autocast(device, precision))
        for images, labels in batches:
            images = moved(images, device)
            for network, logits in zip(networks, found, strict=True):
                logits.append(call(network, images).float())
            truth.append(labels.to(device))
    return [torch.cat(logits) for logits in found], torch.cat(truth)


def accuracy(model: nn.Module, dataset: Dataset, split: Split, precision: str = "fp32", batch_size: int | None = None) -> float:
    """Top-1 in percent, in eval mode. The mode is put back. batch_size: images at once; default as ``Dataset.in_order``."""
    (logits,), labels = predict([model], dataset.in_order(split, batch_size), precision)
    return top1(logits, labels)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers in percent: logits (N, K), labels (N,)."""
    return 100 * (logits.argmax(1) == labels).sum().item() / len(labels)


def evaluate(networks: Sequence[nn.Module], batches: Iterable[InputBatch], precision: str = "fp32") -> dict[str, float | None]:
    """Accuracy and loss of one network or of a network and its peer on validation batches, in eval mode.

    batches: images (B, C, H, W), or all inputs, and labels (B,), gone through once. Returns ``validation`` (top-1 in percent),
    ``validation_loss`` (mean cross-entropy in nats), ``peer_validation`` and ``peer_kl``, which is KL(peer || first)
    in nats; the last two are None without a peer.
    """
    logits, labels = predict(networks, batches, precision)
    peer = logits[1] if len(logits) > 1 else None
    return {
        "validation": top1(logits[0], labels),
        "validation_loss": F.cross_entropy(logits[0], labels).item(),
        "peer_validation": None if peer is None else top1(peer, labels),
        "peer_kl": None if peer is None else distance(logits[0], peer, 1.0).item(),
    }
