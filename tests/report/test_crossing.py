"""How many epochs an arm needs for another's accuracy, from differences whose crossings are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fcs_utils.report.claims import claim_verdicts, claims_table, ledger
from fcs_utils.report.crossing import between, crossing
from fcs_utils.report.exchange import exchange_table
from fcs_utils.report.findings import findings
from fcs_utils.report.frames import _open_ends
from fcs_utils.report.schedules import c3, longest_tft

# Three seeds whose mean has an interval of just one point to both sides: t(0.975, 2) = 4.30265 times spread / sqrt 3.
SPREAD = math.sqrt(3) / 4.30265
OFFSETS = np.array([-SPREAD, 0.0, SPREAD])


def around(**means: float) -> dict[int, np.ndarray]:
    return {int(epochs[1:]): mean + OFFSETS for epochs, mean in means.items()}


def test_a_crossing_is_linear_in_the_logarithm_of_epochs() -> None:
    assert crossing({4: np.array([-2.0]), 32: np.array([1.0])}).epochs == pytest.approx(16)  # 2^(2 + 3 * 2/3)
    assert crossing({2: np.array([-1.0]), 8: np.array([1.0])}).epochs == pytest.approx(4)  # half-way from 2^1 to 2^3
    several = {2: np.array([-3.0, -5.0]), 4: np.array([-1.0, -3.0]), 16: np.array([0.0, 12.0])}  # means -4, -2, 6
    assert crossing(several).epochs == pytest.approx(2**2.5) and between(several, 8).tolist() == pytest.approx([-0.5, 4.5])
    again = {4: np.array([-1.0]), 8: np.array([1.0]), 16: np.array([-1.0]), 32: np.array([1.0])}
    assert crossing(again).epochs == pytest.approx(2**2.5)  # the first of three


@pytest.mark.parametrize(
    ("means", "epochs", "low", "high"),
    [
        # From -2 to 2 over two doublings the mean is -1, 0 and 1 after a half, one, and one and a half of them.
        ({"_4": -2, "_16": 2}, 8, 2**2.5, 2**3.5),
        # Never reached: the interval holds zero from a mean of -1 on, two thirds of the way, and is open above.
        ({"_4": -2, "_8": -0.5}, math.nan, 4 * 2 ** (2 / 3), math.inf),
        # Reached at once: open below, and an end where the mean is 1, one third of the way.
        ({"_4": 0.5, "_8": 2}, 4, 0, 4 * 2 ** (1 / 3)),
        # Never near: more than the longest. Always above: no more than the shortest.
        ({"_4": -3, "_8": -2}, math.nan, 8, math.inf),
        ({"_4": 2, "_8": 3}, 4, 0, 4),
        # Nothing is known.
        ({"_4": -0.5, "_8": 0.5}, 2**2.5, 0, math.inf),
        # The ends lie in different steps: -4 to -2, on to 2, on to 4.
        ({"_2": -4, "_4": -2, "_16": 2, "_32": 4}, 8, 2**2.5, 2**3.5),
    ],
)
def test_an_interval_is_all_lengths_that_may_be_level_and_is_open_where_that_is_not_bounded(
    means: dict[str, float], epochs: float, low: float, high: float
) -> None:
    found = crossing(around(**means))
    assert (found.epochs, found.low, found.high, found.n) == (
        pytest.approx(epochs, nan_ok=True, rel=1e-5),
        pytest.approx(low, rel=1e-5),
        pytest.approx(high, rel=1e-5),
        3,
    )


def test_equal_mean_accuracies_are_a_crossing_whatever_their_sum_is_rounded_to() -> None:
    level = np.array([0.1, 0.2, -0.3])  # their sum is 5.6e-17, and -5.6e-17 the other way round
    assert crossing({4: np.full(3, -2.0), 8: level}).epochs == crossing({4: np.full(3, -2.0), 8: -level}).epochs == 8


def test_the_share_saved_has_its_ends_in_the_other_order() -> None:
    assert crossing(around(_4=-2, _16=2)).saved(16) == pytest.approx((50, 100 * (1 - 2**-0.5), 100 * (1 - 2**-1.5)), rel=1e-5)
    missed, at_once = crossing(around(_4=-2, _8=-0.5)).saved(16), crossing(around(_4=0.5, _8=2)).saved(16)
    assert math.isnan(missed[0]) and missed[1] == -math.inf and missed[2] == pytest.approx(60.315, abs=1e-3)
    assert at_once[:2] == pytest.approx((75, 68.502), abs=1e-3) and at_once[2] == math.inf
    one = crossing({4: np.array([-2.0]), 8: np.array([2.0])})
    assert math.isnan(one.low) and math.isnan(one.high) and one.epochs == pytest.approx(2**2.5)


def schedules(network: str = "n", **means: dict[int, float]) -> pd.DataFrame:
    """Three seeds of each arm around these means; TFT's longest is the same for every seed. MLFT costs four times an epoch."""
    cost = {"tft": 10, "mlft": 40, "kd": 20}
    longest = max(means["tft"])
    return pd.DataFrame(
        [
            {
                "network": network,
                "seed": seed,
                "method": method,
                "epochs": epochs,
                "test": test + (0 if (method, epochs) == ("tft", longest) else offset),
                "training_macs": cost[method] * epochs,
            }
            for method, found in means.items()
            for epochs, test in found.items()
            for seed, offset in enumerate(OFFSETS)
        ]
    )


