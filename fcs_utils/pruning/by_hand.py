"""A plan whose channels were chosen by hand, or by another program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fcs_utils.config import Amount, Images, Model, checked
from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.apart import check_apart
from fcs_utils.pruning.costs import Costs
from fcs_utils.pruning.cutting import Cuts
from fcs_utils.pruning.input_shapes import shape_fields
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.proof import Proof


@checked
def plan_by_hand(model: Model, example: Images, kept: Mapping[str, Sequence[Amount]]) -> PruningPlan:
    """A plan that keeps these channels; other convolutions stay whole.

    example: images (N, C, ...), one is enough. kept: by convolution, the indices of the channels that stay, in any order. One
    convolution of a residual sum is enough: those that must lose the same channels are added. The plan is tried on a copy.

    Raises StudyError for a layer that does not exist or cannot lose channels, for indices that are none of its channels or stand
    there twice, for layers of one residual sum with different channels, and where nothing would be pruned.

        plan = plan_by_hand(model, images, {"features.0": [*range(0, 64, 2)]})
        compact = prune(model, plan)
    """
    layers, wanted = trace_layers(model, example, "example"), {name: sorted(indices) for name, indices in kept.items()}
    for name, indices in wanted.items():
        if name not in layers:
            raise refuse("kept", name, f"the network's convolutions: {', '.join(layers)}")
        width = layers[name].channels
        if not indices or len(set(indices)) < len(indices) or indices[-1] >= width:
            raise refuse(f"kept.{name}", indices, f"different channels of 0 to {width - 1}, one or more")
        if why := layers[name].shares.fault(indices, width):
            raise refuse(f"kept.{name}", indices, why)
        if why := layers[name].obstacle("all"):
            raise StudyError(f"kept: {name} cannot lose channels: {why}")
    losing = {name: indices for name, indices in wanted.items() if len(indices) < layers[name].channels}
    if not losing:
        raise StudyError("nothing to prune: every layer in kept keeps all of its channels")
    check_apart(model, example)
    cuts = Cuts(model, losing, example)
    if unled := next((name for name in cuts.groups if name not in losing), None):
        led = next(name for name in losing if name in cuts.groups[unled])
        raise StudyError(f"kept: name {unled} in place of {led}: its channels decide which of {led} stay")
    complete = {member: stays for name in cuts.groups for member, stays in cuts.spread(name, losing[name]).items()}
    if odd := next((name for name in wanted if wanted[name] != complete.get(name, wanted[name])), None):
        raise refuse(f"kept.{odd}", wanted[odd], f"{complete[odd]}, the channels of its residual sum, which go together")
    compact = cuts.compact(complete)
    if fault := Proof(model, example, example).fault(compact, cuts.lost_inputs(complete)):
        raise StudyError(f"these channels cannot be cut exactly: {fault}")
    costs, names = Costs(model, example, layers), [name for name in layers if name in complete]
    return PruningPlan(
        kept={name: complete[name] for name in names},
        channels={name: layers[name].channels for name in names},
        skipped={name: "not named" for name in layers if name not in complete},
        **shape_fields(example),
        ratio=None,
        scope="all",
        macs_left=costs.measured(compact),
        allocation="hand",
        layer_macs=costs.by_layer(compact),
    )
