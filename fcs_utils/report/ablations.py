"""Runs that vary FCS, draw other calibration images or merge. Frames in, frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from fcs_utils.report.inference import mean_interval, paired, seed_differences
from fcs_utils.report.tables import as_table

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
        {
            "network": r.network,
            "seed": r.seed,
            "criterion": r.criterion,
            "ratio": r.ratio,
            "compensate": r.compensate,
            "recalibrated": recalibrated,
            "test": value,
            "macs": r.macs,
            "dense_macs": r.dense_macs,
            "reference_sha256": r.reference_sha256,
            "device_type": r.device_type,
        }
        for r in own.itertuples()
        for recalibrated, value in ((False, r.plain), (True, r.test))
    ]
    return pd.DataFrame(rows).sort_values("ratio", kind="stable")


@as_table("ablations", "ablation")
def ablation_table(ablation: pd.DataFrame) -> pd.DataFrame:
    """Each variation of FCS against the literal reading: before fine-tuning, BatchNorm recalibrated.

    Differences are paired by seed; starts of scikit-learn's K-Means are averaged within a seed.
    """
    rows = []
    for network, group in variations(ablation).groupby("network", sort=False):
        literal = group[group.variant == "literal reading"]
        plans = dict(zip(literal.seed, literal.kept, strict=True))
        for variant, part in group.groupby("variant", sort=False):
            result = paired(seed_differences(part, literal, "test"))
            known = not np.isnan(result.low) and variant != "literal reading"
            rows.append(
                {
                    "network": network,
                    "variant": variant,
                    "test top-1 (%)": mean_interval(part.groupby("seed").test.mean()),
                    "minus literal (points)": "" if variant == "literal reading" else f"{result.effect:+.2f}",
                    "95 % interval, uncorrected": f"{result.low:+.2f} to {result.high:+.2f}" if known else "",
                    "same channels (Jaccard)": f"{np.mean([jaccard(r.kept, plans[r.seed]) for r in part.itertuples()]):.2f}",
                    "n": part.seed.nunique(),
                }
            )
    return pd.DataFrame(rows)


@as_table("stability", "ablation", "pruned")
def stability_table(ablation: pd.DataFrame, pruned: pd.DataFrame) -> pd.DataFrame:
    """How alike the choices of different calibration sets are, and how accurate; beside them, two random choices."""
    rows = []
    shares, runs = overlaps(ablation), draws(ablation)
    for (network, images), group in shares.groupby(["network", "images"], sort=False):
        part = runs[(runs.network == network) & (runs.calibration == images)]
        noise = pruned[(pruned.network == network) & (pruned.criterion == "random") & (pruned.ratio == part.ratio.iloc[0])].kept
        chance = [jaccard(first, second) for first, second in combinations(noise, 2)]
        rows.append(
            {
                "network": network,
                "calibration images": images,
                "same channels in two draws (Jaccard)": mean_interval(group.jaccard),
                "in two random choices": f"{np.mean(chance):.2f}" if chance else "",
                "test top-1 (%)": mean_interval(part.groupby("seed").test.mean()),
                "draws a seed": group.draws.iloc[0],
                "n": len(group),
            }
        )
    return pd.DataFrame(rows)


@as_table("merge", "ablation")
def merge_table(ablation: pd.DataFrame) -> pd.DataFrame:
    """Test top-1 before any training: plain or merged surgery, each without and with BatchNorm recalibration."""
    rows = []
    for (network, criterion, ratio), group in merge_frame(ablation).groupby(["network", "criterion", "ratio"], sort=False):
        row = {"network": network, "criterion": criterion, "ratio": ratio}
        for recalibrated in (False, True):
            part = group[group.recalibrated == recalibrated]
            plain, merged = (part[part.compensate == how] for how in ("none", "merge"))
            gain = paired(seed_differences(merged, plain, "test"))
            suffix = ", recalibrated" if recalibrated else ""
            row |= {
                f"plain{suffix} (%)": mean_interval(plain.test, 1),
                f"merged{suffix} (%)": mean_interval(merged.test, 1),
                f"gain{suffix}": f"{gain.effect:+.1f}",
            }
        rows.append(row | {"n": group.seed.nunique()})
    return pd.DataFrame(rows)


@as_table("headstart", "headstart")
def headstart_table(headstart: pd.DataFrame) -> pd.DataFrame:
    """Validation top-1 by epoch of the same fine-tuning from plain and from merged weights, paired by seed."""
    rows = []
    for network, group in headstart.groupby("network", sort=False):
        longer = group.assign(history=[[e["validation"] for e in history] for history in group.history])
        for epoch in range(1, int(group.epochs.iloc[0]) + 1):
            at = longer.assign(value=[history[epoch - 1] for history in longer.history])
            plain, merged = (at[at.compensate == how] for how in ("none", "merge"))
            gain = paired(seed_differences(merged, plain, "value"))
            rows.append(
                {
                    "network": network,
                    "epoch": epoch,
                    "plain (%)": mean_interval(plain.value),
                    "merged (%)": mean_interval(merged.value),
                    "gain (points)": f"{gain.effect:+.2f}",
                    "95 % interval, uncorrected": "" if np.isnan(gain.low) else f"{gain.low:+.2f} to {gain.high:+.2f}",
                    "n": gain.n,
                }
            )
    return pd.DataFrame(rows)
