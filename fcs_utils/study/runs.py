"""What a run is: a validated configuration with a stable identity."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fcs_utils.config import Config, Count, NotNegative, Positive, Ratio, Seed, Width
from fcs_utils.errors import StudyError, counted, refuse_field
from fcs_utils.files import canonical_json
from fcs_utils.machine import Precision
from fcs_utils.pretrained import DIGITS, PREFIX, PUBLIC_MEAN, PUBLIC_STD
from fcs_utils.pruning.counts import Rounding
from fcs_utils.pruning.layer_rates import Shorthand, check_goal, read_rates
from fcs_utils.training.arms import ARMS, Arm
from fcs_utils.training.optimiser import Training


def describe(run: Run) -> str:
    """A run in a few words, for progress bars and errors."""
    reference = run.reference
    source = f" with {reference.weights}" if reference.weights else ""
    words = [f"{reference.network} x{reference.width:g}{source} seed {reference.seed}"]
    if run.similarity:
        words.append("similarity")
    if run.pruning:
        options = ["{}={}".format(*option) for option in run.pruning.options.items()]
        words.append(" ".join([run.pruning.criterion, *options, run.pruning.goal]))
    if run.tuning:
        training = run.tuning.training
        words.append(f"{run.tuning.method} {counted(training.epochs, 'epoch')} lr {training.learning_rate:g}")
    return ", ".join(words)


SCHEMA = 3  # raised whenever a changed default or a bug fix changes results
Option = str | int | float | bool


Unused = Field(default=None, exclude_if=lambda value: value is None)  # in no record where it is None
Level = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=1)]


class Source(Config):
    """A dense network and where its weights come from: from its training here, or given.

    weights: ``pretrained:NAME``, one of the public networks of ``fcs_utils.pretrained``, or a safetensors file in the data folder.
    weights_sha256: ``files.tensors_sum`` of the file's tensors, so that an edited file is another run. mean, std: what images in
    0..1 are normalised by before the given network, one number a channel. None is the data set's own, and of a public network
    the published ones.
    """

    network: str
    width: Width = 1.0
    training: Training | None = Unused
    weights: str | None = Unused
    weights_sha256: str | None = Unused
    mean: tuple[Level, ...] | None = Unused
    std: tuple[Spread, ...] | None = Unused

    @model_validator(mode="after")
    def _trained_or_given(self) -> Source:
        if (self.training is None) == (self.weights is None):
            raise ValueError("give either training or weights")
        rest = {"weights_sha256": self.weights_sha256, "mean": self.mean, "std": self.std}
        there = [name for name, value in rest.items() if value is not None]
        if there and (self.weights is None or self.weights.startswith(PREFIX)):
            raise ValueError(f"{there[0]} belongs to weights from a file")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std belong together, one number a channel in each")
        if self.weights and self.weights.startswith(PREFIX):
            if (name := self.weights.removeprefix(PREFIX)) not in DIGITS:
                raise ValueError(f"weights={self.weights!r}; allowed: {', '.join(PREFIX + known for known in DIGITS)}, or a file")
            if (self.network, self.width) != (name, 1.0):
                raise ValueError(f"weights={self.weights!r} are those of network {name!r} at width 1")
        return self

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation a channel of images in 0..1 that the weights ask for; None is the data set's own."""
        if self.weights and self.weights.startswith(PREFIX):
            return PUBLIC_MEAN, PUBLIC_STD
        return (self.mean, self.std) if self.mean and self.std else None


class Reference(Source):
    """A dense network of a study. The seed of one that is given draws its calibration images and the batches of fine-tuning.

    code: SHA-256 of the file of a network of the user's own (``module:function``), so that edited code is another run; None, and
    in no record, for all others.
    """

    dataset: str
    code: str | None = Unused
    shortcut: Literal["A", "B"] = "A"
    seed: Seed
    precision: Precision

    @model_validator(mode="after")
    def _file_is_known(self) -> Reference:
        if self.weights and not self.weights.startswith(PREFIX) and self.weights_sha256 is None:
            raise ValueError("weights_sha256 is missing; it is files.tensors_sum of the file's tensors")
        if self.weights and self.weights.startswith(PREFIX) and self.shortcut != "A":
            raise ValueError(f"weights={self.weights!r} are of a network with shortcuts 'A'")
        return self


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
    rates: dict[str, float] | tuple[float, ...] | None = Unused
    rates_as: Shorthand | None = Unused
    rounding: Rounding | None = Unused
    scope: Literal["inner", "all"] = "inner"
    calibration: Count = 512
    calibration_seed: Seed | None = None
    compensate: Literal["none", "merge"] = "none"
    recalibrate: bool = True
    source: str | None = Unused

    @field_validator("rates", mode="before")
    @classmethod
    def _are_rates(cls, rates: Any) -> Any:
        return None if rates is None else read_rates(rates)

    @model_validator(mode="after")
    def _one_goal(self) -> Pruning:
        try:
            check_goal({"ratio": self.ratio, "macs": self.macs, "rates": self.rates}, self.rates_as, self.rounding)
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
    source: str | None = Unused

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
        return _identity(self.model_dump_json(exclude_defaults=True))

    def parent(self) -> Run | None:
        """The run whose network this one starts from."""
        if self.tuning:
            return self.model_copy(update={"tuning": None})
        if self.pruning or self.similarity:
            return Run(reference=self.reference)
        return None


@lru_cache(2**16)  # by content: a run that changes, or a changed copy, has another identity
def _identity(content: str) -> str:
    return hashlib.sha256(canonical_json({"schema": SCHEMA, "run": json.loads(content)}).encode()).hexdigest()[:16]


def parse_run(value: Any) -> Run:
    """Build a run from plain data. Raises StudyError naming the first bad field, its value and the rule."""
    try:
        return Run.model_validate(value)
    except ValidationError as error:
        raise refuse_field(error) from error
