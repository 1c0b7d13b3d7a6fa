"""From groups of layers and a goal to the channels that stay, tried on copies of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.inputs import Inputs
from fcs_utils.pruning.apart import check_apart
from fcs_utils.pruning.costs import Costs
from fcs_utils.pruning.counts import Limits, nearest_ratio, select
from fcs_utils.pruning.cutting import Cuts, duplicate
from fcs_utils.pruning.layers import ROUTE, Layer, with_followers
from fcs_utils.pruning.options import PlanOptions
from fcs_utils.pruning.proof import Proof, exact_groups
from fcs_utils.pruning.reasons import every_reason
from fcs_utils.pruning.sensitivity import Descent, evaluated, evaluated_curve, reconstruction_curve

REACH = 0.05  # of the dense network's MACs: how far a goal may lie outside of what the layers can leave


class Draft:
    """A plan in the making.

    model, example, importances: see ``make_plan``. proof: of this network and example. groups: convolutions that shrink together,
    by the first of them. skipped: why other convolutions stay whole. options: how many channels each keeps at a ratio. After
    ``settle``, which may be called again for another goal: kept, what each layer keeps; whole, why layers of these groups lose no
    channel; ratio; left, the share of MACs; compact, the network. Raises StudyError where no group is left to prune.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Inputs,
        proof: Proof,
        layers: Mapping[str, Layer],
        importances: Mapping[str, Tensor],
        groups: Mapping[str, list[str]],
        skipped: Mapping[str, str],
        options: PlanOptions,
    ) -> None:
        self.layers, self.importances, self.groups, self.skipped = layers, importances, dict(groups), dict(skipped)
        self.model, self.options = model, options
        self.kept: dict[str, list[int]] = {}
        self.whole: dict[str, str] = {}
        if not groups:
            raise self._nothing()
        check_apart(model, example)
        self.example, self.cuts, self.proof = example, Cuts(model, groups, proof.least), proof
        for name in self.cuts.unseen:
            self.skipped |= dict.fromkeys(self.groups.pop(name), ROUTE)
        self.costs = Costs(model, example, layers, shapes_only=bool(proof.small))
        self.ratio: float | None = None
        self.left = 1.0
        self.compact = model
        self._measuring = False  # whether estimates of MACs were found to be off
        self._descent: tuple[list[str], Descent] | None = None

    def settle(self, ratio: float | None, macs: float | None) -> None:
        """Find the channels that stay, at a ratio, nearest to a share of MACs, or without both at each layer's own rate.

        Raises StudyError for macs out of reach, and when no group is left to prune.
        """
        self.kept, self.whole = {}, {}
        while self.groups:
            if macs is not None:
                ratio = nearest_ratio(self._ratios(), cache(self._share), macs)
            self.ratio, chosen = ratio, self._chosen(ratio)
            whole = [name for name, kept in chosen.items() if len(kept[name]) == self.layers[name].channels]
            self.compact, faults = exact_groups(self.cuts, {name: chosen[name] for name in chosen if name not in whole}, self.proof)
            for name, fault in faults.items():
                self.skipped |= dict.fromkeys(self.groups.pop(name), fault)
            if faults and macs is not None:
                continue
            estimate, measured = self._share(ratio), self.costs.measured(self.compact)
            self.left = estimate if math.isclose(estimate, measured, rel_tol=1e-9) else measured
            if macs is None or self._measuring or self.left == estimate:
                break
            self._measuring = True
        if self.groups and macs is not None and abs(self.left - macs) > REACH:
            self._check_reach(macs)
        for name, members in self.groups.items():
            if name in whole:
                self.whole |= dict.fromkeys(members, self._why_whole(name))
            else:
                self.kept |= chosen[name]
        if not self.kept:
            raise self._nothing()

    def _nothing(self) -> StudyError:
        reasons = self.skipped | self.whole
        whole = {name: reasons[name] for name in self.layers if name in reasons}
        return StudyError(f"nothing to prune: {every_reason(whole, self.model)}")

    def _why_whole(self, name: str) -> str:
        if self.options.ranking == "network" or self.options.allocation == "global":
            return "its channels lie above the threshold"
        if self.options.allocation == "sensitivity":
            return "other layers save MACs at less harm"
        rate, width = self.options.rates[name] if self.options.rates is not None else self.ratio, self.layers[name].channels
        step = self._limits()[name].multiple
        multiple = f" in multiples of {step}" if step > 1 else ""
        return f"ratio {rate:g} of {width} channels{multiple} rounds to none"

    def _score(self, name: str, members: Sequence[str]) -> Tensor:
        """The mean importance of a group, and of the other side of an identity shortcut: at equal rates both keep the same."""
        layer = self.layers[name]
        judged = {*members, *layer.aligned} & self.importances.keys()
        scores = torch.stack([layer.mean(one, self.importances[one].double().cpu()) for one in self.layers if one in judged])
        return scores.nanmean(0).nan_to_num(0) if layer.maps else scores.mean(0)

    def _chosen(self, ratio: float | None) -> dict[str, dict[str, list[int]]]:
        """By group, what its convolutions keep, and those that follow them."""
        scores = {name: self._score(name, members) for name, members in self.groups.items()}
        counts = self.options.counts(scores, ratio, self._sought(scores), self._limits())
        return {name: self._kept(name, select(scores[name], counts[name], self.layers[name].shares)) for name in self.groups}

    def _kept(self, name: str, kept: Sequence[int]) -> dict[str, list[int]]:
        """What each layer of a group keeps where its first keeps these channels."""
        return {one: self.layers[name].follow(one, kept) for one in with_followers(self.groups[name], self.layers)}

    def _limits(self) -> dict[str, Limits]:
        return {name: self.options.limits.stepped(self.layers[name].shares) for name in self.groups}

    def _sought(self, scores: Mapping[str, Tensor]) -> Descent | None:
        """Where sensitivity decides, the way down from the dense network, worked out once for the groups that are left."""
        if self.options.allocation != "sensitivity":
            return None
        if self._descent is None or self._descent[0] != [*scores]:
            known, curves = self.options.statistics, dict[str, Tensor]()
            best = evaluated(self.options.evaluate, duplicate(self.model), "evaluate") if self.options.evaluate else 0.0
            for name, score in scores.items():
                shares = self.layers[name].shares
                if self.options.evaluate:
                    curves[name] = evaluated_curve(self.cuts, partial(self._kept, name), score, shares, self.options.evaluate, best)
                elif known is not None:
                    order = shares.order(score)
                    own = [one for one in self.groups[name] if one in known and one not in self.layers[name].maps]
                    found = [reconstruction_curve(self.model, known[one], order) for one in own]
                    curves[name] = torch.stack(found).mean(0)
            floors = {name: self.options.floor(len(score)) for name, score in scores.items()}
            share = partial(self.costs.estimate, self.groups)
            self._descent = [*scores], Descent(curves, share, self._limits(), floors)
        return self._descent[1]

    def _ratios(self) -> list[float]:
        scores = {name: self._score(name, members) for name, members in self.groups.items()}
        return self.options.ratios([self.layers[name].channels for name in self.groups], self._sought(scores))

    def cut(self, macs: float) -> nn.Module:
        """The compact network for a share of MACs, in eval mode."""
        self.settle(None, macs)
        return self.compact

    def reach(self) -> tuple[float, float]:
        """The least and the most of the MACs that the groups can leave, as shares."""
        ratios = self._ratios()
        return self._share(ratios[-1]), self._share(ratios[0])

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
        except (IndexError, RuntimeError, StudyError, ValueError):
            return estimate  # exact at another ratio only: the proof finds the layer if the search ends here
        return estimate if math.isclose(estimate, measured, rel_tol=1e-9) else measured

    def _check_reach(self, macs: float) -> None:
        least, most = self.reach()
        if least - REACH <= macs <= most + REACH:
            return  # between two choices of whole channels
        pruned, (name, why) = sum(map(len, self.groups.values())), next(iter(self.skipped.items()), ("", ""))
        rest = f"; {len(self.skipped)} stay whole, such as {name}: {why}" if name else ""
        step = self.options.limits.multiple
        how = f"{pruned} of {len(self.layers)} convolutions" + (f" in multiples of {step} channels" if step > 1 else "")
        raise refuse("macs", macs, f"{least:.3f} to {most:.3f}, which pruning {how} leaves{rest}")
