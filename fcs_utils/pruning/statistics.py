"""One pass over the calibration images: the statistics every feature-based criterion needs.

Hooks live in a context manager and reduce on the device, so no feature map outlives its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fcs_utils.config import Count, Images, Model, checked
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import tensors_sum
from fcs_utils.inputs import Inputs, laid_out, split_batches
from fcs_utils.models import images_at_once
from fcs_utils.pruning.flow import Consumer, Tap
from fcs_utils.pruning.kinds import CONVOLUTIONS
from fcs_utils.pruning.layers import Layer, Scope, trace_layers
from fcs_utils.pruning.sums import READINGS, Extra, Reading, Sums, Where
from fcs_utils.running import memory_format, run_network, tensors_in, untouched


@dataclass(frozen=True)
class ChannelStatistics:
    """Sums over N images and P positions of one layer's C channels; float64, on the CPU.

    gram: (C, C), G_ij = sum of F_i F_j over images and positions.
    l1: (C,), a_c of (M1), the mean over images of the summed absolute activation.
    mean: (C,), the mean activation over images and positions.
    count: N times P.
    positions: P; of a layer that is called several times in a forward pass, those of all calls together, as of one map.
    consumers: the layers that read the channels, and where.
    norm: name of the BatchNorm right behind the convolution, if there is one.
    per_image: (C, C), the mean over images of the cosine of one image's maps; None unless asked for.
    mean_map: (C, P), the maps averaged over images; None unless asked for.
    extras: (C,) each, of those asked for: ``apoz``, the share of zeros; ``hrank``, the mean rank of a map;
    ``chip``, the mean drop of the nuclear norm without the channel.
    tap: where the maps were taken, see ``collect_statistics``.
    """

    gram: Tensor
    l1: Tensor
    mean: Tensor
    count: int
    positions: int
    consumers: tuple[Consumer, ...]
    norm: str | None = None
    per_image: Tensor | None = None
    mean_map: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    weights: str | None = None  # checksum of the convolution's weights, which ``check_weights`` compares
    tap: Where = "reader"

    def similarity(self, reading: Reading = "pooled") -> Tensor:
        """Cosine similarity (C, C) in -1..1 in one of three readings (M3).

        A dead channel is similar to none, itself included; in ``per_image`` an all-zero map counts 0 in the
        mean over all images. Raises StudyError for an unknown reading or one that was not collected.
        """
        if reading not in READINGS:
            raise refuse("reading", reading, ", ".join(READINGS))
        if reading == "pooled":
            return _cosine(self.gram)
        found = self.per_image if reading == "per_image" else self.mean_map
        if found is None:
            raise StudyError(f"reading={reading!r} was not collected; pass readings=({reading!r},) to collect_statistics")
        return found if reading == "per_image" else _cosine(found @ found.T)


def _cosine(gram: Tensor) -> Tensor:
    norm = gram.diagonal().sqrt()
    scale = torch.where(norm > 0, 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)
    # Symmetric to the last bit: two channels alone in a bin are equally redundant, and their norms must decide.
    return ((gram + gram.T) / 2 * (scale[:, None] * scale)).clamp(-1, 1)


def check_weights(model: nn.Module, statistics: Mapping[str, ChannelStatistics]) -> None:
    """Raises StudyError for statistics that were collected while a convolution had other weights than it has now."""
    for name, known in statistics.items():
        if known.weights is not None and known.weights != _weights_sum(model, name):
            raise StudyError(f"statistics are of other weights than this network has now, first in {name}: collect them again")


def _weights_sum(model: nn.Module, layer: str) -> str:
    weight: Tensor = model.get_submodule(layer).weight  # type: ignore[assignment]
    return tensors_sum({"weight": weight.float()})


def _finish(layer: Layer, sums: Sums, tap: Where, weights: str) -> ChannelStatistics:
    if not sums.finite():
        raise StudyError(
            f"layer {layer.name}: its activations are NaN or infinite on the calibration images; "
            "the network or the images are broken"
        )
    count = sums.images * sums.positions
    per = {"apoz": count, "hrank": sums.images, "chip": sums.images}
    return ChannelStatistics(
        sums.gram_of("gram", 1),
        sums.mean("absolute", sums.images),
        sums.mean("total", count),
        count,
        sums.positions,
        layer.consumers,
        layer.norm,
        per_image=sums.gram_of("per_image", sums.images) if "per_image" in sums.readings else None,
        mean_map=sums.mean("map", sums.images) if "mean_map" in sums.readings else None,
        extras={name: sums.mean(name, per[name]) for name in sums.extras},
        weights=weights,
        tap=tap,
    )


@contextmanager
def tapped(model: nn.Module, layers: Iterable[Layer], receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, every forward pass hands each layer's maps (N, C, ...) to ``receive(name, maps)``.

    They are what the channel-mixing consumers read: after BatchNorm, activation and pooling, or where their paths
    part, the last tensor before.
    """
    with watched(model, layers, lambda layer, seen: receive(layer.name, layer.tap.view(seen))):
        yield


