"""From importance to a plan: which channels stay, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from fcs_utils.config import Amount, Count, Images, Model, NotNegative, Ratio, checked
from fcs_utils.errors import StudyError, refuse
from fcs_utils.inputs import Inputs
from fcs_utils.pruning.counts import Limits, Ranking, Rounding
from fcs_utils.pruning.cutting import duplicate
from fcs_utils.pruning.draft import Draft
from fcs_utils.pruning.input_shapes import Input, check_example, images_like, shape_fields
from fcs_utils.pruning.kinds import check_images
from fcs_utils.pruning.latency_goal import Latency, check_latency, reach_latency
from fcs_utils.pruning.layer_rates import LayerRates, Shorthand, check_goal, rates_by_layer, read_rates
from fcs_utils.pruning.layers import Layer, Scope, trace_layers
from fcs_utils.pruning.options import Allocation, Evaluate, PlanOptions
from fcs_utils.pruning.proof import Proof
from fcs_utils.pruning.statistics import ChannelStatistics

REASON = 60  # characters of a reason in a table
LARGEST_INPUT = 2**30  # numbers of an image


class PruningPlan(BaseModel):
    """Which channels stay, as plain data that can be stored, replayed and compared.

    kept: sorted kept output channels of every convolution that loses some, followers included. channels: those layers' full
    widths. skipped: why other convolutions stay whole. input_shape: (C, H, W), (C, L) or (C, D, H, W) of one image; for other sizes
    see ``surgery.prune``. ratio: the share of channels removed from every layer, or where one threshold decides, from all of them
    together; None where layers have rates of their own. macs: the share of MACs asked for, where the ratio was found from it;
    macs_left: the share that this plan leaves, as measured on the compact network. rates: the share of channels to remove by
    layer, of layers that lose some. rounding: see ``counts.keep_count``. allocation, multiple, min_channels, latency: as asked
    for, see ``make_plan``; a plan that names its channels itself has the allocation "hand" and neither ratio nor rates.
    latency_left: as measured, in the unit of ``latency``. layer_macs: multiply-adds of one image before and after, by layer, for
    the table that ``print`` shows. inputs: of a network that takes several, of which input_shape is the first one's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kept: dict[str, list[Annotated[int, Field(strict=True)]]]
    channels: dict[str, Count]
    skipped: dict[str, str] = {}
    input_shape: tuple[Count, ...]
    ratio: Ratio | None
    scope: Scope = "inner"
    macs: Ratio | None = None
    macs_left: NotNegative | None = None
    # Not in the JSON of a plan that has the default, so that older plans stay as they were.
    ranking: Ranking = Field(default="layer", exclude_if=lambda ranking: ranking == "layer")
    rates: dict[str, float] | None = Field(default=None, exclude_if=lambda rates: rates is None)
    rounding: Rounding = Field(default="study", exclude_if=lambda rounding: rounding == "study")
    allocation: Allocation | Literal["hand"] = Field(default="uniform", exclude_if=lambda allocation: allocation == "uniform")
    multiple: Count = Field(default=1, exclude_if=lambda multiple: multiple == 1)
    min_channels: Count = Field(default=1, exclude_if=lambda least: least == 1)
    latency: Latency | None = Field(default=None, exclude_if=lambda latency: latency is None)
    latency_left: NotNegative | None = Field(default=None, exclude_if=lambda latency: latency is None)
    layer_macs: dict[str, tuple[Amount, Amount]] = Field(default={}, exclude_if=lambda macs: not macs)
    inputs: tuple[Input, ...] = Field(default=(), exclude_if=lambda inputs: not inputs)

    @model_validator(mode="after")
    def _whole(self) -> PruningPlan:
        if not self.kept or self.kept.keys() != self.channels.keys():
            raise ValueError("the plan is damaged: 'kept' and 'channels' must name the same convolutions, one or more")
        if (self.ratio is not None) + (self.rates is not None) + (self.allocation == "hand") != 1:
            raise ValueError("the plan is damaged: it must have either a ratio or rates, or allocation='hand'")
        if not self.inputs and not 2 <= len(self.input_shape) <= 4:
            raise ValueError("the plan is damaged: input_shape must be (C, H, W), (C, L) or (C, D, H, W)")
        if self.inputs and self.inputs[0].shape != self.input_shape:
            raise ValueError("the plan is damaged: input_shape must be that of the first of its inputs")
        if both := sorted(self.kept.keys() & self.skipped.keys()):
            raise ValueError(f"the plan is damaged: {both[0]} cannot lose channels and stay whole")
        if (self.macs_left or 0) > 1 or any(left > dense for dense, left in self.layer_macs.values()):
            raise ValueError("the plan is damaged: it cannot leave more MACs than there were")
        if any(not 0 <= rate < 1 for rate in (self.rates or {}).values()):
            raise ValueError("the plan is damaged: rates must be 0 or above and below 1")
        if any(math.prod(shape) > LARGEST_INPUT for shape in (self.input_shape, *(one.shape for one in self.inputs))):
            raise ValueError(f"input_shape: one image has more than {LARGEST_INPUT:,} numbers")
        for name, indices in self.kept.items():
            width = self.channels[name]
            if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= width:
                raise ValueError(f"the plan is damaged: kept channels of {name} must be sorted, unique and within 0..{width - 1}")
        return self

    def __str__(self) -> str:
        """A table: what each layer keeps, of how many channels, its share of the dense MACs, and why it stays whole."""
        total = sum(dense for dense, _ in self.layer_macs.values())
        rows = [("layer", "kept", "of", *(("MACs (%)", "left (%)") if total else ()), "")]
        names = [name for name in self.layer_macs if name in self.kept or name in self.skipped]
        for name in names or [*self.kept, *self.skipped]:
            macs = [f"{100 * one / total:.1f}" for one in self.layer_macs[name]] if total else []
            counts = (str(len(self.kept[name])), str(self.channels[name])) if name in self.kept else ("all", "")
            reason = self.skipped.get(name, "")
            rows.append((name, *counts, *macs, reason if len(reason) <= REASON else reason[: REASON - 3] + "..."))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                [row[0].ljust(sizes[0]), *(c.rjust(n) for c, n in zip(row[1:-1], sizes[1:-1], strict=True)), row[-1]]
            ).rstrip()
            for row in rows
        ]
        for what, left, goal in (("MACs", self.macs_left, self.macs), ("latency", self.latency_left, self.latency)):
            if left is not None:
                amount = f"{left:.3g}ms" if isinstance(goal, str) else f"{left:.1%}"
                asked = goal if isinstance(goal, str) else f"{goal:.1%}" if goal is not None else None
                verb = "is" if what == "latency" else "are"
                lines.append(f"{amount} of the {what} {verb} left" + (f", {asked} was the goal" if asked else ""))
        return "\n".join(lines)

    def images(self, example: Inputs | None = None) -> Inputs:
        """Images of the plan's size, see ``images_like``. Raises StudyError for an example that does not fit, or is missing."""
        if example is not None:
            check_example(self.input_shape, self.inputs, example)
        return images_like(self.input_shape, self.inputs, example)

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
    latency: Latency | None = None,
    rates_as: Shorthand | None = None,
    rounding: Rounding | None = None,
    scope: Scope = "inner",
    ranking: Ranking = "layer",
    allocation: Allocation = "uniform",
    keep: Sequence[str] = (),
    multiple: Count = 1,
    min_channels: Count = 1,
    statistics: Mapping[str, ChannelStatistics] | None = None,
    evaluate: Evaluate | None = None,
    measure: Evaluate | None = None,
) -> PruningPlan:
    """Choose the channels that stay, for one goal: ``ratio``, ``macs``, ``rates`` or ``latency`` (M6, M7).

    example: images (N, C, ...), one is enough; for several inputs a tuple in forward's order, or a dict by its arguments' names.
    importances: (C,) by convolution name, higher = keep; others stay whole. ratio: the share of channels to remove. macs: the share
    of MACs to leave. rates: the share of channels to remove by layer, by name or pattern such as ``layer4.*`` (others stay whole),
    or in the network's order. latency: a share of the dense network's, or "12.5ms"; ``measure`` takes a network and returns
    milliseconds. rates_as: whose shorthand a list is, ``chip``. rounding: see ``counts.keep_count``. scope: ``all`` prunes residual
    sums, too. ranking: ``network`` compares importances between layers. allocation: ``uniform``; ``global`` compares them after
    scaling; ``sensitivity`` takes channels where they harm least, by ``statistics`` (reconstruction) or ``evaluate`` (takes a
    network, returns its accuracy). keep: names, modules or patterns of layers that lose no channel, nor do others of their residual
    sum. multiple: what stays is a multiple of it, not less than the goal leaves. min_channels: the fewest that stay.

    The plan is tried on a copy (``proof.Proof``). Layers that cannot be cut exactly stay whole, and ``skipped`` says why.

    Raises StudyError for bad values, options that do not go together, a goal out of reach, and when no layer is left to prune.

        make_plan(resnet50, images, scores, macs=0.5, scope="all", multiple=8, keep=["layer1", "*.downsample.*"])
        make_plan(resnet56, images, scores, rates="[0.]+[0.15]*2+[0.4]*27", rates_as="chip", scope="all")
    """
    goals = {"ratio": ratio, "macs": macs, "rates": rates, "latency": latency}
    check_goal(goals, rates_as, rounding, ranking)
    check_latency(latency, measure)
    how = (rounding or rates_as or "study", Limits(multiple, min_channels), tuple(keep))
    options = PlanOptions(scope, ranking, allocation, None, *how, statistics, evaluate)
    options.check(goals)
    check_images(model, example, "example")
    proof = Proof(model, example, example, full=False)
    layers = trace_layers(model, proof.least, "example")
    _check_importances(importances, layers)
    if rates is not None:
        options = replace(options, rates=rates_by_layer(read_rates(rates), rates_as, layers, scope))
    draft = Draft(model, example, proof, layers, importances, *options.groups(layers, importances), options)
    if latency is None or measure is None:
        draft.settle(ratio, macs)
        return _plan(draft, macs=macs)
    least, most = draft.reach()
    _, found = reach_latency(latency, measure, duplicate(model), draft.cut, least, most)
    return _plan(draft, latency=latency, latency_left=found)


