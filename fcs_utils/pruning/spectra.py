"""Ranks and nuclear norms of maps, with few decompositions: what HRank and CHIP read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 1 << 20  # numbers of one sort that are worked on at once; more would leave a CPU's cache
LOWEST, HIGHEST, NODES = 1e-8, 1e2, 54  # of the integral over s, in units of the largest singular value


def map_ranks(maps: Tensor) -> Tensor:
    """Numerical rank of each map (Lin et al. 2020): (N, C, H, W) -> (N, C). A map of other shape counts as one row.

    A singular value counts when it exceeds the largest one times max(H, W) times float32's rounding, as in
    ``numpy.linalg.matrix_rank``. They are the roots of the eigenvalues of the smaller Gram matrix, in float64, where
    their squares are still resolved.
    """
    if maps.dim() != 4:
        maps = maps.flatten(2)[:, :, None]
    height, width = maps.shape[2:]
    tolerance = (max(height, width) * torch.finfo(torch.float32).eps) ** 2
    ranks = []
    for part in maps.split(max(1, BLOCK // maps[0].numel())):
        rows = _in_float64(part if height <= width else part.mT)  # (n, C, min(H, W), max(H, W))
        grams = (rows @ rows.mT).flatten(0, 1)
        # On a GPU, eigenvalues are found in batches and factors one by one. Two eigenvalues cost no more than two factors.
        known = _ranks(grams, tolerance) if grams.shape[1] <= 2 or grams.is_cuda else _ranks_by_signs(grams, tolerance)
        ranks.append(known.view(part.shape[:2]))
    return torch.cat(ranks)


def _ranks(grams: Tensor, tolerance: float) -> Tensor:
    """How many eigenvalues of each matrix exceed the tolerance times the largest one: (B, n, n) -> (B,)."""
    values = torch.linalg.eigvalsh(grams)  # ascending
    return (values > values[:, -1:] * tolerance).sum(1)


def _ranks_by_signs(grams: Tensor, tolerance: float) -> Tensor:
    """As ``_ranks``, but decomposes only matrices with an eigenvalue near the threshold.

    The largest eigenvalue lies between |G|^2 / trace G and |G|, the Frobenius norm. What exceeds twice the highest threshold
    counts for sure; what does not exceed half of the lowest one does not.
    """
    diagonal, norm = grams.diagonal(dim1=1, dim2=2), grams.flatten(1).norm(dim=1)
    ranks = _count_above(grams, 2 * tolerance * norm)
    # No matrix has more than its rows that are not zero.
    open_ = (ranks < (diagonal > 0).sum(1)).nonzero()[:, 0]
    rest = grams[open_]
    most = _count_above(rest, tolerance / 2 * norm[open_].square() / diagonal.sum(1)[open_])
    unsure = most > ranks[open_]
    ranks[open_[unsure]] = _ranks(rest[unsure], tolerance)
    return ranks


def _count_above(grams: Tensor, bounds: Tensor) -> Tensor:
    """How many eigenvalues of each symmetric matrix exceed its bound: (B, n, n), (B,) -> (B,).

    As many as G - bound = L D L^T has positive ones (Sylvester's law of inertia), and these are those of D. Its blocks of
    two, which LAPACK marks by negative pivots, have one each.
    """
    shifted = grams.clone()
    shifted.diagonal(dim1=1, dim2=2).sub_(bounds[:, None])
    factors, pivots, _ = torch.linalg.ldl_factor_ex(shifted)
    single = pivots > 0
    return ((factors.diagonal(dim1=1, dim2=2) > 0) & single).sum(1) + (~single).sum(1) // 2


def nuclear_drops(maps: Tensor) -> Tensor:
    """By how much one image's nuclear norm falls when a channel is zeroed (Sui et al. 2021): (N, C, P) -> (N, C), float64.

    With the rows x of X (C, P), A = X^T X and f(t) = det(A - x^T x + t) / det(A + t) = 1 - x (A + t)^-1 x^T, which equals
    t times the diagonal of (X X^T + t)^-1, the fall is the integral of -log f(s^2) / pi over s > 0. So one decomposition
    of the smaller Gram matrix of an image serves all its channels.
    """
    channels, positions = maps.shape[1:]
    size = max(1, BLOCK // (channels * max(positions, NODES)))
    return torch.cat([_drops(_in_float64(part)) for part in maps.split(size)])


def _drops(maps: Tensor) -> Tensor:
    """maps: (N, C, P), float64 -> (N, C)."""
    few = maps.shape[1] <= maps.shape[2]  # channels
    gram = maps @ maps.mT if few else maps.mT @ maps
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min_(0)  # (N, n), ascending
    largest = values[:, -1:]
    scale = torch.where(largest > 0, largest, 1).sqrt()
    nodes, weights = (one.to(maps.device) for one in _rule())
    t = (scale * nodes).square()  # (N, K)
    inverse = 1 / (values[:, :, None] + t[:, None])  # (N, n, K)
    shares = (vectors if few else maps @ vectors).square_()  # (N, C, n)
    # (N, C, K). Nothing cancels in the first form, which the other side's eigenvectors do not give.
    f = shares @ inverse.mul_(t[:, None]) if few else 1 - shares @ inverse
    # At least what is left of the largest eigenvalue alone, where rounding leaves less.
    f = f.clamp_(min=(t / (largest + t))[:, None], max=f.new_ones(()))
    drops = scale * (0 - f.log_() @ weights)
    # A dead channel changes nothing. Its eigenvector may be mixed with others of eigenvalues that are zero but for rounding.
    return torch.where(gram.diagonal(dim1=1, dim2=2) > 0, drops, 0) if few else drops


def _rule() -> tuple[Tensor, Tensor]:
    """Nodes s and weights (K,) of the integral of g(s) / pi over s > 0, for g = log f(s^2) of a largest singular value of 1.

    The trapezoidal rule in log s, which converges like exp(-pi^2 / step) for functions that are analytic but on the imaginary axis
    (Trefethen and Weideman 2014). The infinitely many nodes left out are geometric series, and so go to the outermost two: below
    them g is linear in log s, above them a / s^2 + b / s^4.
    """
    step = math.log(HIGHEST / LOWEST) / (NODES - 1)
    nodes = LOWEST * (torch.arange(NODES, dtype=torch.float64) * step).exp()
    weights, ratio = nodes.clone(), math.exp(step)
    # The m-th node below the lowest is s_0 / ratio^m, with g_0 - m (g_1 - g_0).
    slope = nodes[0] * ratio / (ratio - 1) ** 2
    weights[0] += nodes[0] / (ratio - 1) + slope
    weights[1] -= slope
    # With a and b in units of the highest node: g_-1 = a + b, g_-2 = a ratio^2 + b ratio^4.
    squares, fourths = nodes[-1] / (ratio - 1), nodes[-1] / (ratio**3 - 1)
    share = (fourths - squares) / (ratio**4 - ratio**2)
    weights[-1] += squares - share * ratio**2
    weights[-2] += share
    return nodes, weights * step / math.pi


def _in_float64(maps: Tensor) -> Tensor:
    """In the order of its axes, which decompositions want, in one copy."""
    return maps.to(torch.float64, memory_format=torch.contiguous_format)
