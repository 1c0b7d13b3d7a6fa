"""Records -> tables and verdicts. Reads records only; trains nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fcs_utils.files import canonical_json, write_json
from fcs_utils.pretrained import network_label
from fcs_utils.pruning.criteria import reading_of
from fcs_utils.report import (
    ablation_figures,
    ablations,
    arm_figures,
    claims,
    comparisons,
    exchange,
    figures,
    latency_figures,
    planning,
    recipe,
    schedules,
    tables,
)
from fcs_utils.report.registry import each
from fcs_utils.study.catalogue import STAGES
from fcs_utils.study.grid import name_criterion, parse_criterion
from fcs_utils.study.measurements import kept
from fcs_utils.study.packed import Record
from fcs_utils.study.rates import margin
from fcs_utils.study.records import Store
from fcs_utils.study.study import Study
from fcs_utils.training.arms import arm_row, is_searched

REGISTERED = (
    ablation_figures,
    ablations,
    arm_figures,
    claims,
    exchange,
    figures,
    latency_figures,
    planning,
    recipe,
    tables,
)  # importing them fills the registries


def pairable(records: Iterable[Record]) -> list[Record]:
    """Records without those on reference weights that were trained again, where the reference has runs on the recorded ones."""
    found = [(record, canonical_json(record["config"]["reference"]), "reference" in record["provenance"]) for record in records]
    recorded = {reference for _, reference, again in found if not again}
    left = [record for record, reference, again in found if not again or reference not in recorded]
    if len(left) < len(found):
        which = "were done on reference weights that were trained again and differ from the recorded ones"
        warnings.warn(f"{len(found) - len(left)} of {len(found)} runs {which}; they are left out", stacklevel=3)
    return left


def runs_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per reference, pruned or tuned record with what tables need; accuracies in percent."""
    return pd.DataFrame([_row(record) for record in pairable(records)])


def _row(record: Record) -> dict[str, Any]:
    config, result = record["config"], record["result"]
    reference, pruning, tuning = config["reference"], config["pruning"], config["tuning"]
    row = {
        "id": record["id"],
        "kind": record["kind"],
        "network": network_label(reference),
        "architecture": f"{reference['network']} x{reference['width']:g}",
        "seed": reference["seed"],
        "given": reference.get("weights") is not None,
        "device_type": record["provenance"]["device_type"],
        "reference_sha256": result.get("reference_sha256", result.get("weights_sha256")),
        **{name: result["cost"][name] for name in ("params", "macs", "bytes")},
    }
    if pruning:
        row |= {
            "criterion": name_criterion(pruning["criterion"], pruning["options"]),
            "reading": reading_of(pruning["criterion"], pruning["options"]),
            # NaN for other goals, such as rates by layer: tables by ratio leave them out, and pairs have one goal.
            "ratio": math.nan if pruning["ratio"] is None else pruning["ratio"],
            "goal": canonical_json({name: pruning.get(name) for name in ("ratio", "macs", "rates", "rates_as", "rounding")}),
            **{f"dense_{name}": result["dense_cost"][name] for name in ("params", "macs")},
            **{name: pruning[name] for name in ("options", "calibration", "calibration_seed", "compensate")},
        }
    if record["kind"] == "pruned":
        before, after = result["before_recalibration"], result["before_tuning"]
        row |= {"plain": before["test"], "test": after["test"], "validation": after["validation"]}
        return row | {"kept": result["plan"]["kept"]}
    history = result["history"]
    row |= {"test": result["test"], "validation": result["validation"], "history": history}
    if not history:  # a given reference, which was not trained here
        return row | {"training_macs": 0, "epochs": 0}
    row |= {"training_macs": history[-1]["training_macs"], "epochs": len(history)}
    if tuning:
        row |= {
            "method": arm_row(tuning["method"], tuning["budget"]),
            "learning_rate": tuning["training"]["learning_rate"],
            "start": result["start"],
            "peer": result.get("peer"),
            "validation_loss": history[-1]["validation_loss"],
        }
    return row


