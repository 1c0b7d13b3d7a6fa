"""The ledger's order, corrections and words, and the tables of readings and comparisons, worked out by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import brentq

from fcs_utils.errors import StudyError
from fcs_utils.report.claims import STATEMENTS, claim_verdicts, claims_table, interval_words, ledger
from fcs_utils.report.comparisons import c1, c2, c2_details, compare, judge
from fcs_utils.report.inference import Paired, detectable, mean_interval, needed, paired, replicate_of, seed_differences
from fcs_utils.report.tables import by_group, readings_table
from tests.report.test_comparisons import shares

SOME, MORE = [1.0, 2.0, 3.0, 4.0], [5.0, 5.1, 4.9, 5.05]


def test_a_row_says_nothing_that_it_is_not_told() -> None:
    row = judge("C2", "label", "question", SOME, replicate="trained seed")
    numbers = {name: row.pop(name) for name in ("effect", "low", "high", "n", "p", "error")}
    assert numbers["effect"] == 2.5 and numbers["n"] == 4
    assert all(math.isnan(row.pop(name)) for name in ("compute", "length", "shortest", "longest"))
    assert row == {
        **{"claim": "C2", "label": "label", "comparison": "question", "unit": "points", "decisive": True, "role": ""},
        **{"replicate": "trained seed", "network": "", "theirs": "", "epochs": 0, "against": 0},
    }


def test_rows_stand_by_claim_and_the_decisive_ones_first_and_are_corrected_within_a_claim() -> None:
    rows = [
        judge("C2", "informs", "a", MORE, decisive=False),
        judge("C2", "weak", "b", SOME),
        judge("C1a", "alone", "c", SOME),
        judge("C2", "strong", "d", MORE),
        judge("C1a", "one", "e", [1.0], decisive=False),
    ]
    table = ledger(rows)
    assert table.label.tolist() == ["alone", "one", "weak", "strong", "informs"] and table.index.tolist() == [0, 1, 2, 3, 4]
    weak, strong = paired(SOME), paired(MORE)  # p of 0.030 and of 2e-6
    assert table.p_holm.tolist() == pytest.approx([weak.p, math.nan, weak.p, 2 * strong.p, math.nan], nan_ok=True)
    counts = [(weak, 1), None, (weak, 2), (strong, 2), (strong, 1)]  # how many share the level
    wanted = [math.nan if one is None else detectable(one[0].error, 4, one[1]) for one in counts]
    assert table.detectable.tolist() == pytest.approx(wanted, nan_ok=True) and wanted[0] < wanted[2]
    assert table.verdict.tolist() == ["supported", "undecided", "supported", "supported", "supported"]
    assert table.statement.tolist() == [STATEMENTS["C1a"]] * 2 + [STATEMENTS["C2"]] * 3
    assert claim_verdicts(table) == {"C1a": "supported", "C2": "supported"}
    shown = claims_table(table).to_dict("list")
    assert shown["verdict"] == ["supported", "(no clear difference)", "supported", "supported", "(above zero)"]
    assert shown["effect"] == ["+2.50 points", "+1.00 points", "+2.50 points", "+5.01 points", "+5.01 points"]
    assert shown["p (Holm)"] == ["0.030", "", "0.030", "< 0.001", ""] and shown["n"] == [4, 1, 4, 4, 4]
    assert shown["95 % interval, uncorrected"][:2] == ["+0.45 to +4.55", "undefined at n = 1"]
    assert shown["smallest effect to be found"][1] == "" and shown["smallest effect to be found"][0] == f"{wanted[0]:.2f}"


def test_an_open_end_and_an_effect_that_no_schedule_reaches_have_words() -> None:
    assert [interval_words(*ends) for ends in ((0.274, 1.336), (-math.inf, 2.0), (-1.0, math.inf), (math.nan, math.nan))] == [
        "+0.27 to +1.34",
        "open to +2.00",
        "-1.00 to open",
        "undefined at n = 1",
    ]
    table = ledger([{**judge("C3", "a", "b", SOME, unit="%"), "effect": math.nan}])
    assert claims_table(table).effect.tolist() == ["open: no schedule reaches it"]


def test_hardly_any_spread_beside_a_large_effect_is_none() -> None:
    assert math.isnan(paired([1e6, 1e6 + 1e-4]).p) and not math.isnan(paired([1e6, 1e6 + 1.0]).p)
    assert not math.isnan(paired([0.0, 3e-9]).p)  # an error of 1.5e-9
    assert math.isnan(paired([1e-12, 2e-12]).p) and paired([1e6, 1e6 + 1e-4]).error == 0
    assert paired([0.2, 0.2, 0.2]) == Paired(
        pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.2), 3, pytest.approx(math.nan, nan_ok=True), 0
    )
    for bad in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(StudyError, match="needs finite differences, one per seed; got"):
            paired(bad)


def test_nobody_plans_for_more_than_a_thousand_pairs() -> None:
    def missing(effect: float) -> float:
        return float(stats.nct.sf(stats.t.ppf(0.975, 999), 999, math.sqrt(1000) * effect)) - 0.8

    effect = brentq(missing, 0.05, 0.2)  # which just 1,000 pairs find in 80 % of studies
    assert effect == pytest.approx((1.96 + 0.8416) / math.sqrt(1000), rel=0.01)
    assert needed(1.0, 1.0001 * effect) == 1000 and needed(1.0, 0.9999 * effect) == math.inf


def runs(**accuracies: list[float]) -> pd.DataFrame:
    """Two networks, of which the second is one point better, by criterion and seed."""
    rows = [
        {
            "network": network,
            "seed": seed,
            "ratio": 0.5,
            "criterion": name,
            "reading": f"as {name}",
            "epochs": 4,
            "test": top + more,
        }
        for network, more in (("a", 0), ("b", 1))
        for name, tops in accuracies.items()
        for seed, top in enumerate(tops)
    ]
    return pd.DataFrame(rows)


TOPS = {"random": [1.0, 2.0, 3.0], "fcs": [5.0, 6.0, 8.0], "fcs_greedy": [6.0, 6.5, 9.0], "kernel_l1": [4.0, 4.0, 4.0]}


def test_each_reading_of_fcs_has_a_claim_and_every_network_a_row_that_informs() -> None:
    found = c2(runs(**TOPS), best="fcs_greedy")
    said = [(row["claim"], row["label"], row["decisive"], row["role"], row["network"], row["theirs"]) for row in found]
    literal = [
        ("C2", "FCS − kernel_l1", True, "", "", "kernel_l1"),
        ("C2", "FCS − random", False, "", "", "random"),
        ("C2", "FCS − fcs_greedy", False, "", "", "fcs_greedy"),
        ("C2", "a: FCS − kernel_l1", False, "network", "a", "kernel_l1"),
        ("C2", "b: FCS − kernel_l1", False, "network", "b", "kernel_l1"),
    ]
    assert said[:5] == literal and {row[0] for row in said[5:]} == {"C2, best reading"} and len(said) == 10
    assert said[5][1:3] == ("fcs_greedy − kernel_l1", True) and said[7][1] == "fcs_greedy − fcs"
    assert [row["effect"] for row in found[:3]] == pytest.approx([7 / 3, 13 / 3, -2.5 / 3])
    top = "test top-1 after fine-tuning"
    assert found[0]["comparison"] == f"{top}, FCS minus kernel L1 norm, all networks, ratio 0.5"
    assert found[3]["comparison"] == f"a: {top}, FCS minus kernel L1 norm, ratio 0.5"
    more = c2(pd.concat([runs(**TOPS), runs(random=TOPS["random"], fcs=TOPS["fcs"]).assign(ratio=0.7)]))
    assert more[0]["comparison"] == found[0]["comparison"]  # of kernel_l1 there is one ratio
    assert more[1]["comparison"] == f"{top}, FCS minus random channels, all networks and ratios"
    begun = c2(pd.concat([runs(**TOPS), runs(random=[9.0], fcs=[1.0]).assign(ratio=0.7)]))  # one seed of three
    assert (begun[1]["effect"], begun[1]["n"]) == (found[1]["effect"], 3) and begun[1]["comparison"].endswith("ratio 0.5")
    assert found[5]["comparison"].startswith(f"{top}, best reading of FCS (greedy) minus kernel L1 norm")
    assert {row["claim"] for row in c2(runs(**TOPS), best="fcs")} == {"C2"} and {row["n"] for row in found} == {3}
    one = runs(**TOPS)
    assert not [row for row in c2(one[one.network == "a"]) if row["role"]]
    other_goal = c2(one.assign(ratio=math.nan))
    assert [row["effect"] for row in other_goal] == [row["effect"] for row in c2(one)]


def test_given_networks_inform_behind_those_that_were_trained() -> None:
    trained, given = runs(**TOPS).assign(given=False), runs(**TOPS).assign(given=True)
    found = c2(pd.concat([given, trained]))  # in whatever order they come
    behind = [row for row in found if row["role"] == "given"]
    assert found[-len(behind) :] == behind and [row["label"] for row in behind] == [
        f"given networks: FCS − {name}" for name in ("kernel_l1", "random", "fcs_greedy")
    ]
    assert behind[0]["comparison"].startswith("given networks: test top-1") and behind[0]["comparison"].endswith(", ratio 0.5")
    assert {(row["n"], row["replicate"], row["decisive"]) for row in behind} == {(2, "network", False)}
    first = c1(
        pd.concat([pd.DataFrame(shares(40, 20, 5, "g")).assign(given=True), pd.DataFrame(shares(30, 20, 5)).assign(given=False)])
    )
    assert [row["network"] for row in first] == ["n"] * 5 + ["g"] * 5


def test_states_that_a_grid_does_not_have_yet_are_left_out() -> None:
    whole = pd.DataFrame(shares(30, 20, 5))
    assert [row["claim"] for row in c1(whole[whole.state == "trained"])] == ["C1a"]
    later = whole.assign(seed=whole.seed.where(whole.state == "trained", whole.seed + 7))  # no seed in common
    assert [row["claim"] for row in c1(later)] == ["C1a"]
    part = whole.assign(seed=whole.seed.where(whole.state == "trained", whole.seed + 1))  # one in common
    assert {row["n"] for row in c1(part)} == {1, 2}


def test_details_compare_with_random_too_and_say_what_could_be_found() -> None:
    found = c2_details(runs(**TOPS), "fcs_greedy")
    assert found[["network", "ratio", "baseline"]].to_numpy().tolist() == [
        [network, 0.5, name] for network in "ab" for name in ("kernel_l1", "random")
    ]
    result = paired([2.0, 2.5, 5.0])  # against kernel_l1
    assert found.detectable[0] == pytest.approx(detectable(result.error, 3)) and found.effect[0] == pytest.approx(9.5 / 3)
    assert found.low[0] == pytest.approx(result.low) and found.n.tolist() == [3] * 4
    assert c2_details(runs(**TOPS)[::-1]).network.tolist() == ["b", "b", "a", "a"]  # as they came


def test_what_a_pair_of_runs_is() -> None:
    table = runs(**TOPS)
    assert replicate_of(table) == replicate_of(table.assign(given=False)) == "trained seed"
    assert replicate_of(table.assign(given=True)) == replicate_of(table[:1].assign(given=True)) == "network"
    assert replicate_of(table[:3].assign(given=True)) == "tuning seed"
    row = compare("C2", "l", "q", table[table.criterion == "fcs"], table[table.criterion == "random"], "test", theirs="random")
    assert (row["replicate"], row["theirs"], row["n"]) == ("trained seed", "random", 3)
    goals = pd.concat([table.assign(goal=goal, layer=0) for goal in ("x", "y")])
    ours, theirs = goals[goals.criterion == "fcs"], goals[(goals.criterion == "random") & (goals.goal == "x")]
    assert seed_differences(ours.assign(test=ours.test.where(ours.goal == "x", 1e6)), theirs, "test").tolist() == [4, 4, 5]


def test_readings_by_validation_with_the_interval_of_their_difference() -> None:
    table = runs(fcs=[5.0, 6.0, 8.0], better=[7.0, 7.0, 9.0]).rename(columns={"test": "validation"})
    found = readings_table(table).to_dict("records")
    assert [row["criterion"] for row in found] == ["better", "fcs"] and [row["reading"] for row in found] == ["as better", "as fcs"]
    # By seed, over both networks: 7.5, 7.5, 9.5 against 5.5, 6.5, 8.5. Differences 2, 1, 1: 1.33 and 4.30265 times a third.
    assert found[0]["minus fcs (points)"] == "+1.33" and found[0]["95 % interval, uncorrected"] == "-0.10 to +2.77"
    assert found[0]["validation top-1 (%)"] == mean_interval([7.5, 7.5, 9.5]) and (found[0]["epochs"], found[0]["n"]) == (4, 3)
    assert (found[1]["minus fcs (points)"], found[1]["95 % interval, uncorrected"]) == ("", "")
    others = readings_table(table[table.criterion == "better"])
    assert "minus better (points)" in others


def test_readings_of_one_mean_stand_as_they_came_however_many_runs_they_have() -> None:
    tops = [("zeta", 0, 5.0), ("alpha", 0, 5.0), ("more", 0, 4.0), ("more", 1, 4.0)]
    table = pd.DataFrame(tops, columns=["criterion", "seed", "validation"]).assign(network="a", ratio=0.5, epochs=4, reading="r")
    found = readings_table(table)  # without fcs they are compared with the first
    assert found[["criterion", "minus zeta (points)", "epochs", "n"]].to_numpy().tolist() == [
        ["zeta", "", 4, 1],
        ["alpha", "+0.00", 4, 1],
        ["more", "-1.00", 4, 2],
    ]


def test_groups_without_rows_keep_their_keys_and_replicates_are_said_beside_a_count() -> None:
    table = runs(**TOPS)
    assert by_group(table[:0], ["network", "seed"], lambda g: {"n": len(g)}).columns.tolist() == ["network", "seed"]
    counted = by_group(table.assign(given=True), ["network"], lambda g: {"n": len(g)})
    assert counted.to_dict("list") == {"network": ["a", "b"], "n": [12, 12], "replicate": ["tuning seed"] * 2}
    assert "replicate" not in by_group(table.assign(given=True), ["network"], lambda g: {"mean": 1})
    assert "replicate" not in by_group(table, ["network"], lambda g: {"n": len(g)})
    backwards = by_group(table[::-1], ["network"], lambda g: {"network": g.network.iloc[0].upper(), "n": 1})
    assert backwards.network.tolist() == ["B", "A"]  # in the order of appearance; a row may reword a key