def _plan(draft: Draft, **goal: Any) -> PruningPlan:
    """The plan of a settled draft."""
    options, reasons = draft.options, draft.skipped | draft.whole
    names = [name for name in draft.layers if name in draft.kept]  # in the network's order
    return PruningPlan(
        kept={name: draft.kept[name] for name in names},
        channels={name: draft.layers[name].channels for name in names},
        skipped={name: reasons[name] for name in draft.layers if name in reasons and name not in draft.kept},
        **shape_fields(draft.example),
        ratio=draft.ratio,
        scope=options.scope,
        macs_left=draft.left,
        ranking=options.ranking,
        rates={name: rate for name, rate in options.rates.items() if rate} if options.rates else None,
        rounding=options.rounding,
        allocation=options.allocation,
        multiple=options.limits.multiple,
        min_channels=options.limits.least,
        layer_macs=draft.costs.by_layer(draft.compact),
        **goal,
    )


def _check_importances(importances: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> None:
    if unknown := sorted(importances.keys() - layers.keys()):
        raise refuse("importances", unknown, f"the network's convolutions: {', '.join(layers)}")
    for name, score in importances.items():
        if score.shape != (layers[name].channels,) or score.is_complex() or not score.isfinite().all():
            raise StudyError(
                f"importance of {name} must be {layers[name].channels} finite numbers, got {score.dtype} {tuple(score.shape)}"
            )
