"""The published tables, from frames whose cells are worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report.comparisons import Row, c1, c2, c2_details, counted
from fcs_utils.report.inference import holm, mean_interval, seed_differences, verdict
from fcs_utils.report.schedules import c3, c3_by_compute
from fcs_utils.report.tables import (
    arms_table,
    compression_table,
    criteria_table,
    grid_cost_table,
    missing_table,
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


def test_a_mean_comes_with_half_of_its_interval() -> None:
    # 1, 2, 3: t(0.975, 2) = 4.30265 times 1 / sqrt 3. 1, 3: t(0.975, 1) = 12.7062 times 1.
    assert [mean_interval([1.0, 2.0, 3.0]), mean_interval([1.0, 3.0], 1), mean_interval([4.0])] == [
        "2.00 ± 2.48",
        "2.0 ± 12.7",
        "4.00",
    ]
    assert mean_interval(pd.Series([1.0, 2.0, 3.0])) == "2.00 ± 2.48"


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
    with pytest.raises(StudyError, match="n at ratio 0.5: criteria have different MACs"):
        compression_table(pd.concat([two, two.assign(macs=15_900_000)]))  # 2.2 points more
    with pytest.raises(StudyError, match="n at ratio 0.5: criteria have different MACs"):
        compression_table(pd.concat([two, two.assign(macs=1)]))


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
        {"reached": True, "epochs_to_target": 1, "macs_to_target": 1e12, "seconds_to_target": 2.0, "test": 80.0},
        {"reached": False, "epochs_to_target": 4, "macs_to_target": 2.5e12, "seconds_to_target": 7.0, "test": 82.0},
        network="n",
        method="mlft",
        epochs=3,
        criterion="fcs",
        ratio=0.25,
        learning_rate=0.05,
        validation=70.0,
        training_macs=2e12,
        seconds=5.0,
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
        "seconds": "5.0",
        "seconds to target": "4.5",
        "n": 2,
    }
    assert arms_table(runs.assign(reached=True))["epochs to target"].tolist() == ["2.5"]
    apart = pd.concat([runs, runs.assign(epochs=5), runs.assign(method="scratch-E")])
    assert arms_table(apart)[["method", "epochs"]].to_numpy().tolist() == [["MLFT", 3], ["MLFT", 5], ["scratch-E", 3]]


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
    assert rates_table(PILOTS, 0.1).columns.name is None  # pages would show it as a row of the head
    # A difference of just the slack counts as equal, whatever the last bits say.
    assert best_rates(PILOTS, 0.2 - 1e-12)["n", "tft"] == 0.1
    apart = pd.concat(
        [PILOTS, PILOTS.assign(network="m", validation=PILOTS.validation - 50, validation_loss=0.1 * PILOTS.learning_rate)]
    )
    assert best_rates(apart, 0.1).to_dict() == {("n", "tft"): 0.02, ("m", "tft"): 0.02}
    assert best_rates(apart, 0.3).to_dict() == {("n", "tft"): 0.1, ("m", "tft"): 0.02}


def test_peers() -> None:
    def run(before: float, after: float, kl: float, **more: object) -> dict[str, object]:
        history = [{"peer_validation": 0.0, "peer_kl": 9.0}, {"peer_validation": after, "peer_kl": kl / 2}]
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
    def record(name: str, macs: list[float], seconds: float) -> dict[str, object]:
        history = [{"training_macs": spent} for spent in macs]
        return {"id": name, "result": {"history": history} if macs else {}, "volatile": {"seconds": seconds}}

    a, b, c = record("a", [1e12, 3e12], 1800), record("b", [5e12], 900), record("c", [], 60)
    found = grid_cost_table({"reference": [a, b], "pruned": [b, c], "tuned": [a]}).to_dict("records")
    assert [list(row.values()) for row in found] == [
        ["reference", 2, "8.0", "0.75", "1350.0"],  # the last epoch holds the sum
        ["pruned", 1, "0.0", "0.02", "60.0"],
    ]  # a stage whose runs all stand in others has no row


def test_published_and_missing_tables_quote(tmp_path: Path) -> None:
    quoted = published_table()
    assert quoted.source.str.startswith("quoted: ").all() and not (quoted == "").any(axis=None)
    assert (quoted == "not at hand").any(axis=None)
    table = missing_table(["one", "two"])
    assert table.to_dict("list") == {"runs without a record": ["one", "two"]}
    store = Store(tmp_path, "smoke")
    write_table(store, "missing", table)
    assert store.table("missing", "csv").read_text() == "runs without a record\none\ntwo\n"
    assert [line.strip("| ") for line in store.table("missing", "md").read_text().splitlines()[::2]] == [
        "runs without a record",
        "one",
    ]


# -- comparisons ---------------------------------------------------------------------------------------------------


def rows(found: list[Row]) -> list[Any]:
    return list(pd.DataFrame(found).itertuples())


def shares(trained: float, untrained: float, made: float, network: str = "n") -> list[dict[str, object]]:
    """Two seeds and two layers; the difference grows by 1 from seed to seed."""
    return [
        {
            "network": network,
            "seed": seed,
            "layer": layer,
            "state": state,
            "near_duplicates": share + layer + (seed if state == "trained" else 0),
            "pairs": 2 * share,
        }
        for state, share in (("trained", trained), ("untrained", untrained), ("untrained, BatchNorm as made", made))
        for seed in (0, 1)
        for layer in (0, 1)
    ]


def test_c1_compares_the_trained_network_with_chance_and_with_the_untrained_one() -> None:
    found = rows(c1(pd.DataFrame([*shares(30, 20, 5), *shares(10, 40, 0, "m")])))
    assert [(row.claim, row.network, row.label, row.decisive, row.role) for row in found[:5]] == [
        ("C1a", "n", "n", True, ""),
        ("C1b", "n", "n", True, ""),
        ("C1b", "n", "n, near-duplicates, untrained, BatchNorm as made", False, "as made"),
        ("C1b", "n", "n, pairs, untrained", False, ""),
        ("C1b", "n", "n, pairs, untrained, BatchNorm as made", False, ""),
    ]
    # Seeds 0 and 1 have 30.5 and 31.5, and 10.5 and 11.5, minus 1. Differences: 10 and 11, 25 and 26; of pairs 20 and 50.
    assert [row.effect for row in found] == [30.0, 10.5, 25.5, 20, 50, 10.0, -29.5, 10.5, -60, 20]
    assert found[0].comparison == "n: channels with a near-duplicate, trained, minus the 1 % that chance gives"
    assert found[1].comparison == "n: channels with a near-duplicate beyond chance, trained minus untrained"
    assert found[4].comparison == "n: pairs more similar than chance, trained minus untrained, BatchNorm as made"
    assert {(row.unit, row.n, row.replicate) for row in found} == {("points", 2, "trained seed")}
    (wider, *_) = rows(c1(pd.DataFrame(shares(30, 20, 5)).assign(chance=5.0)))
    assert wider.effect == 26 and "minus the 5 % that chance gives" in wider.comparison


def test_given_networks_are_the_replicates_of_rows_that_inform_beside_trained_ones() -> None:
    trained = pd.DataFrame(shares(30, 20, 5)).assign(given=False)
    given = pd.concat([pd.DataFrame(shares(share, 20, 5, name)) for name, share in (("a", 40), ("b", 50), ("c", 60))]).assign(
        given=True
    )
    found = rows(c1(pd.concat([trained, given])))
    own = [row for row in found if row.network == "given networks"]
    # 40, 50 and 60, each 1 more for its layers and seeds and 1 less by chance.
    assert own[0].effect == 50 and {(row.n, row.replicate, row.decisive) for row in own} == {(3, "network", False)}
    assert {(row.n, row.replicate) for row in found if row.network == "n"} == {(2, "trained seed")}
    alone = rows(c1(given[given.network == "a"]))
    assert {(row.n, row.replicate) for row in alone} == {(2, "tuning seed")}
    assert not any(row.decisive for row in alone)  # not even where there are no others: the grid may be incomplete
    with pytest.raises(StudyError, match="trained and on given references have no interval in common"):
        seed_differences(trained, given, "pairs")


def schedules(**means: dict[int, float]) -> pd.DataFrame:
    """Two seeds of each arm; the second seed of MLFT is one point better. MLFT costs three times, KD one and a half."""
    factor = {"tft": 2, "mlft": 6, "kd": 3}
    return pd.DataFrame(
        [
            {
                "network": "n",
                "seed": seed,
                "method": method,
                "epochs": epochs,
                "test": test + (seed if method == "mlft" else 0),
                "training_macs": factor[method] * epochs,
            }
            for method, found in means.items()
            for epochs, test in found.items()
            for seed in (0, 1)
        ]
    )


def test_completed_schedules_inform_beside_the_share_of_epochs_saved() -> None:
    found = rows(c3(schedules(tft={2: 80, 4: 90}, mlft={2: 85, 4: 93}, kd={2: 84})))
    said = [(row.label, row.role, row.decisive, row.epochs, row.theirs, row.against, row.compute) for row in found]
    assert [one[:3] for one in said[:3]] == [
        ("MLFT, epochs", "saving", True),
        ("TFT, epochs", "saving of another", False),
        ("KD, epochs", "saving of another", False),
    ]
    assert said[3:] == [
        ("MLFT 2 − TFT 4 epochs", "to longest", False, 2, "tft", 4, 12 / 8),
        ("TFT 2 − TFT 4 epochs", "to longest", False, 2, "tft", 4, 4 / 8),
        ("MLFT − TFT, 2 epochs", "same epochs", False, 2, "tft", 2, 3.0),
        ("MLFT − KD, 2 epochs", "", False, 2, "kd", 2, 2.0),
        ("MLFT − TFT, 4 epochs", "same epochs", False, 4, "tft", 4, 3.0),
    ]
    # 85 and 86, and 80, against 90; 85 and 86 against 80 and 84; 93 and 94 against 90.
    assert [row.effect for row in found[3:]] == pytest.approx([-4.5, -10, 5.5, 1.5, 3.5])
    assert found[3].comparison == "test top-1, MLFT of 2 epochs minus TFT of 4"
    assert found[6].comparison == "test top-1 after 2 epochs each, MLFT minus KD"


def test_compute_is_compared_where_it_is_alike() -> None:
    # MLFT of 2 costs 12, of 4 costs 24; TFT of 2, 4, 8 costs 4, 8, 16: 12 lies within a factor of 1.5 of 16 alone, and
    # so does 24, which is just on the border and out.
    (row,) = rows(c3_by_compute(schedules(tft={2: 80, 4: 90, 8: 92}, mlft={2: 85, 4: 93})))
    assert (row.label, row.epochs, row.against, row.compute) == ("MLFT 2 − TFT 8 epochs, like compute", 2, 8, 12 / 16)
    assert row.effect == pytest.approx(85.5 - 92) and row.decisive and (row.claim, row.theirs) == ("C3 by compute", "tft")
    assert row.comparison == "n: test top-1, MLFT of 2 minus TFT of 8 epochs, MLFT spending 0.75 times TFT's training MACs"
    # Where none is alike, the nearest pair is taken: 6 against 4, and not 24 against 4.
    (row,) = rows(c3_by_compute(schedules(tft={1: 80, 2: 90}, mlft={1: 85, 4: 93})))
    assert (row.epochs, row.against, row.compute) == (1, 2, 1.5)
    assert c3_by_compute(schedules(tft={1: 80})) == []
    two = pd.concat([schedules(tft={2: 80}, mlft={2: 85}).assign(network=name) for name in ("n", "m")])
    assert [row.label for row in rows(c3_by_compute(two))] == [
        f"{name}: MLFT 2 − TFT 2 epochs, like compute" for name in ("n", "m")
    ]


def test_numbers_have_their_words() -> None:
    assert [counted(1, "epoch"), counted(2, "seed"), counted(1234, "run")] == ["1 epoch", "2 seeds", "1,234 runs"]


# -- inference -----------------------------------------------------------------------------------------------------


def test_holm_counts_what_is_undefined_and_stops_at_one() -> None:
    # Four tests, of which one is undefined: 0.01 * 4, then 0.2 * 3, then 0.9 * 2 at most 1.
    got = holm([0.9, math.nan, 0.01, 0.2])
    assert got[:1] + got[2:] == pytest.approx([1.0, 0.04, 0.6]) and math.isnan(got[1]) and holm([]) == []


def test_the_level_itself_is_not_significant() -> None:
    assert [verdict(1, 0.05), verdict(1, 0.0499), verdict(1, math.nan)] == ["undecided", "supported", "undecided"]


def test_differences_are_averaged_within_a_seed_over_what_both_sides_have() -> None:
    def runs(values: dict[tuple[str, int, float], float]) -> pd.DataFrame:
        return pd.DataFrame([{"network": n, "seed": s, "ratio": r, "test": v} for (n, s, r), v in values.items()])

    ours = runs({("a", 0, 0.3): 5, ("a", 0, 0.5): 9, ("b", 0, 0.3): 4, ("a", 1, 0.3): 3, ("a", 2, 0.3): 50})
    theirs = runs({("a", 0, 0.3): 1, ("b", 0, 0.3): 2, ("a", 1, 0.3): 7, ("b", 1, 0.3): 100, ("a", 3, 0.3): 9})
    # Seed 0: (5 - 1 + 4 - 2) / 2 without ratio 0.5; seed 1: 3 - 7; seeds 2 and 3 have one side only.
    assert seed_differences(ours, theirs, "test").tolist() == [3, -4]
    twice = pd.concat([ours, ours.assign(test=ours.test + 2)])  # two runs of one kind are averaged
    assert seed_differences(twice, theirs, "test").tolist() == [4, -3]
    with pytest.raises(StudyError, match="reference networks"):
        seed_differences(ours.assign(reference_sha256="x"), theirs.assign(reference_sha256="y"), "test")


def test_a_network_without_a_deciding_criterion_has_no_rows() -> None:
    assert c2(pd.DataFrame({"criterion": ["random"], "network": ["n"], "seed": [0], "ratio": [0.5], "test": [1.0]})) == []


def test_details_show_no_p_value_before_its_correction() -> None:
    rows = [{"criterion": c, "seed": s, "test": s * (c == "fcs")} for c in ("fcs", "kernel_l1") for s in (0, 1, 3)]
    found = c2_details(frame(*rows, network="n", ratio=0.5))
    assert not {"p", "error"} & set(found) and {"p_holm", "effect", "low", "high", "detectable", "verdict"} <= set(found)
    assert found.effect.tolist() == pytest.approx([4 / 3]) and found.baseline.tolist() == ["kernel_l1"]
