"""One pass over the calibration images: the statistics every feature-based criterion needs.

Hooks live in a context manager and reduce on the device, so no feature map outlives its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.structure import Layer, trace_layers

Tap = Literal["consumer", "conv"]


@dataclass(frozen=True)
class ChannelStatistics:
    """Sums over N images and P positions of one layer's C channels; float64, on the CPU.

    gram: (C, C), G_ij = sum of F_i F_j over images and positions.
    l1: (C,), a_c of (M1), the mean over images of the summed absolute activation.
    mean: (C,), the mean activation over images and positions.
    count: N times P.
    positions: P.
    consumers: names of the layers that read the channels.
    """

    gram: Tensor
    l1: Tensor
    mean: Tensor
    count: int
    positions: int
    consumers: tuple[str, ...]

    def similarity(self) -> Tensor:
        """Pooled cosine similarity (C, C) in -1..1, (M3); a dead channel is similar to none, itself included."""
        norm = self.gram.diagonal().sqrt()
        scale = torch.where(norm > 0, 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)
        return (self.gram * scale[:, None] * scale).clamp(-1, 1)


class _Sums:
    """Running sums of one layer. Each batch is reduced in float32 and added in float64."""

    def __init__(self) -> None:
        self.gram: Tensor | float = 0.0
        self.absolute: Tensor | float = 0.0
        self.total: Tensor | float = 0.0
        self.images = self.positions = 0

    def add(self, maps: Tensor) -> None:
        """maps: (N, C, P) or (N, C, H, W)."""
        channels = maps.shape[1]
        self.images += len(maps)
        self.positions = maps[0, 0].numel()
        # With channels_last memory this is a view: every row one position, every column one channel.
        rows = maps.movedim(1, -1).reshape(-1, channels)
        self.gram = self.gram + (rows.T @ rows).double()
        self.absolute = self.absolute + rows.abs().sum(0, dtype=torch.float64)
        self.total = self.total + rows.sum(0, dtype=torch.float64)

    def finish(self, name: str, consumers: tuple[str, ...]) -> ChannelStatistics:
        assert isinstance(self.gram, Tensor) and isinstance(self.absolute, Tensor) and isinstance(self.total, Tensor)
        if not (self.gram.isfinite().all() and self.absolute.isfinite().all()):
            raise StudyError(f"layer {name}: its activations are NaN or infinite on the calibration images; "
                             "the network or the images are broken")  # fmt: skip
        count = self.images * self.positions
        gram = self.gram.cpu()
        return ChannelStatistics(
            (gram + gram.T) / 2, self.absolute.cpu() / self.images, self.total.cpu() / count,
            count, self.positions, consumers,
        )  # fmt: skip


@contextmanager
def tapped(
    model: nn.Module, layers: Iterable[Layer], receive: Callable[[str, Tensor], None], tap: Tap = "consumer"
) -> Iterator[None]:
    """While open, every forward pass hands each layer's maps (N, C, ...) to ``receive(name, maps)``.

    ``consumer`` is what the first channel-mixing consumer reads: after BatchNorm, activation and pooling.
    ``conv`` is the raw convolution output.
    """
    with ExitStack() as hooks:
        for layer in layers:
            if tap == "conv":
                module = model.get_submodule(layer.name)
                hooks.enter_context(module.register_forward_hook(lambda _m, _i, out, name=layer.name: receive(name, out)))
            else:
                consumer = layer.consumers[0]
                module = model.get_submodule(consumer.name)

                def before(
                    _module: nn.Module, inputs: tuple[Tensor, ...], layer: Layer = layer, at: Tensor = consumer.positions
                ) -> None:
                    maps = inputs[0]
                    if at.shape[1] > 1:  # a flattened map in front of a linear layer
                        maps = maps[:, at.to(maps.device)]
                    elif maps.shape[1] != layer.channels:  # the consumer reads other channels besides
                        maps = maps[:, at[:, 0].to(maps.device)]
                    receive(layer.name, maps if maps.dim() > 2 else maps[:, :, None])

                hooks.enter_context(module.register_forward_pre_hook(before))
        yield


def inner_layers(model: nn.Module, images: Tensor) -> dict[str, Layer]:
    """The convolutions that inner scope may prune, by name (M7)."""
    return {name: layer for name, layer in trace_layers(model, images).items() if layer.obstacle() is None}


@torch.no_grad()
def collect_statistics(
    model: nn.Module,
    images: Tensor,
    *,
    layers: Sequence[str] | None = None,
    tap: Tap = "consumer",
    batch_size: int = 256,
    transform: Callable[[Tensor], Tensor] = lambda maps: maps,
) -> dict[str, ChannelStatistics]:
    """Statistics of every prunable convolution in one pass, in eval mode.

    model: any convolutional classifier; its mode is put back afterwards.
    images: (N, C, H, W) float, normalised, never augmented, on the model's device.
    layers: convolution names; default all of inner scope (M7).
    tap: see ``tapped``.
    transform: applied to each batch of maps (N, C, ...) before it is summed, as ``shuffle_pixels`` for the null.

    Returns statistics by convolution name. Raises StudyError for unknown layers, an empty batch, and
    activations that are not finite.
    """
    if tap not in ("consumer", "conv"):
        raise refuse("tap", tap, "'consumer' or 'conv'")
    if images.dim() != 4 or not len(images):
        raise refuse("images", tuple(images.shape), "a float tensor (N, C, H, W) with N of 1 or more")
    found = inner_layers(model, images)
    if unknown := sorted(set(layers or ()) - found.keys()):
        raise refuse("layers", unknown, ", ".join(found) or "none: nothing in this network can be pruned")
    wanted = [found[name] for name in (found if layers is None else layers)]
    sums = {layer.name: _Sums() for layer in wanted}
    training = model.training
    model.eval()
    try:
        with tapped(model, wanted, lambda name, maps: sums[name].add(transform(maps)), tap):
            for batch in images.split(batch_size):
                model(batch.contiguous(memory_format=torch.channels_last))
    finally:
        model.train(training)
    return {layer.name: sums[layer.name].finish(layer.name, tuple(c.name for c in layer.consumers)) for layer in wanted}


@torch.no_grad()
def feature_maps(model: nn.Module, images: Tensor, layer: str, *, tap: Tap = "consumer") -> Tensor:
    """One layer's maps (N, C, ...) for a few images (N, C, H, W), to look at. Raises StudyError for an unknown layer."""
    found = inner_layers(model, images)
    if layer not in found:
        raise refuse("layer", layer, ", ".join(found))
    caught: list[Tensor] = []
    training = model.training
    model.eval()
    with tapped(model, [found[layer]], lambda _name, maps: caught.append(maps.cpu()), tap):
        model(images)
    model.train(training)
    return caught[0]


def shuffle_pixels(maps: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each map's positions in an order of its own: keeps every value, destroys where it was.

    maps: (N, C, ...) -> (N, C, P). What similarity is left comes from the values alone, so this is the null
    against which (C1) counts a pair as similar.
    """
    flat = maps.flatten(2)
    keys = torch.rand(flat.shape, generator=generator).to(flat.device)
    return flat.gather(2, keys.argsort(2))