def similarity_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per network, seed, state and layer; shares in percent."""
    rows = []
    for record in pairable(records):
        reference, result = record["config"]["reference"], record["result"]
        run = {"network": network_label(reference), "seed": reference["seed"], "given": reference.get("weights") is not None}
        run |= {"device_type": record["provenance"]["device_type"], "reference_sha256": result["reference_sha256"]}
        run |= {"chance": round(100 * (1 - record["config"]["similarity"]["quantile"]), 6)}
        for state, layers in result["shares"].items():
            for layer, share in layers.items():
                found = {"near_duplicates": 100 * share["twins"], "pairs": 100 * share["pairs"], "threshold": share["threshold"]}
                rows.append(run | {"state": state, "layer": layer} | found)
    return pd.DataFrame(rows)


def add_targets(arms: pd.DataFrame, slack: float) -> pd.DataFrame:
    """Adds epochs and training MACs to target for each run.

    The target is TFT's final validation accuracy with the same network, seed and schedule (for training from scratch: with the
    longest), minus the slack. A target that is not reached counts as schedule + 1, flagged in ``reached``.
    """
    tft = arms[arms.method == "tft"].set_index(["network", "seed", "epochs"]).validation - slack
    longest = arms.epochs[arms.method == "tft"].max()
    rows = []
    for row in arms.itertuples():
        key = (row.network, row.seed, row.epochs)
        target = tft.get(key if key in tft.index else (*key[:2], longest), math.nan)
        hit = next((n for n, epoch in enumerate(row.history) if epoch["validation"] >= target - 1e-9), None)
        at, more = (hit, 0) if hit is not None else (-1, 1)
        beyond = 1 + more / row.epochs
        rows.append(
            {
                "target": target,
                "reached": hit is not None,
                "epochs_to_target": row.history[at]["epoch"] + more,
                "macs_to_target": row.history[at]["training_macs"] * beyond,
            }
        )
    return arms.reset_index(drop=True).join(pd.DataFrame(rows))


class Report:
    """All frames of a profile, from its records by stage; a stage without records leaves its tables out.

    missing: runs without a record, in words. best: the criterion that is the best reading of
    FCS. default: the one that the recipe's combinations are compared with. unfinished: what is not run, with its hours.
    latency: what was measured of the compact networks. planned: how many seeds a verdict needs. waiting: claims that wait for more.
    """

    def __init__(
        self,
        records: Mapping[Any, Sequence[Record]],
        validation_images: int,
        missing: Sequence[str] = (),
        best: str | None = None,
        unfinished: pd.DataFrame | None = None,
        latency: Iterable[Mapping[str, Any]] = (),
        default: str = "",
        planned: int = 0,
        waiting: Collection[str] = (),
    ) -> None:
        self.unfinished = pd.DataFrame() if unfinished is None else unfinished
        self.missing, self.slack = missing, margin(validation_images)
        self.best = name_criterion(*parse_criterion(best)) if best else None
        self.similarity = similarity_frame(records["similarity"])
        frames = {stage: runs_frame(found) for stage, found in records.items() if stage != "similarity"}
        self.references, self.pruned, self.tuned = (frames[stage] for stage in ("reference", "pruned", "tuned"))
        self.readings, self.longer, self.further = (frames[stage] for stage in ("readings", "longer", "further"))
        self.points, self.recipe, self.default = frames["points"], frames["recipe"], default
        self.longer_arms = frames["longer_arms"]
        if len(given := frames["given"]):  # they stand beside the networks that are trained here, in tables of their own rows
            self.pruned = pd.concat([self.pruned, given[given.kind == "pruned"]], ignore_index=True)
            self.tuned = pd.concat([self.tuned, given[given.kind == "tuned"]], ignore_index=True)
        self.timed = (
            latency_figures.with_latency(self.tuned, latency_figures.latency_frame(latency)) if len(self.tuned) else self.tuned
        )
        self.ablation, self.headstart, self.rates = (frames[stage] for stage in ("ablation", "headstart", "rates"))
        self.variations = self.merges = self.ablation
        self.arms = self.schedules = frames["arms"]
        found = []
        if len(self.ablation):
            self.variations, self.merges = ablations.variations(self.ablation), ablations.merge_frame(self.ablation)
        if len(self.similarity):
            found += comparisons.c1(self.similarity)
        if len(self.tuned):
            found += comparisons.c2(self.tuned, self.best)
        if len(self.arms):
            self.arms = add_targets(self.arms, self.slack)
            self.schedules = self.arms[self.arms.method.map(is_searched)]
            found += schedules.c3(self.schedules) + schedules.c3_by_compute(self.schedules)
        self.compared, self.taught = figures.compared(self.tuned), arm_figures.taught(self.schedules)
        self.ledger = claims.ledger(comparisons.await_plan(found, planned, waiting))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every published table by file name; one without rows is left out."""
        return {name: table for name, table in self._tables.items() if len(table)}

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        return dict(each(tables.TABLES.ready(self), "table"))

    def figures(self) -> dict[str, partial[Figure]]:
        """What draws each figure of the index, by file name."""
        return figures.FIGURES.ready(self)

    def write(self, store: Store) -> None:
        """Tables as CSV and Markdown, and the ledger as JSON."""
        for name, table in self.tables().items():
            tables.write_table(store, name, table)
        rows = [{**row, "open": _open_ends(row)} for row in self.ledger.to_dict("records")]
        for row in rows:  # NaN is no JSON
            row |= {key: None for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
        verdicts = claims.standing(self.ledger) if rows else {}
        write_json(store.claims(), {"verdicts": verdicts, "comparisons": rows, "missing": list(self.missing)})


def _open_ends(row: Mapping[str, Any]) -> str:
    """Which ends of a row's interval are open: 'low', 'high', both, or none."""
    return ", ".join(end for end in ("low", "high") if math.isinf(row[end]))


def make_report(study: Study, *, allow_missing: bool = False) -> Report:
    """Tables and verdicts from a profile's records. Missing ones are a StudyError, or, where they are allowed, a table."""
    profile = study.profile
    about: dict[str, Any] = {"best": profile.best, "default": getattr(profile.recipe, "default", ""), "planned": len(profile.seeds)}
    about |= {"validation_images": study.settings.validation_images, "latency": kept(study.store, "latency")[:1]}
    if not allow_missing:
        return Report({stage: study.records([stage]) for stage in STAGES}, **about)
    study.rates()
    runs = {stage: study.runs([stage]) if stage in study.grid else [] for stage in STAGES}
    missing = list(dict.fromkeys(word for stage in runs.values() for word in study.without_record(stage)))
    missing += [
        f"every run of stage {stage}, whose learning rates follow from stage rates"
        for stage in study.missing()
        if stage not in study.grid
    ]
    about |= {"unfinished": planning.not_run(study), "waiting": planning.claims_that_wait(study)}
    return Report(planning.found_so_far(study), missing=missing, **about)
