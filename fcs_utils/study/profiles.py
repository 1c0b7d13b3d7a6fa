"""What a profile says: the data set, the networks, and how much of everything. The profiles are in ``profiles.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import field_validator

from fcs_utils.benchmarks.scoring import Scoring
from fcs_utils.benchmarks.speed import Speed
from fcs_utils.config import Config
from fcs_utils.errors import refuse
from fcs_utils.training.arms import ARMS
from fcs_utils.training.optimiser import Training


class Network(Config):
    """An architecture of the grid with the schedule of its reference."""

    network: str
    width: float = 1.0
    training: Training


class Arms(Config):
    """TFT, MLFT and their controls from the same compact weights (C3).

    Each arm's learning rate is the one of ``learning_rates`` with the best validation results after
    ``pilot_epochs`` on ``pilot_seeds``, which take no part in anything else. Then every arm runs every
    schedule of ``epochs`` with every seed, and training from scratch runs with the reference's epochs
    and with its training MACs, on the first ``scratch_seeds`` seeds (None is all). further_seeds: on which
    references and arms alone run, where arms need more seeds than the comparison of criteria can have.
    """

    networks: tuple[str, ...]
    criterion: str = "fcs"
    ratio: float = 0.5
    epochs: tuple[int, ...]
    learning_rates: tuple[float, ...]
    further_seeds: tuple[int, ...] = ()
    pilot_seeds: tuple[int, ...] = (100,)
    pilot_epochs: int
    methods: tuple[str, ...] = ("tft", "mlft", "twin", "kd")
    scratch: tuple[Literal["epochs", "macs"], ...] = ("epochs", "macs")
    scratch_seeds: int | None = None

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

    ratio: float = 0.5
    bins: tuple[int, ...] = (1, 2, 8, 16)
    calibrations: tuple[int, ...]
    draws: int = 4
    binning_seeds: int = 3
    merged: tuple[str, ...] = ("kernel_l1", "fcs", "fcs_linear")
    headstart: int
    networks: tuple[str, ...] | None = None
    seeds: int | None = None

    def variants(self) -> list[dict[str, Any]]:
        """Options of FCS, each differing from the literal reading in one."""
        return [
            {"reading": "per_image"}, {"reading": "mean_map"}, {"redundancy": "max"}, {"redundancy": "greedy"}, {"quota": "layer"},
            *({"bins": bins} for bins in self.bins),
            *({"binning": "sklearn", "seed": seed} for seed in range(self.binning_seeds)),
        ]  # fmt: skip


class Profile(Config):
    """One study: the data set, the networks, and how much of everything.

    others: further data sets that are studied too, each in a results folder of its own. plugins: modules that add
    criteria or arms; every worker imports them.
    """

    name: str
    summary: str
    dataset: str
    others: tuple[str, ...] = ()
    networks: tuple[Network, ...]
    seeds: tuple[int, ...]
    ratios: tuple[float, ...]
    criteria: tuple[str, ...]
    calibration: int = 512
    tuning: Training  # the one schedule after which criteria are compared (C2)
    ablations: Ablations
    arms: Arms
    scoring: Scoring = Scoring()
    speed: Speed = Speed()
    plugins: tuple[str, ...] = ()
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: what the first machine is fastest in


# Where a run costs minutes: the paper's criteria, FCS's variants, and chance.
MAIN = ("random", "kernel_l1", "feature_norm", "fcs", "fcs_greedy", "fcs_linear")

EVERY = (
    *("random", "kernel_l1", "kernel_l2", "fpgm", "feature_norm", "bn_scale", "apoz", "taylor", "hrank", "chip"),
    *("fcs", "fcs_greedy", "fcs_linear"),
)

BRIEF = Scoring(images=(128, 256, 512), heavy=128, literal=2)
FULL_SPEED = Speed(networks=(("vgg16", 1.0), ("resnet56", 1.0)), rounds=1)
BRIEF_SPEED = Speed(images=512, batches=(32,), rounds=1, compiled=False)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke",
            summary="digits, one seed, tiny networks: shows that everything works, says nothing about the claims",
            dataset="digits",
            networks=(
                Network(network="vgg16", width=0.125, training=Training(epochs=4, learning_rate=0.05, batch_size=32)),
                Network(network="resnet20", width=0.25, training=Training(epochs=4, learning_rate=0.1, batch_size=32)),
            ),
            seeds=(0,),
            ratios=(0.3, 0.5),
            calibration=128,
            criteria=("random", "kernel_l1", "feature_norm", "taylor", "chip", "fcs", "fcs_greedy", "fcs_linear"),
            tuning=Training(epochs=1, learning_rate=0.02, batch_size=64),
            ablations=Ablations(bins=(2,), calibrations=(50,), draws=1, binning_seeds=1, merged=("fcs",), headstart=2),
            arms=Arms(networks=("vgg16",), epochs=(1, 2), learning_rates=(0.02, 0.05), pilot_epochs=1),
            scoring=Scoring(networks=("resnet20",), images=(16, 32), widths=(0.5,), heavy=16, literal=2),
            speed=Speed(networks=(("vgg16", 0.125),), images=256, batches=(64,), rounds=1, compiled=False),
            precision="fp32",
        ),
        Profile(
            name="quick",
            summary="digits, quarter-width VGG-16 and ResNet-20, five seeds",
            dataset="digits",
            networks=(
                Network(network="vgg16", width=0.25, training=Training(epochs=10, learning_rate=0.05, batch_size=32)),
                Network(network="resnet20", width=0.25, training=Training(epochs=10, learning_rate=0.1, batch_size=32)),
            ),
            seeds=(0, 1, 2, 3, 4),
            ratios=(0.3, 0.5, 0.7),
            criteria=EVERY,
            tuning=Training(epochs=1, learning_rate=0.01, batch_size=32),
            ablations=Ablations(calibrations=(50, 200, 800), draws=2, headstart=4, seeds=3),
            arms=Arms(
                networks=("vgg16",),
                epochs=(2, 4, 8),
                learning_rates=(0.002, 0.005, 0.02, 0.05),
                pilot_seeds=(100, 101, 102),
                pilot_epochs=4,
                scratch_seeds=3,
            ),
            scoring=Scoring(networks=("resnet56",), images=(128, 256, 512), widths=(0.5,), heavy=128, literal=2),
            speed=BRIEF_SPEED,
            precision="fp32",  # a fresh clone trains the references again, on whatever it runs
        ),
        Profile(
            name="cifar",
            summary="CIFAR-10 (JPEG), quarter-width VGG-16 and full-width ResNet-20, three seeds, five for TFT and MLFT",
            dataset="imagefolder:cifar10_jpeg",
            networks=(
                Network(network="vgg16", width=0.25, training=Training(epochs=30, learning_rate=0.1)),
                Network(network="resnet20", training=Training(epochs=30, learning_rate=0.2)),
            ),
            seeds=(0, 1, 2),
            ratios=(0.3, 0.5, 0.7),
            criteria=MAIN,
            tuning=Training(epochs=1, learning_rate=0.02),
            ablations=Ablations(calibrations=(50, 2000), draws=1, binning_seeds=1, headstart=2, networks=("vgg16",)),
            arms=Arms(
                networks=("vgg16",),
                epochs=(2, 4, 8, 16),
                further_seeds=(3, 4),
                learning_rates=(0.005, 0.02, 0.05),
                pilot_epochs=2,
                methods=("tft", "mlft", "kd"),
                scratch=(),
            ),
        ),
        Profile(
            name="fashion",
            summary="20,000 images of Fashion-MNIST, eighth-width VGG-16, three seeds",
            dataset="fashion_mnist[:20000]",
            networks=(Network(network="vgg16", width=0.125, training=Training(epochs=6, learning_rate=0.1, batch_size=64)),),
            seeds=(0, 1, 2),
            ratios=(0.3, 0.5, 0.7),
            criteria=MAIN,
            tuning=Training(epochs=1, learning_rate=0.02, batch_size=64),
            ablations=Ablations(calibrations=(50, 200, 2000), draws=2, binning_seeds=2, headstart=2),
            arms=Arms(
                networks=("vgg16",),
                epochs=(1, 2, 4),
                learning_rates=(0.005, 0.02, 0.05),
                pilot_epochs=2,
                methods=("tft", "mlft", "kd"),
                scratch=("epochs",),
            ),
            scoring=BRIEF,
            speed=BRIEF_SPEED,
        ),
        Profile(
            name="paper",
            summary="CIFAR-10 and CIFAR-100, full-width VGG-16 and ResNet-56, five seeds; meant for a GPU",
            dataset="cifar10",
            others=("cifar100",),
            networks=(
                Network(network="vgg16", training=Training(epochs=160, learning_rate=0.1)),
                Network(network="resnet56", training=Training(epochs=160, learning_rate=0.2)),
            ),
            seeds=(0, 1, 2, 3, 4),
            ratios=(0.3, 0.5, 0.7),
            criteria=EVERY,
            calibration=1024,
            tuning=Training(epochs=40, learning_rate=0.05),
            ablations=Ablations(calibrations=(50, 200, 5000), headstart=10),
            arms=Arms(networks=("vgg16", "resnet56"), epochs=(10, 20, 40), learning_rates=(0.01, 0.02, 0.05, 0.1), pilot_epochs=10),
            speed=FULL_SPEED,
        ),
        Profile(
            name="paper-core",
            summary="CIFAR-10, full-width VGG-16 and ResNet-56, two seeds: what half an hour of a large GPU can hold",
            dataset="cifar10",
            networks=(
                Network(network="vgg16", training=Training(epochs=40, learning_rate=0.1)),
                Network(network="resnet56", training=Training(epochs=40, learning_rate=0.2)),
            ),
            seeds=(0, 1),
            ratios=(0.3, 0.5, 0.7),
            criteria=("kernel_l1", "feature_norm", "fcs", "fcs_linear"),
            calibration=1024,
            tuning=Training(epochs=10, learning_rate=0.02),
            ablations=Ablations(bins=(1, 8), calibrations=(200,), draws=1, binning_seeds=1, merged=("fcs",), headstart=5),
            arms=Arms(
                networks=("vgg16",),
                epochs=(5, 10, 20),
                learning_rates=(0.01, 0.05),
                pilot_epochs=5,
                methods=("tft", "mlft", "kd"),
                scratch=("epochs",),
            ),
            speed=FULL_SPEED,
        ),
    )
}
_PAPER = PROFILES["paper"]
PROFILES["paper-resnet110"] = _PAPER.model_copy(
    update={
        "name": "paper-resnet110",
        "summary": "paper with ResNet-110 in place of its two networks; meant for a GPU",
        "networks": (Network(network="resnet110", training=_PAPER.networks[1].training),),
        "arms": _PAPER.arms.model_copy(update={"networks": ("resnet110",)}),
        "scoring": _PAPER.scoring.model_copy(update={"networks": ("resnet110",)}),
        "speed": FULL_SPEED.model_copy(update={"networks": (("resnet110", 1.0),)}),
    }
)


def get_profile(name: str) -> Profile:
    """A profile by name; ``NAME:DATASET`` is the same study of another data set. Raises StudyError for an unknown one."""
    base, _, dataset = name.partition(":")
    if base not in PROFILES:
        raise refuse("profile", name, ", ".join(PROFILES) + ", or NAME:DATASET such as paper:cifar100")
    profile = PROFILES[base]
    return profile.model_copy(update={"name": name, "dataset": dataset}) if dataset else profile


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
