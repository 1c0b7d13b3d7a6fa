"""The statistics against hand-computed and simulated cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report.claims import claim_verdicts, claims_table, ledger, overall
from fcs_utils.report.comparisons import c2, c3, c3_by_compute
from fcs_utils.report.findings import _headline, findings, headlines, sentence
from fcs_utils.report.frames import add_targets
from fcs_utils.report.inference import holm, paired, seed_differences, verdict
from fcs_utils.study.rates import choose_learning_rates, margin


def test_paired_t_by_hand() -> None:
    # Mean 2, standard deviation 1, error 1 / sqrt 3 = 0.57735; t(0.975, 2) = 4.30265: 2 +- 2.48414.
    got = paired([1.0, 2.0, 3.0])
    assert (got.low, got.high) == (pytest.approx(-0.48414, abs=1e-4), pytest.approx(4.48414, abs=1e-4))
    assert got.n == 3 and got.p == pytest.approx(0.07418, abs=1e-4)


def test_the_smallest_effect_to_be_found_is_found_as_often_as_said() -> None:
    draw, n, comparisons = np.random.default_rng(0), 5, 2
    found, effect = (
        0,
        paired([-1.0, 0.0, 0.0, 0.5, 0.5]).detectable(comparisons) / paired([-1.0, 0.0, 0.0, 0.5, 0.5]).error / math.sqrt(n),
    )
    for _ in range(4000):
        found += paired(draw.normal(effect, 1.0, n)).p < 0.05 / comparisons
    assert found / 4000 == pytest.approx(0.8, abs=0.02)


def test_no_spread_is_no_certainty() -> None:
    got = paired([0.2, 0.2, 0.2])
    assert math.isnan(got.p) and verdict(got.effect, got.p) == "undecided" and math.isnan(got.detectable())


def test_one_seed_has_no_interval_and_no_verdict() -> None:
    got = paired([5.0])
    assert math.isnan(got.low) and verdict(got.effect, got.p) == "undecided"


def test_interval_covers_at_its_nominal_rate() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, (2000, 3))
    covered = np.mean([(r := paired(d)).low <= 1.0 <= r.high for d in draws])
    assert 0.93 < covered < 0.97


def test_holm_by_hand() -> None:
    # Sorted .01 .03 .04: times 3, 2, 1 and never decreasing: .03 .06 .06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_verdicts() -> None:
    assert (verdict(1, 0.01), verdict(-1, 0.01), verdict(1, 0.2)) == ("supported", "contradicted", "undecided")
    assert overall(["supported", "undecided"]) == "undecided"
    assert overall(["supported", "contradicted"]) == "contradicted"
    assert overall(["supported", "supported"]) == "supported" and overall([]) == "undecided"


def runs(device: str, test: list[float]) -> pd.DataFrame:
    rows = [{"network": "n", "seed": s, "reference_sha256": f"r{s}", "device_type": device, "test": t} for s, t in enumerate(test)]
    return pd.DataFrame(rows)


def test_pairs_by_seed_and_never_across_devices() -> None:
    assert seed_differences(runs("cpu", [3, 5]), runs("cpu", [1, 2]), "test").tolist() == [2, 3]
    with pytest.raises(StudyError, match="device types"):
        seed_differences(runs("cpu", [3, 5]), runs("cuda", [1, 2]), "test")
    # An incomplete grid is paired where it can be, and refused where nothing is left.
    assert seed_differences(runs("cpu", [3, 5]), runs("cpu", [1]), "test").tolist() == [2]
    with pytest.raises(StudyError, match="no pairs"):
        seed_differences(runs("cpu", [3, 5]), runs("cpu", []).reindex(columns=["network", "seed", "test"]), "test")


def arm(method: str, curve: list[float], test: float = 0.0, seed: int = 0, macs: int = 10) -> dict[str, object]:
    history = [{"epoch": e, "validation": v, "training_macs": macs * e} for e, v in enumerate(curve, 1)]
    seconds = [float(epoch) for epoch in range(1, len(curve) + 1)]
    return {
        "network": "n",
        "seed": seed,
        "method": method,
        "epochs": len(curve),
        "history": history,
        "validation": curve[-1],
        "test": test,
        "training_macs": macs * len(curve),
        "epoch_seconds": seconds,
    }


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
    ]
    assert choose_learning_rates(records, slack=0.2) == {("n", "tft"): 0.01, ("n", "kd"): 0.1}
    assert choose_learning_rates(records, slack=0.1) == {("n", "tft"): 0.01, ("n", "kd"): 0.01}


def test_epochs_macs_and_seconds_to_target() -> None:
    frame = pd.DataFrame([arm("tft", [80, 90]), arm("mlft", [89.9, 95]), arm("kd", [70, 80]), arm("scratch-E", [1, 2, 3, 89.9])])
    got = add_targets(frame, slack=margin(1000))  # target 90 - 0.2
    assert got.epochs_to_target.tolist() == [2, 1, 3, 4] and got.reached.tolist() == [True, True, False, True]
    assert got.macs_to_target.tolist() == [20, 10, 30, 40] and got.seconds_to_target.tolist() == [2, 1, 3, 4]


def test_the_margin_is_the_larger_of_two_tenths_and_one_image() -> None:
    assert margin(5000) == 0.2 and margin(200) == 0.5


def ledger_of(tft: dict[int, float], mlft: dict[int, float], noise: float = 0.05) -> pd.DataFrame:
    """The ledger of six seeds of arms whose mean final accuracy by schedule is given; MLFT costs three times TFT."""
    draw = np.random.default_rng(1)
    rows = [
        arm(method, [0.0] * epochs, mean + noise * draw.normal(), seed, macs)
        for method, means, macs in (("tft", tft, 10), ("mlft", mlft, 30))
        for epochs, mean in means.items()
        for seed in range(6)
    ]
    frame = pd.DataFrame(rows)
    return ledger([*c3(frame, 0.2), *c3_by_compute(frame)])


def test_networks_that_disagree_about_c2_are_shown_apart_and_decide_nothing() -> None:
    ahead = {"a": 2.0, "b": -1.0}
    rows = [
        {
            "network": network,
            "seed": seed,
            "criterion": criterion,
            "ratio": 0.5,
            "reference_sha256": f"{network}{seed}",
            "device_type": "cpu",
            "test": 90 + (criterion == "fcs") * (lead + 0.1 * seed),
        }
        for network, lead in ahead.items()
        for seed in range(3)
        for criterion in ("fcs", "kernel_l1", "feature_norm")
    ]
    found = c2(pd.DataFrame(rows))
    apart = {row.label: row for row in found if row.role == "network"}
    assert apart["a: FCS − kernel_l1"].result.effect == pytest.approx(2.1)
    assert apart["b: FCS − feature_norm"].result.effect == pytest.approx(-0.9)
    assert len(apart) == 4 and not any(row.decisive for row in apart.values())
    assert [row.result.effect for row in found if row.decisive] == pytest.approx([0.6, 0.6])
    # A grid that is not complete yet has a network whose runs do not meet.
    apart_yet = [row if row["network"] == "a" or row["criterion"] == "fcs" else {**row, "ratio": 0.7} for row in rows]
    assert [row.label[0] for row in c2(pd.DataFrame(apart_yet)) if row.role == "network"] == ["a", "a"]
    one = c2(pd.DataFrame([row for row in rows if row["network"] == "a"]))
    assert len(one) == 2 and all(row.decisive for row in one)


def test_no_p_value_is_shown_as_zero() -> None:
    known = ledger_of({2: 90, 4: 92, 8: 94}, {2: 94, 4: 94, 8: 94}).iloc[:3].assign(p_holm=[0.0004, 0.001, float("nan")])
    assert claims_table(known)["p (Holm)"].tolist() == ["< 0.001", "0.001", ""]
    assert claims_table(known.assign(decisive=False))["p (Holm)"].tolist() == ["(< 0.001)", "(0.001)", ""]


def test_rows_that_inform_carry_no_verdict() -> None:
    known = ledger_of({2: 90, 4: 92, 8: 94}, {2: 94, 4: 94, 8: 94})
    shown = claims_table(known).set_index("comparison").verdict
    for row in known.itertuples():
        assert shown[row.comparison] == row.verdict if row.decisive else shown[row.comparison].startswith("(")
    # That short TFT falls behind speaks for C3, not against it.
    (short,) = (word for question, word in shown.items() if "TFT of 2 epochs minus TFT of 8" in question and "MLFT" not in question)
    assert short == "(below zero)" and not shown[~known.decisive.to_numpy()].str.contains("supported|contradicted").any()


@pytest.mark.parametrize(
    ("tft", "mlft", "c3_verdict", "compute"),
    [
        # MLFT has at 2 epochs what TFT has at 8, and TFT at 2 does not: fewer epochs; at equal compute (2 against 8) a tie.
        ({2: 90, 4: 92, 8: 94}, {2: 94, 4: 94, 8: 94}, "supported", "undecided"),
        # Both have it at 2 epochs: no merit of MLFT.
        ({2: 94, 4: 94, 8: 94}, {2: 94, 4: 94, 8: 94}, "undecided", "undecided"),
        # MLFT is behind TFT at every schedule.
        ({2: 92, 4: 93, 8: 94}, {2: 90, 4: 91, 8: 92}, "contradicted", "contradicted"),
        # MLFT is better at equal epochs but does not reach the longest TFT: the claim is not shown.
        ({2: 90, 4: 91, 8: 96}, {2: 91, 4: 92, 8: 96}, "contradicted", "contradicted"),
        # Better than that: ahead of four times the epochs.
        ({2: 90, 4: 92, 8: 94}, {2: 96, 4: 97, 8: 98}, "supported", "supported"),
    ],
)
def test_c3_by_planted_differences(tft: dict, mlft: dict, c3_verdict: str, compute: str) -> None:
    assert claim_verdicts(ledger_of(tft, mlft)) == {"C3": c3_verdict, "C3 by compute": compute}


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((-1.5, -2.24, -0.77, 3), "FCS ends 1.5 points of top-1 below random (95 % interval 0.8 to 2.2, 3 seeds)"),
        ((2.0, 1.0, 3.0, 5), "FCS ends 2.0 points of top-1 above random (95 % interval 1.0 to 3.0, 5 seeds)"),
        (
            (-0.74, -1.66, 0.17, 3),
            "FCS shows no clear difference from random: 0.7 points of top-1 below on average "
            "(95 % interval 1.7 below to 0.2 above, 3 seeds)",
        ),
        (
            (0.02, -0.5, 0.54, 3),
            "FCS shows no clear difference from random: 0.02 points of top-1 above on average "
            "(95 % interval 0.50 below to 0.54 above, 3 seeds)",
        ),
        (
            (1.5, math.nan, math.nan, 1),
            "FCS shows no clear difference from random: 1.5 points of top-1 above on average (1 seed, no interval)",
        ),
        (
            (0.2, 0.2, 0.2, 3),
            "FCS shows no clear difference from random: 0.2 points of top-1 above on average (3 seeds, no interval)",
        ),
    ],
)
def test_a_sentence_says_no_more_than_its_interval(numbers: tuple[float, float, float, int], words: str) -> None:
    assert sentence(*numbers, ours="FCS", theirs="random") == words


def test_a_sentence_says_when_the_correction_takes_the_difference_back() -> None:
    assert "not clear after correction" in sentence(-2.0, -3.0, -1.0, 3, ours="FCS", theirs="random", p=0.06)
    assert "not clear after correction" not in sentence(-2.0, -3.0, -1.0, 3, ours="FCS", theirs="random", p=0.04)


def test_findings_name_the_schedules_and_what_counts_as_equal() -> None:
    known = ledger_of({2: 90, 4: 91, 8: 96}, {2: 91, 4: 92, 8: 96})
    found = findings(known)
    assert found.keys() == {"C3", "C3 by compute"}
    same, longest = found["C3"].split(". MLFT does")
    assert same.startswith("MLFT is ahead of TFT at equal epochs: 1.0 points of top-1 above after 2 epochs (95 % interval ")
    assert "0.9 to 1.0, 6 seeds) and 0.9 above after 4 epochs (" in same and same.endswith("at 3.0 times the training compute")
    # The slack is no part of what the sentence says: 91 and 92 against 96.
    assert longest.startswith(
        " not reach the accuracy of TFT's longest schedule (8 epochs) in fewer epochs: 5.0 points of top-1 below"
    )
    reached = findings(ledger_of({2: 90, 4: 94, 8: 94}, {2: 94, 4: 94, 8: 94}))["C3"]
    assert "MLFT comes within 0.2 points of TFT's longest schedule (8 epochs) or above it after 2 and 4 epochs" in reached
    assert ", and so does TFT after 4: " in reached
    assert "after 2 epochs against TFT's 8, at 0.75 times TFT's training compute" in found["C3 by compute"]
    assert headlines(known)["C3"] == found["C3"] and found["C3 by compute"].startswith(headlines(known)["C3 by compute"][:-1])


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["supported", "supported"], "A is above B"),
        (["contradicted"], "A is below B"),
        (["undecided", "undecided"], "A is not shown to be above or below B"),
        (["supported", "undecided"], "A is clearly above B for some networks only"),
        (["contradicted", "supported"], "A is clearly above or below B for some networks only"),
    ],
)
def test_a_lead_says_no_more_than_the_verdicts(verdicts: list[str], words: str) -> None:
    assert _headline(pd.Series(verdicts), "A", "above", "below", "B", "for some networks only") == words


def test_findings_show_networks_apart_where_their_means_have_other_signs() -> None:
    def rows(lead: dict[str, float]) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {
                    "network": network,
                    "seed": seed,
                    "criterion": criterion,
                    "ratio": 0.5,
                    "test": 90 + (criterion == "fcs") * (ahead + 0.1 * seed),
                }
                for network, ahead in lead.items()
                for seed in range(3)
                for criterion in ("fcs", "kernel_l1", "random", "mine")
            ]
        )

    split = findings(ledger(c2(rows({"a": 2.0, "b": -1.0}))))["C2"]
    assert split.startswith(
        "At equal MACs, FCS ends 0.6 points of top-1 above pruning by the kernel L1 norm (95 % interval 0.4 to 0.8, 3 seeds). "
    )
    assert "By network, against the kernel L1 norm, FCS ends 2.1 points of top-1 above on a (" in split
    assert "0.9 below on b (" in split and "FCS ends 0.6 points of top-1 above pruning random channels" in split
    assert "By network" not in findings(ledger(c2(rows({"a": 2.0, "b": 1.0}))))["C2"]


def test_every_criterion_that_has_runs_is_in_the_ledger_and_only_the_claims_two_decide() -> None:
    tuned = pd.DataFrame(
        [
            {"network": "n", "seed": seed, "criterion": criterion, "ratio": 0.5, "test": seed * 1.0}
            for seed in range(3)
            for criterion in ("random", "from_elsewhere", "feature_norm", "fcs", "kernel_l1")
        ]
    )
    found = c2(tuned)
    assert [row.theirs for row in found] == ["kernel_l1", "feature_norm", "random", "from_elsewhere"]
    assert [row.decisive for row in found] == [True, True, False, False]


@pytest.mark.slow
def test_nothing_planted_is_rarely_found() -> None:
    draw = np.random.default_rng(2)
    found = 0
    for _ in range(200):
        rows = [
            arm(method, [0.0] * epochs, 90 + draw.normal(), seed, macs)
            for method, macs in (("tft", 10), ("mlft", 30))
            for epochs in (2, 4, 8)
            for seed in range(5)
        ]
        verdicts = claim_verdicts(ledger(c3(pd.DataFrame(rows), 0.2)))
        found += verdicts["C3"] == "supported"
    assert found <= 10  # the family-wise level is 5 %


def test_schedules_are_compared_at_like_compute() -> None:
    rows = [arm(m, [0.0] * e, 90.0, s, c) for m, c in (("tft", 10), ("mlft", 35)) for e in (2, 4, 8, 16) for s in range(2)]
    labels = [comparison.label for comparison in c3_by_compute(pd.DataFrame(rows))]
    # 70 against 80, 140 against 160; 280 and 560 are too far from the longest TFT's 160.
    assert labels == ["MLFT 2 − TFT 8 epochs, like compute", "MLFT 4 − TFT 16 epochs, like compute"]
