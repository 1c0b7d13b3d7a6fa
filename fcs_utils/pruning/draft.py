"""From groups of layers and a goal to the channels that stay, tried on copies of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.costs import Costs
from fcs_utils.pruning.counts import Ranking, Rounding, distinct_ratios, keep_count, nearest_ratio, network_counts, select
from fcs_utils.pruning.cutting import Cuts
from fcs_utils.pruning.layers import ROUTE, Layer
from fcs_utils.pruning.proof import Proof, exact_groups

REACH = 0.05  # of the dense network's MACs: so far may a goal lie outside of what the layers can leave


class Draft:
    """A plan in the making.

    model, example, importances, ranking, rounding: see ``make_plan``. groups: convolutions that shrink together, by the first of
    them. skipped: why other convolutions stay whole. rates: by those first convolutions, the share of channels to remove, where
    each has its own. After ``settle``: kept, what each layer keeps; skipped, complete; ratio; left, the share of MACs.
    Raises StudyError where no group is left to prune.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        layers: Mapping[str, Layer],
        importances: Mapping[str, Tensor],
        groups: Mapping[str, list[str]],
        skipped: Mapping[str, str],
        ranking: Ranking = "layer",
        rates: Mapping[str, float] | None = None,
        rounding: Rounding = "study",
    ) -> None:
        self.layers, self.importances, self.groups, self.skipped = layers, importances, dict(groups), dict(skipped)
        self.ranking, self.rates, self.rounding = ranking, rates, rounding
        if not groups:
            raise self._nothing()
        self.shape = (example.shape[1], example.shape[2], example.shape[3])
        self.cuts, self.proof = Cuts(model, groups, self.shape), Proof(model, self.shape, example)
        for name in self.cuts.unseen:
            self.skipped |= dict.fromkeys(self.groups.pop(name), ROUTE)
        self.costs = Costs(model, example, layers)
        self.kept: dict[str, list[int]] = {}
        self.ratio: float | None = None
        self.left = 1.0
        self._measuring = False  # whether estimates of MACs were found to be off

    def settle(self, ratio: float | None, macs: float | None) -> None:
        """Find the channels that stay, at a ratio, nearest to a share of MACs, or without both at each layer's own rate.

        Raises StudyError for macs out of reach, and when no group is left to prune.
        """
        while self.groups:
            if macs is not None:
                ratio = nearest_ratio(self._ratios(), cache(self._share), macs)
            self.ratio, chosen = ratio, self._chosen(ratio)
            whole = [name for name, kept in chosen.items() if len(kept[name]) == self.layers[name].channels]
            compact, faults = exact_groups(self.cuts, {name: chosen[name] for name in chosen if name not in whole}, self.proof)
            for name, fault in faults.items():
                self.skipped |= dict.fromkeys(self.groups.pop(name), fault)
            if faults and macs is not None:
                continue
            estimate, measured = self._share(ratio), self.costs.measured(compact)
            self.left = estimate if math.isclose(estimate, measured, rel_tol=1e-9) else measured
            if macs is None or self._measuring or self.left == estimate:
                break
            self._measuring = True
        if macs is not None and abs(self.left - macs) > REACH:
            self._check_reach(macs)
        for name, members in self.groups.items():
            if name in whole:
                share = f"ratio {self._rate(name, self.ratio):g} of {self.layers[name].channels} channels rounds to none"
                self.skipped |= dict.fromkeys(members, share if self.ranking == "layer" else "its channels lie above the threshold")
            else:
                self.kept |= chosen[name]
        if not self.kept:
            raise self._nothing()

    def _nothing(self) -> StudyError:
        return StudyError("nothing to prune: " + "; ".join(f"{name}: {why}" for name, why in self.skipped.items()))

    def _rate(self, name: str, ratio: float | None) -> float:
        rate = self.rates[name] if self.rates is not None else ratio
        assert rate is not None
        return rate

    def _score(self, name: str, members: Sequence[str]) -> Tensor:
        """The mean importance of a group, and of the other side of an identity shortcut: at equal rates both keep the same."""
        judged = {*members, *self.layers[name].aligned} & self.importances.keys()
        return torch.stack([self.importances[layer].double().cpu() for layer in self.layers if layer in judged]).mean(0)

    def _chosen(self, ratio: float | None) -> dict[str, dict[str, list[int]]]:
        """By group, what its convolutions keep, and those that follow them."""
        scores = {name: self._score(name, members) for name, members in self.groups.items()}
        if self.ranking == "network":
            assert ratio is not None
            counts = network_counts(scores, ratio)
        else:
            counts = {name: keep_count(len(score), self._rate(name, ratio), self.rounding) for name, score in scores.items()}
        chosen = {}
        for name, members in self.groups.items():
            followers = {follower: None for member in members for follower in self.layers[member].followers}
            chosen[name] = dict.fromkeys([*members, *followers], select(scores[name], counts[name]))
        return chosen

    def _ratios(self) -> list[float]:
        widths = [self.layers[name].channels for name in self.groups]
        return distinct_ratios({sum(widths)} if self.ranking == "network" else {*widths})

    def _share(self, ratio: float | None) -> float:
        """The share of MACs left at a ratio, or at each layer's own rate."""
        chosen = self._chosen(ratio)
        estimate = self.costs.estimate(self.groups, {name: len(kept[name]) for name, kept in chosen.items()})
        if not self._measuring:
            return estimate
        try:
            measured = self.costs.measured(
                self.cuts.compact({layer: kept for group in chosen.values() for layer, kept in group.items()})
            )
        except (IndexError, RuntimeError, ValueError):
            return estimate  # exact at another ratio only: the proof finds the layer if the search ends here
        return estimate if math.isclose(estimate, measured, rel_tol=1e-9) else measured

    def _check_reach(self, macs: float) -> None:
        ratios = self._ratios()
        least, most = self._share(ratios[-1]), self._share(ratios[0])
        if least - REACH <= macs <= most + REACH:
            return  # between two choices of whole channels
        pruned, (name, why) = sum(map(len, self.groups.values())), next(iter(self.skipped.items()), ("", ""))
        rest = f"; {len(self.skipped)} stay whole, such as {name}: {why}" if name else ""
        raise refuse(
            "macs", macs, f"{least:.3f} to {most:.3f}, which pruning {pruned} of {len(self.layers)} convolutions leaves{rest}"
        )
