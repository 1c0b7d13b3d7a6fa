"""Predictions and top-1 accuracy, in eval mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.data.dataset import Dataset, Split
from fcs_utils.models import evaluating
from fcs_utils.training.losses import distance
from fcs_utils.training.passes import autocast


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset, split: Split, precision: str = "fp32", batch_size: int = 500) -> Tensor:
    """Logits (N, K) float32, in eval mode. The mode is put back."""
    with evaluating(model), autocast(split.images.device, precision):
        return torch.cat([model(dataset.normalise(images)).float() for images in split.images.split(batch_size)])


def accuracy(model: nn.Module, dataset: Dataset, split: Split, precision: str = "fp32", batch_size: int = 500) -> float:
    """Top-1 in percent, in eval mode. The mode is put back."""
    return top1(predict(model, dataset, split, precision, batch_size), split.labels)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers in percent: logits (N, K), labels (N,)."""
    return 100 * (logits.argmax(1) == labels).sum().item() / len(labels)


def evaluate(networks: Sequence[nn.Module], dataset: Dataset, precision: str) -> dict[str, float | None]:
    """Validation accuracy and loss of one or two networks, and how far the second one's predictions are from the first's."""
    logits = [predict(network, dataset, dataset.validation, precision) for network in networks]
    peer = logits[1] if len(logits) > 1 else None
    return {
        "validation": top1(logits[0], dataset.validation.labels),
        "validation_loss": F.cross_entropy(logits[0], dataset.validation.labels).item(),
        "peer_validation": None if peer is None else top1(peer, dataset.validation.labels),
        "peer_kl": None if peer is None else distance(logits[0], peer, 1.0).item(),
    }
