"""Whether a layer's channels stay apart on their way to the layers that read them, by gradients of one pass that is cut up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, count_of, noise_like
from fcs_utils.pruning.kinds import channel_axis
from fcs_utils.pruning.shares import ANY, Shares
from fcs_utils.running import run_network, tensors_in

SPARE = 1 << 16  # random numbers beyond those of two maps, so that small maps do not get the same ones


class Segments:
    """The forward pass cut behind every layer that mixes channels: what reaches a reader from one layer alone.

    A gradient that crosses between channels here comes from an operation that mixes them besides the layers, such
    as a softmax or a mean over channels, or from a reader's indices that were attributed to the wrong channel.
    outputs, inputs: by layer, one tensor for each of its calls.
    """

    def __init__(self, model: nn.Module, example: Inputs, mixing: Iterable[str]) -> None:
        self.outputs: dict[str, list[Tensor]] = {}
        self.inputs: dict[str, list[Tensor]] = {}
        self.axes = {name: channel_axis(module) for name, module in model.named_modules()}
        self.generator = torch.Generator().manual_seed(0)
        self.pool = torch.empty(0)
        for name in mixing:

            def cut(_module: nn.Module, _inputs: object, output: object, name: str = name) -> object:
                if not isinstance(output, Tensor):  # of a layer of the user's own, which then stays whole
                    return output
                self.outputs.setdefault(name, []).append(leaf := output.detach().requires_grad_())
                return leaf.clone()  # a leaf itself could not be overwritten in place

            def seen(_module: nn.Module, args: object, more: object, name: str = name) -> None:
                self.inputs.setdefault(name, []).append(tensors_in((args, more))[0])

            module = model.get_submodule(name)
            module.register_forward_hook(cut)
            module.register_forward_pre_hook(seen, with_kwargs=True)
        # Random images: at a plain zero, gradients of rectifiers vanish and would hide a crossing.
        try:
            run_network(model, noise_like(example, count_of(example), self.generator))
        except StudyError:
            if isinstance(example, Tensor):
                raise
            self.outputs.clear()  # one of several inputs may be no number at random, such as a time to look up
            self.inputs.clear()
            run_network(model, example)

    def half(self, channels: int, shares: Shares = ANY) -> Tensor:
        """A random half of the units of channels, (C,) bool, the first in it and the last not."""
        units = shares.units(channels)
        half = torch.rand(int(units[-1]) + 1, generator=self.generator) < 0.5
        half[0], half[-1] = True, False
        return half[units]

    def suspects(self, readers: Mapping[str, Mapping[str, Tensor]], halves: Mapping[str, Tensor]) -> set[str]:
        """Layers from which a channel may reach another one's indices, found in two passes for all of them.

        readers: by layer, as for ``crossing``. halves: by layer, which of its channels count as one half; equal for
        layers that share a residual sum.
        """
        inside = {reader: torch.zeros(width, dtype=torch.bool) for reader in self.inputs if (width := self._width(reader))}
        found = set()
        for name, positions in ((name, at) for name, own in readers.items() for at in own.items()):
            reader, at = positions
            if reader not in inside or at.max() >= len(inside[reader]):
                found.add(name)
            else:
                inside[reader][_present(at[halves[name]])] = True
        names = [name for name in readers if name not in found]
        calls = [(name, output) for name in names for output in self.outputs[name]]
        seen = [(reader, one) for reader in inside for one in self.inputs[reader] if one.requires_grad]
        for second in (False, True):
            if calls and seen:
                weights = [self._weights(reader, one, ~inside[reader] if second else inside[reader]) for reader, one in seen]
                gradients = self._gradients([one for _, one in seen], weights, [output for _, output in calls])
                for (name, _), gradient in zip(calls, gradients, strict=True):
                    others = halves[name] if second else ~halves[name]
                    if self._reaches(name, gradient, others):
                        found.add(name)
        return found

    def _width(self, reader: str) -> int:
        """How many channels a layer reads; 0 where it once read a tensor of one axis."""
        seen = self.inputs.get(reader, [])
        return seen[0].shape[self.axes[reader]] if seen and all(one.dim() > 1 for one in seen) else 0

    def _weights(self, reader: str, seen: Tensor, inside: Tensor) -> Tensor:
        """What each number of a reader's input counts in a sum over these channels: 0.5 to 1.5, or 0 in other channels."""
        if len(self.pool) < seen.numel() + SPARE:
            self.pool = torch.rand(2 * seen.numel() + SPARE, generator=self.generator) + 0.5
        # Another part of the pool each time: equal weights would cancel where two readers read a map and its negative.
        start = int(torch.randint(len(self.pool) - seen.numel() + 1, (), generator=self.generator))
        weights = self.pool[start : start + seen.numel()].view(seen.shape).to(seen)
        shape = [1] * seen.dim()
        shape[self.axes[reader]] = -1
        return weights * inside.to(seen).view(shape)

    @staticmethod
    def _gradients(seen: list[Tensor], weights: list[Tensor], outputs: list[Tensor]) -> Sequence[Tensor | None]:
        # Weights as an argument of grad would do the same, but torch then imports sympy, which takes longer than this.
        sums = [torch.real((one * weight).sum()) for one, weight in zip(seen, weights, strict=True)]
        return torch.autograd.grad(sum(sums[1:], sums[0]), outputs, retain_graph=True, allow_unused=True)

    def _reaches(self, name: str, gradient: Tensor | None, channels: Tensor) -> bool:
        """Whether a gradient at a layer's output differs from zero in some of these channels."""
        if gradient is None:
            return False
        return bool(gradient.movedim(self.axes[name], 1)[:, channels.to(gradient.device)].count_nonzero())

    def crossing(self, name: str, readers: Mapping[str, Tensor], shares: Shares = ANY) -> str | None:
        """A reader in which a channel reaches indices that are not its own, or None.

        readers: by name, the input indices (C, k) of each of the layer's C channels, -1 for none.
        shares: the channels of a unit may mix.
        """
        outputs = self.outputs[name]
        half = self.half(outputs[0].shape[self.axes[name]], shares)
        for reader, positions in readers.items():
            if not positions.max() < self._width(reader):
                return reader
            own = torch.zeros(self._width(reader), dtype=torch.bool)
            own[_present(positions[half])] = True
            for seen in self.inputs[reader]:
                for inside, others in ((own, ~half), (~own, half)) if seen.requires_grad else ():
                    gradients = self._gradients([seen], [self._weights(reader, seen, inside)], outputs)
                    if any(self._reaches(name, gradient, others) for gradient in gradients):
                        return reader
        return None


def _present(positions: Tensor) -> Tensor:
    return positions[positions >= 0]
