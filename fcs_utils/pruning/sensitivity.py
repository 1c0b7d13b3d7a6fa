"""How much a network suffers when a layer keeps fewer channels, and which counts harm it least for the MACs that they save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError, first_line
from fcs_utils.pruning.counts import Limits, select
from fcs_utils.pruning.cutting import Cuts, Stays
from fcs_utils.pruning.linear import POSITIONS, RIDGE, read_weights
from fcs_utils.pruning.shares import Shares
from fcs_utils.pruning.statistics import ChannelStatistics

PARTS_GONE = 32  # steps in which a layer loses its channels
TRIED = (0.75, 0.5, 0.25)  # shares of a layer's channels that are left for ``evaluate``


def reconstruction_curve(model: nn.Module, statistics: ChannelStatistics, order: Sequence[int]) -> Tensor:
    """What is lost when a layer keeps its first k channels of ``order``, by k from 0 to C: (C + 1,), float64, from 1 down to 0.

    The dropped maps are rebuilt from the kept ones by least squares (M8), or with fewer than ``POSITIONS`` positions a channel not
    at all, because a fit to few is exact on them alone. The loss is the share of its input's energy that a reader then misses, its
    weights taken into account; of several readers, the sum. Correlations between positions are left out.
    """
    gram = statistics.gram[order][:, order]
    gram = gram / gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)
    rebuilt = statistics.count >= POSITIONS * len(gram) and bool(gram.any())  # maps of zeros have no root, and nothing to lose
    lower = _root(gram) if rebuilt else None
    total = torch.zeros(len(gram) + 1, dtype=gram.dtype)
    for consumer in statistics.consumers:
        read = read_weights(model, consumer)[:, list(order)].cpu()  # (O, C, k)
        weights = torch.einsum("ock,odk->cd", read, read)
        if lower is not None:
            lost = torch.einsum("cj,cd,dj->j", lower, weights, lower).clamp_min(0)
            left = torch.cat([lost.flip(0).cumsum(0).flip(0), lost.new_zeros(1)])
        else:  # the energy of the last channels, for every number of first ones
            corners = (gram * weights).flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
            left = torch.cat([corners, corners.new_zeros(1)]).clamp_min(0)
        total += left / left[0].clamp_min(torch.finfo(left.dtype).tiny)
    return total


def _root(gram: Tensor) -> Tensor:
    """L with G = L L^T: what its first k columns leave of G is the residual of a regression on the first k channels."""
    # Sums in float32 leave eigenvalues a little below zero, by a share of the trace.
    ridge = RIDGE * gram.trace() * torch.eye(len(gram), dtype=gram.dtype)
    lower, failed = torch.linalg.cholesky_ex(gram + ridge)
    if failed:
        values, vectors = torch.linalg.eigh(gram)
        lower = torch.linalg.cholesky(vectors @ (values.clamp_min(0)[:, None] * vectors.T) + ridge)
    return lower


def evaluated_curve(
    cuts: Cuts,
    kept_by: Callable[[Sequence[int]], Stays],
    score: Tensor,
    shares: Shares,
    evaluate: Callable[[nn.Module], float],
    best: float,
) -> Tensor:
    """By how much a measure falls when one group keeps k channels, by k from 0 to C: measured at ``TRIED``, and straight between.

    kept_by: what each layer of the group keeps, for channels that the layer keeps that names it. score: (C,), their importance.
    shares: the choices that they have. evaluate: a network's accuracy or another measure, higher is better. best: the dense
    network's. Raises StudyError for a measure that is no finite number.
    """
    width, points = len(score), {len(score): 0.0}
    for share in TRIED:
        if (count := max(1, round(share * width / shares.step)) * shares.step) not in points:
            kept = select(score, count, shares)
            points[count] = max(0.0, best - evaluated(evaluate, cuts.compact(kept_by(kept)), "evaluate"))
    if len(points) == 1:
        return torch.zeros(width + 1, dtype=torch.float64)
    counts = sorted(points)
    falls = np.maximum.accumulate([points[count] for count in counts[::-1]])[::-1]  # fewer channels are never counted as better
    # Below the fewest that were tried, the line goes on as before it.
    none = falls[0] + counts[0] * (falls[0] - falls[1]) / (counts[1] - counts[0])
    return torch.from_numpy(np.interp(np.arange(width + 1), [0, *counts], [none, *falls]))


def evaluated(function: Callable[[nn.Module], float], network: nn.Module, name: str) -> float:
    """What a user's function says of a network in eval mode. Raises StudyError for anything but a finite number."""
    found = function(network.eval())
    try:
        value = float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StudyError(f"{name} must return a number, got {type(found).__name__}: {first_line(error)}") from error
    if not abs(value) < float("inf"):
        raise StudyError(f"{name} must return a finite number, got {value}")
    return value


class Descent:
    """Channel counts from the dense network down: each step takes channels where they harm least for the MACs that they save.

    curves: by group, the loss when it keeps k channels, (C + 1,). share: the share of MACs left by the counts of all groups.
    limits: by group. floors: the fewest channels that each keeps. A layer's curve counts by its lower convex hull, so that a
    costly step with cheap ones behind it is not shied away from.
    """

    def __init__(
        self,
        curves: Mapping[str, Tensor],
        share: Callable[[Mapping[str, int]], float],
        limits: Mapping[str, Limits],
        floors: Mapping[str, int],
    ) -> None:
        self.widths = {name: len(curve) - 1 for name, curve in curves.items()}
        counts = dict(self.widths)
        steps = {n: self._steps(curve, limits[n], limits[n].fit(floors[n], self.widths[n])) for n, curve in curves.items()}
        self.path = [dict(counts)]
        while any(steps.values()):
            now = share(counts)
            prices = {}
            for name, ahead in steps.items():
                if ahead:
                    count, loss = ahead[0]
                    saved = now - share({**counts, name: count})
                    prices[name] = loss * (counts[name] - count) / max(saved, 1e-12)
            name = min(prices, key=prices.__getitem__)  # of equals the first
            counts[name] = steps[name].pop(0)[0]
            self.path.append(dict(counts))

    @staticmethod
    def _steps(curve: Tensor, limits: Limits, least: int) -> list[tuple[int, float]]:
        """Counts to go down to, with the loss of each channel that goes on the way there, by the convex hull of the curve."""
        width = len(curve) - 1
        unit = limits.multiple if limits.multiple > 1 else max(1, width // PARTS_GONE)
        counts = [width, *(count for count in range((width - 1) // unit * unit, 0, -unit) if count >= least)]
        if limits.multiple == 1 and least < counts[-1]:
            counts.append(least)
        found: list[tuple[int, float]] = []
        place = 0
        while place < len(counts) - 1:
            slopes = [
                ((curve[counts[further]] - curve[counts[place]]) / (counts[place] - counts[further])).item()
                for further in range(place + 1, len(counts))
            ]
            low = min(slopes)
            end = place + 1 + max(number for number, slope in enumerate(slopes) if slope <= low)
            found += [(count, max(low, 0.0)) for count in counts[place + 1 : end + 1]]
            place = end
        return found

    def levels(self) -> list[float]:
        """Shares of all groups' channels that are gone after each step, ascending."""
        total = sum(self.widths.values())
        return [1 - sum(counts.values()) / total for counts in self.path[1:]]

    def counts(self, ratio: float) -> dict[str, int]:
        """The last step that takes no more than this share of all channels."""
        levels = [0.0, *self.levels()]
        return self.path[max(number for number, level in enumerate(levels) if level <= ratio + 1e-9)]
