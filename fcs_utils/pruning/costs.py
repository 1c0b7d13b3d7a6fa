"""What a choice of channels leaves of a network's MACs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs
from fcs_utils.models import all_macs
from fcs_utils.pruning.flow import candidates
from fcs_utils.pruning.kinds import depthwise, in_width, out_width
from fcs_utils.pruning.layers import Layer, with_followers

Groups = Mapping[str, Sequence[str]]  # convolutions that shrink together, by the first of them


class Costs:
    """MACs left of a network, as a share of the dense network's; example: images, one is enough.

    shapes_only: whether the network is known to run on tensors without numbers.
    """

    def __init__(self, model: nn.Module, example: Inputs, layers: Mapping[str, Layer], shapes_only: bool = False) -> None:
        self.layers, self.example, self.shapes_only = layers, example, shapes_only
        self.total, dense = self._count(model)
        modules = dict(candidates(model))
        self.dense = {name: macs for name, macs in dense.items() if name in modules}
        self.width = {name: out_width(modules[name]) for name in self.dense}
        self.read = {name: in_width(modules[name]) for name in self.dense}
        known: dict[int, int] = {}
        # By layer, how many of a reader's inputs go with one of its channels; less than one behind a PixelShuffle.
        self.read_by = {
            name: {c.name: _inputs(c.positions, known) / layer.channels for c in layer.consumers} for name, layer in layers.items()
        }
        self.single = {name for name in self.dense if depthwise(modules[name])}
        self._counted: tuple[nn.Module, tuple[int, dict[str, int]]] | None = None  # the network that was measured last

    def _count(self, network: nn.Module) -> tuple[int, dict[str, int]]:
        if self.shapes_only:
            try:
                return all_macs(network, self.example, shapes_only=True)
            except StudyError:  # a network of other widths may ask for a number
                pass
        return all_macs(network, self.example)

    def measured(self, compact: nn.Module) -> float:
        """The share that a compact network has."""
        return self._macs(compact)[0] / self.total

    def by_layer(self, compact: nn.Module) -> dict[str, tuple[int, int]]:
        """Multiply-adds of one image by convolution and linear layer: dense, and in a compact network."""
        left = self._macs(compact)[1]
        return {name: (macs, left.get(name, 0)) for name, macs in self.dense.items()}

    def _macs(self, compact: nn.Module) -> tuple[int, dict[str, int]]:
        """All multiply-adds of a network and those of each layer, counted once where it is measured again."""
        if self._counted is None or self._counted[0] is not compact:
            self._counted = compact, self._count(compact)
        return self._counted[1]

    def estimate(self, groups: Groups, keep: Mapping[str, int]) -> float:
        """The share when each group keeps so many channels, worked out without cutting.

        It is exact where only convolutions and linear layers work on the channels: other operations, such as the products of
        matrices in attention, count as if they did not shrink.
        """
        lost_out, lost_in = dict.fromkeys(self.dense, 0.0), dict.fromkeys(self.dense, 0.0)
        for name, members in groups.items():
            gone = self.layers[name].channels - keep[name]
            for changed in with_followers(members, self.layers):
                lost_out[changed] = gone * self.width.get(changed, 0) / self.layers[name].channels
            readers = [name] if self.layers[name].root else members
            for reader, share in {one: share for member in readers for one, share in self.read_by[member].items()}.items():
                lost_in[reader] += gone * share
        left = sum(
            macs * (1 - lost_out[name] / self.width[name]) * (1 if name in self.single else 1 - lost_in[name] / self.read[name])
            for name, macs in self.dense.items()
        )
        return (left + (self.total - sum(self.dense.values()))) / self.total


def _inputs(positions: Tensor, known: dict[int, int]) -> int:
    """How many of a reader's inputs come from a layer. known: by tensor, those that were counted, as readers share them."""
    if id(positions) not in known:
        known[id(positions)] = positions[positions >= 0].unique().numel()
    return known[id(positions)]
