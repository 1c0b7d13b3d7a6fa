"""What a training needs of its networks and batches, checked before the first step."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError, is_out_of_memory, refuse
from fcs_utils.inputs import Inputs, call, images_in_words, laid_out, parts_of
from fcs_utils.running import run_network, untouched
from fcs_utils.training.arms import Arm
from fcs_utils.training.losses import check_logits, check_range

InputBatch = tuple[Inputs, Tensor]  # images (B, C, ...), or all inputs of a network, and labels (B,)


_threads: list[int] = []  # one entry for each training in progress


@contextmanager
def in_training() -> Iterator[None]:
    """Warns where another thread is in a training: torch has one generator for all threads, from which dropout draws."""
    if set(_threads) - {threading.get_ident()}:
        warnings.warn(
            "another thread trains, too: what networks draw at random, such as dropout, comes from one generator for all threads, "
            "so that results are not those of a seed; use processes instead",
            stacklevel=5,
        )
    _threads.append(threading.get_ident())
    try:
        yield
    finally:
        _threads.remove(threading.get_ident())


def check_networks(networks: Sequence[nn.Module], arm: Arm) -> None:
    """Raises StudyError for as many networks as the arm does not take, and for networks that cannot be trained side by side."""
    if len(networks) != arm.networks:
        raise refuse("networks", len(networks), f"{arm.networks} for arm {arm.name}")
    weights = [{id(parameter) for parameter in network.parameters()} for network in networks]
    if not all(weights) or not any(parameter.requires_grad for net in networks[: arm.trained] for parameter in net.parameters()):
        raise StudyError("networks: each needs parameters, and those that learn parameters that require a gradient")
    if len(weights) > 1 and weights[0] & weights[1]:
        raise StudyError("networks: the two share parameters; copy one of them, as with copy.deepcopy")
    if len(devices := {str(parameter.device) for network in networks for parameter in network.parameters()}) > 1:
        raise refuse("networks", f"on {', '.join(sorted(devices))}", "networks on one device")


def checked_batch(batch: object, where: str) -> InputBatch:
    """Images, or all inputs of a network, and labels. Raises StudyError for anything else, naming where it comes from."""
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and _are_inputs(batch[0]) and isinstance(batch[1], Tensor)):
        found = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else type(batch).__name__
        raise StudyError(f"{where} is not allowed: {found}; allowed: (images, labels), or (inputs, labels) with several tensors")
    images, labels = batch
    rows = all(one.shape[:1] == labels.shape for one in parts_of(images))
    plain = isinstance(images, Tensor) and not images.is_floating_point()
    if plain or labels.dtype != torch.int64 or not rows or not len(labels):
        found = f"{images_in_words(images)}, labels {labels.dtype} {tuple(labels.shape)}"
        raise StudyError(f"{where} is not allowed: {found}; allowed: float images (B, C, ...) and int64 labels (B,)")
    return images, labels


def _are_inputs(images: object) -> bool:
    """Whether this is a tensor, or a sequence or dict of some."""
    if isinstance(images, Mapping | tuple | list) and len(images):
        return all(isinstance(one, Tensor) for one in parts_of(images))
    return isinstance(images, Tensor)


def first_look(epoch: object) -> tuple[Inputs, Tensor, int]:
    """The images and labels of the first batch of an epoch, and how many batches it has. Raises StudyError for no batches."""
    if not isinstance(epoch, Iterable):
        raise refuse("batches(seed, 1)", epoch, "an iterable of (images, labels)")
    left = iter(epoch)
    first = next(left, None)
    if first is None:
        raise StudyError("batches(seed, 1) gave no batch: fit needs at least one of (images, labels)")
    images, labels = checked_batch(first, "the first batch of batches(seed, 1)")
    return images, labels, len(epoch) if isinstance(epoch, Sized) else 1 + sum(1 for _ in left)


@torch.no_grad()
def layout_of(network: nn.Module, images: Inputs) -> torch.memory_format:
    """The memory format of weights in which a network trains on such a batch: channels_last where it runs with that, as most do."""
    with untouched(network):
        network.train()
        try:
            call(network, laid_out(images, torch.channels_last))
        except Exception as error:  # it ran on the batch as it came, so that the layout is what fails
            if is_out_of_memory(error):
                raise
            return torch.contiguous_format
    return torch.channels_last


@torch.no_grad()
def check_fit(networks: Sequence[nn.Module], trained: int, images: Inputs, labels: Tensor) -> int:
    """Try a batch in the modes of training, without a trace; returns the number of classes.

    Raises StudyError where it does not run or gives no logits, and for labels of other classes.
    """
    logits = []
    for number, network in enumerate(networks):
        with untouched(network):
            network.train(number < trained)
            logits.append(run_network(network, images))
    check_logits(logits, labels)
    classes = logits[0].shape[1]
    check_range(labels, classes)
    return classes
