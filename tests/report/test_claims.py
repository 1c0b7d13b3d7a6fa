"""Verdicts on the claims, from planted differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from fcs_utils.report.claims import claim_verdicts, claims_table, ledger, overall, standing
from fcs_utils.report.comparisons import Row, c2, c2_details, judge
from fcs_utils.report.findings import findings, headlines
from fcs_utils.report.inference import holm, paired, verdict
from fcs_utils.report.schedules import c3, c3_by_compute
from tests.report.planted import arm, ledger_of


def said(found: list[Row]) -> list[Any]:
    return list(pd.DataFrame(found).itertuples())


def test_verdicts() -> None:
    assert (verdict(1, 0.01), verdict(-1, 0.01), verdict(1, 0.2)) == ("supported", "contradicted", "undecided")
    assert overall(["supported", "undecided"]) == "undecided"
    assert overall(["supported", "contradicted"]) == "contradicted"
    assert overall(["supported", "supported"]) == "supported" and overall([]) == "undecided"


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
    found = said(c2(pd.DataFrame(rows)))
    apart = {row.label: row for row in found if row.role == "network"}
    assert apart["a: FCS − kernel_l1"].effect == pytest.approx(2.1)
    assert apart["b: FCS − feature_norm"].effect == pytest.approx(-0.9)
    assert len(apart) == 4 and not any(row.decisive for row in apart.values())
    assert [row.effect for row in found if row.decisive] == pytest.approx([0.6, 0.6])
    # A grid that is not complete yet has a network whose runs do not meet.
    apart_yet = [row if row["network"] == "a" or row["criterion"] == "fcs" else {**row, "ratio": 0.7} for row in rows]
    assert [row.label[0] for row in said(c2(pd.DataFrame(apart_yet))) if row.role == "network"] == ["a", "a"]
    one = said(c2(pd.DataFrame([row for row in rows if row["network"] == "a"])))
    assert len(one) == 2 and all(row.decisive for row in one)


def test_no_p_value_is_shown_as_zero() -> None:
    known = ledger_of({2: 90, 4: 92, 8: 94}, {2: 94, 4: 94, 8: 94}).iloc[:3].assign(p_holm=[0.0004, 0.001, float("nan")])
    assert claims_table(known)["p (Holm)"].tolist() == ["< 0.001", "0.001", ""]


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
        # MLFT has at 2 epochs what TFT has at 8, and no more at 8: level at every length, so the interval holds all of them.
        ({2: 90, 4: 92, 8: 94}, {2: 94, 4: 94, 8: 94}, "undecided", "undecided"),
        # The same at 2, and more afterwards: fewer epochs; at equal compute (2 against 8) a tie.
        ({2: 90, 4: 92, 8: 94}, {2: 94, 4: 95, 8: 96}, "supported", "undecided"),
        # Both have it at 2 epochs: no merit of MLFT.
        ({2: 94, 4: 94, 8: 94}, {2: 94, 4: 94, 8: 94}, "undecided", "undecided"),
        # MLFT is behind TFT at every schedule.
        ({2: 92, 4: 93, 8: 94}, {2: 90, 4: 91, 8: 92}, "contradicted", "contradicted"),
        # MLFT is better at equal epochs, and as good as the longest TFT only after as many: the claim is not shown.
        ({2: 90, 4: 91, 8: 96}, {2: 91, 4: 92, 8: 96}, "undecided", "contradicted"),
        # Ahead after as many epochs, so it reached TFT's longest before; TFT itself did not.
        ({2: 90, 4: 92, 8: 94}, {2: 91, 4: 93, 8: 95}, "supported", "contradicted"),
        # The same, but TFT's accuracy has long been there, and it falls a little at the end.
        ({2: 90, 4: 94.5, 8: 94}, {2: 91, 4: 93.9, 8: 95}, "undecided", "contradicted"),
        # Better than that: ahead of four times the epochs.
        ({2: 90, 4: 92, 8: 94}, {2: 96, 4: 97, 8: 98}, "supported", "supported"),
    ],
)
def test_c3_by_planted_differences(tft: dict, mlft: dict, c3_verdict: str, compute: str) -> None:
    assert claim_verdicts(ledger_of(tft, mlft)) == {"C3": c3_verdict, "C3 by compute": compute}


def test_every_criterion_that_has_runs_is_in_the_ledger_and_only_the_claims_two_decide() -> None:
    tuned = pd.DataFrame(
        [
            {"network": "n", "seed": seed, "criterion": criterion, "ratio": 0.5, "test": seed * 1.0}
            for seed in range(3)
            for criterion in ("random", "from_elsewhere", "feature_norm", "fcs", "kernel_l1")
        ]
    )
    found = said(c2(tuned))
    assert [row.theirs for row in found] == ["kernel_l1", "feature_norm", "random", "from_elsewhere"]
    assert [row.decisive for row in found] == [True, True, False, False]


@pytest.mark.slow
def test_nothing_planted_is_rarely_found() -> None:
    draw = np.random.default_rng(2)
    found = 0
    for _ in range(120):
        rows = [
            arm(method, [0.0] * epochs, 90 + draw.normal(), seed, macs)
            for method, macs in (("tft", 10), ("mlft", 30))
            for epochs in (2, 4, 8)
            for seed in range(5)
        ]
        verdicts = claim_verdicts(ledger(c3(pd.DataFrame(rows))))
        found += verdicts["C3"] == "supported"
    assert found <= 6  # the family-wise level is 5 %


def test_schedules_are_compared_at_like_compute() -> None:
    rows = [arm(m, [0.0] * e, 90.0, s, c) for m, c in (("tft", 10), ("mlft", 35)) for e in (2, 4, 8, 16) for s in range(2)]
    labels = [comparison.label for comparison in said(c3_by_compute(pd.DataFrame(rows)))]
    # 70 against 80, 140 against 160; 280 and 560 are too far from the longest TFT's 160.
    assert labels == ["MLFT 2 − TFT 8 epochs, like compute", "MLFT 4 − TFT 16 epochs, like compute"]


def test_under_holms_name_stand_corrected_p_values_alone() -> None:
    known = ledger_of({2: 90, 4: 90.1, 8: 90.2}, {2: 90.3, 4: 90.2, 8: 90.1}, noise=0.5)
    for claim in ("C3", "C3 by compute"):
        rows = known[known.claim == claim]
        own = rows[rows.decisive]
        assert own.p_holm.tolist() == pytest.approx(holm(own.p), nan_ok=True) and own.verdict.tolist() == [
            *map(verdict, own.effect, own.p_holm)
        ]
        assert not (own.p_holm < own.p).any() and rows.p_holm[~rows.decisive].isna().all()
    informs = known[~known.decisive]
    assert len(informs) and informs.verdict.tolist() == [*map(verdict, informs.effect, informs.p)]
    shown = claims_table(known)
    assert (shown["p (Holm)"] == "").tolist() == known.p_holm.isna().tolist()


def test_the_details_are_corrected_over_all_of_them() -> None:
    gains = {("a", 0.3): 0.0, ("a", 0.5): 1.0, ("b", 0.3): 3.0}
    drawn = np.random.default_rng(0).normal(0, 0.3, (3, 3, 4))
    tuned = pd.DataFrame(
        [
            {"network": network, "ratio": ratio, "seed": seed, "criterion": name, "test": 90 + gain * (name == "fcs") + noise}
            for (network, ratio), gain, block in zip(gains, gains.values(), drawn, strict=True)
            for seed, row in enumerate(block)
            for name, noise in zip(("fcs", "kernel_l1", "feature_norm", "mine"), row, strict=True)
        ]
    )
    found = c2_details(tuned)
    assert found.baseline.tolist() == ["kernel_l1", "feature_norm"] * 3
    alone = []
    for row in found.itertuples():
        part = tuned[(tuned.network == row.network) & (tuned.ratio == row.ratio)].pivot(index="seed", columns="criterion")["test"]
        alone.append(paired(part.fcs - part[row.baseline]).p)
    assert found.p_holm.tolist() == pytest.approx(holm(alone)) and (found.p_holm[1:] > alone[1:]).all()
    assert found.verdict.tolist() == [*map(verdict, found.effect, found.p_holm)]


def test_a_ledger_without_comparisons_has_no_verdicts_and_no_findings() -> None:
    empty, full = ledger([]), ledger_of({2: 90.0, 4: 94.0}, {2: 92.0, 4: 97.0})
    assert set(empty.columns) == set(full.columns) and not len(empty)
    assert claim_verdicts(empty) == findings(empty) == headlines(empty) == {}
    assert claims_table(empty[empty.decisive | (empty.role == "network")]).empty


def test_a_claim_without_a_verdict_says_why() -> None:
    ahead = [5.0, 5.1, 4.9, 5.05]
    rows = [
        judge("C2", "first", "part of the plan", ahead, decisive=False, replicate="trained seed"),
        judge("C1a", "all", "the whole plan", ahead, replicate="trained seed"),
        judge("C1a", "given", "beside it", ahead, decisive=False, replicate="network"),
        judge("C3", "given", "given networks alone", ahead, decisive=False, replicate="network"),
    ]
    assert standing(ledger(rows)) == {"C1a": "supported", "C2": "unfinished", "C3": "untried"}
