"""From records to frames: targets, and the learning rates that pilot runs choose."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report.ablations import merge_frame
from fcs_utils.report.frames import add_targets, runs_frame
from fcs_utils.report.inference import seed_differences
from fcs_utils.report.tables import compression_table, criteria_table
from fcs_utils.study.rates import choose_learning_rates, margin
from tests.report.planted import arm


def pilot(method: str, rate: float, validation: float, loss: float, test: float) -> dict[str, Any]:
    tuning = {"method": method, "training": {"learning_rate": rate}}
    history = [{"validation": validation, "validation_loss": loss}]
    return {"config": {"reference": {"network": "n"}, "tuning": tuning}, "result": {"history": history, "test": test}}


def test_learning_rates_are_chosen_on_validation_not_on_test() -> None:
    records = [
        pilot("tft", 0.1, 90, 0.1, 99),
        pilot("tft", 0.01, 95, 0.2, 50),  # accuracy decides where it can
        pilot("kd", 0.1, 80.0, 0.5, 0),
        pilot("kd", 0.01, 80.2, 0.6, 0),  # within the slack the loss does
        pilot("mlft", 0.1, 90, 0.1, 0),
        pilot("mlft", 0.1, 88, 0.1, 0),  # of another seed: means are compared
        pilot("mlft", 0.01, 91, 0.1, 0),
    ]
    assert choose_learning_rates(records, slack=0.2) == {("n", "tft"): 0.01, ("n", "kd"): 0.1, ("n", "mlft"): 0.01}
    assert choose_learning_rates(records, slack=0.1) == {("n", "tft"): 0.01, ("n", "kd"): 0.01, ("n", "mlft"): 0.01}


def test_epochs_and_macs_to_target() -> None:
    frame = pd.DataFrame([arm("tft", [80, 90]), arm("mlft", [89.9, 95]), arm("kd", [70, 80]), arm("scratch-E", [1, 2, 3, 89.9])])
    got = add_targets(frame, slack=margin(1000))  # target 90 - 0.2
    assert got.epochs_to_target.tolist() == [2, 1, 3, 4] and got.reached.tolist() == [True, True, False, True]
    assert got.macs_to_target.tolist() == [20, 10, 30, 40]


def test_scratch_is_held_to_the_longest_schedule_of_tft() -> None:
    frame = pd.DataFrame([arm("tft", [80, 90]), arm("tft", [70, 80, 90, 95]), arm("scratch-B", [50, 90, 95, 96, 97, 98])])
    got = add_targets(frame, slack=0.5)
    assert got.target.tolist() == [89.5, 94.5, 94.5] and got.epochs_to_target.tolist() == [2, 4, 3]
    other = add_targets(pd.concat([frame, frame.assign(seed=1, validation=frame.validation + 2)]), slack=0.5)
    assert other.target[5] == 96.5  # of its own seed
    missed = add_targets(pd.DataFrame([arm("tft", [80, 90]), arm("scratch-E", [10, 20, 30])]), slack=0.5)
    assert missed.epochs_to_target.tolist() == [2, 4] and missed.reached.tolist() == [True, False]


COST = {"params": 5, "macs": 7, "bytes": 20}


def record(kind: str, **result: Any) -> Any:
    pruning = {"criterion": "fcs", "options": {}, "ratio": 0.5, "calibration": 8, "calibration_seed": None, "compensate": "none"}
    config = {"reference": {"network": "vgg16", "width": 0.25, "seed": 3}, "pruning": pruning, "tuning": None}
    known = {"cost": COST, "dense_cost": {"params": 10, "macs": 28}, "reference_sha256": "x"}
    return {"id": "i", "kind": kind, "config": config, "result": known | result, "provenance": {"device_type": "cpu"}}


def test_the_recalibrated_column_is_the_accuracy_after_recalibration() -> None:
    result = {
        "before_recalibration": {"test": 12.0, "validation": 13.0},
        "before_tuning": {"test": 34.0, "validation": 35.0},
        "plan": {"kept": {"a": [0]}},
    }
    frame = runs_frame([record("pruned", **result)])
    (row,) = frame.to_dict("records")
    assert (row["plain"], row["test"], row["validation"], row["network"]) == (12.0, 34.0, 35.0, "VGG-16 x0.25")
    shown = criteria_table(frame, frame.assign(test=56.0, epochs=8)).iloc[0]
    assert [shown[name] for name in ("MACs left (%)", "pruned (%)", "recalibrated (%)", "fine-tuned (%)")] == [
        "25.0",
        "12.00",
        "34.00",
        "56.00",
    ]
    merged = merge_frame(pd.concat([frame, frame.assign(compensate="merge", plain=20.0, test=40.0)], ignore_index=True))
    assert merged[["compensate", "recalibrated", "test"]].to_numpy().tolist() == [
        ["none", False, 12.0],
        ["none", True, 34.0],
        ["merge", False, 20.0],
        ["merge", True, 40.0],
    ]


def test_runs_without_a_ratio_are_in_no_table_by_ratio_and_pair_at_one_goal() -> None:
    after = {"before_recalibration": {"test": 12.0}, "before_tuning": {"test": 34.0, "validation": 35.0}, "plan": {"kept": {}}}
    records = [record("pruned", **after), record("pruned", **after), record("pruned", **after)]
    records[1]["config"]["pruning"] |= {"ratio": None, "rates": [0.5, 0.25]}
    records[2]["config"]["pruning"] |= {"ratio": None, "macs": 0.5}
    records[2]["result"]["cost"] = {"params": 9, "macs": 27, "bytes": 30}
    frame = runs_frame(records).assign(seed=range(3))
    assert frame.ratio.isna().tolist() == [False, True, True]
    assert compression_table(frame).ratio.tolist() == criteria_table(frame, frame.assign(epochs=8)).ratio.tolist() == [0.5]
    assert seed_differences(frame, frame.assign(test=[1.0, 2.0, 3.0]), "test").tolist() == [33, 32, 31]
    rates, macs = frame[1:2].assign(seed=0), frame[2:].assign(seed=0)
    with pytest.raises(StudyError, match="no pairs"):
        seed_differences(rates, macs, "test")
    assert seed_differences(pd.concat([rates, macs]), rates.assign(test=4.0), "test").tolist() == [30]


def test_the_margin_is_the_larger_of_two_tenths_and_one_image() -> None:
    assert margin(5000) == 0.2 and margin(200) == 0.5
