"""What the claims compare: which pairs, which effects by hand, and which of them decide."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from fcs_utils.errors import StudyError, counted
from fcs_utils.report.comparisons import Row, c1, c2, c2_details
from fcs_utils.report.inference import seed_differences
from fcs_utils.report.schedules import c3, c3_by_compute


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
    wider = pd.DataFrame(shares(30, 20, 5)).assign(chance=5.0)
    for part, effect in ((wider, 31 - 5), (wider[:1], 30 - 5)):  # of one layer of one seed, too
        (first, *_) = rows(c1(part))
        assert first.effect == effect and "minus the 5 % that chance gives" in first.comparison


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
    two = rows(c1(given[given.network != "c"]))
    assert {(row.network, row.n, row.replicate) for row in two} == {("given networks", 2, "network")}
    alone = rows(c1(given[given.network == "a"]))
    assert {(row.n, row.replicate) for row in alone} == {(2, "tuning seed")}
    assert not any(row.decisive for row in alone)  # not even where there are no others: the grid may be incomplete
    with pytest.raises(StudyError, match="one interval cannot cover runs on trained and on given references"):
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


def test_a_network_without_a_deciding_criterion_has_no_rows() -> None:
    assert c2(pd.DataFrame({"criterion": ["random"], "network": ["n"], "seed": [0], "ratio": [0.5], "test": [1.0]})) == []


def test_details_show_no_p_value_before_its_correction() -> None:
    rows = [{"criterion": c, "seed": s, "test": s * (c == "fcs")} for c in ("fcs", "kernel_l1") for s in (0, 1, 3)]
    found = c2_details(pd.DataFrame(rows).assign(network="n", ratio=0.5))
    assert not {"p", "error"} & set(found) and {"p_holm", "effect", "low", "high", "detectable", "verdict"} <= set(found)
    assert found.effect.tolist() == pytest.approx([4 / 3]) and found.baseline.tolist() == ["kernel_l1"]
