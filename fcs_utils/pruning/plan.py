"""From importance to a plan: which channels stay, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from fcs_utils.config import Images, Model, checked
from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.counts import Ranking, keep_count
from fcs_utils.pruning.draft import Draft
from fcs_utils.pruning.layers import Layer, Scope, trace_layers


class PruningPlan(BaseModel):
    """Which channels stay, as plain data that can be stored, replayed and compared.

    kept: sorted kept output channels of every convolution that loses some, followers included. channels:
    those layers' full widths. skipped: why other convolutions stay whole. input_shape: (C, H, W) of one
    image. ratio: the share of channels removed from every layer, or with ``ranking`` "network" from all of them together.
    macs: the share of MACs asked for, where the ratio was found from it; macs_left: the share that this plan leaves, as
    measured on the compact network.
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
    ranking: Ranking = Field(default="layer", exclude_if=lambda ranking: ranking == "layer")  # not in plans that do without

    @model_validator(mode="after")
    def _whole(self) -> PruningPlan:
        if not self.kept or self.kept.keys() != self.channels.keys():
            raise ValueError("the plan is damaged: 'kept' and 'channels' must name the same convolutions, one or more")
        for name, indices in self.kept.items():
            width = self.channels[name]
            if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= width:
                raise ValueError(f"the plan is damaged: kept channels of {name} must be sorted, unique and within 0..{width - 1}")
        return self

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

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """From what ``model_dump_json`` returns. Raises StudyError for text that is no plan."""
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


@checked
def make_plan(
    model: Model,
    example: Images,
    importances: Mapping[str, Tensor],
    *,
    ratio: float | None = None,
    macs: float | None = None,
    scope: Scope = "inner",
    ranking: Ranking = "layer",
) -> PruningPlan:
    """Choose the channels that stay: every layer loses the same share of its channels (M6), or what lies below one threshold.

    example: images (N, C, H, W), one is enough. importances: (C,) by convolution name, higher = keep; layers
    without one stay whole. ratio: the share of channels to remove. macs, instead of ratio: the share of the dense
    network's MACs to leave; the plan comes as near as whole channels allow. scope: ``inner`` leaves layers that share a
    residual sum whole; ``all`` removes the same channels from each of them, by their mean importance (M7), where all of
    them have one. ranking: ``network`` compares importances between layers, and one threshold for all of them decides how many
    channels each layer loses (M6); it keeps one at least. The ratio is then the share of all their channels.
    ``skipped`` of the plan says why a layer stays whole.

    The plan is tried on a copy, which is compared with the dense network as ``proof.Proof`` says. Layers that cannot be cut
    exactly stay whole; the others are still pruned. One cut is enough when all are exact, and each layer that is not
    takes about two more for every doubling of the network's depth.

    Raises StudyError for a bad ratio, macs, scope or ranking, for an importance that does not fit, and when no layer is left to
    prune. Macs more than 0.05 outside of what the layers can leave are refused with what can be reached.
    """
    _check_goal(ratio, macs)
    layers = trace_layers(model, example)
    if unknown := sorted(importances.keys() - layers.keys()):
        raise refuse("importances", unknown, f"the network's convolutions: {', '.join(layers)}")
    for name, score in importances.items():
        if score.shape != (layers[name].channels,) or score.is_complex() or not score.isfinite().all():
            raise StudyError(
                f"importance of {name} must be {layers[name].channels} finite numbers, got {score.dtype} {tuple(score.shape)}"
            )
    groups, skipped = _groups(layers, importances, scope)
    draft = Draft(model, example, layers, importances, groups, skipped, ranking)
    draft.settle(ratio, macs)
    names = [name for name in layers if name in draft.kept]  # in the network's order
    return PruningPlan(
        kept={name: draft.kept[name] for name in names},
        channels={name: layers[name].channels for name in names},
        skipped={name: draft.skipped[name] for name in layers if name in draft.skipped and name not in draft.kept},
        input_shape=draft.shape,
        ratio=draft.ratio,
        scope=scope,
        macs=macs,
        macs_left=draft.left,
        ranking=ranking,
    )


def _check_goal(ratio: float | None, macs: float | None) -> None:
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
        missing = [member for member in members if member not in importances]
        if not reason and missing:
            reason = "no importance given" + (f" for {', '.join(missing)} of its residual sum" if len(members) > 1 else "")
        seen.update(members)
        if reason:
            skipped |= dict.fromkeys(members, reason)
        else:
            groups[name] = members
    return groups, skipped
