"""How many channels stay, and which: rounding, selection, and the search for the ratio that comes nearest to a goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fcs_utils.errors import refuse
from fcs_utils.pruning.shares import ANY, Shares

Ranking = Literal["layer", "network"]  # among which channels the least important are sought
Rounding = Literal["study", "chip"]


def keep_count(channels: int, ratio: float, rounding: Rounding = "study") -> int:
    """How many of C channels stay when a share ``ratio`` of them goes (M6), at least one; the only place that rounds.

    rounding: ``study`` keeps C - round(ratio C); ``chip`` keeps int(C (1 - ratio)), as CHIP, HRank and Torch-Pruning do.

    Raises StudyError for a ratio outside (0, 1).
    """
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:  # also refuses NaN
        raise refuse("ratio", ratio, "a number above 0 and below 1, the share of channels to remove")
    return max(1, int(channels * (1 - ratio)) if rounding == "chip" else channels - round(ratio * channels))


@dataclass(frozen=True)
class Limits:
    """What the number of channels that a layer keeps must be, whatever the goal: a multiple of a number, and not too small.

    A layer whose width is no multiple, or that would have to keep more than it has, stays whole.
    """

    multiple: int = 1
    least: int = 1

    def stepped(self, shares: Shares) -> Limits:
        """The limits for a layer whose channels go in such shares."""
        return Limits(math.lcm(self.multiple, shares.step), self.least)

    def fit(self, keep: int, channels: int) -> int:
        """The smallest number allowed that is not below ``keep``: the limits never take a channel that the goal leaves."""
        return min(channels, -(-max(keep, self.least) // self.multiple) * self.multiple)


def select(importance: Tensor, keep: int, shares: Shares = ANY) -> list[int]:
    """Indices of the ``keep`` most important channels, sorted; equals go to the lower index."""
    return sorted(shares.order(importance)[:keep])


def network_counts(scores: Mapping[str, Tensor], ratio: float, floors: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many channels each layer keeps when a share ``ratio`` of all layers' channels goes, those below one threshold.

    scores: (C,) by layer, comparable between layers. floors: the fewest channels that a layer keeps, by default one; its most
    important ones stay. Of equals at the threshold, those of the layer that stands first go.
    """
    least = {name: min(len(score), floors[name] if floors else 1) for name, score in scores.items()}
    able = [len(score) - least[name] for name, score in scores.items()]
    owners = torch.cat([torch.full((count,), number) for number, count in enumerate(able)])
    values = torch.cat([score.sort().values[:count] for score, count in zip(scores.values(), able, strict=True)])
    channels = sum(map(len, scores.values()))
    gone = owners[values.argsort(stable=True)[: channels - keep_count(channels, ratio)]].bincount(minlength=len(scores))
    return {name: len(score) - lost for (name, score), lost in zip(scores.items(), gone.tolist(), strict=True)}


def distinct_ratios(widths: set[int]) -> list[float]:
    """Ratios, ascending, one for every set of channel counts that layers of these widths can be left with."""
    # Between two neighbours of these, every layer's channel count stays the same.
    steps = sorted({(gone + 0.5) / width for width in widths for gone in range(width)} | {1.0})
    return [(low + high) / 2 for low, high in zip(steps, steps[1:], strict=False)]


def nearest_ratio(ratios: Sequence[float], share: Callable[[float], float], macs: float) -> float:
    """The one of these ratios whose share of MACs left is nearest to a goal; of two as near, the one that leaves more."""
    low, high = 0, len(ratios) - 1  # the share falls as the ratio grows
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if share(ratios[middle]) > macs else (low, middle)
    return min(ratios[max(0, low - 1) : low + 1], key=lambda ratio: abs(share(ratio) - macs))
