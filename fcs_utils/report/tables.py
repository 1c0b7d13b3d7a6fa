"""The published tables, one function each: frames in, tables out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fcs_utils.errors import StudyError, counted
from fcs_utils.files import write_atomic
from fcs_utils.report.inference import mean_interval, paired, replicate_of, seed_differences
from fcs_utils.report.registry import Registry
from fcs_utils.study.packed import Record, seconds_of
from fcs_utils.study.rates import best_rates
from fcs_utils.study.records import Store
from fcs_utils.training.arms import arm_label

TABLES = Registry[pd.DataFrame]()
as_table = TABLES.enter
AMOUNT = r"[+\-−<]?\s?\d[\d,]*\.?\d*(?:x| %)?"
NUMERIC = re.compile(rf"{AMOUNT}(?: (?:±|to) {AMOUNT})?(?: points| of epochs)?(?: \({AMOUNT}(?: to {AMOUNT})?\))?")
NEAR_MACS = 0.02  # of the dense MACs: how far two criteria may lie apart that are compared at one ratio


def by_group(runs: pd.DataFrame, keys: Sequence[str], row: Callable[[pd.DataFrame], dict[str, Any]]) -> pd.DataFrame:
    """One row a group, in the order of appearance: the group's keys, then what ``row`` says of it, which may reword a key."""
    groups = runs.groupby(list(keys), sort=False)
    rows = [dict(zip(keys, names, strict=True)) | row(group) for names, group in groups]
    found = [{**one, **_replicates(one, group)} for one, (_, group) in zip(rows, groups, strict=True)]
    return pd.DataFrame(found, columns=None if found else [*keys])


def _replicates(row: Mapping[str, Any], group: pd.DataFrame) -> dict[str, str]:
    """What a row's n counts, where the runs say it: given networks are no trained seeds."""
    return {"replicate": replicate_of(group)} if "n" in row and "given" in group else {}


def macs_left(runs: pd.DataFrame) -> pd.Series:
    """MACs of each pruned network in percent of the dense one's."""
    return 100 * runs.macs / runs.dense_macs


@as_table("references", "references")
def reference_table(references: pd.DataFrame) -> pd.DataFrame:
    """Size and accuracy of the networks before pruning."""
    return by_group(
        references,
        ["network"],
        lambda g: {
            "parameters (M)": f"{g.params.iloc[0] / 1e6:.3f}",
            "MACs (M)": f"{g.macs.iloc[0] / 1e6:.2f}",
            "validation top-1 (%)": mean_interval(g.validation),
            "test top-1 (%)": mean_interval(g.test),
            "n": len(g),
        },
    )


@as_table("compression", "pruned")
def compression_table(pruned: pd.DataFrame) -> pd.DataFrame:
    """Parameters and MACs that remain; the same for every criterion that ranks each layer, for widths follow from the ratio alone.

    Where one threshold decides for all layers, MACs are as near as whole channels allow: the table then shows the range.
    """

    def row(g: pd.DataFrame) -> dict[str, Any]:
        if macs_left(g).max() - macs_left(g).min() > 100 * NEAR_MACS:
            raise StudyError(f"{g.network.iloc[0]} at ratio {g.ratio.iloc[0]}: criteria have different MACs and cannot be compared")
        return {
            "parameters (M)": _span(g.params / 1e6, ".3f"),
            "parameters left (%)": _span(100 * g.params / g.dense_params, ".1f"),
            "MACs (M)": _span(g.macs / 1e6, ".2f"),
            "MACs left (%)": _span(macs_left(g), ".1f"),
            "kB on disk": _span(g.bytes / 1000, ".0f"),
        }

    return by_group(pruned, ["network", "ratio"], row)


def _span(values: pd.Series, digits: str) -> str:
    """One number where all look alike, else 'least to most'."""
    least, most = (format(value, digits) for value in (values.min(), values.max()))
    return least if least == most else f"{least} to {most}"


