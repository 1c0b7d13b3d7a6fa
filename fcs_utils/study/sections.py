"""What the sections of a profile say: its networks, and how much each stage of the study does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Len
from pydantic import AfterValidator, BeforeValidator, field_validator, model_validator

from fcs_utils.config import Amount, Config, Count, Positive, Ratio, Seed
from fcs_utils.pruning.counts import Rounding
from fcs_utils.pruning.layer_rates import Shorthand, read_rates
from fcs_utils.pruning.layers import Scope
from fcs_utils.study.runs import Source
from fcs_utils.training.arms import ARMS

Item = TypeVar("Item")


def without_repeats(values: tuple[Item, ...]) -> tuple[Item, ...]:
    """A value twice would count its runs twice: a seed in every mean and interval, a criterion in the correction of p."""
    if repeated := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"{repeated[0]!r} is named twice")
    return values


Distinct = Annotated[tuple[Item, ...], AfterValidator(without_repeats)]
Some = Annotated[Distinct[Item], Len(1)]  # one or more


class Network(Source):
    """An architecture of the grid, with the schedule of its reference or the weights that are given."""


class Arms(Config):
    """TFT, MLFT and their controls from the same compact weights (C3).

    Each arm's learning rate is the one of ``learning_rates`` with the best validation results after
    ``pilot_epochs`` on ``pilot_seeds``, which take no part in anything but choices. Then every arm runs every
    schedule of ``epochs`` with every seed, and training from scratch runs with the reference's epochs
    and with its training MACs, on the first ``scratch_seeds`` seeds (None is all). epochs: one list for all arms, or
    a table with a list for each, ``epochs = { tft = [4, 16], mlft = [4] }``, which goes to ``schedules``. further_seeds: seeds
    on which only references and arms run, where arms need more seeds than the comparison of criteria can afford.
    """

    networks: Distinct[str]
    criterion: str = "fcs"
    ratio: Ratio = 0.5
    epochs: Some[Count]
    schedules: dict[str, Some[Count]] = {}
    learning_rates: Some[Positive]
    further_seeds: Distinct[Seed] = ()
    pilot_seeds: Some[Seed] = (100,)
    pilot_epochs: Count
    methods: Distinct[str] = ("tft", "mlft", "twin", "kd")
    scratch: Distinct[Literal["epochs", "macs"]] = ("epochs", "macs")
    scratch_seeds: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_table_of_epochs(cls, fields: Any) -> Any:
        """Epochs by method as ``schedules``, and all of them as ``epochs``."""
        if not isinstance(fields, Mapping) or not isinstance(own := fields.get("epochs"), Mapping):
            return fields
        every = [one for epochs in own.values() for one in (epochs if isinstance(epochs, list | tuple) else [epochs])]
        return {**fields, "epochs": [one for number, one in enumerate(every) if one not in every[:number]], "schedules": own}

    @model_validator(mode="after")
    def _every_method_has_epochs(self) -> Arms:
        if self.schedules and (odd := sorted({*self.schedules} ^ {*self.methods})):
            raise ValueError(f"epochs by method: {odd[0]!r}; the methods are {', '.join(self.methods)}, each needs its own")
        return self

    def epochs_of(self, method: str) -> tuple[int, ...]:
        """The schedules of an arm."""
        return self.schedules.get(method, self.epochs)

    @field_validator("methods")
    @classmethod
    def _are_arms_with_a_rate(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        known = [name for name, arm in ARMS.items() if arm.searched]
        if unknown := [method for method in methods if method not in known]:
            raise ValueError(f"{unknown[0]!r} is not an arm whose learning rate is searched; allowed: {', '.join(known)}")
        return methods


class Ablations(Config):
    """FCS varied one thing at a time, before fine-tuning, and merge against plain surgery.

    calibrations: further numbers of calibration images. draws: further draws of calibration images at every
    number. binning_seeds: starts of scikit-learn's K-Means. merged: criteria whose plans are also merged, at
    every ratio of the profile. headstart: epochs of fine-tuning from plain and from merged weights. networks and
    seeds: which networks, and how many of the profile's seeds, the ablations run on; None is all.
    """

    ratio: Ratio = 0.5
    bins: Distinct[Count] = (1, 2, 8, 16)
    calibrations: Distinct[Count]
    draws: Amount = 4
    binning_seeds: Amount = 3
    merged: Distinct[str] = ("kernel_l1", "fcs", "fcs_linear")
    headstart: Count
    networks: Some[str] | None = None
    seeds: Count | None = None

    def variants(self) -> list[dict[str, Any]]:
        """Options of FCS, each differing from the literal reading in one."""
        return [
            {"reading": "per_image"},
            {"reading": "mean_map"},
            {"redundancy": "max"},
            {"redundancy": "greedy"},
            {"quota": "layer"},
            *({"bins": bins} for bins in self.bins),
            *({"binning": "sklearn", "seed": seed} for seed in range(self.binning_seeds)),
        ]


class Readings(Config):
    """Readings of FCS fine-tuned by TFT on the arms' networks and pilot seeds; the best on validation is ``Profile.best``."""

    candidates: Some[str]
    ratio: Ratio = 0.5
    epochs: Count


class Longer(Config):
    """One network at one ratio, pruned by every criterion and fine-tuned for more epochs than the others."""

    network: str
    ratio: Ratio = 0.5
    epochs: Count


class Further(Config):
    """One ratio and some criteria, fine-tuned by ``Profile.tuning`` like all others; they decide no claim."""

    ratio: Ratio
    criteria: Some[str]


class Given(Config):
    """Networks whose weights are given, pruned by some criteria at one ratio and fine-tuned by TFT; each network is a replicate.

    They inform beside the networks that are trained here. ``Profile.seeds`` names the seed of their fine-tuning, its first.
    """

    networks: Some[Network]
    criteria: Some[str]
    ratio: Ratio = 0.5
    epochs: Count

    @model_validator(mode="after")
    def _are_given(self) -> Given:
        if trained := [one.network for one in self.networks if one.weights is None]:
            raise ValueError(f"given.networks: {trained[0]!r} has no weights")
        return self


class Point(Config):
    """The layer rates of a published result: one network, pruned by some criteria and fine-tuned by TFT, to stand beside it.

    rates, rates_as, rounding, scope: as ``make_plan`` takes them. seeds: of fine-tuning where the weights are given.
    """

    network: Network
    rates: Annotated[dict[str, float] | tuple[float, ...], BeforeValidator(read_rates)]
    rates_as: Shorthand | None = None
    rounding: Rounding | None = None
    scope: Scope = "inner"
    criteria: Some[str]
    seeds: Some[Seed] = (0,)
    epochs: Count


class Recipe(Config):
    """Criteria, ways of surgery and arms in all combinations at one ratio, on the arms' networks and the profile's seeds.

    epochs: of each arm, so that all of them cost about the same training MACs; each has its chosen learning rate. default: the
    criterion that the others are compared with, by plain surgery and TFT.
    """

    criteria: Some[str]
    default: str
    ratio: Ratio = 0.5
    compensate: Some[Literal["none", "merge"]] = ("none", "merge")
    epochs: dict[str, Count]
