"""Ranks and nuclear norms of maps, by hand and against one decomposition for each map and each channel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fcs_utils.pruning import spectra
from fcs_utils.pruning.spectra import map_ranks, nuclear_drops


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def watch(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[int, ...]]:
    """The shapes that a function of torch.linalg is called with, as it is called."""
    seen: list[tuple[int, ...]] = []
    decompose = getattr(torch.linalg, name)
    monkeypatch.setattr(torch.linalg, name, lambda grams: (seen.append(tuple(grams.shape)), decompose(grams))[1])
    return seen


# -- ranks ----------------------------------------------------------------------------------------------------------


def test_a_rank_is_that_of_the_matrix_whichever_side_is_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    row, other = torch.tensor([1.0, 2, 0, 1]), torch.tensor([0.0, 1, 1, 0])
    wide = torch.stack([torch.stack([row, 2 * row]), torch.stack([row, other]), torch.zeros(2, 4)])[None]  # (1, 3, 2, 4)
    for maps in (wide, wide.mT):
        assert map_ranks(maps).tolist() == [[1, 2, 0]]
    for maps in (wide.flatten(2), wide[..., None]):
        assert map_ranks(maps).tolist() == [[1, 1, 0]]  # a map without height and width is one row
    many = randn(5, 3, 4, 6)
    many[:, 0, 2:] = 0
    want = map_ranks(many)
    assert want.tolist() == [[2, 4, 4]] * 5
    for block in (1, 3 * 4 * 6, 3 * 4 * 6 * 2):  # one image at a time, one, two
        monkeypatch.setattr(spectra, "BLOCK", block)
        assert map_ranks(many).equal(want)


def test_a_rank_counts_singular_values_above_the_rounding_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    # At size 32 the tolerance is 32 * 1.19e-7 = 3.8e-6 of the largest singular value. Only what is near it is decomposed.
    seen = watch(monkeypatch, "eigvalsh")
    ends = torch.tensor([1e-5, 4e-6, 3.6e-6, 1e-6])
    few, equal, mixed = torch.zeros(4, 32), torch.ones(4, 32), torch.full((4, 32), 0.5)
    few[:, 0] = mixed[:, 0] = 1
    few[:, 1] = equal[:, 1] = mixed[:, 1] = ends
    for values, ranks, near in ((few, [2, 2, 1, 1], 2), (equal, [32, 32, 31, 31], 3), (mixed, [32, 32, 31, 31], 2)):
        maps = torch.diag_embed(values)[None]
        seen.clear()
        assert map_ranks(maps).tolist() == map_ranks(1000 * maps.mT).tolist() == [ranks]
        assert sum(shape[0] for shape in seen) == 2 * near


@pytest.mark.parametrize("shape", [(32, 32), (9, 14), (14, 9), (5, 5), (3, 3), (2, 2), (1, 7), (7, 1)])
def test_ranks_equal_numpys(shape: tuple[int, int]) -> None:
    height, width = shape
    maps = randn(40, *shape)
    maps[:8] = maps[:8].relu()
    maps[8:16] *= maps[8:16] > 1.2  # few numbers: rows and columns of zeros, and maps of lower rank without any
    maps[16:24] = maps[16:24, :, :1] @ maps[16:24, :1]  # rank one but for float32's rounding
    maps[24:30] = maps[24:30, :1]  # equal rows
    maps[30:34] *= torch.logspace(0, -9, width)
    maps[34:] = 0
    maps[36, -1, -1] = 1e-30
    want = [int(np.linalg.matrix_rank(one.double().numpy(), rtol=max(shape) * 2.0**-23)) for one in maps]
    assert map_ranks(maps[None]).tolist() == [want]
    assert len({*want}) > 2 or min(shape) == 1


def test_no_more_maps_than_a_block_holds_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    factored, decomposed = watch(monkeypatch, "ldl_factor_ex"), watch(monkeypatch, "eigvalsh")
    monkeypatch.setattr(spectra, "BLOCK", 2 * 4 * 15)  # two images of four maps of three rows and five columns
    wide = randn(5, 4, 3, 5)
    wide[0, 0, 0] = 0
    for maps in (wide, wide.mT):
        factored.clear()
        map_ranks(maps)
        # Of the smaller side. Every other time those come whose rank is below their number of rows, but for rows of zeros.
        assert factored == [(8, 3, 3), (0, 3, 3), (8, 3, 3), (0, 3, 3), (4, 3, 3), (0, 3, 3)]
    decomposed.clear()
    map_ranks(randn(19, 4, 2, 2))
    assert decomposed == [(28, 2, 2), (28, 2, 2), (20, 2, 2)]  # of two rows each is decomposed


def test_signs_of_factors_count_eigenvalues() -> None:
    # Eigenvalues 0.5 and 1.5. Without its diagonal the matrix has a factor in one block of two.
    grams = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double().expand(4, 2, 2)
    assert spectra._count_above(grams, torch.tensor([0.4, 1.0, 1.4, 1.6])).tolist() == [2, 1, 1, 0]
    even = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double().expand(2, 3, 3)
    assert spectra._count_above(even, torch.tensor([2.0, 3.0])).tolist() == [1, 0]  # an eigenvalue at its bound is not above it


# -- nuclear norms --------------------------------------------------------------------------------------------------


def test_a_channel_takes_its_share_of_the_nuclear_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    # Orthogonal rows: the nuclear norm is the sum of their lengths, 5 and 2.
    wide = torch.tensor([[[3.0, 4, 0], [0, 0, 2]]])
    # One position: the nuclear norm is the length of the column, sqrt(1 + 4 + 4) = 3.
    tall = torch.tensor([[[1.0], [2], [2]]])
    assert nuclear_drops(wide)[0].tolist() == pytest.approx([5.0, 2.0])
    assert nuclear_drops(tall)[0].tolist() == pytest.approx([3 - math.sqrt(8), 3 - math.sqrt(5), 3 - math.sqrt(5)])
    both = torch.cat([wide, 2 * wide])
    for block in (spectra.BLOCK, 1, 2 * spectra.NODES * 2):  # all at once, one image, two
        monkeypatch.setattr(spectra, "BLOCK", block)
        assert nuclear_drops(both).tolist() == [pytest.approx([5, 2]), pytest.approx([10, 4])]


def test_the_rule_integrates_what_drops_are_made_of() -> None:
    # The integral of log((a + s^2) / (1 + s^2)) over s > 0 is pi (sqrt(a) - 1): a singular value falls from 1 to sqrt(a).
    nodes, weights = spectra._rule()
    squares = nodes.square()
    for left in (0, 1e-4, 0.75):
        assert (((left + squares) / (1 + squares)).log() @ weights).item() == pytest.approx(math.sqrt(left) - 1, abs=1e-11)
    for length in (1, 3e-6, 7e12):
        assert nuclear_drops(torch.tensor([[[0.0, length]]])).item() == pytest.approx(length, rel=1e-7)


def repeated(maps: Tensor) -> Tensor:
    """A dead channel, two equal ones and a multiple of them."""
    maps[:, 1] = 0
    maps[:, 3], maps[:, 4] = maps[:, 2], -3 * maps[:, 2]
    return maps


def alone(maps: Tensor) -> Tensor:
    """One channel is the only one to see one position, and another is the only one to see another, faintly."""
    maps[:, :, :2] = 0
    maps[:, 2, 0], maps[:, 3, 1] = 1, 1e-4
    return maps


MAPS = {
    "fewer channels than positions": randn(2, 8, 20),
    "fewer positions than channels": randn(2, 20, 8),
    "as many": randn(2, 9, 9),
    "repeated, few channels": repeated(randn(2, 8, 20)),
    "repeated, few positions": repeated(randn(2, 20, 8)),
    "of rank two, few channels": randn(2, 8, 2) @ randn(2, 2, 20),
    "of rank two, few positions": randn(2, 20, 2) @ randn(2, 2, 8),
    "alone, few channels": alone(randn(2, 8, 20)),
    "alone, few positions": alone(randn(2, 20, 8)),
    "one position": randn(2, 6, 1),
    "one channel": randn(2, 1, 6),
    "one live channel": torch.eye(6)[:, :1] * randn(2, 1, 4),
    "equal singular values": torch.eye(7)[None],
    "of many sizes, few channels": randn(2, 8, 20) * torch.logspace(0, -7, 8)[:, None],
    "of many sizes, few positions": randn(2, 20, 8) * torch.logspace(0, -7, 8),
    "many channels of rank five": randn(1, 60, 5) @ randn(1, 5, 90),
    "tiny": 1e-30 * randn(2, 8, 6),
    "huge": 1e30 * randn(2, 6, 8),
}


@pytest.mark.parametrize("case", MAPS)
def test_drops_equal_one_decomposition_a_channel(case: str) -> None:
    maps = MAPS[case].double()
    got, want = nuclear_drops(MAPS[case]), torch.zeros(maps.shape[:2]).double()
    for image, channel in np.ndindex(*want.shape):
        without = maps[image].clone()
        without[channel] = 0
        want[image, channel] = maps[image].norm(p="nuc") - without.norm(p="nuc")
    torch.testing.assert_close(got, want, rtol=1e-7, atol=5e-7 * want.max().item())
    assert got.dtype == torch.float64 and want.max() > 0
    assert (got[~maps.any(2)] == 0).all()  # so that of dead channels the first ones are kept, whatever the machine


def test_an_image_of_zeros_has_nothing_to_lose() -> None:
    maps = randn(3, 4, 6)
    maps[1] = 0
    for drops in (nuclear_drops(maps), nuclear_drops(maps[:, :, :2])):
        assert drops[1].tolist() == [0, 0, 0, 0] and (drops[[0, 2]] > 0).all()


def test_one_decomposition_of_the_smaller_side_serves_all_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch, "eigh")
    for channels, positions in ((3, 5), (5, 3)):
        # Two images at once: of the numbers that an image takes, those at the nodes are the most.
        monkeypatch.setattr(spectra, "BLOCK", 2 * channels * spectra.NODES)
        seen.clear()
        nuclear_drops(randn(5, channels, positions))
        assert seen == [(2, 3, 3), (2, 3, 3), (1, 3, 3)]
    many = spectra.NODES + 1  # positions, which are more than the nodes
    for size, parts in ((2 * 3 * many, [2, 2, 1]), (2 * 3 * many - 1, [1] * 5)):
        monkeypatch.setattr(spectra, "BLOCK", size)
        seen.clear()
        nuclear_drops(randn(5, 3, many))
        assert seen == [(part, 3, 3) for part in parts]
