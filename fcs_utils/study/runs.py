"""What a run is: a validated configuration with a stable identity."""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fcs_utils.config import Config, Count, NotNegative, Positive, Ratio, Seed, Width
from fcs_utils.errors import StudyError, refuse_field
from fcs_utils.files import canonical_json
from fcs_utils.pruning.counts import Rounding
from fcs_utils.pruning.layer_rates import Shorthand, check_goal, read_rates
from fcs_utils.training.arms import ARMS, Arm
from fcs_utils.training.optimiser import Training


def describe(run: Run) -> str:
    """A run in a few words, for progress bars and errors."""
    reference = run.reference
    words = [f"{reference.network} x{reference.width:g} seed {reference.seed}"]
    if run.similarity:
        words.append("similarity")
    if run.pruning:
        options = ["{}={}".format(*option) for option in run.pruning.options.items()]
        words.append(" ".join([run.pruning.criterion, *options, run.pruning.goal]))
    if run.tuning:
        words.append(f"{run.tuning.method} {run.tuning.training.epochs} epochs lr {run.tuning.training.learning_rate:g}")
    return ", ".join(words)


SCHEMA = 3  # raised whenever a changed default or a bug fix changes results
Option = str | int | float | bool


class Reference(Config):
    """A dense network trained from its own seed."""

    dataset: str
    network: str
    width: Width = 1.0
    shortcut: Literal["A", "B"] = "A"
    seed: Seed
    training: Training
    precision: Literal["fp32", "bf16"]


class Similarity(Config):
    """How redundant the channels are, trained and untrained (claim C1)."""

    calibration: Count = 512
    quantile: Ratio = 0.99


class Pruning(Config):
    """Which channels go: a criterion with its options, and a share of every layer, the MACs to leave, or a rate for each layer.

    rates, rates_as, rounding: as ``make_plan`` takes them; in no record of a run without them. calibration_seed: draws the
    calibration images; None is the reference's seed. source: SHA-256 of the file of a criterion that is not this package's own,
    so that an edited criterion is another run; None, and in no record, for the package's own.
    """

    criterion: str
    options: dict[str, Option] = {}
    ratio: Ratio | None = None
    macs: Ratio | None = None
    rates: dict[str, float] | tuple[float, ...] | None = Field(default=None, exclude_if=lambda rates: rates is None)
    rates_as: Shorthand | None = Field(default=None, exclude_if=lambda paper: paper is None)
    rounding: Rounding | None = Field(default=None, exclude_if=lambda rounding: rounding is None)
    scope: Literal["inner", "all"] = "inner"
    calibration: Count = 512
    calibration_seed: Seed | None = None
    compensate: Literal["none", "merge"] = "none"
    recalibrate: bool = True
    source: str | None = Field(default=None, exclude_if=lambda source: source is None)

    @field_validator("rates", mode="before")
    @classmethod
    def _are_rates(cls, rates: Any) -> Any:
        return None if rates is None else read_rates(rates)

    @model_validator(mode="after")
    def _one_goal(self) -> Pruning:
        try:
            check_goal(self.ratio, self.macs, self.rates, self.rates_as, self.rounding)
        except StudyError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def goal(self) -> str:
        """What is asked for, in words: 'ratio 0.5', 'MACs 0.5', 'rates 0*1 0.15*2 0.4*27 as chip' or 'rates of 3 layers'."""
        if self.rates is None:
            return f"ratio {self.ratio:g}" if self.ratio is not None else f"MACs {self.macs:g}"
        rates = f"of {len(self.rates)} layers"
        if not isinstance(self.rates, dict):
            rates = " ".join(f"{rate:g}*{len([*same])}" for rate, same in groupby(self.rates))
        return f"rates {rates}" + (f" as {self.rates_as}" if self.rates_as else "")


class Tuning(Config):
    """How the compact network is trained: by an arm of fine-tuning, with that arm's options.

    method: the arm, a key of ``ARMS``. twin_criterion: prunes the second compact network. temperature, strength: of
    the distance to the peer. peer_learning_rate: None is the compact network's. updates: whether the peer is updated
    from the same forward passes or after the compact network. budget: of training from scratch, the reference's
    epochs (scratch-E) or its training MACs (scratch-B). source: SHA-256 of the file of an arm from outside the package.
    """

    method: str
    training: Training
    temperature: Positive = 1.0
    strength: NotNegative = 1.0
    twin_criterion: str = "kernel_l1"
    peer_learning_rate: Positive | None = None
    updates: Literal["simultaneous", "sequential"] = "simultaneous"
    budget: Literal["epochs", "macs"] = "epochs"
    source: str | None = Field(default=None, exclude_if=lambda source: source is None)

    @field_validator("method")
    @classmethod
    def _is_an_arm(cls, method: str) -> str:
        if method not in ARMS:
            raise ValueError(f"allowed: {', '.join(ARMS)}")
        return method

    @model_validator(mode="after")
    def _options_belong_to_the_method(self) -> Tuning:
        changed = self.model_dump(exclude_defaults=True, exclude={"method", "training", "source"})
        for option in changed:
            if option not in ARMS[self.method].options:
                owners = [repr(name) for name, arm in ARMS.items() if option in arm.options]
                raise ValueError(f"{option} belongs to method {' or '.join(owners)}, not {self.method!r}")
        return self

    @property
    def arm(self) -> Arm:
        """The arm with the options of this configuration."""
        arm = ARMS[self.method]
        return arm.with_options(**self.model_dump(include=set(arm.options)))


class Run(Config):
    """One run. Its kind follows from the parts that are there; each kind builds on the one before."""

    reference: Reference
    similarity: Similarity | None = None
    pruning: Pruning | None = None
    tuning: Tuning | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Run:
        if self.similarity and (self.pruning or self.tuning):
            raise ValueError("similarity is measured on a dense network: no pruning, no tuning beside it")
        if self.tuning and not self.pruning:
            raise ValueError("tuning needs pruning: it starts from the compact network")
        return self

    @property
    def kind(self) -> Literal["reference", "similarity", "pruned", "tuned"]:
        if self.tuning:
            return "tuned"
        if self.pruning:
            return "pruned"
        return "similarity" if self.similarity else "reference"

    @property
    def identity(self) -> str:
        """16 hex digits of SHA-256 over the schema and every value that is not a default: a new option orphans no old record."""
        content = {"schema": SCHEMA, "run": self.model_dump(mode="json", exclude_defaults=True)}
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]

    def parent(self) -> Run | None:
        """The run whose network this one starts from."""
        if self.tuning:
            return self.model_copy(update={"tuning": None})
        if self.pruning or self.similarity:
            return Run(reference=self.reference)
        return None


def parse_run(value: Any) -> Run:
    """Build a run from plain data. Raises StudyError naming the first bad field, its value and the rule."""
    try:
        return Run.model_validate(value)
    except ValidationError as error:
        raise refuse_field(error) from error
