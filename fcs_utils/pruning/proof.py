"""Proof that surgery is exact: a compact network equals its dense one with the dropped channels at zero."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fcs_utils.errors import StudyError, first_line
from fcs_utils.inputs import Inputs, call, first_of, noise_like, parts_of, placed, shapes_of
from fcs_utils.pruning.cutting import Cuts, duplicate
from fcs_utils.running import shared, tensors_in

ROUNDING = 1e-6  # the largest difference that is rounding, as a share of the largest output, in float64
COARSE = 1e-4  # the same for a network that runs in its own precision only
SIZES = (0.5, 1.5, 2)  # other sizes of images that are tried, as shares of their sides
aten = torch.ops.aten
DRAWS = {aten.bernoulli, aten.bernoulli_, aten.uniform_, aten.normal_, aten.rand, aten.rand_like, aten.randn, aten.randn_like}


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


class _Outcome(NamedTuple):
    """What a network yields for images."""

    training: bool
    images: Inputs
    outputs: list[Tensor]


class Proof:
    """Compares compact networks with one dense network, on copies in float64; the networks stay as they were.

    They run on a random image like ``images`` and on the first two of ``example``, where given, in eval mode, and on two random
    images in train mode. Where a network of several inputs does not run on random ones, the example is enough. A network may take
    another route at another size, so they also run, in eval mode, on a random image of half the size and on one of one and a half
    times the size (twice, where it does not run on that), where the dense network runs on these. Where it does not run in train
    mode, it is tried there at the larger size, too.
    Of other sizes nothing is known. Numbers that a network draws itself, such as dropout's, become constants.
    untrained: why the dense network does not run in train mode, so that this mode was left out; None where it does.
    """

    def __init__(self, model: nn.Module, images: Inputs, example: Inputs | None = None) -> None:
        self.model, self.weight = model, next(model.parameters())
        generator = torch.Generator().manual_seed(0)
        like = placed(first_of(images, 2), torch.zeros(()))  # drawn as float32 whatever the network has
        self.noise = noise_like(like, 2, generator)
        given = [] if example is None else [first_of(example, 2)]
        self.images, self.several = [first_of(self.noise), *given], not isinstance(images, Tensor)
        smaller, *larger = (noise_like(like, 2, generator, share) for share in SIZES)
        # What else is tried: whether in train mode, and images of which the first count that the dense network takes.
        self.tries = [
            (False, [first_of(smaller)]),
            (False, [*map(first_of, larger)]),
            (True, [self.noise, *larger, *(given if self.several else [])]),
        ]
        self.untrained: str | None = None

    def fault(self, compact: nn.Module, lost: Mapping[str, Sequence[int]]) -> str | None:
        """Why a compact network is not the dense one with zeros where layers read ``lost`` channels; None where it is.

        The first difference ends the comparison, for a network of which many layers stay whole is compared many times. Raises
        StudyError for a dense network that does not run, or whose output is NaN on all images.
        """
        for precision in (torch.float64, self.weight.dtype):
            dense = self._copy(self.model, precision)
            with zeroed(dense, lost):
                found = [_first_run(dense, [images], False) for images in self.images]
                failure = next((error for _, error in found if error), None)
                if not failure or (self.several and found[-1][0]):
                    return self._difference(
                        dense, self._copy(compact, precision), precision, [run for runs, _ in found for run in runs]
                    )
        assert failure is not None
        raise StudyError(f"the network does not run on images {shapes_of(self.noise)}: {first_line(failure)}") from failure

    def _difference(self, dense: nn.Module, compact: nn.Module, precision: torch.dtype, runs: list[_Outcome]) -> str | None:
        """What differs first: on the images of these runs of the dense network, then on what else is tried."""
        defined = False
        for run in itertools.chain(runs, self._more(dense)):
            at = "" if shapes_of(run.images) == shapes_of(self.noise) else f" on images of {_size(run.images)}"
            mode = (" in train mode" if run.training else "") + at
            found, error = _first_run(compact, [run.images], run.training)
            if error:
                return f"without some of its channels the network does not run{mode}: {first_line(error)}"
            gap = _gap(run.outputs, found[0].outputs)
            if gap > (ROUNDING if precision is torch.float64 else COARSE):
                return (
                    f"the network looks at the index or number of its channels{mode}: without some, its output is off by {gap:.2g}"
                )
            defined = defined or any(bool(tensor.isfinite().any()) for tensor in run.outputs)
        if not defined:
            raise StudyError("surgery cannot be checked: all outputs of the network are NaN, infinite or no tensors")
        return None

    def _more(self, dense: nn.Module) -> Iterator[_Outcome]:
        """The dense network on what else is tried. What fails is not tried again."""
        for number, (training, choices) in enumerate(self.tries):
            runs, error = _first_run(dense, choices, training)
            if training and error:
                self.untrained = first_line(error)
            self.tries[number] = (training, [run.images for run in runs])
            yield from runs

    def _copy(self, model: nn.Module, precision: torch.dtype) -> nn.Module:
        device = self.weight.device
        return duplicate(model).to("cpu" if device.type == "mps" else device, precision)  # MPS has no float64


def exact_groups(cuts: Cuts, groups: Mapping[str, Mapping[str, list[int]]], proof: Proof) -> tuple[nn.Module, dict[str, str]]:
    """The compact network without the channels of all groups that can be cut exactly, and why others cannot, by group.

    groups: by name, what the convolutions of a group keep. All are tried at once, then halves of those that fail.
    """
    kept: dict[str, list[int]] = {}
    faults: dict[str, str] = {}
    best = cuts.model
    waiting = [list(groups)]
    while waiting:
        names = waiting.pop()
        tried = kept | {layer: stays for name in names for layer, stays in groups[name].items()}
        compact = cuts.compact(tried)
        fault = proof.fault(compact, cuts.lost_inputs(tried))
        if fault is None:
            kept, best = tried, compact
        elif len(names) == 1:
            faults[names[0]] = fault
        else:
            half = len(names) // 2
            waiting += [names[half:], names[:half]]
    return best, faults


def _size(images: Inputs) -> str:
    """The sides of the first input that has any."""
    sides = next((one.shape[2:] for one in parts_of(images) if one.dim() > 2), ())
    return " x ".join(map(str, sides)) + (" pixels" if len(sides) == 2 else " positions")


class _Constants(TorchDispatchMode):
    """Puts 0.5 in place of every random number: networks of other widths would draw others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if func is aten.rrelu_with_noise.default:
            return func(*args[:4], False)
        result = func(*args, **(kwargs or {}))
        return result.fill_(0.5) if func.overloadpacket in DRAWS else result


