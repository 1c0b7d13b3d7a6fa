"""From importance to a plan: which channels stay, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor, nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.models import module_macs
from fcs_utils.pruning.layers import Layer, Scope, depthwise, trace_layers


def keep_count(channels: int, ratio: float) -> int:
    """How many channels stay when a share ``ratio`` of them goes (M6): the study's only rounding rule.

    Raises StudyError for a ratio outside (0, 1).
    """
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:  # also refuses NaN
        raise refuse("ratio", ratio, "above 0 and below 1, the share of channels to remove")
    return max(1, channels - round(ratio * channels))


def select(importance: Tensor, keep: int) -> list[int]:
    """Indices of the ``keep`` most important channels, sorted; equals go to the lower index."""
    return sorted(importance.argsort(descending=True, stable=True)[:keep].tolist())


class PruningPlan(BaseModel):
    """Which channels stay, as plain data that can be stored, replayed and compared.

    kept: sorted kept output channels of every convolution that loses some, followers included. channels:
    those layers' full widths. skipped: why other convolutions stay whole. input_shape: (C, H, W) of one
    image. ratio: the share of channels removed from every layer. macs: the share of MACs asked for, where
    the ratio was found from it; macs_left: the share that this plan leaves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kept: dict[str, list[int]]
    channels: dict[str, int]
    skipped: dict[str, str] = {}
    input_shape: tuple[int, int, int]
    ratio: float
    scope: Scope = "inner"
    macs: float | None = None
    macs_left: float | None = None

    @model_validator(mode="after")
    def _whole(self) -> PruningPlan:
        if not self.kept or self.kept.keys() != self.channels.keys():
            raise ValueError("the plan is damaged: 'kept' and 'channels' must name the same convolutions, one or more")
        for name, indices in self.kept.items():
            width = self.channels[name]
            if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= width:
                raise ValueError(f"the plan is damaged: kept channels of {name} must be sorted, unique and within 0..{width - 1}")
        return self

    @property
    def macs_gap(self) -> float | None:
        """Share of MACs left minus share asked for: channel counts are whole, so small networks miss by percents."""
        return None if self.macs is None or self.macs_left is None else self.macs_left - self.macs

    def __str__(self) -> str:
        """A table for reading: each layer's channels before and after, then the share of MACs left."""
        longest = max(len("layer"), *map(len, self.kept))
        lines = [f"{'layer':<{longest}}  channels    kept"]
        lines += [f"{name:<{longest}}  {self.channels[name]:>8}  {len(kept):>6}" for name, kept in self.kept.items()]
        if self.macs_left is not None:
            goal = "" if self.macs is None else f", {self.macs:.1%} was the goal"
            lines.append(f"{self.macs_left:.1%} of the MACs are left{goal}")
        if self.skipped:
            lines.append(f"convolutions left whole: {len(self.skipped)}; plan.skipped gives the reasons")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The plan as JSON, which ``from_json`` reads."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Raises StudyError for text that is no plan."""
        return _checked(cls.model_validate_json, text)

    @classmethod
    def from_data(cls, data: Any) -> PruningPlan:
        """From what ``model_dump`` or a parsed JSON file holds. Raises StudyError for data that is no plan."""
        return _checked(cls.model_validate, data)


def _checked(validate: Callable[[Any], PruningPlan], value: Any) -> PruningPlan:
    try:
        return validate(value)
    except ValidationError as error:
        raise StudyError(f"not a pruning plan: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def make_plan(
    model: nn.Module,
    example: Tensor,
    importances: Mapping[str, Tensor],
    *,
    ratio: float | None = None,
    macs: float | None = None,
    scope: Scope = "inner",
) -> PruningPlan:
    """Choose the channels that stay: every layer loses the same share of its channels (M6).

    example: images (N, C, H, W), one is enough. importances: (C,) by convolution name, higher = keep; layers
    without one stay whole. ratio: the share of channels to remove. macs, instead of ratio: the share of the dense
    network's MACs to leave; the plan comes as near as whole channels allow. scope: ``inner`` leaves layers that share a
    residual sum whole; ``all`` removes the same channels from each of them, by their mean importance (M7). ``skipped`` of the
    plan says why a layer stays whole.

    Raises StudyError for a bad ratio, macs or scope, an importance that does not fit, and when no layer is left to prune.
    """
    _check_goal(ratio, macs, scope)
    layers = trace_layers(model, example)
    if unknown := sorted(importances.keys() - layers.keys()):
        raise refuse("importances", unknown, f"the network's convolutions: {', '.join(layers)}")
    for name, score in importances.items():
        if score.shape != (layers[name].channels,) or not score.isfinite().all():
            raise StudyError(f"importance of {name} must be {layers[name].channels} finite numbers, got shape {tuple(score.shape)}")
    groups, skipped = _groups(layers, importances, scope)
    costs = _Costs(model, example, layers, groups.values())
    if ratio is None:
        assert macs is not None
        ratio = costs.nearest_ratio(macs) if groups else 0.5
    kept: dict[str, list[int]] = {}
    for name, members in groups.items():
        width, keep = layers[name].channels, keep_count(layers[name].channels, ratio)
        if keep == width:
            skipped |= dict.fromkeys(members, f"ratio {ratio:g} of {width} channels rounds to none")
            continue
        scores = torch.stack([importances[member].double().cpu() for member in members if member in importances])
        followers = {follower: None for member in members for follower in layers[member].followers}
        kept |= dict.fromkeys([*members, *followers], select(scores.mean(0), keep))
    if not kept:
        raise StudyError("nothing to prune: " + "; ".join(f"{name}: {why}" for name, why in skipped.items()))
    names = [name for name in layers if name in kept]  # in the network's order
    return PruningPlan(
        kept={name: kept[name] for name in names},
        channels={name: layers[name].channels for name in names},
        skipped={name: skipped[name] for name in layers if name in skipped and name not in kept},
        input_shape=(example.shape[1], example.shape[2], example.shape[3]),
        ratio=ratio,
        scope=scope,
        macs=macs,
        macs_left=costs.share_left(ratio),
    )


