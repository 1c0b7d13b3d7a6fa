"""Runs that vary FCS, draw other calibration images or merge. Frames in, frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from fcs_utils.pruning.criteria import option_in_words
from fcs_utils.report.inference import mean_interval, paired, seed_differences
from fcs_utils.report.plots import by_epoch
from fcs_utils.report.tables import as_table, by_group

Kept = Mapping[str, Sequence[int]]
LITERAL = "literal reading"


def jaccard(first: Kept, second: Kept) -> float:
    """Shared channels over all channels kept by either of two plans, averaged over layers.

    Two random halves share a third.
    """
    return float(np.mean([len({*first[n]} & {*second[n]}) / len({*first[n]} | {*second[n]}) for n in first]))


def variations(ablation: pd.DataFrame) -> pd.DataFrame:
    """Runs that vary FCS itself, each with its ``variant``, at the calibration set of the literal reading of the same seed.

    Without the literal reading there is nothing to compare with, and a run is left out.
    """
    base = ablation[
        (ablation.criterion.str.split().str[0] == "fcs") & (ablation.compensate == "none") & ablation.calibration_seed.isna()
    ]
    varied = base.options.map(bool)
    base = base[(base.ratio == _one_of(base.ratio[varied])) & (base.calibration == _one_of(base.calibration[~varied]))]
    named = [", ".join(option_in_words(*item) for item in one.items() if item[0] != "seed") for one in base.options]
    base = base.assign(variant=[name or LITERAL for name in named])
    literal = base[base.variant == LITERAL].set_index(["network", "seed"]).index
    return base[base.set_index(["network", "seed"]).index.isin(literal)]


def _one_of(values: pd.Series) -> Any:
    """The first value, or NaN, which equals nothing."""
    return values.iloc[0] if len(values) else np.nan


def draws(ablation: pd.DataFrame) -> pd.DataFrame:
    """Literal FCS on several draws of calibration images, at several numbers of them."""
    own = ablation[(ablation.criterion == "fcs") & (ablation.compensate == "none") & ~ablation.options.map(bool)]
    return own[own.ratio == _one_of(own.ratio[own.calibration_seed.notna()])]


def overlaps(ablation: pd.DataFrame) -> pd.DataFrame:
    """Jaccard of the kept channels between every two draws of calibration images, by network, number and seed."""

    def row(g: pd.DataFrame) -> dict[str, Any]:
        return {"jaccard": np.mean([jaccard(*pair) for pair in combinations(g.kept, 2)]), "draws": len(g)}

    runs = draws(ablation).assign(images=lambda runs: runs.calibration)
    return by_group(runs[runs.duplicated(["network", "images", "seed"], keep=False)], ["network", "images", "seed"], row)


def merge_frame(ablation: pd.DataFrame) -> pd.DataFrame:
    """One row per network, seed, criterion, ratio, compensation and recalibration, with test top-1 before training."""
    own = ablation[ablation.calibration_seed.isna() & ~ablation.options.map(bool)]
    merged = own[own.compensate == "merge"]
    own = own[
        own.criterion.isin(merged.criterion) & own.ratio.isin(merged.ratio) & (own.calibration == _one_of(merged.calibration))
    ]
    both = pd.concat([own.assign(recalibrated=False, test=own.plain), own.assign(recalibrated=True)]).sort_index(kind="stable")
    columns = ["network", "seed", "criterion", "ratio", "compensate", "recalibrated", "test", "macs", "dense_macs"]
    return both[[*columns, "reference_sha256", "device_type"]].sort_values("ratio", kind="stable", ignore_index=True)


@as_table("ablations", "variations")
def ablation_table(variations: pd.DataFrame) -> pd.DataFrame:
    """Each variation of FCS against the literal reading: before fine-tuning, BatchNorm recalibrated.

    Differences are paired by seed; starts of scikit-learn's K-Means are averaged within a seed.
    """
    literal = variations[variations.variant == LITERAL]
    plans = literal.set_index(["network", "seed"]).kept

    def row(g: pd.DataFrame) -> dict[str, Any]:
        found = paired(seed_differences(g, literal[literal.network == g.network.iloc[0]], "test"))
        other = g.variant.iloc[0] != LITERAL
        return {
            "test top-1 (%)": mean_interval(g.groupby("seed").test.mean()),
            "minus literal (points)": f"{found.effect:+.2f}" if other else "",
            "95 % interval, uncorrected": found.interval if other else "",
            "same channels (Jaccard)": f"{np.mean([jaccard(r.kept, plans[r.network, r.seed]) for r in g.itertuples()]):.2f}",
            "n": g.seed.nunique(),
        }

    return by_group(variations, ["network", "variant"], row)


@as_table("stability", "ablation", "pruned")
def stability_table(ablation: pd.DataFrame, pruned: pd.DataFrame) -> pd.DataFrame:
    """How alike the choices of different calibration sets are, and how accurate; beside them, two random choices."""
    runs = draws(ablation)

    def row(g: pd.DataFrame) -> dict[str, Any]:
        network, images = g.network.iloc[0], g.images.iloc[0]
        part = runs[(runs.network == network) & (runs.calibration == images)]
        noise = pruned[(pruned.network == network) & (pruned.criterion == "random") & (pruned.ratio == part.ratio.iloc[0])].kept
        chance = [jaccard(*pair) for pair in combinations(noise, 2)]
        return {
            "calibration images": images,
            "same channels in two draws (Jaccard)": mean_interval(g.jaccard),
            "in two random choices": f"{np.mean(chance):.2f}" if chance else "",
            "test top-1 (%)": mean_interval(part.groupby("seed").test.mean()),
            "draws a seed": g.draws.iloc[0],
            "n": len(g),
        }

    return by_group(overlaps(ablation), ["network", "images"], row).drop(columns="images")


@as_table("merge", "merges")
def merge_table(merges: pd.DataFrame) -> pd.DataFrame:
    """Test top-1 before any training: plain or merged surgery, each without and with BatchNorm recalibration."""

    def row(g: pd.DataFrame) -> dict[str, Any]:
        cells = {}
        for recalibrated, suffix in ((False, ""), (True, ", recalibrated")):
            plain, merged = (g[(g.recalibrated == recalibrated) & (g.compensate == how)] for how in ("none", "merge"))
            cells[f"plain{suffix} (%)"] = mean_interval(plain.test, 1)
            cells[f"merged{suffix} (%)"] = mean_interval(merged.test, 1)
            cells[f"gain{suffix}"] = f"{paired(seed_differences(merged, plain, 'test')).effect:+.1f}"
        return cells | {"n": g.seed.nunique()}

    return by_group(merges, ["network", "criterion", "ratio"], row)


@as_table("headstart", "headstart")
def headstart_table(headstart: pd.DataFrame) -> pd.DataFrame:
    """Validation top-1 by epoch of the same fine-tuning from plain and from merged weights, paired by seed."""
    value = "validation of the epoch"

    def row(g: pd.DataFrame) -> dict[str, Any]:
        plain, merged = (g[g.compensate == how] for how in ("none", "merge"))
        gain = paired(seed_differences(merged, plain, value))
        return {
            "plain (%)": mean_interval(plain[value]),
            "merged (%)": mean_interval(merged[value]),
            "gain (points)": f"{gain.effect:+.2f}",
            "95 % interval, uncorrected": gain.interval,
            "n": gain.n,
        }

    return by_group(by_epoch(headstart), ["network", "epoch"], row)
