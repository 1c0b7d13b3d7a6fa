"""What a profile says: the data set, the networks, and how much of everything. The profiles are in ``profiles.py``."""

from __future__ import annotations

from typing import Any, Literal

from fcs_utils.config import Config, Training
from fcs_utils.criteria import CRITERIA


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
    methods: tuple[Literal["tft", "mlft", "twin", "kd"], ...] = ("tft", "mlft", "twin", "kd")
    scratch: tuple[Literal["epochs", "macs"], ...] = ("epochs", "macs")
    scratch_seeds: int | None = None


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


class Scoring(Config):
    """What notebook 08 measures the cost of scoring on.

    images: numbers of them, the last for the comparison with the forward pass. heavy: images for procedures
    that keep every map. literal: images for criteria as published, one decomposition at a time.
    """

    networks: tuple[str, ...] = ("vgg16", "resnet56")
    images: tuple[int, ...] = (256, 512, 2048)
    widths: tuple[float, ...] = (0.25, 0.5)
    heavy: int = 512
    literal: int = 8


class Speed(Config):
    """What notebook 08 measures the speed of training and evaluation on: networks with widths, images, batches.

    images: on a CPU; a GPU takes eight times as many. compiled: torch.compile too; it takes a minute a network.
    """

    networks: tuple[tuple[str, float], ...] = (("vgg16", 0.25), ("resnet20", 1.0))
    images: int = 2048
    batches: tuple[int, ...] = (32, 64, 256)
    rounds: int = 3
    compiled: bool = True


class Profile(Config):
    """One study: the data set, the networks, and how much of everything.

    others: further data sets that are studied too, each in a results folder of its own.
    """

    name: str
    summary: str
    dataset: str
    others: tuple[str, ...] = ()
    networks: tuple[Network, ...]
    seeds: tuple[int, ...]
    ratios: tuple[float, ...]
    criteria: tuple[str, ...] = tuple(CRITERIA)
    calibration: int = 512
    tuning: Training  # the one schedule after which criteria are compared (C2)
    ablations: Ablations
    arms: Arms
    scoring: Scoring = Scoring()
    speed: Speed = Speed()
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: what the first machine is fastest in
