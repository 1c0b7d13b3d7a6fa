"""The published tables, one function each: frames in, tables out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fcs_utils.errors import StudyError
from fcs_utils.files import write_atomic
from fcs_utils.report.inference import mean_interval
from fcs_utils.report.registry import Registry, enter
from fcs_utils.study.rates import best_rates
from fcs_utils.study.records import Store
from fcs_utils.training.arms import arm_label

ARM = ["network", "method", "epochs"]
TABLES: Registry[pd.DataFrame] = {}


def as_table(name: str, *needs: str) -> Callable[[Callable[..., pd.DataFrame]], Callable[..., pd.DataFrame]]:
    """Publish what the function returns as table ``name``, made from these attributes of a ``Report``."""
    return enter(TABLES, name, needs)


@as_table("references", "references")
def reference_table(references: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "network": network,
                "parameters (M)": f"{g.params.iloc[0] / 1e6:.3f}",
                "MACs (M)": f"{g.macs.iloc[0] / 1e6:.2f}",
                "validation top-1 (%)": mean_interval(g.validation),
                "test top-1 (%)": mean_interval(g.test),
                "n": len(g),
            }
            for network, g in references.groupby("network", sort=False)
        ]
    )


@as_table("compression", "pruned")
def compression_table(pruned: pd.DataFrame) -> pd.DataFrame:
    """Parameters and MACs that remain; the same for every criterion, for widths follow from the ratio alone."""
    rows = []
    for (network, ratio), g in pruned.groupby(["network", "ratio"], sort=False):
        if g.macs.nunique() > 1:
            raise StudyError(f"{network} at ratio {ratio}: criteria have different MACs and cannot be compared")
        first = g.iloc[0]
        rows.append(
            {
                "network": network,
                "ratio": ratio,
                "parameters (M)": f"{first.params / 1e6:.3f}",
                "parameters left (%)": f"{100 * first.params / first.dense_params:.1f}",
                "MACs (M)": f"{first.macs / 1e6:.2f}",
                "MACs left (%)": f"{100 * first.macs / first.dense_macs:.1f}",
                "kB on disk": f"{first.bytes / 1000:.0f}",
            }
        )
    return pd.DataFrame(rows)


@as_table("criteria", "pruned", "tuned")
def criteria_table(pruned: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """Test top-1 by network, ratio and criterion: straight after surgery, recalibrated, fine-tuned."""
    rows = []
    for (network, ratio, criterion), g in tuned.groupby(["network", "ratio", "criterion"], sort=False):
        before = pruned[(pruned.network == network) & (pruned.ratio == ratio) & (pruned.criterion == criterion)]
        rows.append(
            {
                "network": network,
                "ratio": ratio,
                "MACs left (%)": f"{100 * (g.macs / g.dense_macs).iloc[0]:.1f}",
                "criterion": criterion,
                "reading": g.reading.iloc[0],
                "pruned (%)": mean_interval(before.plain),
                "recalibrated (%)": mean_interval(before.test),
                "fine-tuned (%)": mean_interval(g.test),
                "n": len(g),
            }
        )
    return pd.DataFrame(rows)


@as_table("arms", "arms")
def arms_table(arms: pd.DataFrame) -> pd.DataFrame:
    """Every arm by schedule, at the learning rate that validation chose."""
    rows = []
    for (network, method, epochs), g in arms.groupby(ARM, sort=False):
        missed = int((~g.reached).sum())
        rows.append(
            {
                "network": network,
                "criterion": f"{g.criterion.iloc[0]}, ratio {g.ratio.iloc[0]:g}",
                "method": arm_label(method),
                "epochs": epochs,
                "learning rate (chosen)": f"{g.learning_rate.iloc[0]:g}",
                "test top-1 (%)": mean_interval(g.test),
                "validation top-1 (%)": mean_interval(g.validation),
                "epochs to target": f"{g.epochs_to_target.mean():.1f}" + (f" ({missed} of {len(g)} not reached)" if missed else ""),
                "training MACs (T)": f"{g.training_macs.mean() / 1e12:.3f}",
                "MACs to target (T)": f"{g.macs_to_target.mean() / 1e12:.3f}",
                "seconds": f"{g.seconds.mean():.1f}",
                "seconds to target": f"{g.seconds_to_target.mean():.1f}",
                "n": len(g),
            }
        )
    return pd.DataFrame(rows)


@as_table("rates", "rates", "slack")
def rates_table(rates: pd.DataFrame, slack: float) -> pd.DataFrame:
    """Validation top-1 (and loss) of the pilot runs by arm and learning rate; the chosen one is the arm's from then on."""
    means = rates.groupby(["network", "method", "learning_rate"], sort=False)[["validation", "validation_loss"]].mean()
    cells = means.apply(lambda row: f"{row.validation:.2f} ({row.validation_loss:.3f})", axis=1)
    shown = cells.unstack("learning_rate").sort_index(axis=1).reset_index()
    chosen = best_rates(rates, slack)
    picked = [f"{chosen[row.network, row.method]:g}" for row in shown.itertuples()]
    shown.columns = [f"{name:g}" if isinstance(name, float) else str(name) for name in shown.columns]
    shown["method"] = shown.method.map(arm_label)
    return shown.assign(chosen=picked, n=rates.seed.nunique())


