"""From importance to a plan: which channels stay, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from fcs_utils.config import Images, Model, checked
from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.counts import Ranking, Rounding
from fcs_utils.pruning.draft import Draft
from fcs_utils.pruning.layer_rates import LayerRates, Shorthand, check_goal, rates_by_layer, read_rates
from fcs_utils.pruning.layers import Layer, Scope, trace_layers


class PruningPlan(BaseModel):
    """Which channels stay, as plain data that can be stored, replayed and compared.

    kept: sorted kept output channels of every convolution that loses some, followers included. channels:
    those layers' full widths. skipped: why other convolutions stay whole. input_shape: (C, H, W) of one
    image. ratio: the share of channels removed from every layer, or with ``ranking`` "network" from all of them together; None
    where layers have rates of their own. macs: the share of MACs asked for, where the ratio was found from it; macs_left: the share
    that this plan leaves, as measured on the compact network. rates: the share of channels to remove by layer, of layers that
    lose some. rounding: see ``counts.keep_count``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kept: dict[str, list[int]]
    channels: dict[str, int]
    skipped: dict[str, str] = {}
    input_shape: tuple[int, int, int]
    ratio: float | None
    scope: Scope = "inner"
    macs: float | None = None
    macs_left: float | None = None
    # In no text of a plan that does without them: such plans stay as they were.
    ranking: Ranking = Field(default="layer", exclude_if=lambda ranking: ranking == "layer")
    rates: dict[str, float] | None = Field(default=None, exclude_if=lambda rates: rates is None)
    rounding: Rounding = Field(default="study", exclude_if=lambda rounding: rounding == "study")

    @model_validator(mode="after")
    def _whole(self) -> PruningPlan:
        if not self.kept or self.kept.keys() != self.channels.keys():
            raise ValueError("the plan is damaged: 'kept' and 'channels' must name the same convolutions, one or more")
        if (self.ratio is None) == (self.rates is None):
            raise ValueError("the plan is damaged: it must have either a ratio or rates")
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
    rates: LayerRates | None = None,
    rates_as: Shorthand | None = None,
    rounding: Rounding | None = None,
    scope: Scope = "inner",
    ranking: Ranking = "layer",
) -> PruningPlan:
    """Choose the channels that stay: every layer loses the same share of its channels (M6), or its own, or what lies below one
    threshold.

    example: images (N, C, H, W), one is enough. importances: (C,) by convolution name, higher = keep; layers
    without one stay whole. ratio: the share of channels to remove. macs, instead of ratio: the share of the dense
    network's MACs to leave; the plan comes as near as whole channels allow. rates, instead of both: the share of channels to
    remove from each layer, by name (layers that are not named stay whole), or as a list with one number a prunable layer in the
    network's order. rates_as: whose shorthand a list is: ``chip`` (Sui et al. 2021). rounding: ``study`` or ``chip``, see
    ``counts.keep_count``; by default the shorthand's own, else ``study``. scope: ``inner`` leaves layers that share a
    residual sum whole; ``all`` removes the same channels from each of them, by their mean importance (M7), where all of
    them have one. ranking: ``network`` compares importances between layers, and one threshold for all of them decides how many
    channels each layer loses (M6); it keeps one at least. The ratio is then the share of all their channels.
    ``skipped`` of the plan says why a layer stays whole.

    The plan is tried on a copy, which is compared with the dense network as ``proof.Proof`` says. Layers that cannot be cut
    exactly stay whole; the others are still pruned. One cut is enough when all are exact, and each layer that is not
    takes about two more for every doubling of the network's depth.

    Raises StudyError for a bad ratio, macs, rates, scope or ranking, for an importance that does not fit, and when no layer is left
    to prune. Macs more than 0.05 outside of what the layers can leave are refused with what can be reached. A list of rates of
    another length is refused with the number wanted, and so are different rates in layers that lose the same channels.

        make_plan(vgg16, images, scores, rates={"features.conv13": 0.75})  # this layer alone
        make_plan(resnet56, images, scores, rates="[0.]+[0.15]*2+[0.4]*27", rates_as="chip", scope="all")
    """
    check_goal(ratio, macs, rates, rates_as, rounding, ranking)
    layers = trace_layers(model, example)
    _check_importances(importances, layers)
    own = None if rates is None else rates_by_layer(read_rates(rates), rates_as, layers, scope)
    groups, skipped = _groups(layers, importances, scope, own or {})
    draft = Draft(model, example, layers, importances, groups, skipped, ranking, own, rounding or rates_as or "study")
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
        rates={name: rate for name, rate in own.items() if rate} if own else None,
        rounding=draft.rounding,
    )


def _check_importances(importances: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> None:
    if unknown := sorted(importances.keys() - layers.keys()):
        raise refuse("importances", unknown, f"the network's convolutions: {', '.join(layers)}")
    for name, score in importances.items():
        if score.shape != (layers[name].channels,) or score.is_complex() or not score.isfinite().all():
            raise StudyError(
                f"importance of {name} must be {layers[name].channels} finite numbers, got {score.dtype} {tuple(score.shape)}"
            )


def _groups(
    layers: Mapping[str, Layer], importances: Mapping[str, Tensor], scope: Scope, rates: Mapping[str, float]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Layers that shrink together, by their first, and why others do not. Raises StudyError for a rate of one that cannot."""
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
    for name, rate in rates.items():
        if rate and name in skipped:
            raise refuse(f"rates.{name}", rate, f"0 here: {skipped[name]}")
        if not rate:
            skipped |= dict.fromkeys(groups.pop(name, ()), "its rate is 0")
    return groups, skipped
