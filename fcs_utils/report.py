"""Records -> tables and verdicts. Reads records only; trains nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from fcs_utils import ablations, claims
from fcs_utils.claims import mean_interval
from fcs_utils.criteria import describe
from fcs_utils.errors import StudyError
from fcs_utils.store import Store, write_atomic, write_json

Record = Mapping[str, Any]
NAMES = {"vgg16": "VGG-16", "vgg19": "VGG-19", **{f"resnet{d}": f"ResNet-{d}" for d in (20, 32, 44, 56, 110)}}
ARM = ["network", "method", "epochs"]


def network_label(reference: Mapping[str, Any]) -> str:
    """'VGG-16', or 'VGG-16 x0.25' where the width is not one."""
    name, width = reference["network"], reference["width"]
    return NAMES.get(name, name) + ("" if width == 1 else f" x{width:g}")


def runs_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per reference, pruned or tuned record with what tables need; accuracies in percent."""
    rows = []
    for record in records:
        config, result = record["config"], record["result"]
        reference, pruning, tuning = config["reference"], config["pruning"], config["tuning"]
        row = {
            "id": record["id"], "kind": record["kind"], "network": network_label(reference), "seed": reference["seed"],
            "device_type": record["provenance"]["device_type"],
            "reference_sha256": result.get("reference_sha256", result.get("weights_sha256")),
            **{name: result["cost"][name] for name in ("params", "macs", "bytes")},
            "latency_ms": record["volatile"]["latency_ms"],
        }  # fmt: skip
        if pruning:
            dense = result["dense_cost"]
            row |= {
                "criterion": pruning["criterion"], "reading": describe(pruning["criterion"], pruning["options"]),
                "ratio": pruning["ratio"], "dense_params": dense["params"], "dense_macs": dense["macs"],
                **{name: pruning[name] for name in ("options", "calibration", "calibration_seed", "compensate")},
            }  # fmt: skip
        if record["kind"] == "pruned":
            row |= {"plain": result["before_recalibration"]["test"], "test": result["before_tuning"]["test"],
                    "validation": result["before_tuning"]["validation"], "kept": result["plan"]["kept"],
                    "dense_latency_ms": record["volatile"]["dense_latency_ms"]}  # fmt: skip
        else:
            row |= {"test": result["test"], "validation": result["validation"], "history": result["history"],
                    "training_macs": result["history"][-1]["training_macs"],
                    "seconds": record["volatile"]["epoch_seconds"][-1]}  # fmt: skip
        if tuning:
            row |= {"method": tuning["method"], "epochs": tuning["training"]["epochs"],
                    "learning_rate": tuning["training"]["learning_rate"]}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def similarity_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per network, seed, state and layer; shares in percent."""
    rows = [
        {"network": network_label(record["config"]["reference"]), "seed": record["config"]["reference"]["seed"],
         "device_type": record["provenance"]["device_type"], "reference_sha256": record["result"]["reference_sha256"],
         "state": state, "layer": layer, "twins": 100 * share["twins"], "pairs": 100 * share["pairs"],
         "threshold": share["threshold"]}
        for record in records for state, layers in record["result"]["shares"].items() for layer, share in layers.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def choose_learning_rates(arms: pd.DataFrame) -> pd.DataFrame:
    """Rows of each arm at its own best learning rate: highest mean validation accuracy, ties to the smaller.

    An arm is a network, a method and a schedule. The test split plays no part.
    """
    means = arms.groupby([*ARM, "learning_rate"], sort=False).validation.mean().reset_index()
    means = means.sort_values(["validation", "learning_rate"], ascending=[False, True]).drop_duplicates(ARM)
    return arms.merge(means[[*ARM, "learning_rate"]], on=[*ARM, "learning_rate"])


def add_targets(arms: pd.DataFrame, validation_images: int) -> pd.DataFrame:
    """Adds epochs-to-target and training MACs to target for each run.

    The target is TFT's final validation accuracy with the same network, seed and schedule, minus the larger
    of 0.2 points and one image. A target that is not reached counts as schedule + 1, flagged in ``reached``.
    """
    slack = max(0.2, 100 / validation_images)
    tft = arms[arms.method == "tft"].set_index(["network", "seed", "epochs"]).validation - slack
    rows = []
    for row in arms.itertuples():
        target = tft.loc[row.network, row.seed, row.epochs]
        hit = next((epoch for epoch in row.history if epoch["validation"] >= target - 1e-9), None)
        step = row.training_macs / row.epochs
        rows.append({"target": target, "reached": hit is not None,
                     "epochs_to_target": hit["epoch"] if hit else row.epochs + 1,
                     "macs_to_target": hit["training_macs"] if hit else row.training_macs + step})  # fmt: skip
    return arms.reset_index(drop=True).join(pd.DataFrame(rows))


# -- tables, one function each ------------------------------------------------------------------------------------


def reference_table(references: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame([
        {"network": network, "parameters (M)": f"{g.params.iloc[0] / 1e6:.3f}", "MACs (M)": f"{g.macs.iloc[0] / 1e6:.2f}",
         "validation top-1 (%)": mean_interval(g.validation), "test top-1 (%)": mean_interval(g.test), "n": len(g)}
        for network, g in references.groupby("network", sort=False)
    ])  # fmt: skip


def compression_table(pruned: pd.DataFrame) -> pd.DataFrame:
    """Parameters and MACs that remain; the same for every criterion, for widths follow from the ratio alone."""
    rows = []
    for (network, ratio), g in pruned.groupby(["network", "ratio"], sort=False):
        if g.macs.nunique() > 1:
            raise StudyError(f"{network} at ratio {ratio}: criteria have different MACs and cannot be compared")
        first = g.iloc[0]
        rows.append({
            "network": network, "ratio": ratio,
            "parameters (M)": f"{first.params / 1e6:.3f}", "parameters left (%)": f"{100 * first.params / first.dense_params:.1f}",
            "MACs (M)": f"{first.macs / 1e6:.2f}", "MACs left (%)": f"{100 * first.macs / first.dense_macs:.1f}",
            "kB on disk": f"{first.bytes / 1000:.0f}",
            "speed-up, measured": f"{(g.dense_latency_ms / g.latency_ms).median():.2f}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def criteria_table(pruned: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """Test top-1 by network, ratio and criterion: straight after surgery, recalibrated, fine-tuned."""
    rows = []
    for (network, ratio, criterion), g in tuned.groupby(["network", "ratio", "criterion"], sort=False):
        before = pruned[(pruned.network == network) & (pruned.ratio == ratio) & (pruned.criterion == criterion)]
        rows.append({
            "network": network, "ratio": ratio, "MACs left (%)": f"{100 * (g.macs / g.dense_macs).iloc[0]:.1f}",
            "criterion": criterion, "reading": g.reading.iloc[0],
            "pruned (%)": mean_interval(before.plain), "recalibrated (%)": mean_interval(before.test),
            "fine-tuned (%)": mean_interval(g.test), "n": len(g),
        })  # fmt: skip
    return pd.DataFrame(rows)


def arms_table(arms: pd.DataFrame) -> pd.DataFrame:
    """TFT and MLFT by schedule, at the learning rate that validation chose."""
    rows = []
    for (network, method, epochs), g in arms.groupby(ARM, sort=False):
        missed = int((~g.reached).sum())
        rows.append({
            "network": network, "criterion": f"{g.criterion.iloc[0]}, ratio {g.ratio.iloc[0]:g}",
            "method": method.upper(), "epochs": epochs, "learning rate (chosen)": f"{g.learning_rate.iloc[0]:g}",
            "test top-1 (%)": mean_interval(g.test), "validation top-1 (%)": mean_interval(g.validation),
            "epochs to target": f"{g.epochs_to_target.mean():.1f}" + (f" ({missed} of {len(g)} not reached)" if missed else ""),
            "training MACs (T)": f"{g.training_macs.mean() / 1e12:.3f}",
            "MACs to target (T)": f"{g.macs_to_target.mean() / 1e12:.3f}",
            "seconds": f"{g.seconds.mean():.1f}", "n": len(g),
        })  # fmt: skip
    return pd.DataFrame(rows)


def similarity_table(similarity: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for network, g in similarity.groupby("network", sort=False):
        by_seed = g.groupby(["state", "seed"])[["twins", "pairs"]].mean()
        for state in ("trained", "untrained"):
            rows.append({"network": network, "state": state,
                         "channels with a twin (%)": mean_interval(by_seed.loc[state].twins, 1),
                         "pairs above the null (%)": mean_interval(by_seed.loc[state].pairs, 1),
                         "layers": g.layer.nunique(), "n": g.seed.nunique()})  # fmt: skip
    return pd.DataFrame(rows)


def claims_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger as people read it."""

    def interval(row: Any) -> str:
        return "undefined at n = 1" if math.isnan(row.low) else f"{row.low:+.2f} to {row.high:+.2f}"

    return pd.DataFrame([
        {"claim": row.claim, "comparison": row.comparison, "effect": f"{row.effect:+.2f} {row.unit}",
         "95 % interval": interval(row), "p (Holm)": "" if math.isnan(row.p_holm) else f"{row.p_holm:.3f}",
         "smallest effect to be found": "" if math.isnan(row.detectable) else f"{row.detectable:.2f}", "n": row.n,
         "verdict": row.verdict if row.decisive else f"({row.verdict}, for information)"}
        for row in ledger.itertuples()
    ])  # fmt: skip


