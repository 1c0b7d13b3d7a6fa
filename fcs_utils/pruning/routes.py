"""Whether a network does the same with images of several sizes: its operations, told by tensors that hold no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fcs_utils.inputs import Inputs
from fcs_utils.pruning.outcomes import aten, first_run
from fcs_utils.running import EagerMode, shared, without_numbers

# Operations whose integer arguments are sizes of maps and so differ with the images. Those of all other operations must be equal.
RESIZING = {
    aten.view, aten._unsafe_view, aten.expand, aten.avg_pool2d, aten.upsample_nearest2d, aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
}  # fmt: skip
# Operations that are replaced, since torch takes longer for them on the device meta than on small maps. They return a map like the
# first one that they get, and two vectors.
NORMALISING = {
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training, aten.native_layer_norm,
    aten.native_group_norm,
}  # fmt: skip


class _Record(EagerMode):
    """Writes down each operation: its name, what it is given, and which of the tensors before it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Any] = []
        self.made: dict[int, tuple[int, Tensor]] = {}  # tensors by identity; kept, so that no other one gets it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in NORMALISING and args[0].dim() > 1:
            vector = args[0].new_empty(args[0].shape[1])
            result: Any = (torch.empty_like(args[0]), vector, vector)
        elif func.overloadpacket is aten.gelu:
            result = torch.empty_like(args[0])
        else:
            result = func(*args, **(kwargs or {}))
        resizing = func.overloadpacket in RESIZING
        self.steps.append((func, [self._told(one, resizing) for one in args], kwargs and self._told([*kwargs.items()], resizing)))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor):
                self.made.setdefault(id(one), (len(self.made), one))
        return result

    def _told(self, given: Any, resizing: bool) -> Any:
        if isinstance(given, Tensor):
            return self.made.setdefault(id(given), (len(self.made), given))[0], given.dim(), given.dtype
        if isinstance(given, (tuple, list)):
            return [self._told(one, resizing) for one in given]
        return None if resizing and type(given) is int else (type(given), given)


def same_route(model: nn.Module, several: Sequence[Inputs], training: Sequence[Inputs] = ()) -> bool:
    """Whether a network does the same operations, on the same tensors, with each of these images, as far as their sizes tell.

    several, training: images for eval mode, and for train mode. False also for a network that does not run on tensors without
    numbers, as where it asks for a value.
    """
    with without_numbers(model), shared, torch.no_grad():
        for mode, choices in ((False, several), (True, training)):
            first = None
            for images in choices:
                if not (route := _route(model, images, mode)) or route != (first or route):
                    return False
                first = first or route
    return True


def _route(model: nn.Module, images: Inputs, training: bool) -> list[Any]:
    """The operations of a forward pass; none where it fails."""
    with _Record() as record:
        _, error = first_run(model, [images], training)
    return [] if error else record.steps