@contextmanager
def watched(model: nn.Module, layers: Iterable[Layer], receive: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """As ``tapped``, but hands over the whole tensor as it flows, which may hold more than the layer's channels."""
    with ExitStack() as hooks:
        for layer in layers:
            # What a hook returns would replace the tensor: these return nothing.
            def before(_module: nn.Module, inputs: object, more: object, layer: Layer = layer) -> None:
                receive(layer, tensors_in((inputs, more))[0])

            def after(_module: nn.Module, _inputs: object, output: object, layer: Layer = layer) -> None:
                receive(layer, tensors_in(output)[0])

            module = model.get_submodule(layer.tap.module)
            if layer.tap.side == "input":
                hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                hooks.enter_context(module.register_forward_hook(after))
        yield


def pick_layers(model: nn.Module, images: Inputs, names: Sequence[str] | None, scope: Scope = "all") -> list[Layer]:
    """Layers by name, default all of a scope (M7). Raises StudyError for one that no scope can prune."""
    found = trace_layers(model, images)
    able = [name for name, layer in found.items() if layer.obstacle("all") is None]
    if unknown := sorted(set(names or ()) - set(able)):
        raise refuse("layers", unknown, ", ".join(able) or "none: nothing in this network can be pruned")
    wanted = [name for name, layer in found.items() if layer.obstacle(scope) is None] if names is None else dict.fromkeys(names)
    return [found[name] for name in wanted]


@checked
@torch.no_grad()
def collect_statistics(
    model: Model,
    images: Images,
    *,
    layers: Sequence[str] | None = None,
    scope: Scope = "all",
    readings: Sequence[Reading] = ("pooled",),
    extras: Sequence[Extra] = (),
    tap: Where = "reader",
    batch_size: Count | None = None,
    transform: Callable[[Tensor], Tensor] = lambda maps: maps,
) -> dict[str, ChannelStatistics]:
    """Collect the statistics of every prunable convolution in one forward pass, in eval mode (M1, M3).

    model: any convolutional classifier; its mode is put back afterwards.
    images: the calibration set, float (N, C, ...), normalised, never augmented, on the model's device; of a network with several
    inputs a tuple or dict of them, as for ``make_plan``.
    layers: convolution names; by default all of ``scope``, which is every layer that can be pruned at all (M7). ``inner``
    leaves out those that share a residual sum, which saves time and memory where they are not to be pruned.
    readings: similarities to collect (M3); ``pooled`` costs nothing beyond the Gram matrix.
    extras: what other criteria read, in the same pass: ``apoz``, ``hrank``, ``chip``.
    tap: ``reader`` takes the maps where the next layer reads them, after BatchNorm, activation and pooling; ``convolution``
    takes the convolution's own output. Merging and criteria other than FCS's need the first.
    batch_size: images in one forward pass; memory grows with it, and not with N. By default 256, or fewer where memory is short.
    It changes the last bits of the sums, so name a number where they must be equal.
    transform: applied to each batch of maps (N, C, ...), call by call, before it is summed, as ``shuffle_pixels`` for the null.

    A layer that is called several times in a forward pass is measured over all its calls: the positions of an image's maps, of
    whatever sizes, count as those of one map. Only ``hrank`` is the mean over the calls.

    Returns statistics by convolution name, in float64 on the CPU. Raises StudyError for an unknown scope, layer, reading,
    extra or tap, a batch_size below 1, images that do not fit, ``hrank`` of maps without height and width, activations that are not
    finite, and a layer whose calls in one forward pass have different numbers of images or whose number of calls depends on the
    images.

        statistics = collect_statistics(model, images)
        statistics["features.conv1"].similarity()  # (C, C) cosines of the layer's channels
    """
    wanted = pick_layers(model, images, layers, scope)
    flat = next((one.name for one in wanted if not _has_planes(model, one.name)), None) if "hrank" in extras else None
    if flat:
        kind = type(model.get_submodule(flat)).__name__
        raise refuse("extras", "hrank", f"apoz or chip: {flat} is a {kind}, and HRank is the rank of maps with height and width")
    if tap == "convolution":
        wanted = [
            replace(layer, tap=Tap(layer.name, "output", axis=-1 if layer.linear else 1, calls=layer.calls)) for layer in wanted
        ]
    sums = {layer.name: Sums(readings, extras, layer.tap.calls, layer.name) for layer in wanted}
    layout = memory_format(model, images)
    with untouched(model), tapped(model, wanted, lambda name, maps: sums[name].add(transform(maps))):
        for passes, batch in enumerate(split_batches(images, batch_size or images_at_once(model, images)), 1):
            run_network(model, laid_out(batch, layout))
            for one in sums.values():
                one.check(passes)
    return {layer.name: _finish(layer, sums[layer.name], tap, _weights_sum(model, layer.name)) for layer in wanted}


def _has_planes(model: nn.Module, name: str) -> bool:
    """Whether a layer's maps have height and width; those of a linear layer are one row."""
    module = model.get_submodule(name)
    return not isinstance(module, CONVOLUTIONS) or len(module.kernel_size) == 2


@torch.no_grad()
def feature_maps(model: nn.Module, images: Inputs, layer: str) -> Tensor:
    """One layer's maps (N, C, H, W) for a few images, to look at. Raises StudyError for an unknown layer.

    Of signals and volumes they have their own axes. Before a linear consumer they come flattened: those of images are laid out
    again as squares, or as a line where they are none. Of a layer that is called several times, they are those of the first call.
    """
    caught: list[Tensor] = []
    chosen = pick_layers(model, images, [layer])
    with untouched(model), tapped(model, chosen, lambda _name, maps: caught.append(maps.cpu())):
        run_network(model, images)
    maps = caught[0]
    if maps.dim() > 3 or not (isinstance(images, Tensor) and images.dim() == 4):
        return maps
    positions = maps.flatten(2).shape[2] if maps.dim() > 2 else 1
    side = math.isqrt(positions)
    return maps.reshape(*maps.shape[:2], side if side**2 == positions else 1, -1)


def shuffle_pixels(maps: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each map's positions in an order of its own: keeps every value, destroys where it was.

    maps: (N, C, ...) -> (N, C, P). What similarity is left comes from the values alone, so this is the null
    against which (C1) counts a pair as similar.
    """
    flat = maps.flatten(2)
    keys = torch.rand(flat.shape, generator=generator).to(flat.device)
    return flat.gather(2, keys.argsort(2))
