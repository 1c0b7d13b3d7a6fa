"""The baseline criteria: what FCS is compared with, each one function of a layer's weights or statistics.

Their order is the order in which lists and menus show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.inputs import Inputs, count_of, laid_out, of_each, parts_of, split_batches
from fcs_utils.pruning.criteria import criterion
from fcs_utils.pruning.graph import traceable
from fcs_utils.pruning.kinds import Prunable, kernel, out_width
from fcs_utils.pruning.layers import Layer
from fcs_utils.pruning.statistics import ChannelStatistics, pick_layers, watched
from fcs_utils.pruning.sums import Extra, in_float32
from fcs_utils.running import memory_format, run_network, untouched


@criterion("random", reads="noise", title="random channels", reading="random channels")
def random(layer: Prunable, generator: torch.Generator) -> Tensor:
    """Uniform noise: the floor that every criterion must beat."""
    return torch.rand(out_width(layer), generator=generator, dtype=torch.float64)


@criterion("kernel_l1", reads="weights", title="kernel L1 norm", reading="L1 norm of the filter")
def kernel_l1(layer: Prunable) -> Tensor:
    """L1 norm of each output filter (Li et al. 2017), the paper's kernel-norm baseline."""
    return _filters(layer).abs().sum(1)


@criterion("kernel_l2", reads="weights", title="kernel L2 norm", reading="L2 norm of the filter")
def kernel_l2(layer: Prunable) -> Tensor:
    """L2 norm of each output filter (Li et al. 2017, their alternative)."""
    return _filters(layer).norm(dim=1)


@criterion("fpgm", reads="weights", title="FPGM", reading="distance to the layer's other filters")
def fpgm(layer: Prunable) -> Tensor:
    """Sum of Euclidean distances to all filters of the layer (He et al. 2019): low near their geometric median."""
    filters = _filters(layer)
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def _filters(layer: Prunable) -> Tensor:
    return kernel(layer).double().flatten(1).cpu()


@criterion("feature_norm", reads="statistics", title="layer-wise feature norm", reading="L1 norm of the map, whole layer")
def feature_norm(statistics: ChannelStatistics) -> Tensor:
    """a_c of (M1), ranked over the whole layer: the paper's layer-wise feature-norm baseline."""
    return statistics.l1


@criterion("bn_scale", reads="network", title="BatchNorm scale", reading="scale of the BatchNorm")
def bn_scale(model: nn.Module, statistics: ChannelStatistics) -> Tensor:
    """|gamma| of the BatchNorm behind the convolution (Liu et al. 2017), without their sparsity training."""
    if statistics.norm is None:
        raise StudyError("criterion 'bn_scale' needs a BatchNorm right behind every scored convolution; here one has none")
    weight = model.get_submodule(statistics.norm).weight
    if not isinstance(weight, Tensor):
        raise StudyError(f"criterion 'bn_scale' needs BatchNorm with a scale; {statistics.norm} has affine=False")
    return weight.detach().double().abs().cpu()


@criterion("apoz", reads="statistics", title="APoZ", reading="share of non-zeros in the map", extra="apoz")
def apoz(statistics: ChannelStatistics) -> Tensor:
    """Minus the average percentage of zeros (Hu et al. 2016), here of the maps that the consumer reads."""
    return 1 - _extra(statistics, "apoz")


@criterion("taylor", reads="gradients", title="Taylor", reading="first-order Taylor on activations")
def taylor(
    model: nn.Module, images: Inputs, labels: Tensor, layers: Sequence[str] | None = None, batch_size: int = 64
) -> dict[str, Tensor]:
    """Mean over images of |sum over positions of activation times gradient|, by layer (C,), unit length in each.

    The positions of a layer that is called several times in a forward pass are those of all its calls.

    images: (N, C, ...), normalised, or several inputs. labels: (N,) int64. The pass is its own, in eval mode, and leaves no
    gradients behind. Raises StudyError for labels that do not fit.
    """
    check_labels(images, labels)
    wanted = pick_layers(model, images, layers)
    sums = {layer.name: torch.zeros(layer.channels, dtype=torch.float64, device=parts_of(images)[0].device) for layer in wanted}
    products: dict[str, Tensor] = {}  # of one batch, (N, C)

    def receive(layer: Layer, seen: Tensor) -> None:
        value = seen.detach().clone()  # an in-place activation may overwrite the tensor before its gradient comes

        def add(gradient: Tensor) -> None:
            product = layer.tap.view(in_float32(value) * in_float32(gradient)).flatten(2).sum(2)  # (N, C)
            products[layer.name] = products[layer.name] + product if layer.name in products else product

        seen.register_hook(add)

    layout, several = memory_format(model, images), not isinstance(images, Tensor)
    # Towards the input: its gradient is cheap to ask for, and no parameter's is stored. Of several, some may be whole numbers.
    free = traceable(model) if several else nullcontext()
    with torch.enable_grad(), untouched(model), free, watched(model, wanted, receive):
        ends = [one for one in model.parameters() if one.requires_grad] if several else []
        for batch, truth in zip(split_batches(images, batch_size), labels.split(batch_size), strict=True):
            batch = of_each(laid_out(batch, layout), lambda one: one.detach().requires_grad_() if one.is_floating_point() else one)
            logits = run_network(model, batch)
            check_classes(logits, truth)
            starts = [one for one in parts_of(batch) if one.requires_grad]
            loss = F.cross_entropy(logits.float(), truth, reduction="sum")
            torch.autograd.grad(loss, [*starts, *ends], allow_unused=several)
            for name in [*products]:
                sums[name] += products.pop(name).abs().sum(0, dtype=torch.float64)
    scores = {name: total.cpu() / len(labels) for name, total in sums.items()}
    return {name: score / score.norm().clamp_min(torch.finfo(score.dtype).tiny) for name, score in scores.items()}


def check_labels(images: Inputs, labels: Tensor) -> None:
    """Raises StudyError where there is not one class number for each image."""
    if labels.shape != (count_of(images),) or labels.dtype != torch.int64:
        raise refuse("labels", f"{labels.dtype} {tuple(labels.shape)}", f"int64 ({count_of(images)},), one label an image")


def check_classes(logits: Tensor, labels: Tensor) -> None:
    """Raises StudyError for labels that are no classes of these logits (N, classes), and for a network that gives no logits."""
    if not isinstance(logits, Tensor):
        raise StudyError(f"the network returns a {type(logits).__name__}; its gradients need logits (N, classes) alone")
    if logits.dim() != 2 or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise refuse("labels", f"{int(labels.min())} to {int(labels.max())}", f"classes of logits {tuple(logits.shape)}")


@criterion("hrank", reads="statistics", title="HRank", reading="mean rank of the map", extra="hrank")
def hrank(statistics: ChannelStatistics) -> Tensor:
    """Mean rank of the channel's map over images (Lin et al. 2020)."""
    return _extra(statistics, "hrank")


@criterion("chip", reads="statistics", title="CHIP", reading="nuclear-norm drop", extra="chip")
def chip(statistics: ChannelStatistics) -> Tensor:
    """Channel independence (Sui et al. 2021): mean drop of an image's nuclear norm without the channel."""
    return _extra(statistics, "chip")


def _extra(statistics: ChannelStatistics, name: Extra) -> Tensor:
    if name not in statistics.extras:
        raise StudyError(f"criterion {name!r} needs extras=({name!r},) passed to collect_statistics")
    return statistics.extras[name]
