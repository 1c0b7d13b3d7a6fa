"""Whether a narrower network is exact, whoever narrowed it: found from its weights alone, without any graph or plan.

The weights of a narrower layer are some rows and columns of the dense ones. Since random weights differ, looking them up says which
inputs each layer lost. A narrower network is exact if it yields what the dense one yields with zeros in these inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, call, count_of, noise_like, placed
from fcs_utils.pruning.kinds import depthwise, multiplier
from fcs_utils.pruning.proof import zeroed
from fcs_utils.running import shared, tensors_in

EXACT = 1e-6  # of the largest output, in float64: differences up to it are rounding
Layers = (nn.modules.conv._ConvNd, nn.Linear)
RowsAndColumns = tuple[Tensor, Tensor]  # rows and columns


def inexactness(dense: nn.Module, narrow: nn.Module, example: Inputs) -> str | None:
    """How a narrower network differs from the dense one with zeros in the inputs that its layers lost; None where it is exact.

    example: images (N, C, ...), or several inputs; random ones of this shape are tried, too. Both networks are in eval mode, on
    copies in float64.
    Raises StudyError where nothing could be seen: the dense network does not run, or the zeros change none of its outputs.
    """
    lost: dict[str, list[int]] = {}
    for name, module in dense.named_modules():
        if isinstance(module, Layers):
            try:
                other = narrow.get_submodule(name)
            except AttributeError:
                return f"it has no {name}"
            found = lost_inputs(module, other)
            if found is None:
                return f"the weights of {name} are no part of the dense ones"
            if found:
                lost[name] = found
    noise = noise_like(example, count_of(example), torch.Generator().manual_seed(1))
    seen = 0.0
    for images in (example, noise):
        with zeroed(full := _doubled(dense), lost):
            want = _yields(full, images)
        try:
            gap = _largest_gap(want, _yields(_doubled(narrow), images))
        except Exception as error:  # a network that was cut wrongly can raise anything
            return f"it does not run: {' '.join(str(error).split())[:200]}"
        if gap is None:
            return "its outputs have other shapes"
        if not gap <= EXACT:
            return f"its outputs are off by {gap:.2g} of the largest"
        seen = max(seen, _largest_gap(want, _yields(_doubled(dense), images)) or 0.0)
    if lost and not seen > EXACT:
        raise StudyError("the check sees nothing: without these channels the dense network yields the same")
    return None


def lost_inputs(dense: nn.Module, narrow: nn.Module) -> list[int] | None:
    """The input channels of a dense layer that a narrower one no longer reads; None where its weights are none of the dense ones.

    Empty for a depthwise convolution, which mixes no channels, so that its own channels are those of the layer before it.
    """
    if type(dense) is not type(narrow) or not isinstance(dense, Layers) or not isinstance(narrow, Layers):
        return None
    wide, left = dense.weight.detach(), narrow.weight.detach()
    groups, others = getattr(dense, "groups", 1), getattr(narrow, "groups", 1)
    if wide.shape == left.shape and groups == others:
        return [] if wide.equal(left) else None
    if depthwise(dense):
        inputs, outputs = getattr(narrow, "in_channels", 0), getattr(narrow, "out_channels", 0)
        return [] if others == inputs and outputs == inputs * multiplier(dense) else None
    if getattr(dense, "transposed", False):
        if groups != 1 or others != 1:
            return None  # no network here has them
        wide, left = wide.transpose(0, 1), left.transpose(0, 1)
    inputs, rows = wide.shape[1], wide.shape[0] // groups
    kept: set[int] = set()
    for block in left.chunk(others):
        places = part_of(wide, block)
        if places is None or len(of := (places[0] // rows).unique()) != 1:
            return None
        kept.update((of * inputs + places[1]).tolist())
    return [index for index in range(inputs * groups) if index not in kept]


def part_of(wide: Tensor, left: Tensor) -> RowsAndColumns | None:
    """Rows and columns of ``wide`` (O, I, ...) that make ``left`` (o, i, ...); None where there are none."""
    if wide.shape[2:] != left.shape[2:]:
        return None
    return next((found for found in _candidates(wide, left) if wide[found[0]][:, found[1]].equal(left)), None)


def _candidates(wide: Tensor, left: Tensor) -> Iterator[RowsAndColumns]:
    """Rows and columns that fit the first row, and the first columns of all rows, by the first number of each kernel."""
    firsts, sought = (tensor.flatten(2)[:, :, 0] if tensor.dim() > 2 else tensor for tensor in (wide, left))
    for row in (firsts == sought[0, 0]).any(1).nonzero().flatten().tolist():
        columns = _places(firsts[row], sought[0])
        if columns is None:
            continue
        some = columns[: min(len(columns), 8)]
        known = {tuple(values): place for place, values in enumerate(firsts[:, some].tolist())}
        rows = [known.get(tuple(values)) for values in sought[:, : len(some)].tolist()]
        if all(place is not None for place in rows):
            yield torch.tensor(rows), columns


def _places(values: Tensor, sought: Tensor) -> Tensor | None:
    """Where each number stands; of equal ones, the first behind the one before."""
    stands: dict[float, list[int]] = {}
    for place, value in enumerate(values.tolist()):
        stands.setdefault(value, []).append(place)
    found, last = [], -1
    for value in sought.tolist():
        places = stands.get(value)
        if places is None:
            return None
        last = next((place for place in places if place > last), places[0])
        found.append(last)
    return torch.tensor(found)


def _doubled(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).double().eval()


def _yields(network: nn.Module, images: Inputs) -> list[Tensor]:
    with shared, torch.no_grad():
        return tensors_in(call(network, placed(images, next(network.parameters()))))


def _largest_gap(wanted: list[Tensor], got: list[Tensor]) -> float | None:
    """The largest difference as a share of the largest value; None where shapes differ or nothing can be compared."""
    if [one.shape for one in wanted] != [one.shape for one in got] or not any(one.numel() for one in wanted):
        return None
    gaps = [
        (one.double() - other.double()).abs().max().item() / max(one.double().abs().max().item(), 1e-300)
        for one, other in zip(wanted, got, strict=True)
        if one.numel()
    ]
    return max(gaps)
