"""Proof that surgery is exact: a compact network equals its dense one with the dropped channels at zero."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError, first_line
from fcs_utils.inputs import Inputs, first_of, noise_like, parts_of, placed, shapes_of
from fcs_utils.pruning.cutting import Cuts, duplicate
from fcs_utils.pruning.outcomes import ForwardPass, defined_in, first_run, gap_between
from fcs_utils.pruning.routes import same_route
from fcs_utils.running import untouched

ROUNDING = 1e-6  # the largest difference that is rounding, as a share of the largest output, in float64
COARSE = 1e-4  # the same for a network that runs in its own precision only
SIZES = (0.5, 1.5, 2)  # other sizes of images that are tried, as shares of their sides
SMALL = 64  # pixels of the shorter side of images that are tried for larger ones, where the network does the same with both


@contextmanager
def zeroed(model: nn.Module, lost: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """While open, layers read zeros in place of dropped channels. lost: by layer, indices of its input's channels."""

    def hook(at: Sequence[int]) -> Callable[..., Any]:
        def blank(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            seen = args[0] if args else keywords["input"]
            axis = seen.dim() - 1 if isinstance(module, nn.Linear) else 1
            seen = seen.index_fill(axis, torch.tensor(at, dtype=torch.int64).to(seen.device), 0)
            return ((seen, *args[1:]), keywords) if args else (args, {**keywords, "input": seen})

        return blank

    with ExitStack() as hooks:
        for name, indices in lost.items():
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(hook(indices), with_kwargs=True))
        yield


class Proof:
    """Compares compact networks with one dense network, on copies in float64; the networks stay as they were.

    They run on a random image like ``images`` and on the first two of ``example``, where given, in eval mode, and on two to 16
    random images in train mode. Where a network of several inputs does not run on random ones, the example is enough. A network may
    take another route at another size, so they also run, in eval mode, on a random image of half the size and on one of one and a
    half times the size (twice, where it does not run on that), where the dense network runs on these. Where it does not run in
    train mode, it is tried there at the larger size, too.
    Of other sizes nothing is known. Numbers that a network draws itself, such as dropout's, become constants.
    untrained: why the dense network does not run in train mode, so that this mode was left out; None where it does. small: smaller
    images that prove the same, where the dense network does the same with them as with all others; else none.
    full: whether an image of full size is compared even so, which takes most of the time of a large network.
    """

    def __init__(self, model: nn.Module, images: Inputs, example: Inputs | None = None, full: bool = True) -> None:
        self.model, self.weight, self.full = model, next(model.parameters()), full
        generator = torch.Generator().manual_seed(0)
        like = placed(first_of(images, 2), torch.zeros(()))  # drawn as float32 whatever the network has
        count = _enough(like)
        self.noise = noise_like(like, count, generator)
        self.example = images if example is None else example
        given = [] if example is None else [first_of(example, 2)]
        self.images, self.several = [first_of(self.noise), *given], not isinstance(images, Tensor)
        smaller, *larger = (noise_like(like, count, generator, share) for share in SIZES)
        # What else is tried: whether in train mode, and images of which the first count that the dense network takes.
        self.tries = [
            (False, [first_of(smaller)]),
            (False, [*map(first_of, larger)]),
            (True, [self.noise, *larger, *(given if self.several else [])]),
        ]
        self.untrained: str | None = None
        self.runs_in: torch.dtype | None = None  # the precision in which the dense network was seen to run on all its images
        self._dense: dict[torch.dtype, tuple[nn.Module, list[Any]]] = {}

    def fault(self, compact: nn.Module, lost: Mapping[str, Sequence[int]], brief: bool = False) -> str | None:
        """Why a compact network is not the dense one with zeros where layers read ``lost`` channels; None where it is.

        brief: any words will do. The first difference ends the comparison, for a network of which many layers stay whole is
        compared many times. Raises StudyError for a dense network that does not run, or whose output is NaN on all images.
        """
        if self.runs_in and not (brief and self.small):
            # Where the compact network does not run, there is no need of the dense one.
            _, error = first_run(self._copy(compact, self.runs_in), self.images[:1], False)
            if error:
                return _stops(error, "")
        if self.small:
            if self._equal(compact, lost, self.small[0]):
                return None
            if brief:
                return "its output differs"
        for precision in (torch.float64, self.weight.dtype):
            narrow = self._copy(compact, precision)
            first, error = first_run(narrow, self.images[:1], False)
            dense = self.dense(precision)
            with untouched(dense), zeroed(dense, lost):
                found = [first_run(dense, [images], False) for images in self.images]
                failure = next((error for _, error in found if error), None)
                if not failure or (self.several and found[-1][0]):
                    self.runs_in = None if failure else precision
                    known = {} if error or failure else {id(self.images[0]): first[0]}
                    return self._difference(dense, narrow, precision, [run for runs, _ in found for run in runs], known)
        assert failure is not None
        raise StudyError(f"the network does not run on images {shapes_of(self.noise)}: {first_line(failure)}") from failure

    def dense(self, precision: torch.dtype) -> nn.Module:
        """A copy of the dense network in a precision, the same one each time, as long as no forward pass writes to its weights."""
        made, marks = self._dense.get(precision, (None, None))
        if made is None or marks != _marks(made):
            made = self._copy(self.model, precision)
            self._dense[precision] = made, _marks(made)
        return made

    @cached_property
    def small(self) -> list[Inputs]:
        sides = self.noise.shape[2:] if isinstance(self.noise, Tensor) else ()
        if not sides or min(sides) < 2 * SMALL:
            return []
        small = noise_like(self.noise, 2, torch.Generator().manual_seed(1), SMALL / min(sides))
        return [small] if self._same_at(self.model, small) else []

    @property
    def least(self) -> Inputs:
        """The smallest images that lead through the dense network as the example does, or else the example itself."""
        return first_of(self.small[0]) if self.small else self.example

    def _same_at(self, model: nn.Module, small: Inputs) -> bool:
        """Whether a network does the same with small images as with all others that are tried and with those of the full size."""
        others = [first_of(choices[0]) for training, choices in self.tries if choices and not training]
        if shapes_of(self.images[-1]) != shapes_of(self.noise):  # else it runs on one
            others.append(first_of(self.noise))
        return same_route(model, [first_of(small), *others], [small, self.noise])

    def _equal(self, compact: nn.Module, lost: Mapping[str, Sequence[int]], small: Inputs) -> bool:
        """Whether small images in both modes show no difference, and the compact network does the same with all others, too.

        False also where they prove nothing.
        """
        narrow, dense, defined = self._copy(compact, torch.float64), self.dense(torch.float64), False
        with untouched(dense), zeroed(dense, lost):
            whole = [(False, self.images[-1])] if self.full else []
            for training, images in ((False, first_of(small)), *whole, (True, small)):
                if not (found := first_run(narrow, [images], training)[0]):
                    return False
                wanted = first_run(dense, [images], training)[0]
                if not wanted or gap_between(wanted[0].outputs, found[0].outputs) > ROUNDING:
                    return False
                defined = defined or defined_in(wanted[0].outputs)
        return defined and self._same_at(narrow, small)

    def _difference(
        self, dense: nn.Module, compact: nn.Module, precision: torch.dtype, runs: list[ForwardPass], known: dict[int, ForwardPass]
    ) -> str | None:
        """What differs first: on the images of these runs of the dense network, then on what else is tried.

        known: by images, what the compact network yields in eval mode.
        """
        defined = False
        for run in itertools.chain(runs, self._more(dense)):
            at = "" if shapes_of(run.images) == shapes_of(self.noise) else f" on images of {_size(run.images)}"
            mode = (" in train mode" if run.training else "") + at
            found, error = (
                ([known[id(run.images)]], None) if id(run.images) in known else first_run(compact, [run.images], run.training)
            )
            if error:
                return _stops(error, mode)
            gap = gap_between(run.outputs, found[0].outputs)
            if gap > (ROUNDING if precision is torch.float64 else COARSE):
                return (
                    f"the network looks at the index or number of its channels{mode}: without some, its output is off by {gap:.2g}"
                )
            defined = defined or defined_in(run.outputs)
        if not defined:
            raise StudyError("surgery cannot be checked: all outputs of the network are NaN, infinite or no tensors")
        return None

    def _more(self, dense: nn.Module) -> Iterator[ForwardPass]:
        """The dense network on what else is tried. What fails is not tried again."""
        for number, (training, choices) in enumerate(self.tries):
            runs, error = first_run(dense, choices, training)
            if training and error:
                self.untrained = first_line(error)
            self.tries[number] = (training, [run.images for run in runs])
            yield from runs

    def _copy(self, model: nn.Module, precision: torch.dtype) -> nn.Module:
        device = self.weight.device
        # MPS has no float64.
        return duplicate(model, torch.empty((), device="cpu" if device.type == "mps" else device, dtype=precision))


