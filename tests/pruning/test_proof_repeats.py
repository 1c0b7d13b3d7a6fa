"""What a proof remembers from one compact network to the next, which images it tries, and what it says where one does not run."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs
from fcs_utils.pruning.cutting import Cuts
from fcs_utils.pruning.proof import SMALL, Proof, _size, zeroed
from tests.pruning.several import IMAGES, MASKS, Masked
from tests.pruning.test_proof_runs import PLAN, network
from tests.pruning.toys import Net

LARGE = torch.zeros(1, 3, 2 * SMALL, 2 * SMALL)
NARROW = "without some of its channels the network does not run: too narrow"


def fault(net: nn.Module, proof: Proof, images: Inputs = IMAGES, layer: str = "a") -> str | None:
    """What a proof says of channels 0, 1 and 4 of a layer's six."""
    cuts = Cuts(net, [layer], images)
    return proof.fault(cuts.compact({layer: PLAN.kept["a"]}), cuts.lost_inputs({layer: PLAN.kept["a"]}))


@pytest.mark.parametrize("images", [IMAGES, LARGE], ids=["small", "large"])
def test_the_dense_network_is_left_alone_where_the_compact_one_does_not_run(images: Tensor) -> None:
    """On random images of the plan's size in eval mode, whatever it does with others."""
    dense = 0

    def look(net: Net, h: Tensor) -> Tensor:
        nonlocal dense
        dense += h.shape[1] == 6 and h.dtype == torch.float64
        if h.shape[1] == 3 and h.shape[-1] == images.shape[-1] and not net.training:
            raise RuntimeError("too narrow")
        return h

    net = network(look)
    proof = Proof(net, images, images[..., 1:, 1:])
    assert fault(net, proof, images) == NARROW and dense > 0
    before = dense
    assert fault(net, proof, images) == NARROW and dense == before


def test_a_size_on_which_the_dense_network_does_not_run_is_tried_once_and_said_nowhere() -> None:
    seen: Counter[int] = Counter()

    def look(net: Net, h: Tensor) -> Tensor:
        seen[h.shape[-1]] += h.dtype == torch.float64
        if h.shape[-1] == 4:
            raise RuntimeError("too small")
        return h

    net = network(look)
    proof = Proof(net, IMAGES)
    assert fault(net, proof) is None and fault(net, proof) is None
    assert seen[4] == 1 and seen[12] == 4 and proof.untrained is None


def test_where_training_needs_larger_images_these_are_tried() -> None:
    seen: set[tuple[int, int]] = set()

    def look(net: Net, h: Tensor) -> Tensor:
        if net.training and h.shape[-1] < 12:
            raise RuntimeError("too small")
        if net.training:
            seen.add((len(h), h.shape[-1]))
        return h

    net = network(look)
    proof = Proof(net, IMAGES)
    assert fault(net, proof) is None and seen == {(16, 12)} and proof.untrained is None


def test_a_copy_of_the_dense_network_serves_until_its_weights_change() -> None:
    net = network(lambda _n, h: h)
    proof = Proof(net, IMAGES)
    for change in (lambda weight: weight.detach().add_(1), lambda weight: setattr(weight, "data", weight.detach().clone() + 1)):
        copy = proof.dense(torch.float64)
        assert proof.dense(torch.float64) is copy
        change(copy.a.weight)
        again = proof.dense(torch.float64)
        assert again is not copy and again.a.weight.equal(net.a.weight.double())


def darkness_only(dense_too: bool) -> Net:
    """The compact network takes black images only, and the dense one, too, where asked for."""

    def route(net: nn.Module, x: Tensor) -> Tensor:
        if x.any() and (dense_too or net.a.out_channels == 3):
            raise RuntimeError("too narrow" if net.a.out_channels == 3 else "not black")
        return whole.route(net, x)

    whole = network(lambda _n, h: h)
    net = network(lambda _n, h: h)
    net.route = route
    return net


def test_images_must_run_that_are_drawn_at_random() -> None:
    black = 0 * IMAGES
    net = darkness_only(dense_too=False)
    assert fault(net, Proof(net, black, black), black) == NARROW
    net = darkness_only(dense_too=True)
    with pytest.raises(StudyError, match=r"^the network does not run on images \(3, 8, 8\): not black"):
        fault(net, Proof(net, black, black), black)


def test_several_inputs_of_the_user_are_tried_in_train_mode_where_random_ones_do_not_run() -> None:
    class Trained(Masked):
        def forward(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
            if self.training and mask.min() < 0:
                raise RuntimeError("no mask")
            return super().forward(image, mask)

    net, inputs = Trained().eval(), (IMAGES, MASKS)
    proof = Proof(net, inputs, inputs)
    assert fault(net, proof, inputs, "first.0") is None and proof.untrained is None
    proof = Proof(net, inputs)
    assert fault(net, proof, inputs, "first.0") is None and proof.untrained == "no mask"


@pytest.mark.parametrize("precision", [None, torch.float32])
@pytest.mark.parametrize("images", [IMAGES, LARGE], ids=["small", "large"])
def test_the_largest_difference_that_is_rounding_is_let_pass(precision: torch.dtype | None, images: Tensor) -> None:
    large = 1e4 if precision else 1e6
    net = network(lambda _n, h: h, precision)
    inner = net.route
    net.route = lambda n, x: 0 * inner(n, x) + large - int(n.a.out_channels == 3)  # 1 of 1,000,000 or 10,000
    assert fault(net, Proof(net, images), images) is None


def test_a_compact_network_that_differs_on_still_larger_images_alone_is_found() -> None:
    net = network(lambda _n, h: h + 1 if h.shape[1] == 3 and h.shape[-1] == 3 * SMALL else h)
    assert " on images of 192 x 192 pixels: " in str(fault(net, Proof(net, LARGE), LARGE))


def test_large_images_without_a_finite_output_prove_nothing() -> None:
    net = network(lambda _n, h: (-1 - h).log())
    with pytest.raises(StudyError, match="^surgery cannot be checked"):
        fault(net, Proof(net, LARGE), LARGE)


def test_zeros_stand_in_place_of_channels_however_a_layer_is_called() -> None:
    layers = {"map": nn.Conv1d(2, 1, 1), "row": nn.Linear(2, 1), "wider": nn.ConvTranspose1d(2, 1, 1, stride=2)}
    net = nn.ModuleDict({**layers, "whole": nn.Conv1d(2, 1, 1)})
    for parameter in net.parameters():
        nn.init.constant_(parameter, parameter.dim() > 1)  # sums of channels, without bias
    maps = torch.tensor([[[1.0, 2.0], [10.0, 20.0]]])
    with torch.no_grad(), zeroed(net, {"map": [0], "row": [0], "wider": [0, 1]}):
        assert net["map"](maps).tolist() == net["map"](input=maps).tolist() == [[[10, 20]]]
        assert net["row"](maps).tolist() == [[[2], [20]]]
        assert net["wider"](maps, [4]).tolist() == [[[0, 0, 0, 0]]]
        assert net["whole"](maps).tolist() == [[[11, 22]]]
    assert net["map"](maps).tolist() == [[[11, 22]]] and maps.tolist() == [[[1, 2], [10, 20]]]


def test_the_sides_of_the_first_input_that_has_any() -> None:
    assert _size((torch.zeros(2, 5), torch.zeros(2, 3, 4, 6))) == "4 x 6 pixels"
    assert _size([torch.zeros(2, 3, 7), torch.zeros(2, 3, 4, 6)]) == "7 positions"