@as_table("criteria", "pruned", "tuned")
def criteria_table(pruned: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """Test top-1 by network, ratio and criterion: straight after surgery, recalibrated, fine-tuned."""
    runs = tuned.assign(**{"MACs left (%)": macs_left(tuned).map("{:.1f}".format)})

    def row(g: pd.DataFrame) -> dict[str, Any]:
        return {"fine-tuned (%)": mean_interval(g.test), "epochs": g.epochs.iloc[0], "n": len(g)}

    after = by_group(runs, ["network", "ratio", "MACs left (%)", "criterion", "reading"], row)
    keys = ["network", "ratio", "criterion"]
    before = pruned.groupby(keys).agg(**{"pruned (%)": ("plain", mean_interval), "recalibrated (%)": ("test", mean_interval)})
    table = after.join(before, on=keys)
    return table[[*table.columns[:5], *before.columns, *after.columns[5:]]]


@as_table("readings", "readings")
def readings_table(readings: pd.DataFrame) -> pd.DataFrame:
    """Readings of FCS on the pilot seeds, by validation: the first is the best reading, confirmed on other seeds."""
    base = "fcs" if "fcs" in set(readings.criterion) else readings.criterion.iloc[0]

    def row(g: pd.DataFrame) -> dict[str, Any]:
        found = paired(seed_differences(g, readings[readings.criterion == base], "validation"))
        other = g.criterion.iloc[0] != base
        return {
            "validation top-1 (%)": mean_interval(g.groupby("seed").validation.mean()),
            f"minus {base} (points)": f"{found.effect:+.2f}" if other else "",
            "95 % interval, uncorrected": found.interval if other else "",
            "epochs": g.epochs.iloc[0],
            "n": g.seed.nunique(),
        }

    order = readings.groupby("criterion", sort=False).validation.mean().sort_values(ascending=False, kind="stable").index
    return pd.concat([by_group(readings[readings.criterion == name], ["criterion", "reading"], row) for name in order])


@as_table("arms", "arms")
def arms_table(arms: pd.DataFrame) -> pd.DataFrame:
    """Every arm by schedule, at the learning rate that validation chose."""

    def row(g: pd.DataFrame) -> dict[str, Any]:
        first, missed = g.iloc[0], (~g.reached).sum()
        return {
            "criterion": f"{first.criterion}, ratio {first.ratio:g}",
            "method": arm_label(first.method),
            "learning rate (chosen)": f"{first.learning_rate:g}",
            "test top-1 (%)": mean_interval(g.test),
            "validation top-1 (%)": mean_interval(g.validation),
            "epochs to target": f"{g.epochs_to_target.mean():.1f}" + (f" ({missed} of {len(g)} not reached)" if missed else ""),
            "training MACs (T)": f"{g.training_macs.mean() / 1e12:.3f}",
            "MACs to target (T)": f"{g.macs_to_target.mean() / 1e12:.3f}",
            "n": len(g),
        }

    return by_group(_by_schedule(arms), ["network", "criterion", "method", "epochs"], row)


def _by_schedule(arms: pd.DataFrame) -> pd.DataFrame:
    """Arms as they came, the schedules of each from short to long."""
    parts = [own.sort_values("epochs", kind="stable") for _, own in arms.groupby("method", sort=False)]
    return pd.concat(parts) if parts else arms


@as_table("rates", "rates", "slack")
def rates_table(rates: pd.DataFrame, slack: float) -> pd.DataFrame:
    """Validation top-1 (and loss) of the pilot runs by arm and learning rate; the chosen one is the arm's from then on."""
    means = rates.groupby(["network", "method", "learning_rate"], sort=False)[["validation", "validation_loss"]].mean()
    cells = means.apply(lambda row: f"{row.validation:.2f} ({row.validation_loss:.3f})", axis=1)
    shown = cells.unstack("learning_rate").sort_index(axis=1).rename(columns="{:g}".format).rename_axis(columns=None).reset_index()
    chosen = best_rates(rates, slack)
    picked = [f"{chosen[row.network, row.method]:g}" for row in shown.itertuples()]
    return shown.assign(method=shown.method.map(arm_label), chosen=picked, n=rates.seed.nunique())


@as_table("peers", "arms")
def peers_table(arms: pd.DataFrame) -> pd.DataFrame:
    """What the second network gains or loses, and how the two networks' predictions come together."""

    def row(g: pd.DataFrame) -> dict[str, Any]:
        before, after = pd.DataFrame([*g.start]), pd.DataFrame([history[-1] for history in g.history])
        return {
            "method": arm_label(g.method.iloc[0]),
            "peer before (validation, %)": mean_interval(before.peer_validation),
            "peer after (%)": mean_interval(after.peer_validation),
            "gain (points)": f"{(after.peer_validation - before.peer_validation).mean():+.2f}",
            "KL before (nats)": mean_interval(before.peer_kl, 3),
            "KL after": mean_interval(after.peer_kl, 3),
            "n": len(g),
        }

    return by_group(_by_schedule(arms[arms.peer.map(bool)]), ["network", "method", "epochs"], row)


@as_table("points", "points")
def points_table(points: pd.DataFrame) -> pd.DataFrame:
    """Runs at the layer rates of published results, with those results above them; other training and other choices of an epoch."""

    def row(g: pd.DataFrame) -> dict[str, Any]:
        first = g.iloc[0]
        left = {name: 100 * (1 - first[name] / first[f"dense_{name}"]) for name in ("params", "macs")}
        return {
            "method": f"here: {first.criterion}",
            "parameters (M)": f"{first.params / 1e6:.2f}",
            "pruned top-1 (%)": mean_interval(g.test),
            "parameters removed (%)": f"{left['params']:.1f}",
            "MACs removed (%)": f"{left['macs']:.1f}",
            "source": f"this study, {counted(first.epochs, 'epoch')}, final epoch",
            "n": len(g),
        }

    own = by_group(points, ["network", "criterion"], row).drop(columns="criterion").rename(columns={"network": "architecture"})
    quoted = published_table()
    kinds = set(own.architecture.str.split().str[0])
    return pd.concat([quoted[quoted.architecture.str.split().str[0].isin(kinds)], own], ignore_index=True).fillna("")


@as_table("published")
def published_table() -> pd.DataFrame:
    """Results that others published for the same networks, quoted from the named sources, not measured here."""
    frame = pd.read_csv(Path(__file__).with_name("published.csv"), dtype=str, keep_default_na=False)
    own = frame[frame.columns[3:-1]].replace("", "not at hand")
    return pd.concat([frame[frame.columns[:3]], own, frame[["source"]].map("quoted: {}".format)], axis=1)


@as_table("similarity", "similarity")
def similarity_table(similarity: pd.DataFrame) -> pd.DataFrame:
    """Shares of similar channels and pairs in trained and untrained networks."""

    def row(g: pd.DataFrame) -> dict[str, Any]:
        by_seed = g.groupby("seed")[["near_duplicates", "pairs"]].mean()
        return {
            "channels with a near-duplicate beyond chance (%)": mean_interval(by_seed.near_duplicates, 1),
            "pairs more similar than chance (%)": mean_interval(by_seed.pairs, 1),
            "layers": g.layer.nunique(),
            "n": len(by_seed),
        }

    return by_group(similarity, ["network", "state"], row)


def grid_cost_table(found: Mapping[Any, Sequence[Record]]) -> pd.DataFrame:
    """What each stage took: runs, training MACs, hours of one thread or GPU. A run of several stages counts in the first."""
    rows, seen = [], set[str]()
    for stage, records in found.items():
        if not (own := [record for record in records if record["id"] not in seen]):
            continue
        seen |= {record["id"] for record in own}
        macs = sum(history[-1]["training_macs"] for r in own if (history := r["result"].get("history")))
        seconds = sum(map(seconds_of, own))
        spent = f"{macs / 1e12:,.1f}", f"{seconds / 3600:.2f}", f"{seconds / len(own):.1f}"
        rows.append((stage, len(own), *spent))
    return pd.DataFrame(rows, columns=["stage", "runs", "training (10^12 MACs)", "hours of one thread or GPU", "seconds a run"])


def write_table(store: Store, name: str, table: pd.DataFrame) -> None:
    """A table as CSV and Markdown."""
    write_atomic(store.table(name, "csv"), table.to_csv(index=False).encode())
    write_atomic(store.table(name, "md"), (markdown(table) + "\n").encode())


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown. Columns of numbers stand flush right, with units, intervals and brackets, too, as on pages (page.js)."""

    def text(cell: Any) -> str:
        return "" if pd.isna(cell) else str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)

    def side(cells: list[str]) -> str:
        return "right" if any(cells) and all(map(NUMERIC.fullmatch, filter(None, cells))) else "left"

    columns = {str(name): list(map(text, cells)) for name, cells in table.items()}
    sides = list(map(side, columns.values())) if len(table) else None
    return str(pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True, colalign=sides))
