"""First-order Taylor expansion on activations (Molchanov et al. 2017): the one criterion that needs gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.activations import pick_layers, watched
from fcs_utils.errors import StudyError, refuse
from fcs_utils.structure import Layer, check_images, evaluating, traceable


def taylor(
    model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str] | None = None, batch_size: int = 64
) -> dict[str, Tensor]:
    """Mean over images of |sum over positions of activation times gradient|, by layer (C,), unit length in each.

    images: (N, C, H, W), normalised. labels: (N,) int64. The pass is its own, in eval mode, and leaves no
    gradients behind. Raises StudyError for labels that do not fit.
    """
    check_images(model, images)
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise refuse("labels", f"{labels.dtype} {tuple(labels.shape)}", f"int64 ({len(images)},), one label an image")
    wanted = pick_layers(model, images, layers)
    sums = {layer.name: torch.zeros(layer.channels, dtype=torch.float64, device=images.device) for layer in wanted}

    def receive(layer: Layer, seen: Tensor) -> None:
        value = seen.detach().clone()  # an in-place activation may overwrite the tensor before its gradient comes

        def add(gradient: Tensor) -> None:
            product = layer.tap.view(value * gradient).flatten(2).sum(2)  # (N, C)
            sums[layer.name] += product.abs().sum(0, dtype=torch.float64)

        seen.register_hook(add)

    with traceable(model), evaluating(model), watched(model, wanted, receive):
        for batch, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            # Towards the input: its gradient is cheap to ask for, and no parameter's is stored.
            batch = batch.contiguous(memory_format=torch.channels_last).requires_grad_()
            logits = model(batch)
            if logits.dim() != 2 or truth.min() < 0 or truth.max() >= logits.shape[1]:
                raise refuse("labels", f"{int(truth.min())} to {int(truth.max())}", f"classes of logits {tuple(logits.shape)}")
            torch.autograd.grad(F.cross_entropy(logits.float(), truth, reduction="sum"), batch)
    scores = {name: total.cpu() / len(images) for name, total in sums.items()}
    if broken := [name for name, score in scores.items() if not score.isfinite().all()]:
        raise StudyError(f"criterion 'taylor': gradients of {broken[0]} are NaN or infinite")
    return {name: score / score.norm().clamp_min(torch.finfo(score.dtype).tiny) for name, score in scores.items()}
