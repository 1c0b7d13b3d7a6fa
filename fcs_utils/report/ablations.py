"""Runs that vary FCS, draw other calibration images or merge. Frames in, frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

Kept = Mapping[str, Sequence[int]]


def jaccard(first: Kept, second: Kept) -> float:
    """Shared channels over all channels kept by either of two plans, averaged over layers.

    Two random halves share a third.
    """
    return float(np.mean([len(set(first[n]) & set(second[n])) / len(set(first[n]) | set(second[n])) for n in first]))


def _label(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in options.items() if name != "seed") or "literal reading"


def variations(ablation: pd.DataFrame) -> pd.DataFrame:
    """Runs that vary FCS itself, labelled, at the calibration set of the literal reading."""
    base = ablation[(ablation.criterion == "fcs") & (ablation.compensate == "none") & ablation.calibration_seed.isna()]
    literal = base[[not options for options in base.options]]
    base = base[
        (base.ratio == base[[bool(o) for o in base.options]].ratio.iloc[0]) & (base.calibration == literal.calibration.iloc[0])
    ]
    return base.assign(variant=[_label(options) for options in base.options])


def draws(ablation: pd.DataFrame) -> pd.DataFrame:
    """Literal FCS on several draws of calibration images, at several numbers of them."""
    own = ablation[(ablation.criterion == "fcs") & (ablation.compensate == "none") & ~ablation.options.map(bool)]
    return own[own.ratio == own[own.calibration_seed.notna()].ratio.iloc[0]]


def overlaps(ablation: pd.DataFrame) -> pd.DataFrame:
    """Jaccard of the kept channels between every two draws of calibration images, by network, number and seed."""
    rows = []
    for (network, calibration, seed), group in draws(ablation).groupby(["network", "calibration", "seed"], sort=False):
        pairs = [jaccard(first, second) for first, second in combinations(group.kept, 2)]
        rows.append({"network": network, "images": calibration, "seed": seed, "jaccard": np.mean(pairs), "draws": len(group)})
    return pd.DataFrame(rows)


def merge_frame(ablation: pd.DataFrame) -> pd.DataFrame:
    """One row per network, seed, criterion, ratio, compensation and recalibration, with test top-1 before training."""
    own = ablation[ablation.calibration_seed.isna() & ~ablation.options.map(bool)]
    merged = own[own.compensate == "merge"]
    own = own[own.criterion.isin(merged.criterion) & own.ratio.isin(merged.ratio) & (own.calibration == merged.calibration.iloc[0])]
    rows = [
        {"network": r.network, "seed": r.seed, "criterion": r.criterion, "ratio": r.ratio, "compensate": r.compensate,
         "recalibrated": recalibrated, "test": value, "macs": r.macs, "dense_macs": r.dense_macs,
         "reference_sha256": r.reference_sha256, "device_type": r.device_type}
        for r in own.itertuples() for recalibrated, value in ((False, r.plain), (True, r.test))
    ]  # fmt: skip
    return pd.DataFrame(rows).sort_values("ratio", kind="stable")