TFT = {4: 85.0, 8: 88.0, 16: 90.0}


def test_c3_is_the_share_of_epochs_saved_with_its_interval_and_its_compute() -> None:
    known = ledger(c3(schedules(tft=TFT, mlft={4: 88, 16: 92}, kd={8: 89})))
    (row,) = [one for one in known.itertuples() if one.decisive]
    assert (row.effect, row.low, row.high) == pytest.approx((50, 100 * (1 - 2**-0.5), 100 * (1 - 2**-1.5)), rel=1e-5)
    assert (row.length, row.shortest, row.longest) == pytest.approx((8, 2**2.5, 2**3.5), rel=1e-5)
    assert (
        row.compute == pytest.approx(8 * 40 / 160) and row.verdict == "supported" and (row.n, row.replicate) == (3, "trained seed")
    )
    assert row.p == pytest.approx(0.0132, abs=2e-4)  # of 92 - 90 after 16 epochs: t = 2 * 4.30265, 2 degrees of freedom
    tft, kd = (known[(known.role == "saving of another") & (known.theirs == name)].iloc[0] for name in ("tft", "kd"))
    assert (tft.length, tft.shortest, tft.longest) == (16, pytest.approx(16), 16) and math.isnan(kd.effect) and not kd.decisive
    said = findings(known)["C3"]
    assert said.startswith(
        "MLFT needs 50.0 % fewer epochs than TFT's longest schedule (16 epochs) for the same accuracy (95 % interval 29.3 to 64.6, "
        "3 trained seeds): 8.0 epochs by interpolation (5.7 to 11.3), at 2.0 times TFT's training MACs. "
        "Every shorter schedule of TFT ends below that. "
    )


def test_nothing_is_claimed_where_tft_needs_no_more_epochs_either() -> None:
    # TFT of 8 epochs is level with TFT of 16: from -1 on, four fifths of the way from 4 to 8, it is not shown to be below.
    known = ledger(c3(schedules(tft={4: 85, 8: 90, 16: 90}, mlft={4: 88, 16: 92})))
    tft = known[(known.theirs == "tft") & (known.role == "saving of another")].iloc[0]
    assert (tft.length, tft.shortest) == (8, pytest.approx(4 * 2**0.8, rel=1e-5))
    assert claim_verdicts(known) == {"C3": "undecided"}
    assert (
        "TFT itself needs 8.0 epochs (7.0 to 16.0), so it is not shown to need more than MLFT, and nothing is claimed"
        in (findings(known)["C3"])
    )


