"""Whether a copy of a network stands by itself: a function that the network holds may lead back to the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, noise_like, parts_of
from fcs_utils.pruning.cutting import duplicate
from fcs_utils.pruning.outcomes import first_run
from fcs_utils.pruning.proof import SMALL
from fcs_utils.pruning.ties import memory_of


class _Reads(TorchDispatchMode):
    """Notes which tensors of ``known``, by the place of their memory, are read."""

    def __init__(self, known: Mapping[int, str]) -> None:
        super().__init__()
        self.known, self.found = known, dict[str, None]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, Tensor) and (name := self.known.get(memory_of(one))):
                self.found[name] = None
        return func(*args, **(kwargs or {}))


def check_apart(model: nn.Module, images: Inputs) -> None:
    """Raises StudyError where a copy of a network computes with parameters or buffers of the network itself.

    images: (N, C, ...) or several inputs. A lambda that a layer holds, or a hook, may have got hold of the network. Python copies
    neither, so it goes on to use the network's own layers in every copy. What such a copy learns would change the wrong network.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    known = {memory: name for name, tensor in named if (memory := memory_of(tensor))}
    sides = parts_of(images)[0].shape[2:]
    share = min(1.0, SMALL / min(sides)) if isinstance(images, Tensor) else 1.0
    tried = [noise_like(images, 1, torch.Generator().manual_seed(0), one) for one in sorted({share, 1.0})]
    copied = duplicate(model)
    with _Reads(known) as reads:
        first_run(copied, tried, False)  # where it does not run, others say so
    if reads.found:
        raise StudyError(
            f"a copy of the network still computes with the network's own {', '.join([*reads.found][:3])}: something that it holds "
            "and Python does not copy refers to them, such as a lambda, a hook or a part with an own __deepcopy__; make it a method"
        )