def write_table(store: Store, name: str, table: pd.DataFrame) -> None:
    """A table as CSV, Markdown and LaTeX."""
    write_atomic(store.table(name, "csv"), table.to_csv(index=False).encode())
    write_atomic(store.table(name, "md"), (table.to_markdown(index=False) + "\n").encode())
    write_atomic(store.table(name, "tex"), table.to_latex(index=False, escape=True).encode())


# -- everything at once -------------------------------------------------------------------------------------------


class Report:
    """All frames of a complete profile, from its records by stage."""

    def __init__(self, records: Mapping[str, Sequence[Record]], validation_images: int) -> None:
        self.references = runs_frame(records["reference"])
        self.similarity = similarity_frame(records["similarity"])
        self.pruned = runs_frame(records["pruned"])
        self.tuned = runs_frame(records["tuned"])
        self.ablation = runs_frame(records["ablation"])
        self.headstart = runs_frame(records["headstart"])
        self.arms = add_targets(choose_learning_rates(runs_frame(records["arms"])), validation_images)
        self.ledger = claims.ledger(claims.c1(self.similarity) + claims.c2(self.tuned) + claims.c3(self.arms))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every published table by file name."""
        return {
            "claims": claims_table(self.ledger),
            "references": reference_table(self.references),
            "similarity": similarity_table(self.similarity),
            "compression": compression_table(self.pruned),
            "criteria": criteria_table(self.pruned, self.tuned),
            "ablations": ablations.ablation_table(self.ablation),
            "stability": ablations.stability_table(self.ablation, self.pruned),
            "merge": ablations.merge_table(self.ablation),
            "headstart": ablations.headstart_table(self.headstart),
            "arms": arms_table(self.arms),
        }

    def write(self, store: Store) -> None:
        """Tables as CSV, Markdown and LaTeX, and the ledger as JSON."""
        for name, table in self.tables().items():
            write_table(store, name, table)
        rows = self.ledger.astype(object).where(self.ledger.notna(), None)  # NaN is no JSON
        write_json(store.claims(), {"verdicts": claims.claim_verdicts(self.ledger), "comparisons": rows.to_dict("records")})