def _first_run(model: nn.Module, choices: Sequence[Inputs], training: bool) -> tuple[list[_Outcome], Exception | None]:
    """What a network yields for the first of these images on which it runs; where it runs on none, why not on the first."""
    failure: Exception | None = None
    for images in choices:
        try:
            return [_Outcome(training, images, _outputs(model, images, training))], None
        except Exception as error:  # noqa: BLE001 - the network is the user's: it can raise anything
            failure = failure or error
    return [], failure


def _outputs(model: nn.Module, images: Inputs, training: bool) -> list[Tensor]:
    model.train(training)
    weight = next(model.parameters())
    with shared, torch.random.fork_rng([weight.device] if weight.is_cuda else []), torch.no_grad(), _Constants():
        torch.manual_seed(0)
        return tensors_in(call(model, placed(images, weight)))


def _gap(wanted: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference as a share of the largest value; infinite where shapes or places of NaN differ."""
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in got]:
        return float("inf")
    worst = 0.0
    for one, other in zip(wanted, got, strict=True):
        one, other = one.to(torch.complex128), other.to(torch.complex128)  # outputs may be masks, indices or spectra
        finite = one.isfinite()
        if not other.isfinite().equal(finite):
            return float("inf")
        if finite.any():
            far, scale = (one - other)[finite].abs().max().item(), one[finite].abs().max().item()
            worst = max(worst, far / scale if scale else far)
    return worst
