"""From importance to a smaller network: plan (plain data), surgery, BatchNorm recalibration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
import torch_pruning as tp
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fcs_utils.criteria import keep_count, select
from fcs_utils.errors import StudyError, refuse
from fcs_utils.structure import dependency_graph, trace_layers, traceable


class PruningPlan(BaseModel):
    """Which channels stay, as plain data that can be stored, replayed and compared.

    kept: sorted kept output channels of every convolution that loses some. channels: those layers' full
    widths. skipped: why other convolutions stay whole. input_shape: (C, H, W) of one image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kept: dict[str, list[int]]
    channels: dict[str, int]
    skipped: dict[str, str] = {}
    input_shape: tuple[int, int, int]
    ratio: float
    scope: Literal["inner"] = "inner"

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Raises StudyError for text that is no plan."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise StudyError(f"not a pruning plan: {error.errors()[0]['msg']}") from error


def make_plan(
    model: nn.Module,
    example: Tensor,
    importances: Mapping[str, Tensor],
    *,
    ratio: float,
    scope: Literal["inner"] = "inner",
) -> PruningPlan:
    """Choose the channels that stay: the same share of every layer (M6).

    example: images (N, C, H, W), one is enough. importances: (C,) by convolution name, higher = keep.
    Layers without an importance stay whole, as do those that inner scope excludes (M7).

    Raises StudyError for a bad ratio or scope, an importance that does not fit its layer, and when no layer
    is left to prune.
    """
    if scope != "inner":
        raise refuse("scope", scope, "'inner'")
    keep_count(1, ratio)  # refuses a bad ratio before any work
    layers = trace_layers(model, example)
    if unknown := sorted(importances.keys() - layers.keys()):
        raise refuse("importances", unknown, f"the network's convolutions: {', '.join(layers)}")
    kept, channels, skipped = {}, {}, {}
    for name, layer in layers.items():
        reason = layer.obstacle() or (None if name in importances else "no importance given")
        if reason:
            skipped[name] = reason
            continue
        score = importances[name]
        if score.shape != (layer.channels,) or not score.isfinite().all():
            raise StudyError(f"importance of {name} must be {layer.channels} finite numbers, got shape {tuple(score.shape)}")
        keep = keep_count(layer.channels, ratio)
        if keep < layer.channels:
            kept[name], channels[name] = select(score, keep), layer.channels
        else:
            skipped[name] = f"ratio {ratio} of {layer.channels} channels rounds to none"
    if not kept:
        raise StudyError("nothing to prune: " + "; ".join(f"{name}: {why}" for name, why in skipped.items()))
    shape = tuple(example.shape[1:])
    return PruningPlan(kept=kept, channels=channels, skipped=skipped, input_shape=shape, ratio=ratio, scope=scope)


def prune(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A really smaller copy of the network; the original is left as it was.

    Gradient flags and train or eval mode come out as they went in. Raises StudyError when the plan was made
    for another network.
    """
    for name, width in plan.channels.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Conv2d) or module.out_channels != width:
            found = f"{module.out_channels} channels" if isinstance(module, nn.Conv2d) else "no such convolution"
            raise StudyError(f"the plan does not fit this network: it expects {name} with {width} channels, found {found}")
        indices = plan.kept[name]
        if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= width:
            raise StudyError(f"the plan is damaged: kept channels of {name} must be sorted, unique and within 0..{width - 1}")
    compact = copy.deepcopy(model)
    weight = next(compact.parameters())
    with traceable(compact):
        graph = dependency_graph(compact, torch.zeros(1, *plan.input_shape, device=weight.device, dtype=weight.dtype))
        for name, indices in plan.kept.items():
            dropped = sorted(set(range(plan.channels[name])) - set(indices))
            graph.get_pruning_group(compact.get_submodule(name), tp.prune_conv_out_channels, dropped).prune()
    for name, indices in plan.kept.items():
        width = compact.get_submodule(name).out_channels
        if width != len(indices):
            raise StudyError(f"surgery went wrong: {name} has {width} channels, planned {len(indices)}")
    return compact


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor, batch_size: int = 256) -> None:
    """Estimate the BatchNorm statistics again on calibration images, in place (M9).

    images: (N, C, H, W), normalised. Momentum and mode come back as they were: a momentum left at None would
    make every later training evaluate with lagging statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]
    momenta, training = [norm.momentum for norm in norms], {module: module.training for module in model.modules()}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    model.eval()
    for norm in norms:
        norm.train()
    try:
        for batch in _even_batches(images, batch_size):
            model(batch.contiguous(memory_format=torch.channels_last))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in training.items():
            module.training = mode


def _even_batches(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    # Batches count alike in the average, so they must be of nearly one size.
    return torch.tensor_split(images, -(-len(images) // batch_size))
