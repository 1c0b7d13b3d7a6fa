"""Records -> tables and verdicts. Reads records only; trains nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fcs_utils.files import write_json
from fcs_utils.pruning.criteria import reading_of
from fcs_utils.report import ablation_figures, ablations, arm_figures, claims, figures, tables
from fcs_utils.report import comparisons as compare
from fcs_utils.report.registry import Made, Registry
from fcs_utils.study.catalogue import STAGES
from fcs_utils.study.packed import Record
from fcs_utils.study.rates import margin
from fcs_utils.study.records import Store
from fcs_utils.study.study import Study
from fcs_utils.training.arms import arm_row, is_searched

REGISTERED = (ablation_figures, ablations, arm_figures, claims, figures, tables)  # importing them fills the registries
NAMES = {"vgg16": "VGG-16", "vgg19": "VGG-19", **{f"resnet{d}": f"ResNet-{d}" for d in (20, 32, 44, 56, 110)}}


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
            "id": record["id"],
            "kind": record["kind"],
            "network": network_label(reference),
            "seed": reference["seed"],
            "device_type": record["provenance"]["device_type"],
            "reference_sha256": result.get("reference_sha256", result.get("weights_sha256")),
            **{name: result["cost"][name] for name in ("params", "macs", "bytes")},
        }
        if pruning:
            dense = result["dense_cost"]
            row |= {
                "criterion": pruning["criterion"],
                "reading": reading_of(pruning["criterion"], pruning["options"]),
                "ratio": pruning["ratio"],
                "dense_params": dense["params"],
                "dense_macs": dense["macs"],
                **{name: pruning[name] for name in ("options", "calibration", "calibration_seed", "compensate")},
            }
        if record["kind"] == "pruned":
            row |= {
                "plain": result["before_recalibration"]["test"],
                "test": result["before_tuning"]["test"],
                "validation": result["before_tuning"]["validation"],
                "kept": result["plan"]["kept"],
            }
        else:
            row |= {
                "test": result["test"],
                "validation": result["validation"],
                "history": result["history"],
                "training_macs": result["history"][-1]["training_macs"],
                "epochs": len(result["history"]),
                "seconds": record["volatile"]["epoch_seconds"][-1],
                "epoch_seconds": record["volatile"]["epoch_seconds"],
            }
        if tuning:
            row |= {
                "method": arm_row(tuning["method"], tuning["budget"]),
                "learning_rate": tuning["training"]["learning_rate"],
                "start": result["start"],
                "peer": result.get("peer"),
                "validation_loss": result["history"][-1]["validation_loss"],
            }
        rows.append(row)
    return pd.DataFrame(rows)


def similarity_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per network, seed, state and layer; shares in percent."""
    rows = [
        {
            "network": network_label(record["config"]["reference"]),
            "seed": record["config"]["reference"]["seed"],
            "device_type": record["provenance"]["device_type"],
            "reference_sha256": record["result"]["reference_sha256"],
            "state": state,
            "layer": layer,
            "near_duplicates": 100 * share["twins"],
            "pairs": 100 * share["pairs"],
            "threshold": share["threshold"],
        }
        for record in records
        for state, layers in record["result"]["shares"].items()
        for layer, share in layers.items()
    ]
    return pd.DataFrame(rows)


def add_targets(arms: pd.DataFrame, slack: float) -> pd.DataFrame:
    """Adds epochs, training MACs and seconds to target for each run.

    The target is TFT's final validation accuracy with the same network, seed and schedule (for training from
    scratch: with the longest), minus the slack. A target that is not reached counts as schedule + 1, flagged in
    ``reached``.
    """
    tft = arms[arms.method == "tft"].set_index(["network", "seed", "epochs"]).validation - slack
    longest = arms[arms.method == "tft"].epochs.max()
    rows = []
    for row in arms.itertuples():
        key = (row.network, row.seed, row.epochs if (row.network, row.seed, row.epochs) in tft.index else longest)
        target = tft.get(key, math.nan)
        hit = next((n for n, epoch in enumerate(row.history) if epoch["validation"] >= target - 1e-9), None)
        at, more = (hit, 0) if hit is not None else (-1, 1)
        rows.append(
            {
                "target": target,
                "reached": hit is not None,
                "epochs_to_target": row.history[at]["epoch"] + more,
                "macs_to_target": row.history[at]["training_macs"] * (1 + more / row.epochs),
                "seconds_to_target": row.epoch_seconds[at] * (1 + more / row.epochs),
            }
        )
    return arms.reset_index(drop=True).join(pd.DataFrame(rows))