def _check_goal(ratio: float | None, macs: float | None, scope: Scope) -> None:
    if scope not in ("inner", "all"):
        raise refuse("scope", scope, "'inner' or 'all'")
    if (ratio is None) == (macs is None):
        raise StudyError(f"give either ratio or macs; got ratio={ratio!r}, macs={macs!r}")
    if macs is not None and not 0 < macs < 1:
        raise refuse("macs", macs, "above 0 and below 1, the share of MACs to leave")
    if ratio is not None:
        keep_count(1, ratio)  # refuses a bad ratio before any work


def _groups(
    layers: Mapping[str, Layer], importances: Mapping[str, Tensor], scope: Scope
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Layers that shrink together, by their first, and why others do not."""
    groups: dict[str, list[str]] = {}
    skipped: dict[str, str] = {}
    seen: set[str] = set()
    for name, layer in layers.items():
        if name in seen:
            continue
        members = [name]
        if scope == "all" and layer.coupled and not layer.barrier:
            members = [member for member in layers if member == name or member in layer.coupled]
        reason = next((why for member in members if (why := layers[member].obstacle(scope))), None)
        if not reason and not any(member in importances for member in members):
            reason = "no importance given"
        seen.update(members)
        if reason:
            skipped |= dict.fromkeys(members, reason)
        else:
            groups[name] = members
    return groups, skipped


class _Costs:
    """MACs of a network at a ratio, worked out from the dense network's without cutting it."""

    def __init__(self, model: nn.Module, example: Tensor, layers: Mapping[str, Layer], groups: Iterable[list[str]]) -> None:
        self.layers, self.groups = layers, list(groups)
        self.dense = module_macs(model, example)
        modules = dict(model.named_modules())
        self.width = {name: modules[name].weight.shape[0] for name in self.dense}
        self.read = {name: modules[name].weight.shape[1] for name in self.dense}
        self.single = {name for name in self.dense if depthwise(modules[name])}

    def share_left(self, ratio: float) -> float:
        """MACs at a ratio, as a share of the dense network's."""
        lost_out, lost_in = dict.fromkeys(self.dense, 0), dict.fromkeys(self.dense, 0)
        for members in self.groups:
            channels = self.layers[members[0]].channels
            gone = channels - keep_count(channels, ratio)
            changed = {*members, *(follower for member in members for follower in self.layers[member].followers)}
            for name in changed:
                lost_out[name] = gone
            readers = {c.name: c.positions.shape[1] for member in members for c in self.layers[member].consumers}
            for name, indices in readers.items():
                lost_in[name] += gone * indices
        left = sum(
            macs * (1 - lost_out[name] / self.width[name]) * (1 if name in self.single else 1 - lost_in[name] / self.read[name])
            for name, macs in self.dense.items()
        )
        return left / sum(self.dense.values())

    def nearest_ratio(self, macs: float) -> float:
        """The ratio whose share of MACs left is nearest; of two as near, the one that leaves more."""
        widths = {self.layers[members[0]].channels for members in self.groups}
        # Between two neighbours of these, every layer's channel count stays the same.
        steps = sorted({(gone + 0.5) / width for width in widths for gone in range(width)} | {1.0})
        ratios = [(low + high) / 2 for low, high in zip(steps, steps[1:], strict=False)]
        low, high = 0, len(ratios) - 1  # the share falls as the ratio grows
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.share_left(ratios[middle]) > macs else (low, middle)
        return min(ratios[max(0, low - 1) : low + 1], key=lambda ratio: abs(self.share_left(ratio) - macs))
