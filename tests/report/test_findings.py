"""What sentences say of effects and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fcs_utils.report.claims import claim_verdicts, ledger
from fcs_utils.report.comparisons import c2, judge
from fcs_utils.report.findings import _enumerated, _headline, best_and_worst, difference, findings, headlines, sentence
from tests.report.planted import ledger_of


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((-1.5, -2.24, -0.77, 3), "FCS ends 1.5 points of top-1 below random (95 % interval 0.8 to 2.2, 3 trained seeds)"),
        ((2.0, 1.0, 3.0, 5), "FCS ends 2.0 points of top-1 above random (95 % interval 1.0 to 3.0, 5 trained seeds)"),
        (
            (-0.74, -1.66, 0.17, 3),
            "FCS shows no clear difference from random: 0.7 points of top-1 below on average "
            "(95 % interval 1.7 below to 0.2 above, 3 trained seeds)",
        ),
        (
            (0.02, -0.5, 0.54, 3),
            "FCS shows no clear difference from random: 0.02 points of top-1 above on average "
            "(95 % interval 0.50 below to 0.54 above, 3 trained seeds)",
        ),
        (
            (1.5, math.nan, math.nan, 1),
            "FCS shows no clear difference from random: 1.5 points of top-1 above on average (1 trained seed, no interval)",
        ),
        (
            (0.2, 0.2, 0.2, 3),
            "FCS shows no clear difference from random: 0.2 points of top-1 above on average (3 trained seeds, no interval)",
        ),
    ],
)
def test_a_sentence_says_no_more_than_its_interval(numbers: tuple[float, float, float, int], words: str) -> None:
    assert sentence(*numbers, ours="FCS", theirs="random") == words


def test_a_sentence_says_when_the_correction_takes_the_difference_back() -> None:
    assert "not clear after correction" in sentence(-2.0, -3.0, -1.0, 3, ours="FCS", theirs="random", p=0.06)
    assert "not clear after correction" not in sentence(-2.0, -3.0, -1.0, 3, ours="FCS", theirs="random", p=0.04)


def test_a_sentence_names_its_replicates_and_an_open_end() -> None:
    words = sentence(2.0, 1.0, 3.0, 4, ours="FCS", theirs="random", replicate="network")
    assert words == "FCS ends 2.0 points of top-1 above random (95 % interval 1.0 to 3.0, 4 networks)"
    sides = ("fewer epochs than", "more epochs than")
    open_end = sentence(75.0, 60.0, math.inf, 5, ours="A", theirs="B", verb="needs", unit="%", sides=sides)
    assert open_end == "A needs 75.0 % fewer epochs than B (95 % interval 60.0 to an open end, 5 trained seeds)"
    either = sentence(5.0, -math.inf, 30.0, 5, ours="A", theirs="B", verb="needs", unit="%", sides=sides)
    assert either == (
        "A shows no clear difference from B: 5.0 % fewer epochs on average (95 % interval an open end to 30.0 fewer epochs, "
        "5 trained seeds)"
    )


def test_findings_name_the_schedules() -> None:
    known = ledger_of({2: 90, 4: 91, 8: 96}, {2: 91, 4: 92, 8: 96})
    found = findings(known)
    assert found.keys() == {"C3", "C3 by compute"}
    same = found["C3"].partition("MLFT is ahead of TFT at equal epochs for")[2] or found["C3"]
    assert (
        "1.0 points of top-1 above after 2 epochs (95 % interval 0.9 to 1.0, 6 trained seeds), 0.9 above after 4 epochs (" in same
    )
    assert found["C3"].endswith("at 3.0 times the training compute.")
    assert "after 2 epochs against TFT's 8, at 0.75 times TFT's training compute" in found["C3 by compute"]
    assert headlines(known)["C3"] == found["C3"] and found["C3 by compute"].startswith(headlines(known)["C3 by compute"][:-1])


def test_what_holds_in_some_networks_only_is_said_of_these() -> None:
    rows = [
        judge(claim, network, "", np.array([-1.0, 0.0, 1.0]) + mean, network=network, replicate="trained seed", theirs="1 %")
        for claim, means in (("C1a", (50, 70)), ("C1b", (-20, -0.5)))
        for network, mean in zip(("a", "b"), means, strict=True)
    ]
    found = findings(ledger(rows))
    assert found["C1a"].startswith(
        "In a, the share of live channels with a near-duplicate after training is 50.0 points above the 1 % that chance gives"
    )
    assert "; in b, it is 70.0 points above the 1 % that chance gives (" in found["C1a"]
    assert found["C1b"].startswith("In a, the share of channels with a near-duplicate after training is 20.0 points below that in")
    assert "; in b, it shows no clear difference from that in untrained networks: 0.5 points below on average (" in found["C1b"]
    assert "not in every" not in found["C1b"] and claim_verdicts(ledger(rows)) == {"C1a": "supported", "C1b": "contradicted"}


def test_the_best_reading_has_a_card_of_its_own_beside_the_literal_one() -> None:
    tops = {"fcs": 89.0, "fcs bins=1": 92.0, "kernel_l1": 90.0, "feature_norm": 90.5, "random": 85.0}
    noise = dict(zip(tops, ((0.0, 0.1, 0.2), (0.2, 0.0, 0.1), (0.1, 0.2, 0.0), (0.0, 0.2, 0.1), (0.2, 0.1, 0.0)), strict=True))
    tuned = pd.DataFrame(
        [
            {"network": "n", "seed": seed, "criterion": name, "ratio": 0.5, "test": top + noise[name][seed]}
            for name, top in tops.items()
            for seed in range(3)
        ]
    )
    known = ledger(c2(tuned, "fcs bins=1"))
    assert claim_verdicts(known) == {"C2": "contradicted", "C2, best reading": "supported"}
    assert known[known.decisive].effect.tolist() == pytest.approx([-1.0, -1.5, 2.0, 1.5])
    said = findings(known)["C2, best reading"]
    assert said.startswith(
        "At equal MACs, the best reading of FCS (1 bin) ends 2.0 points of top-1 above pruning by the kernel L1 norm"
    )
    assert "The best reading of FCS (1 bin) ends 7.0 points of top-1 above pruning random channels" in said
    assert claim_verdicts(ledger(c2(tuned))) == claim_verdicts(ledger(c2(tuned, "fcs"))) == {"C2": "contradicted"}
    given = tuned.assign(given=True, network=[f"g{seed}" for seed in tuned.seed], seed=0)
    both = ledger(c2(pd.concat([tuned.assign(given=False), given]), None))
    assert {(row.role, row.replicate, row.n) for row in both.itertuples()} == {("", "trained seed", 3), ("given", "network", 3)}
    assert both[both.decisive].role.eq("").all() and claim_verdicts(both) == {"C2": "contradicted"}
    said = findings(both)["C2"]
    assert (
        "In the given networks, whose intervals are not corrected, FCS ends 1.0 points of top-1 below pruning by the kernel" in said
    )
    more = pd.concat([tuned, tuned[tuned.criterion != "random"].assign(ratio=0.3)])
    said = findings(ledger(c2(more)))["C2"]
    assert "below pruning by the kernel L1 norm (" in said and "above pruning random channels at ratio 0.5 alone (" in said


def test_an_item_of_a_list_says_its_own_number_of_seeds_where_it_differs() -> None:
    rows = pd.DataFrame(
        {"effect": [1.0, 2.0, 3.0], "low": 0.5, "high": 4.0, "n": [5, 5, 2], "replicate": "trained seed", "p_holm": 0.01}
    ).assign(at=["after a", "after b", "after c"])
    assert _enumerated(rows, lambda row: row.at) == (
        "1.0 points of top-1 above after a (95 % interval 0.5 to 4.0, 5 trained seeds), 2.0 above after b (0.5 to 4.0) and "
        "3.0 above after c (95 % interval 0.5 to 4.0, 2 trained seeds)"
    )


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["supported", "supported"], "MLFT is ahead of B"),
        (["contradicted"], "MLFT is behind B"),
        (["undecided", "undecided"], "MLFT is not shown to be ahead of or behind B"),
        (["supported", "undecided"], "MLFT is clearly ahead of B for some schedules only"),
        (["contradicted", "supported"], "MLFT is clearly ahead of or behind B for some schedules only"),
    ],
)
def test_a_lead_says_no_more_than_the_verdicts(verdicts: list[str], words: str) -> None:
    assert _headline(pd.Series(verdicts), "B") == words


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
        "At equal MACs, FCS ends 0.6 points of top-1 above pruning by the kernel L1 norm (95 % interval 0.4 to 0.8, 3 trained "
        "seeds). "
    )
    assert "By network, against the kernel L1 norm, FCS ends 2.1 points of top-1 above on a (" in split
    assert "0.9 below on b (" in split and "FCS ends 0.6 points of top-1 above pruning random channels" in split
    assert "By network" not in findings(ledger(c2(rows({"a": 2.0, "b": 1.0}))))["C2"]


def test_an_item_of_a_list_says_when_its_interval_holds_zero() -> None:
    assert sentence(0.3, -0.2, 0.9, theirs="on b", unit="") == "0.3 above on b (no clear difference: 0.2 below to 0.9 above)"
    assert sentence(4.0, -1.0, 9.0, 5, theirs="after 2 epochs").endswith(
        "(no clear difference: 95 % interval 1.0 below to 9.0 above, 5 trained seeds)"
    )
    assert sentence(0.9, 0.1, 1.7, theirs="on b", unit="") == "0.9 above on b (0.1 to 1.7)"
    assert sentence(0.9, math.nan, math.nan, 1, theirs="on b", unit="") == "0.9 above on b (1 trained seed, no interval)"


def runs(**means: list[float]) -> pd.DataFrame:
    """One run a kind and seed, with these accuracies."""
    return pd.DataFrame(
        [
            {"network": "n", "seed": seed, "kind": kind, "test": test}
            for kind, tests in means.items()
            for seed, test in enumerate(tests)
        ]
    )


def test_two_sets_of_runs_are_told_apart_only_where_their_interval_excludes_zero() -> None:
    # Differences 1, 2, 3: 2 +- 2.48414. Differences -2, -2.1, -2.2: -2.1 +- 4.30265 * 0.1 / sqrt 3 = 0.24841.
    plain, merged = runs(plain=[90, 90, 90]), runs(merged=[91, 92, 93])
    words = {"ours": "Merging", "theirs": "no merging", "verb": "is"}
    assert difference(merged, plain, **words) == (
        "Merging shows no clear difference from no merging: 2.0 points of top-1 above on average "
        "(95 % interval 0.5 below to 4.5 above, 3 trained seeds)"
    )
    assert difference(runs(merged=[88, 87.9, 87.8]), plain, **words) == (
        "Merging is 2.1 points of top-1 below no merging (95 % interval 1.9 to 2.3, 3 trained seeds)"
    )


def test_the_best_of_many_is_held_to_a_corrected_level() -> None:
    # b: 1.0 +- 4.30265 * 0.2 / sqrt 3, so p = 0.0131 alone; of two comparisons 0.0262 at most, of five 0.0657.
    few = runs(fcs=[90, 90, 90], b=[90.8, 91, 91.2], c=[89, 91, 90])
    best, worst = best_and_worst(few, "kind", "fcs").split("; ")
    assert best == "b is 1.0 points of top-1 above FCS (95 % interval 0.5 to 1.5, 3 trained seeds)"
    assert worst.startswith("c shows no clear difference from FCS: 0.00 points of top-1 above on average")
    many = pd.concat([few, runs(**{name: [89, 91, 90] for name in "def"})])
    assert "above FCS (95 % interval 0.5 to 1.5, 3 trained seeds; not clear after correction" in best_and_worst(many, "kind", "fcs")
    assert best_and_worst(runs(fcs=[90, 90, 90], b=[91, 92, 93]), "kind", "fcs").count("b shows") == 1
