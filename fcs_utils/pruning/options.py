"""How the number of channels that each layer keeps follows from a plan's goal: the options of ``make_plan`` besides the goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.counts import Limits, Ranking, Rounding, distinct_ratios, keep_count, network_counts
from fcs_utils.pruning.layer_rates import fits
from fcs_utils.pruning.layers import Layer, Scope, with_followers
from fcs_utils.pruning.sensitivity import Descent
from fcs_utils.pruning.statistics import ChannelStatistics

Allocation = Literal["uniform", "global", "sensitivity"]
Evaluate = Callable[[nn.Module], float]
FLOOR = 0.1  # of a layer's channels, which it keeps whatever the others lose


@dataclass(frozen=True)
class PlanOptions:
    """Options of ``make_plan``, where they are explained. rates: complete, by layer, where layers have rates of their own."""

    scope: Scope = "inner"
    ranking: Ranking = "layer"
    allocation: Allocation = "uniform"
    rates: Mapping[str, float] | None = None
    rounding: Rounding = "study"
    limits: Limits = field(default_factory=Limits)
    keep: tuple[str, ...] = ()
    statistics: Mapping[str, ChannelStatistics] | None = None
    evaluate: Evaluate | None = None

    def check(self, goals: Mapping[str, object]) -> None:
        """Raises StudyError for options that do not go together."""
        if self.allocation != "uniform" and (self.ranking != "layer" or goals["rates"] is not None):
            raise refuse("allocation", self.allocation, "'uniform' where ranking is 'network' or layers have rates of their own")
        if self.allocation == "sensitivity" and (self.statistics is None) == (self.evaluate is None):
            raise StudyError("allocation='sensitivity' needs either statistics, from collect_statistics, or evaluate, a function")
        if self.allocation != "uniform" and self.rounding != "study":
            raise refuse("rounding", self.rounding, f"'study' where allocation is {self.allocation!r}")
        if self.evaluate is not None and self.allocation != "sensitivity":
            raise refuse("evaluate", "a function", "None unless allocation is 'sensitivity'")

    def floor(self, width: int) -> int:
        """The fewest channels that a layer keeps where others decide how many it loses."""
        return min(width, max(self.limits.least, math.ceil(FLOOR * width)))

    def counts(
        self, scores: Mapping[str, Tensor], ratio: float | None, descent: Descent | None, limits: Mapping[str, Limits]
    ) -> dict[str, int]:
        """How many channels each group keeps at a ratio, or at its own rate.

        scores: (C,) by group. descent: of sensitivity. limits: by group, those of the options for its shares.
        """
        widths = {name: len(score) for name, score in scores.items()}
        if self.rates is not None:
            found = {name: keep_count(width, self.rates[name], self.rounding) for name, width in widths.items()}
        else:
            assert ratio is not None
            if descent is not None:
                found = descent.counts(ratio)
            elif self.allocation == "global":
                scaled = {name: score / score.square().mean().sqrt().clamp_min(1e-300) for name, score in scores.items()}
                found = network_counts(scaled, ratio, {name: self.floor(width) for name, width in widths.items()})
            elif self.ranking == "network":
                found = network_counts(scores, ratio)
            else:
                found = {name: keep_count(width, ratio, self.rounding) for name, width in widths.items()}
        return {name: limits[name].fit(found[name], width) for name, width in widths.items()}

    def ratios(self, widths: Sequence[int], descent: Descent | None) -> list[float]:
        """Ratios, ascending, one for every set of counts."""
        if descent is not None:
            return descent.levels()
        together = self.ranking == "network" or self.allocation == "global"
        return distinct_ratios({sum(widths)} if together else {*widths})

    def groups(self, layers: Mapping[str, Layer], importances: Mapping[str, Tensor]) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Layers that shrink together, by their first, and why others do not.

        Raises StudyError for a name to keep that no layer has, and for a rate of a layer that stays whole.
        """
        if unknown := sorted(word for word in self.keep if not any(fits(name, word) for name in layers)):
            raise refuse("keep", unknown, f"names, modules or patterns of the network's convolutions: {', '.join(layers)}")
        groups: dict[str, list[str]] = {}
        skipped: dict[str, str] = {}
        seen: set[str] = set()
        for name, layer in layers.items():
            if name in seen:
                continue
            members = [name]
            if self.scope == "all" and layer.coupled and not layer.barrier:
                members = [member for member in layers if member == name or member in layer.coupled]
            seen.update(members)
            if reason := self._obstacle(members, layers, importances):
                skipped |= dict.fromkeys(members, reason)
            else:
                groups[layer.root if layer.root in members else name] = members
        for name, rate in (self.rates or {}).items():
            if rate and name in skipped:
                raise refuse(f"rates.{name}", rate, f"0 here: {skipped[name]}")
            if not rate:
                skipped |= dict.fromkeys(groups.pop(name, ()), "its rate is 0")
        return groups, skipped

    def _obstacle(self, members: Sequence[str], layers: Mapping[str, Layer], importances: Mapping[str, Tensor]) -> str | None:
        """Why layers that would lose the same channels stay whole."""
        if reason := next((why for member in members if (why := layers[member].obstacle(self.scope))), None):
            return reason
        of_sum = " of its residual sum" if len(members) > 1 else ""
        losing = with_followers(members, layers)
        if held := next(((name, word) for name in losing for word in self.keep if fits(name, word)), None):
            return f"keep names {held[1]}" + ("" if held[0] in members and not of_sum else f", and so {held[0]} loses no channel")
        if missing := [member for member in members if member not in importances]:
            return "no importance given" + (f" for {', '.join(missing)}{of_sum}" if of_sum else "")
        led = layers[layers[members[0]].root or members[0]].maps  # whose channels another one's decide
        own = [member for member in members if member not in led]
        if self.statistics is not None and self.allocation == "sensitivity" and not any(one in self.statistics for one in own):
            return "no statistics given"
        return None