def test_a_crossing_that_was_never_reached_is_open_in_words_and_in_the_table() -> None:
    known = ledger(c3(schedules(tft=TFT, mlft={4: 86, 8: 88})))
    (row,) = [one for one in known.itertuples() if one.decisive]
    assert (
        math.isnan(row.effect)
        and row.low == -math.inf
        and row.high == pytest.approx(50)
        and claim_verdicts(known)["C3"] == "undecided"
    )
    assert _open_ends(row._asdict()) == "low" and _open_ends({"low": 1.0, "high": math.inf}) == "high"
    shown = claims_table(known).iloc[0]
    assert (shown.effect, shown["95 % interval, uncorrected"]) == ("open: no schedule reaches it", "open to +50.00")
    assert findings(known)["C3"].startswith(
        "No schedule of MLFT, up to 8 epochs, reaches the accuracy of TFT's longest schedule (16 epochs) on average, so the share "
        "of epochs that it saves is open: 50.0 % at most (95 % interval, 3 trained seeds). "
    )
    # Behind after as many epochs as TFT's longest schedule has, it needs more.
    assert claim_verdicts(ledger(c3(schedules(tft=TFT, mlft={4: 86, 16: 88})))) == {"C3": "contradicted"}


def test_schedules_that_some_seeds_lack_are_left_out_and_each_network_has_its_own_crossing() -> None:
    more = pd.concat([schedules(tft=TFT, mlft={4: 88, 16: 92}), schedules(tft={32: 91}, mlft={8: 60})[2:4]])
    assert longest_tft(more) == 16 and ledger(c3(more)).length.iloc[0] == pytest.approx(8, rel=1e-5)
    both = pd.concat([schedules(tft=TFT, mlft={4: 88, 16: 92}), schedules("m", tft=TFT, mlft={4: 89, 16: 91})])
    rows = ledger(c3(both))
    assert rows.network[rows.decisive].tolist() == ["n", "m"] and rows.length[rows.decisive].tolist() == pytest.approx(
        [8, 8], rel=1e-5
    )


def test_the_exchange_names_the_arm_that_is_best_at_equal_compute() -> None:
    # Four epochs of MLFT and eight of KD cost what TFT's sixteen cost: 160. KD is a clear two points ahead there.
    found = exchange_table(schedules(tft=TFT, mlft={4: 88, 16: 92}, kd={8: 92, 16: 93})).to_dict("records")
    tft, mlft, kd = found
    assert (mlft["epochs to TFT's 16"], mlft["95 % interval"], mlft["epochs saved (%)"]) == ("8.0", "5.7 to 11.3", "50.0")
    assert (mlft["times TFT's"], mlft["schedule at equal compute"], mlft["minus TFT (points)"]) == (
        "2.00",
        "4 epochs (1.00 times)",
        "-2.00",
    )
    assert (kd["epochs to TFT's 16"], kd["95 % interval"], kd["95 % interval, saved"]) == ("8.0", "open to 8.0", "50.00 to open")
    assert (tft["epochs saved (%)"], tft["minus TFT (points)"]) == ("0.0", "")
    assert {row["best at equal compute"] for row in found} == {"KD"}
    level = exchange_table(schedules(tft=TFT, mlft={4: 88}, kd={8: 90.5})).to_dict("records")
    assert level[0]["best at equal compute"] == "TFT or KD" and level[1]["epochs saved (%)"] == "open"
    # Three epochs of MLFT cost what TFT's twelve do, and three quarters of its sixteen: still about the same.
    near = exchange_table(schedules(tft={**TFT, 12: 89.0}, mlft={3: 87})).to_dict("records")
    assert near[1]["schedule at equal compute"] == "3 epochs (0.75 times)" and near[1]["minus TFT (points)"] == "-3.00"
