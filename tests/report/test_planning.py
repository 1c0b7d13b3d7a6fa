"""What further runs would take, the order of criteria, the choice of a reading, and runs beside published ones."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report.claims import ledger
from fcs_utils.report.comparisons import judge
from fcs_utils.report.exchange import further_table, longer_arms_table, order_table
from fcs_utils.report.latency_figures import latency_frame, with_latency
from fcs_utils.report.planning import hours_of, not_run_table, power_table, stages_not_run
from fcs_utils.report.recipe import recipe_table
from fcs_utils.report.tables import compression_table, points_table, published_table, readings_table
from fcs_utils.study.runs import Pruning, Reference, Run, Tuning
from fcs_utils.training.optimiser import Training


def test_power_is_worked_out_from_the_spread_of_differences_and_of_pilots() -> None:
    # Differences of 0, 1 and 2 have a standard deviation of 1, so half a point takes 34 pairs; halved, 10.
    rows = [judge("C2", "a", "a", [0.0, 1.0, 2.0], replicate="trained seed"), judge("C2", "b", "b", [0.0, 0.5, 1.0])]
    pilots = pd.DataFrame(
        [
            {"network": "n", "method": method, "learning_rate": rate, "seed": seed, "validation": top + gain, "epochs": 4}
            for method, rate, top, gains in (
                ("tft", 0.1, 90.0, (0, 0, 0)),
                ("tft", 0.2, 80.0, (0, 0, 0)),
                ("mlft", 0.1, 91.0, (0, 1, 2)),
            )
            for seed, gain in enumerate(gains)
        ]
    ).assign(validation_loss=1.0)
    found = power_table(ledger([*rows, judge("C1a", "c", "c", [1.0, 2.0, 3.0])]), pilots, 0.2)
    assert found.comparison.tolist() == ["a", "b", "n: validation top-1 after 4 epochs each, MLFT minus TFT"]
    assert found["n for 0.5 points"].tolist() == ["34", "10", "34"]
    assert found["spread of differences (points)"].tolist() == ["1.00", "0.50", "1.00"] and found.n.tolist() == [3, 3, 3]


def test_kendalls_tau_compares_the_order_of_criteria_after_two_schedules() -> None:
    def cell(epochs: int, **tops: float) -> pd.DataFrame:
        shared = {"network": "n", "ratio": 0.5, "epochs": epochs, "seed": 0}
        return pd.DataFrame([{**shared, "criterion": name, "test": top} for name, top in tops.items()])

    short = pd.concat([cell(8, a=93, b=92, c=90, d=1), cell(8, a=0, b=1, c=2).assign(ratio=0.3)])
    (found,) = order_table(short, cell(32, a=94, b=95, c=91)).to_dict("records")
    # a and b change places: two pairs of three agree, so tau is (2 - 1) / 3.
    assert (found["Kendall's tau"], found["epochs"], found["criteria"], found["n"]) == ("0.33", "8 against 32", 3, 1)
    assert (found["order, short"], found["order, long"]) == ("a > b > c", "b > a > c")
    # From the means 91.67 and 93.33, a moves from 1.33 to 0.67 above, b from 0.33 to 1.67, c from 1.67 to 2.33 below.
    assert found["largest change (points)"] == "+1.33"
    # A second seed is there of a and b alone, and lower by 50: without c, a and b still change places.
    second = [cell(8, a=43, b=42, c=90).assign(seed=1), cell(32, a=44, b=45).assign(seed=1)]
    (begun,) = order_table(pd.concat([short, second[0]]), pd.concat([cell(32, a=94, b=95, c=91), second[1]])).to_dict("records")
    assert (begun["order, short"], begun["order, long"], begun["n"]) == ("a > b", "b > a", 2)


def test_further_criteria_stand_beside_the_baseline_of_their_ratio_and_of_networks_trained_here() -> None:
    def runs(ratio: float, given: bool = False, **tops: tuple[float, ...]) -> pd.DataFrame:
        shared = {"network": "n", "ratio": ratio, "macs": 0.5, "dense_macs": 1, "epochs": 8, "reading": "r", "given": given}
        return pd.DataFrame(
            [{**shared, "criterion": name, "seed": seed, "test": top} for name, own in tops.items() for seed, top in enumerate(own)]
        )

    tuned = pd.concat([runs(0.3, kernel_l1=(90, 92)), runs(0.3, given=True, kernel_l1=(10, 10))])
    further = pd.concat([runs(0.3, chip=(91, 94)), runs(0.4, kernel_l1=(80, 80), fcs=(79, 78)), runs(0.6, fcs=(50,))])
    found = further_table(tuned, further)
    shown = found[["ratio", "criterion", "minus kernel_l1 (points)", "n"]].to_numpy().tolist()
    assert shown == [[0.3, "chip", "+1.50", 2], [0.4, "kernel_l1", "", 2], [0.4, "fcs", "-1.50", 2], [0.6, "fcs", "", 1]]
    assert found["test top-1 (%)"].iloc[3] == "50.00" and found["MACs left (%)"].iloc[0] == "50.0"


def test_longer_arms_are_paired_with_tft_after_as_many_epochs() -> None:
    tops = {("tft", 32): (90, 92), ("mlft", 32): (91, 94), ("kd", 32): (93,), ("tft", 24): (80, 80), ("mlft", 16): (85, 86)}
    runs = [
        {"network": "n", "method": method, "epochs": epochs, "seed": seed, "test": top, "training_macs": 2e12}
        for (method, epochs), own in tops.items()
        for seed, top in enumerate(own)
    ]
    other = {**runs[0], "network": "other", "test": 10}
    found = longer_arms_table(pd.DataFrame([*runs, other]))
    shown = found[found.network == "n"][["method", "epochs", "minus TFT (points)", "n"]].to_numpy().tolist()
    assert shown == [["TFT", 32, "", 2], ["MLFT", 32, "+1.50", 2], ["KD", 32, "+3.00", 1], ["TFT", 24, "", 2], ["MLFT", 16, "", 2]]
    assert found["training MACs (T)"].iloc[0] == "2.000" and found["95 % interval, uncorrected"].iloc[1] == "-4.85 to +7.85"


def test_the_best_reading_stands_first_by_validation_not_by_test() -> None:
    tops = {"fcs": (90.0, 99.0), "fcs bins=1": (92.0, 50.0), "fcs_greedy": (91.0, 60.0)}
    runs = pd.DataFrame(
        [
            {
                "network": "n",
                "seed": seed,
                "criterion": name,
                "reading": name,
                "ratio": 0.5,
                "epochs": 4,
                "validation": v,
                "test": t,
            }
            for name, (v, t) in tops.items()
            for seed in (100, 101)
        ]
    )
    found = readings_table(runs)
    assert found.criterion.tolist() == ["fcs bins=1", "fcs_greedy", "fcs"]
    assert found["minus fcs (points)"].tolist() == ["+2.00", "+1.00", ""] and found.n.tolist() == [2, 2, 2]


def test_runs_at_published_rates_stand_below_the_published_results() -> None:
    own = {"params": 57.2, "dense_params": 100, "macs": 52.6, "dense_macs": 100, "epochs": 8, "given": True}
    points = pd.DataFrame(
        [
            {"network": "ResNet-56 (public)", "criterion": name, "seed": 0, "test": top, **own}
            for name, top in (("chip", 93.0), ("fcs", 92.5))
        ]
    )
    found = points_table(points)
    assert set(found.architecture[:-2]) == {"ResNet-56"} and found.method[-2:].tolist() == ["here: chip", "here: fcs"]
    assert found["MACs removed (%)"].iloc[0] == found["MACs removed (%)"].iloc[-1] == "47.4"
    assert found["parameters removed (%)"].iloc[0] == found["parameters removed (%)"].iloc[-1] == "42.8"
    assert found.replicate.iloc[-1] == "network" and found["pruned top-1 (%)"].tolist()[-2:] == ["93.00", "92.50"]
    assert found.columns.tolist() == [*published_table().columns, "n", "replicate"]
    assert not found.isna().any(axis=None) and found.index.is_unique


def test_networks_that_meet_a_goal_only_nearly_are_shown_with_their_range() -> None:
    cost = {"network": "n", "ratio": 0.5, "params": 10, "dense_params": 40, "dense_macs": 1000, "bytes": 1000}
    near = pd.DataFrame([{**cost, "macs": 500}, {**cost, "macs": 515}])
    assert compression_table(near)["MACs left (%)"].tolist() == ["50.0 to 51.5"]
    with pytest.raises(StudyError, match="criteria have different MACs"):
        compression_table(pd.DataFrame([{**cost, "macs": 500}, {**cost, "macs": 521}]))


SHORT = Training(epochs=4, learning_rate=0.1)


def run(method: str, epochs: int, network: str = "vgg16", criterion: str = "fcs", ratio: float = 0.5) -> Run:
    reference = Reference(dataset="digits", network=network, seed=0, training=SHORT, precision="fp32")
    tuning = Tuning(method=method, training=SHORT.model_copy(update={"epochs": epochs}))
    return Run(reference=reference, pruning=Pruning(criterion=criterion, ratio=ratio), tuning=tuning)


def test_hours_follow_from_the_records_that_are_most_alike() -> None:
    def record(one: Run, seconds: float) -> Any:
        return {"config": one.model_dump(mode="json"), "volatile": {"seconds": seconds}}

    records = [
        record(run("tft", 4), 400),
        record(run("tft", 8), 1600),
        record(run("mlft", 4), 4000),
        record(run("tft", 2, ratio=0.3), 600),
    ]
    wanted = [
        run("tft", 12),
        run("mlft", 9),
        run("mlft", 9, ratio=0.3),
        run("tft", 6, ratio=0.3),
        run("kd", 4),
        run("tft", 4, "resnet20"),
    ]
    found = hours_of(wanted, records)
    # 100 and 200 seconds an epoch at ratio 0.5, 1000 with MLFT whatever the ratio, 300 at ratio 0.3; KD as the mean of all four.
    assert [3600 * hours for hours in found[:5]] == pytest.approx([12 * 150, 9 * 1000, 9 * 1000, 6 * 300, 4 * 400])
    assert math.isnan(found[5])
    reference = Run(reference=run("tft", 1).reference)
    assert 3600 * hours_of([reference], [record(reference, 80.0)])[0] == pytest.approx(80.0)


def test_accuracies_meet_the_time_that_was_measured_of_their_widths() -> None:
    row = {
        "network": "vgg16 x0.25",
        "macs": {"dense": 9, "0.5": 3, "0.3": 5},
        "milliseconds": {"pytorch 0.5 64": [64.0, 128.0, 640.0]},
    }
    latency = latency_frame([{"rows": [row]}])
    assert latency.to_dict("records") == [{"architecture": "vgg16 x0.25", "ratio": 0.5, "milliseconds": 2.0}]
    tuned = pd.DataFrame(
        {"architecture": ["vgg16 x0.25", "vgg16 x1", "vgg16 x0.25"], "ratio": [0.5, 0.5, 0.3], "test": [1.0, 2.0, 3.0]}
    )
    assert with_latency(tuned, latency).test.tolist() == [1.0] and not len(with_latency(tuned, latency_frame([])))


def test_the_recipe_is_ranked_on_validation_and_compared_with_the_default() -> None:
    tops = {  # validation and test of two seeds
        ("tp_group_norm", "none", "tft"): ((80.0, 80.0), (79.0, 81.0)),
        ("fcs_linear", "merge", "kd"): ((82.0, 84.0), (81.0, 84.0)),
        ("fcs_linear", "none", "tft"): ((90.0, 74.0), (70.0, 70.0)),
    }
    rows = [
        {
            **{"id": f"{names}{seed}", "network": "n", "criterion": names[0], "compensate": names[1], "method": names[2]},
            **{"seed": seed, "epochs": 5, "training_macs": 2e12, "validation": top[0][seed], "test": top[1][seed]},
        }
        for names, top in tops.items()
        for seed in (0, 1)
    ]
    found = recipe_table(pd.DataFrame(rows), "tp_group_norm")
    assert found[["criterion", "surgery", "arm"]].to_numpy().tolist() == [
        ["fcs_linear", "merged", "KD"],
        ["fcs_linear", "plain", "TFT"],
        ["tp_group_norm", "plain", "TFT"],
    ]
    # 2 and 3 points: the mean and 12.706 * 0.5 on either side; -9 and -11.
    assert found["minus tp_group_norm, plain, TFT (points)"].tolist() == ["+2.50", "-10.00", ""]
    assert found["95 % interval, uncorrected"].tolist() == ["-3.85 to +8.85", "-22.71 to +2.71", ""]
    assert found.n.tolist() == [2, 2, 2] and set(found["training MACs (T)"]) == {"2.000"}
    begun = recipe_table(
        pd.DataFrame([*rows, {**rows[0], "criterion": "lucky", "validation": 1000, "id": "lucky"}]), "tp_group_norm"
    )
    assert begun.criterion.tolist() == [*found.criterion, "lucky"]  # with one seed of two it is not the first


def test_what_is_not_run_is_summed_by_stage() -> None:
    hours = "core-hours (ESTIMATE)"
    rows = [
        ("tuned", "fcs", 5, 1.25),
        ("tuned", "random", 5, math.nan),
        ("given", "fcs", 1, 0.5),
        ("arms", "a", 2, math.nan),
    ]
    unfinished = pd.DataFrame(rows, columns=["stage", "what", "runs", hours])
    assert not_run_table(unfinished)[hours].tolist() == ["1.25", "no record like it", "0.50", "no record like it"]
    found = stages_not_run(unfinished)
    assert found.stage.tolist() == ["tuned", "given", "arms"] and found.runs.tolist() == [10, 1, 2]
    assert found[hours].tolist() == ["over 1.2", "0.5", "not known"] and found["what it does"].iloc[2].endswith("(C3)")
