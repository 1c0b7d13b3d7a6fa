"""What a profile says: the data set, the networks, and how much of everything. Each profile is a file of ``profiles/``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from fcs_utils.benchmarks.scoring import Scoring
from fcs_utils.benchmarks.speed import Speed
from fcs_utils.builders import import_own
from fcs_utils.config import Config, Count, Ratio, Seed
from fcs_utils.data.dataset import check_dataset_name
from fcs_utils.errors import refuse, refuse_field
from fcs_utils.study.catalogue import AFTER_RATES, Stage, read_profile
from fcs_utils.study.sections import (
    Ablations,
    Arms,
    Further,
    Given,
    Longer,
    Network,
    Point,
    Readings,
    Recipe,
    Some,
    without_repeats,
)
from fcs_utils.training.optimiser import Training


class Profile(Config):
    """One study: the data set, the networks, and how much of everything.

    criteria: names, with options behind them where they differ from the defaults, as in ``fcs bins=1 redundancy=greedy``. best:
    which of them is the best reading of FCS, compared with the paper's baselines beside the literal one; it is chosen on
    validation on the pilot seeds, of which none is among the other seeds. None: the literal reading alone is judged.
    longer_arms: epochs by arm of further schedules, on the arms' networks and the profile's seeds; they decide no claim.
    others: further data sets that are studied too, each in a results folder of its own. plugins: modules that add
    criteria or arms; every worker imports them.
    """

    name: str
    summary: str
    dataset: str
    others: tuple[str, ...] = ()
    networks: Some[Network]
    seeds: Some[Seed]
    ratios: Some[Ratio]
    criteria: Some[str]
    plugins: tuple[str, ...] = ()
    calibration: Count = 512
    tuning: Training  # the one schedule after which criteria are compared (C2)
    ablations: Ablations
    arms: Arms
    best: str | None = None
    readings: Readings | None = None
    longer: Longer | None = None
    further: tuple[Further, ...] = ()
    given: Given | None = None
    points: tuple[Point, ...] = ()
    longer_arms: dict[str, Some[Count]] = {}
    recipe: Recipe | None = None
    scoring: Scoring = Scoring()
    speed: Speed = Speed()
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: the fastest on the machine of the first run

    @model_validator(mode="after")
    def _parts_fit(self) -> Profile:
        names = [one.network for one in self.networks]
        without_repeats(tuple(names))  # arms and their learning rates go by the name alone
        for part, chosen in (("arms", self.arms.networks), ("ablations", self.ablations.networks or ())):
            if unknown := [name for name in chosen if name not in names]:
                raise ValueError(f"{part}.networks: {unknown[0]!r} is none of the profile's: {', '.join(names)}")
        if self.best is not None and self.best not in self.criteria:
            raise ValueError(f"best: {self.best!r} is none of the profile's criteria: {', '.join(self.criteria)}")
        if self.best is not None and self.readings and self.best not in self.readings.candidates:
            raise ValueError(f"best: {self.best!r} is none of readings.candidates: {', '.join(self.readings.candidates)}")
        if self.longer and (self.longer.network not in names or self.longer.epochs <= self.tuning.epochs):
            raise ValueError(f"longer: a network of the profile's ({', '.join(names)}) and more epochs than {self.tuning.epochs}")
        if given := [one.network for one in self.networks if one.weights and one.network in self.arms.networks]:
            raise ValueError(
                f"arms.networks: the weights of {given[0]!r} are given and may have seen the validation images, on which learning "
                "rates are chosen; allowed: networks that are trained here"
            )
        for part, methods in (("recipe.epochs", self.recipe.epochs if self.recipe else {}), ("longer_arms", self.longer_arms)):
            if unknown := [method for method in methods if method not in self.arms.methods]:
                raise ValueError(f"{part}: {unknown[0]!r} is none of arms.methods: {', '.join(self.arms.methods)}")
        parts = {"seeds": self.seeds, "arms.further_seeds": self.arms.further_seeds, "arms.pilot_seeds": self.arms.pilot_seeds}
        for (one, these), (other, those) in combinations(parts.items(), 2):
            if both := [seed for seed in these if seed in those]:
                raise ValueError(f"seed {both[0]} is in {one} and in {other}")
        return self

    @property
    def turns(self) -> dict[int, int]:
        """The place of each seed where one is done after the other: pilots come first, for choices wait for them."""
        seeds = (*self.arms.pilot_seeds, *self.seeds, *self.arms.further_seeds)
        return {seed: turn for turn, seed in enumerate(seeds)}

    @property
    def after_rates(self) -> list[Stage]:
        """The stages whose runs are not known while learning rates are open."""
        asked = {"arms": True, "longer_arms": bool(self.longer_arms), "recipe": self.recipe is not None}
        return [stage for stage in AFTER_RATES if asked[stage]]


def import_plugins(names: Iterable[str]) -> None:
    """Import modules that add criteria or arms. Raises StudyError as ``import_own`` does."""
    for name in names:
        import_own(name, f"plugin {name!r}")


def get_profile(name: str) -> Profile:
    """A profile by name; ``NAME:DATASET`` is the same study of another data set.

    Raises StudyError for an unknown profile and for a file with a wrong field.
    """
    base, _, dataset = name.partition(":")
    profile = check_fields({"name": base, **read_profile(base)})
    return profile.model_copy(update={"name": name, "dataset": dataset}) if dataset else profile


def check_fields(fields: Mapping[str, Any]) -> Profile:
    """A profile from its fields, with its plugins imported. ``model_copy`` checks none: of what it returns, check ``model_dump()``.

    Raises StudyError naming the first wrong field.
    """
    import_plugins(fields.get("plugins", ()))  # before its criteria and arms are checked
    try:
        return Profile.model_validate(fields)
    except ValidationError as error:
        raise refuse_field(error, f"profile {fields['name']}: ") from error


def studies(name: str, datasets: Sequence[str] = ()) -> list[str]:
    """The studies that a profile's name stands for, one a data set; ``datasets`` replaces its own.

    Raises StudyError for an unknown profile or data set, and for data sets beside a NAME:DATASET, which has one already.
    """
    profile = get_profile(name)
    if ":" in name and datasets:
        raise refuse("datasets", ",".join(datasets), f"none beside profile {name}, which names its data set")
    wanted = dict.fromkeys(datasets or (profile.dataset, *(() if ":" in name else profile.others)))
    for dataset in wanted:
        check_dataset_name(dataset)
    return [name if dataset == profile.dataset else f"{name}:{dataset}" for dataset in wanted]
