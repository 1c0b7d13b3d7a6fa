"""What a profile says: the data set, the networks, and how much of everything. Each profile is a file of ``profiles/``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Len
from pydantic import AfterValidator, ValidationError, field_validator, model_validator

from fcs_utils.benchmarks.scoring import Scoring
from fcs_utils.benchmarks.speed import Speed
from fcs_utils.config import Amount, Config, Count, Positive, Ratio, Seed
from fcs_utils.errors import StudyError, refuse, refuse_field
from fcs_utils.study.catalogue import read_profile
from fcs_utils.study.runs import Source
from fcs_utils.training.arms import ARMS
from fcs_utils.training.optimiser import Training

Item = TypeVar("Item")


def _without_repeats(values: tuple[Item, ...]) -> tuple[Item, ...]:
    """A value twice would count its runs twice: a seed in every mean and interval, a criterion in the correction of p."""
    if repeated := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"{repeated[0]!r} stands there twice")
    return values


Distinct = Annotated[tuple[Item, ...], AfterValidator(_without_repeats)]
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
    networks: Distinct[str] | None = None
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


class Profile(Config):
    """One study: the data set, the networks, and how much of everything.

    criteria: names, with options behind them where they differ from the defaults, as in ``fcs bins=1 redundancy=greedy``. best:
    which of them is the best reading of FCS, compared with the paper's baselines beside the literal one; it is chosen on
    validation on the pilot seeds, of which none is among the other seeds. None: the literal reading alone is judged.
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
    scoring: Scoring = Scoring()
    speed: Speed = Speed()
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: the fastest on the machine of the first run

    @model_validator(mode="after")
    def _parts_fit(self) -> Profile:
        names = [one.network for one in self.networks]
        _without_repeats(tuple(names))  # arms and their learning rates go by the name alone
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
        parts = {"seeds": self.seeds, "arms.further_seeds": self.arms.further_seeds, "arms.pilot_seeds": self.arms.pilot_seeds}
        for (one, these), (other, those) in combinations(parts.items(), 2):
            if both := [seed for seed in these if seed in those]:
                raise ValueError(f"seed {both[0]} is in {one} and in {other}")
        return self


def import_plugins(names: Iterable[str]) -> None:
    """Import modules that add criteria or arms. Raises StudyError, naming the module, whatever is wrong with it."""
    for name in names:
        try:
            importlib.import_module(name)
        except StudyError:
            raise
        except Exception as error:
            where = "it is a module's name, and its folder must be the current one or on PYTHONPATH"
            raise StudyError(f"plugin {name!r} cannot be imported ({type(error).__name__}: {error}); {where}") from error


def get_profile(name: str) -> Profile:
    """A profile by name, with its plugins imported; ``NAME:DATASET`` is the same study of another data set.

    Raises StudyError for an unknown profile and for a file with a wrong field.
    """
    base, _, dataset = name.partition(":")
    fields = read_profile(base)
    import_plugins(fields.get("plugins", ()))  # before its criteria and arms are checked
    profile = check_fields({"name": base, **fields})
    return profile.model_copy(update={"name": name, "dataset": dataset}) if dataset else profile


def check_fields(fields: Mapping[str, Any]) -> Profile:
    """A profile from its fields. ``model_copy`` checks none: of what it returns, check ``model_dump()``.

    Raises StudyError naming the first wrong field.
    """
    try:
        return Profile.model_validate(fields)
    except ValidationError as error:
        raise refuse_field(error, f"profile {fields['name']}: ") from error


def studies(name: str, datasets: Sequence[str] = ()) -> list[str]:
    """The studies that a profile's name stands for, one a data set; ``datasets`` replaces its own.

    Raises StudyError for an unknown profile, and for data sets beside a NAME:DATASET, which has one already.
    """
    profile = get_profile(name)
    if ":" in name:
        if datasets:
            raise refuse("datasets", ",".join(datasets), f"none beside profile {name}, which names its data set")
        return [name]
    wanted = dict.fromkeys(datasets or (profile.dataset, *profile.others))
    return [name if dataset == profile.dataset else f"{name}:{dataset}" for dataset in wanted]