@as_table("peers", "arms")
def peers_table(arms: pd.DataFrame) -> pd.DataFrame:
    """What the second network gains or loses, and how the two networks' predictions come together."""
    rows = []
    for (network, method, epochs), g in arms[arms.peer.map(bool)].groupby(ARM, sort=False):
        before = [start["peer_validation"] for start in g.start]
        after = [history[-1]["peer_validation"] for history in g.history]
        rows.append(
            {
                "network": network,
                "method": arm_label(method),
                "epochs": epochs,
                "peer before (validation, %)": mean_interval(before),
                "peer after (%)": mean_interval(after),
                "gain (points)": f"{np.mean(np.subtract(after, before)):+.2f}",
                "KL before (nats)": mean_interval([start["peer_kl"] for start in g.start], 3),
                "KL after": mean_interval([history[-1]["peer_kl"] for history in g.history], 3),
                "n": len(g),
            }
        )
    return pd.DataFrame(rows)


@as_table("published")
def published_table() -> pd.DataFrame:
    """Results that others published for the same networks, quoted from the named sources, not measured here."""
    frame = pd.read_csv(Path(__file__).with_name("published.csv"), dtype=str, keep_default_na=False)
    own = frame[frame.columns[3:-1]].replace("", "not at hand")
    return pd.concat([frame[frame.columns[:3]], own, frame[["source"]].map("quoted: {}".format)], axis=1)


@as_table("similarity", "similarity")
def similarity_table(similarity: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for network, g in similarity.groupby("network", sort=False):
        by_seed = g.groupby(["state", "seed"])[["near_duplicates", "pairs"]].mean()
        for state in g.state.unique():
            rows.append(
                {
                    "network": network,
                    "state": state,
                    "channels with a near-duplicate beyond chance (%)": mean_interval(by_seed.loc[state].near_duplicates, 1),
                    "pairs more similar than chance (%)": mean_interval(by_seed.loc[state].pairs, 1),
                    "layers": g.layer.nunique(),
                    "n": g.seed.nunique(),
                }
            )
    return pd.DataFrame(rows)


def grid_cost_table(found: Mapping[Any, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """What each stage took: runs, training MACs, and hours of one thread or GPU. A run of two stages counts once."""
    rows, seen = [], set[str]()
    for stage, records in found.items():
        own = [record for record in records if record["id"] not in seen]
        seen |= {record["id"] for record in own}
        macs = sum(history[-1]["training_macs"] for r in own if (history := r["result"].get("history")))
        hours = sum(record["volatile"]["seconds"] for record in own) / 3600
        rows.append(
            {
                "stage": stage,
                "runs": len(own),
                "training (10^12 MACs)": f"{macs / 1e12:,.1f}",
                "hours of one thread or GPU": f"{hours:.2f}",
                "seconds a run": f"{3600 * hours / max(1, len(own)):.1f}",
            }
        )
    return pd.DataFrame(rows)


@as_table("missing", "missing")
def missing_table(missing: Sequence[str]) -> pd.DataFrame:
    """Runs without a record, in words."""
    return pd.DataFrame({"runs without a record": missing})


def write_table(store: Store, name: str, table: pd.DataFrame) -> None:
    """A table as CSV and Markdown."""
    write_atomic(store.table(name, "csv"), table.to_csv(index=False).encode())
    write_atomic(store.table(name, "md"), (table.to_markdown(index=False) + "\n").encode())
