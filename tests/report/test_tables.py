"""The published tables, from frames whose cells are worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report.tables import (
    arms_table,
    compression_table,
    criteria_table,
    grid_cost_table,
    markdown,
    peers_table,
    published_table,
    rates_table,
    reference_table,
    similarity_table,
    write_table,
)
from fcs_utils.study.rates import best_rates
from fcs_utils.study.records import Store


def frame(*rows: dict[str, object], **shared: object) -> pd.DataFrame:
    return pd.DataFrame([{**shared, **row} for row in rows])


def test_references() -> None:
    found = reference_table(
        frame(
            {"network": "a", "validation": 90.0, "test": 80.0},
            {"network": "a", "validation": 92.0, "test": 84.0},
            {"network": "b", "validation": 50.0, "test": 40.0},
            params=1_234_567,
            macs=9_870_000,
        )
    )
    first = {"network": "a", "parameters (M)": "1.235", "MACs (M)": "9.87", "n": 2}
    # The spread of 90 and 92 is 12.7062 times 1, and that of 80 and 84 twice as much.
    assert found.iloc[0].to_dict() == {**first, "validation top-1 (%)": "91.00 ± 12.71", "test top-1 (%)": "82.00 ± 25.41"}
    assert found.iloc[1].to_dict() == {
        **{**first, "network": "b", "n": 1},
        "validation top-1 (%)": "50.00",
        "test top-1 (%)": "40.00",
    }


PRUNED = {"dense_params": 4_000_000, "dense_macs": 40_000_000, "params": 1_000_000, "macs": 15_000_000, "bytes": 4_100_499}


def test_compression() -> None:
    two = frame({"criterion": "fcs", "ratio": 0.5}, {"criterion": "random", "ratio": 0.5}, network="n", **PRUNED)
    found = compression_table(two)
    assert found.to_dict("records") == [
        {
            "network": "n",
            "ratio": 0.5,
            "parameters (M)": "1.000",
            "parameters left (%)": "25.0",
            "MACs (M)": "15.00",
            "MACs left (%)": "37.5",
            "kB on disk": "4100",
        }
    ]
    assert len(compression_table(pd.concat([two, two.assign(ratio=0.3, macs=20_000_000)]))) == 2
    # One threshold for all layers leaves other widths and MACs as near as whole channels allow, here 0.2 points more.
    near = pd.concat([two, two.assign(criterion="tp_group_norm_global", params=900_000, macs=15_080_000)])
    (row,) = compression_table(near).to_dict("records")
    assert (row["MACs left (%)"], row["MACs (M)"], row["parameters (M)"]) == ("37.5 to 37.7", "15.00 to 15.08", "0.900 to 1.000")
    assert len(compression_table(pd.concat([two, two.assign(macs=15_800_000)]))) == 1  # 2 points more are allowed
    for other in (15_804_000, 1):  # 2.01 points more
        with pytest.raises(StudyError, match="n at ratio 0.5: criteria have different MACs"):
            compression_table(pd.concat([two, two.assign(macs=other)]))


def test_criteria() -> None:
    before = frame(
        {"criterion": "fcs", "ratio": 0.5, "plain": 10.0, "test": 20.0},
        {"criterion": "fcs", "ratio": 0.3, "plain": 0.0, "test": 0.0},  # of another ratio, criterion and network
        {"criterion": "random", "ratio": 0.5, "plain": 1.0, "test": 2.0},
        {"criterion": "fcs", "ratio": 0.5, "plain": 5.0, "test": 6.0, "network": "other"},
        network="n",
    )
    after = frame(
        {"criterion": "fcs", "test": 30.0},
        {"criterion": "fcs", "test": 34.0},
        {"criterion": "random", "test": 25.0},
        **{"network": "n", "ratio": 0.5, "reading": "a reading", "epochs": 8, **PRUNED},
    )
    found = criteria_table(before, after).to_dict("records")
    shared = {"network": "n", "ratio": 0.5, "MACs left (%)": "37.5", "reading": "a reading"}
    cells = {"pruned (%)": "10.00", "recalibrated (%)": "20.00", "fine-tuned (%)": "32.00 ± 25.41"}
    assert found[0] == {**shared, "criterion": "fcs", **cells, "epochs": 8, "n": 2}
    cells = {"pruned (%)": "1.00", "recalibrated (%)": "2.00", "fine-tuned (%)": "25.00"}
    assert found[1] == {**shared, "criterion": "random", **cells, "epochs": 8, "n": 1}


def test_arms() -> None:
    runs = frame(
        {"reached": True, "epochs_to_target": 1, "macs_to_target": 1e12, "test": 80.0},
        {"reached": False, "epochs_to_target": 4, "macs_to_target": 2.5e12, "test": 82.0},
        network="n",
        method="mlft",
        epochs=3,
        criterion="fcs",
        ratio=0.25,
        learning_rate=0.05,
        validation=70.0,
        training_macs=2e12,
    )
    (found,) = arms_table(runs).to_dict("records")
    assert found == {
        "network": "n",
        "criterion": "fcs, ratio 0.25",
        "method": "MLFT",
        "epochs": 3,
        "learning rate (chosen)": "0.05",
        "test top-1 (%)": "81.00 ± 12.71",
        "validation top-1 (%)": "70.00 ± 0.00",
        "epochs to target": "2.5 (1 of 2 not reached)",
        "training MACs (T)": "2.000",
        "MACs to target (T)": "1.750",
        "n": 2,
    }
    assert arms_table(runs.assign(reached=True))["epochs to target"].tolist() == ["2.5"]
    apart = pd.concat([runs.assign(epochs=5), runs, runs.assign(method="kd")[:1]])
    assert arms_table(apart)[["method", "epochs", "n"]].to_numpy().tolist() == [["MLFT", 3, 2], ["MLFT", 5, 2], ["KD", 3, 1]]


PILOTS = frame(
    {"method": "tft", "learning_rate": 0.1, "seed": 100, "validation": 90.0, "validation_loss": 0.5},
    {"method": "tft", "learning_rate": 0.1, "seed": 101, "validation": 92.0, "validation_loss": 0.3},
    {"method": "tft", "learning_rate": 0.02, "seed": 100, "validation": 91.3, "validation_loss": 0.41},
    {"method": "tft", "learning_rate": 0.02, "seed": 101, "validation": 91.1, "validation_loss": 0.41},
    network="n",
)


def test_rates() -> None:
    (found,) = rates_table(PILOTS, 0.2).to_dict("records")
    # Means 91.0 (loss 0.40) and 91.2 (0.41): within 0.2 points the loss decides.
    assert found == {
        "network": "n",
        "method": "TFT",
        "0.02": "91.20 (0.410)",
        "0.1": "91.00 (0.400)",
        "chosen": "0.1",
        "n": 2,
    }
    assert rates_table(PILOTS, 0.1).chosen.tolist() == ["0.02"]
    assert rates_table(PILOTS, 0.1).columns.tolist() == ["network", "method", "0.02", "0.1", "chosen", "n"]  # rates ascend
    assert rates_table(PILOTS, 0.1).columns.name is None  # pages would show it as a row of the head
    assert rates_table(pd.concat([PILOTS, PILOTS.assign(method="kd")]), 0.1).method.tolist() == ["TFT", "KD"]  # as they came
    # A difference of just the slack counts as equal, whatever the last bits say.
    assert best_rates(PILOTS, 0.2 - 1e-12)["n", "tft"] == 0.1
    apart = pd.concat(
        [PILOTS, PILOTS.assign(network="m", validation=PILOTS.validation - 50, validation_loss=0.1 * PILOTS.learning_rate)]
    )
    assert best_rates(apart, 0.1).to_dict() == {("n", "tft"): 0.02, ("m", "tft"): 0.02}
    assert best_rates(apart, 0.3).to_dict() == {("n", "tft"): 0.1, ("m", "tft"): 0.02}


def test_peers() -> None:
    def run(before: float, after: float, kl: float, **more: object) -> dict[str, object]:
        history = [{"peer_validation": 0.0, "peer_kl": 9.0}] * 2 + [{"peer_validation": after, "peer_kl": kl / 2}]
        return {"start": {"peer_validation": before, "peer_kl": kl}, "history": history, "peer": {"test": 1.0}, **more}

    runs = frame(run(80.0, 81.5, 0.5), run(82.0, 82.5, 0.7), run(0, 0, 0, method="tft", peer=None), epochs=2)
    runs["network"], runs["method"] = "n", runs.method.fillna("mlft")
    (found,) = peers_table(runs).to_dict("records")
    # Gains 1.5 and 0.5; half widths of pairs are 12.7062 times half of their difference.
    assert found == {
        "network": "n",
        "method": "MLFT",
        "epochs": 2,
        "peer before (validation, %)": "81.00 ± 12.71",
        "peer after (%)": "82.00 ± 6.35",
        "gain (points)": "+1.00",
        "KL before (nats)": "0.600 ± 1.271",
        "KL after": "0.300 ± 0.635",
        "n": 2,
    }
    assert peers_table(runs[:1])[["method", "gain (points)"]].to_numpy().tolist() == [["MLFT", "+1.50"]]


def test_similarity() -> None:
    rows = [
        {"state": state, "seed": seed, "layer": layer, "near_duplicates": base + 10 * seed + 2 * layer, "pairs": base / 2}
        for state, base in (("trained", 20.0), ("untrained", 40.0))
        for seed in (0, 1)
        for layer in (0, 1, 2)
    ]
    found = similarity_table(frame(*rows, network="n")).to_dict("records")
    # Layers are averaged within a seed first: 22 and 32, so 27 +- 12.7062 * 5.
    shares = ["channels with a near-duplicate beyond chance (%)", "pairs more similar than chance (%)"]
    assert [[row[share] for share in shares] for row in found] == [["27.0 ± 63.5", "10.0 ± 0.0"], ["47.0 ± 63.5", "20.0 ± 0.0"]]
    assert [(row["network"], row["state"], row["layers"], row["n"]) for row in found] == [
        ("n", "trained", 3, 2),
        ("n", "untrained", 3, 2),
    ]


def test_the_grids_cost_counts_a_shared_run_once() -> None:
    def record(name: str, macs: list[float], seconds: float, *epochs: float) -> dict[str, object]:
        history = [{"training_macs": spent} for spent in macs]
        volatile = {"seconds": seconds, "epoch_seconds": [*epochs] or None}
        return {"id": name, "result": {"history": history} if macs else {}, "volatile": volatile}

    # The first was cut off and went on: its last start took one minute of the half hour.
    a, b, c = record("a", [1e12, 3e12], 60, 1740, 1800), record("b", [5e12], 900), record("c", [], 60)
    found = grid_cost_table({"reference": [a, b], "pruned": [b, c], "tuned": [a]}).to_dict("records")
    assert [list(row.values()) for row in found] == [
        ["reference", 2, "8.0", "0.75", "1350.0"],  # the last epoch holds the sum
        ["pruned", 1, "0.0", "0.02", "60.0"],
    ]  # a stage whose runs all stand in others has no row


def test_markdown_says_what_the_cells_say_and_counts_are_whole() -> None:
    frame = pd.DataFrame(
        {"epochs": [8.0, None], "gain": ["+0.50", "0.30 (0.1 to 0.4)"], "network": ["VGG-16", "20"], "share": [0.25, 1.5]}
    )
    assert markdown(frame).splitlines() == [
        "|   epochs |              gain | network   |   share |",
        "|---------:|------------------:|:----------|--------:|",
        "|        8 |             +0.50 | VGG-16    |    0.25 |",
        "|          | 0.30 (0.1 to 0.4) | 20        |     1.5 |",
    ]
    assert markdown(frame[:0]).count("\n") == 1
    assert markdown(pd.DataFrame({"gain": ["+1.50", "-0.20"]})).splitlines()[2:] == ["|  +1.50 |", "|  -0.20 |"]  # as written


def test_published_results_are_quoted_and_tables_are_written(tmp_path: Path) -> None:
    quoted = published_table()
    assert quoted.source.str.startswith("quoted: ").all() and not (quoted == "").any(axis=None)
    assert quoted.columns.tolist() == [
        *("method", "data set", "architecture", "parameters (M)", "base top-1 (%)", "pruned top-1 (%)"),
        *("parameters removed (%)", "MACs removed (%)", "source"),
    ]
    assert quoted["parameters (M)"][:2].tolist() == ["not at hand", "14.98"]
    table = pd.DataFrame({"runs without a record": ["one", "two"]})
    store = Store(tmp_path, "smoke")
    write_table(store, "missing", table)
    assert store.table("missing", "csv").read_text() == "runs without a record\none\ntwo\n"
    assert [line.strip("| ") for line in store.table("missing", "md").read_text().splitlines()[::2]] == [
        "runs without a record",
        "one",
    ]
