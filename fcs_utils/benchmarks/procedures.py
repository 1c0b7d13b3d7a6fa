"""Ways to score channels whose cost notebook 08 compares: ours, and those found elsewhere.

Each takes a network and images (N, 3, 32, 32) and gives nothing back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fcs_utils.pruning.layers import prunable_layers
from fcs_utils.pruning.statistics import collect_statistics, tapped
from fcs_utils.pruning.sums import map_ranks, nuclear_drops

Method = Literal["forward", "pass", "trace", "store", "per_layer", "ranks", "ranks_literal", "drops", "drops_literal"]
BATCH = 256


@torch.no_grad()
def forward(network: nn.Module, images: Tensor) -> None:
    """The network alone."""
    for batch in images.split(BATCH):
        network(batch.contiguous(memory_format=torch.channels_last))


def one_pass(network: nn.Module, images: Tensor) -> None:
    """This study: Gram matrices of all layers in one pass, tracing included."""
    collect_statistics(network, images, batch_size=BATCH)


def trace(network: nn.Module, images: Tensor) -> None:
    """Finding the layers and where to tap them: the part of the pass that does not grow with the images."""
    prunable_layers(network, images)


@torch.no_grad()
def store_all(network: nn.Module, images: Tensor) -> None:
    """Keep every map of every layer, then ask scikit-learn for the cosines of flattened channels."""
    from sklearn.metrics.pairwise import cosine_similarity

    layers = prunable_layers(network, images)
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    with tapped(network, layers.values(), lambda name, maps: kept[name].append(maps.cpu())):
        forward(network, images)
    for maps in kept.values():
        cosine_similarity(torch.cat(maps).flatten(2).transpose(0, 1).flatten(1).numpy())


@torch.no_grad()
def one_pass_per_layer(network: nn.Module, images: Tensor) -> None:
    """CHIP's procedure, with cosines for its score: one run of the network a layer, each batch of maps a file."""
    from sklearn.metrics.pairwise import cosine_similarity

    for layer in prunable_layers(network, images).values():
        with tempfile.TemporaryDirectory() as folder:
            files: list[Path] = []

            def keep(_name: str, maps: Tensor, files: list[Path] = files, folder: str = folder) -> None:
                files.append(Path(folder) / f"{len(files)}.npy")
                np.save(files[-1], maps.contiguous().cpu().numpy())

            with tapped(network, [layer], keep):
                forward(network, images)
            maps = np.concatenate([np.load(file) for file in files])
        cosine_similarity(maps.reshape(*maps.shape[:2], -1).swapaxes(0, 1).reshape(maps.shape[1], -1))


def _over_maps(score: Callable[[Tensor], object]) -> Callable[[nn.Module, Tensor], None]:
    @torch.no_grad()
    def run(network: nn.Module, images: Tensor) -> None:
        layers = prunable_layers(network, images)

        def receive(_name: str, maps: Tensor) -> None:
            score(maps)

        with tapped(network, layers.values(), receive):
            forward(network, images)

    return run


def ranks_literal(maps: Tensor) -> None:
    """HRank as published: one decomposition of each map."""
    for one in maps.flatten(0, 1):
        torch.linalg.matrix_rank(one if one.dim() == 2 else one[None])


def drops_literal(maps: Tensor) -> None:
    """CHIP as published: one decomposition of all of an image's maps for each channel left out."""
    for image in maps.flatten(2):
        torch.linalg.matrix_norm(image, "nuc")
        for channel in range(len(image)):
            without = image.clone()
            without[channel] = 0
            torch.linalg.matrix_norm(without, "nuc")


METHODS: dict[Method, Callable[[nn.Module, Tensor], None]] = {
    "forward": forward,
    "pass": one_pass,
    "trace": trace,
    "store": store_all,
    "per_layer": one_pass_per_layer,
    "ranks": _over_maps(map_ranks),
    "ranks_literal": _over_maps(ranks_literal),
    "drops": _over_maps(lambda maps: nuclear_drops(maps.flatten(2))),
    "drops_literal": _over_maps(drops_literal),
}
