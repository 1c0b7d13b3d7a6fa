"""A profile with one network whose weights are given, and its study of few images, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcs_utils.data.dataset import Split
from fcs_utils.study.profiles import Profile, get_profile
from fcs_utils.study.sections import Network
from fcs_utils.study.study import Study
from fcs_utils.training.optimiser import Training

MEAN, STD = 0.3, 0.6
SCHEDULE = Training(epochs=1, learning_rate=0.02, batch_size=50)
FILE = "mine.safetensors"


def profile(**network: Any) -> Profile:
    """One given network on few images; its arms would need one that is trained here."""
    smoke = get_profile("smoke")
    given = Network(**{"network": "resnet20", "width": 0.25, "weights": FILE, "mean": (MEAN,), "std": (STD,), **network})
    small = smoke.ablations.model_copy(update={"bins": (), "calibrations": (), "draws": 1, "binning_seeds": 0})
    changes = {"name": "given", "dataset": "digits[:100]", "calibration": 20, "networks": (given,), "tuning": SCHEDULE}
    arms = smoke.arms.model_copy(update={"networks": ()})
    return smoke.model_copy(update={**changes, "ablations": small, "arms": arms, "criteria": ("random", "kernel_l1", "fcs")})


def by_hand(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 1) -> (N, 1, H, W), in 0..1, less the mean, over the standard deviation."""
    return ((images / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def small(profile: Profile, out: Path, data: Path, mean: float | None = None) -> Study:
    """A study of few images, 16 pixels wide. mean: what its data set believes to be its own mean, 0..255."""
    study = Study(profile, out, data)
    own = study.bench.dataset
    parts = {
        name: Split(part.images[:60, 8:24, 8:24], part.labels[:60])
        for name, part in (("train", own.train), ("validation", own.validation), ("test", own.test))
    }
    believed = own.mean if mean is None else torch.full_like(own.mean, mean)
    study.bench.__dict__["dataset"] = replace(own, **parts, mean=believed)
    return study