def exact_groups(cuts: Cuts, groups: Mapping[str, Mapping[str, list[int]]], proof: Proof) -> tuple[nn.Module, dict[str, str]]:
    """The compact network without the channels of all groups that can be cut exactly, and why others cannot, by group.

    groups: by name, what the convolutions of a group keep. All are tried at once, then halves of those that fail.
    """
    kept: dict[str, list[int]] = {}
    best, faults = cuts.model, dict[str, str]()
    waiting = [list(groups)]
    while waiting:
        names = waiting.pop()
        tried = kept | {layer: stays for name in names for layer, stays in groups[name].items()}

        compact = cuts.compact(tried)
        fault = proof.fault(compact, cuts.lost_inputs(tried), brief=len(names) > 1)
        if fault is None:
            kept, best = tried, compact
        elif len(names) == 1:
            faults[names[0]] = fault
        else:
            half = len(names) // 2
            waiting += [names[half:], names[:half]]
    return best, faults


def _enough(images: Inputs) -> int:
    """How many images BatchNorm is tried on: those with as many pixels as two of ``SMALL``, from 2 to 16.

    Where maps have one position, BatchNorm of two images divides by their difference. Where that is small, rounding grows as large
    as a fault within a few layers.
    """
    return min(16, max(2, 2 * SMALL**2 // parts_of(images)[0].shape[2:].numel()))


def _marks(model: nn.Module) -> list[Any]:
    """What changes when a forward pass writes to the weights."""
    return [(one._version, one.data_ptr()) for one in model.parameters()]


def _stops(error: Exception, mode: str) -> str:
    return f"without some of its channels the network does not run{mode}: {first_line(error)}"


def _size(images: Inputs) -> str:
    """The sides of the first input that has any."""
    sides = next((one.shape[2:] for one in parts_of(images) if one.dim() > 2), ())
    return " x ".join(map(str, sides)) + (" pixels" if len(sides) == 2 else " positions")
