"""Whether a copy of a network stands by itself: a function that the network holds may lead back to the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, noise_like, parts_of
from fcs_utils.machine import free_memory
from fcs_utils.pruning.cutting import duplicate
from fcs_utils.pruning.outcomes import first_run
from fcs_utils.pruning.proof import SMALL
from fcs_utils.pruning.ties import memory_of
from fcs_utils.running import EagerMode


class _Reads(EagerMode):
    """Notes which tensors of ``known``, by the place of their memory, are read, and how many numbers the largest map has.

    It is called with one image. What is made of weights alone, whose first dimension is no image, does not grow with the image.
    """

    def __init__(self, known: Mapping[int, str]) -> None:
        super().__init__()
        self.known, self.found, self.largest = known, dict[str, None](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, Tensor) and (name := self.known.get(memory_of(one))):
                self.found[name] = None
        result = func(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        self.largest = max([self.largest, *(one.numel() for one in made if one.shape[:1] == (1,))])
        return result


def check_apart(model: nn.Module, images: Inputs) -> None:
    """Raises StudyError where a copy of a network computes with parameters or buffers of the network itself.

    images: (N, C, ...) or several inputs. A lambda that a layer holds, or a hook, may have got hold of the network. Python copies
    neither, so it goes on to use the network's own layers in every copy. What such a copy learns would change the wrong network.
    Also raises StudyError for images so large that the network would take more memory than there is, as a small one shows.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    known = {memory: name for name, tensor in named if (memory := memory_of(tensor))}
    copied, reads = duplicate(model), _Reads(known)
    for tried in _sizes(images):
        with reads:
            _, error = first_run(copied, [tried], False)  # where it does not run, others say so
        if isinstance(images, Tensor) and isinstance(tried, Tensor):
            _check_memory(images, reads.largest * images[0].numel() // tried.numel(), next(model.parameters()).device)
        if error is None:
            break
    if reads.found:
        raise StudyError(
            f"a copy of the network still computes with the network's own {', '.join([*reads.found][:3])}: Python does not copy "
            "something in it that refers to them, such as a lambda, a hook or a part with its own __deepcopy__; make that a method"
        )


def _sizes(images: Inputs) -> Iterator[Inputs]:
    """A small random image, and one of full size, which is made where it is asked for."""
    sides = parts_of(images)[0].shape[2:]
    for share in (SMALL / min(sides), 1.0) if isinstance(images, Tensor) and min(sides) > SMALL else (1.0,):
        yield noise_like(images, 1, torch.Generator().manual_seed(0), share)


def _check_memory(images: Tensor, largest: int, device: torch.device) -> None:
    """largest: numbers in the largest tensor of one image."""
    needed, free = 2 * 8 * largest, free_memory(device)  # what a layer reads and writes, in float64
    if needed > free:
        size = " x ".join(map(str, images.shape[2:]))
        raise StudyError(f"an image of {size} takes some {needed / 1e9:.3g} GB in this network, and {free / 1e9:.3g} GB are free")