# -- everything at once -------------------------------------------------------------------------------------------


class Report:
    """All frames of a profile, from its records by stage; a stage without records leaves its tables out.

    missing: runs without a record, in words; they become a table of their own.
    """

    def __init__(self, records: Mapping[Any, Sequence[Record]], validation_images: int, missing: Sequence[str] = ()) -> None:
        self.missing = missing
        self.similarity = similarity_frame(records["similarity"])
        frames = {stage: runs_frame(found) for stage, found in records.items() if stage != "similarity"}
        self.references, self.pruned, self.tuned = (frames[stage] for stage in ("reference", "pruned", "tuned"))
        self.ablation, self.headstart, self.rates = (frames[stage] for stage in ("ablation", "headstart", "rates"))
        self.slack = slack = margin(validation_images)
        self.variations, self.merges = pd.DataFrame(), pd.DataFrame()
        if len(self.ablation):
            self.variations, self.merges = ablations.variations(self.ablation), ablations.merge_frame(self.ablation)
        self.arms = self.schedules = frames["arms"]
        comparisons = []
        if len(self.similarity):
            comparisons += compare.c1(self.similarity)
        if len(self.tuned):
            comparisons += compare.c2(self.tuned)
        if len(self.arms):
            self.arms = add_targets(self.arms, slack)
            self.schedules = self.arms[self.arms.method.map(is_searched)]
            comparisons += compare.c3(self.schedules, slack) + compare.c3_by_compute(self.schedules)
        self.ledger = claims.ledger(comparisons)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every published table by file name."""
        return {name: make() for name, make in self._possible(tables.TABLES).items()}

    def figures(self) -> dict[str, Callable[[], Figure]]:
        """What draws each figure of the index, by file name."""
        return self._possible(figures.FIGURES)

    def _possible(self, registry: Registry[Made]) -> dict[str, Callable[[], Made]]:
        """The entries of a registry whose frames are all available."""
        found = {name: (make, [getattr(self, need) for need in needs]) for name, (make, needs) in registry.items()}
        return {
            name: partial(make, *parts)
            for name, (make, parts) in found.items()
            if all(len(part) for part in parts if isinstance(part, Sized))
        }

    def write(self, store: Store) -> None:
        """Tables as CSV and Markdown, and the ledger as JSON."""
        for name, table in self.tables().items():
            tables.write_table(store, name, table)
        rows = self.ledger.astype(object).where(self.ledger.notna(), None)  # NaN is no JSON
        verdicts = claims.claim_verdicts(self.ledger) if len(self.ledger) else {}
        write_json(
            store.claims(),
            {
                "verdicts": verdicts,
                "comparisons": rows.to_dict("records"),
                "missing": list(self.missing),
            },
        )


def make_report(study: Study, *, allow_missing: bool = False) -> Report:
    """Tables and verdicts from a profile's records, reading only.

    Raises StudyError naming the missing ones; where they are allowed, they are listed in a table instead.
    """
    images = study.settings.validation_images
    if not allow_missing:
        return Report({stage: study.records([stage]) for stage in STAGES}, images)
    study.rates()
    runs = {stage: study.runs([stage]) if stage in study.grid else [] for stage in STAGES}
    missing = list(dict.fromkeys(word for stage in runs.values() for word in study.without_record(stage)))
    if "arms" not in study.grid:
        missing.append("every run of stage arms, whose learning rates follow from stage rates")
    return Report(study.found(), images, missing)
