"""The statistics against hand-computed and simulated cases."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report.inference import detectable, half_width, holm, mean_interval, needed, paired, seed_differences, verdict


def test_paired_t_by_hand() -> None:
    # Mean 2, standard deviation 1, error 1 / sqrt 3 = 0.57735; t(0.975, 2) = 4.30265: 2 +- 2.48414.
    got = paired([1.0, 2.0, 3.0])
    assert (got.low, got.high) == (pytest.approx(-0.48414, abs=1e-4), pytest.approx(4.48414, abs=1e-4))
    assert got.n == 3 and got.p == pytest.approx(0.07418, abs=1e-4)


def test_half_of_an_interval_by_hand() -> None:
    # t(0.975, 2) = 4.30265 times 1 / sqrt 3; t(0.975, 1) = 12.7062 times sqrt 2 / sqrt 2; four equal values have no spread.
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(2.48414, abs=1e-5)
    assert half_width([1.0, 3.0]) == pytest.approx(12.7062, abs=1e-4) and half_width([4.0] * 4) == 0
    assert math.isnan(half_width([5.0])) and paired([5.0]).interval == ""
    assert paired([1.0, 2.0, 3.0]).interval == "-0.48 to +4.48"


def test_a_mean_comes_with_half_of_its_interval() -> None:
    # 1, 2, 3: t(0.975, 2) = 4.30265 times 1 / sqrt 3. 1, 3: t(0.975, 1) = 12.7062 times 1.
    assert [mean_interval([1.0, 2.0, 3.0]), mean_interval([1.0, 3.0], 1), mean_interval([4.0])] == [
        "2.00 ± 2.48",
        "2.0 ± 12.7",
        "4.00",
    ]
    assert mean_interval(pd.Series([1.0, 2.0, 3.0])) == "2.00 ± 2.48"


def test_the_smallest_effect_to_be_found_is_found_as_often_as_said() -> None:
    draw, n, comparisons, found = np.random.default_rng(0), 5, 2, 0
    effect = detectable(1 / math.sqrt(n), n, comparisons)  # in standard deviations
    for _ in range(4000):
        found += paired(draw.normal(effect, 1.0, n)).p < 0.05 / comparisons
    assert found / 4000 == pytest.approx(0.8, abs=0.02)


def test_how_many_pairs_an_effect_needs() -> None:
    # The tables of the one-sample t test: an effect of one standard deviation takes 10 pairs, of a half 34, of 0.8 15.
    assert [needed(1.0, 1.0), needed(1.0, 0.5), needed(0.5, 0.4), needed(2.0, 1.0)] == [10, 34, 15, 34]
    assert needed(1.0, 2.1) == 5  # where two more degrees of freedom would do with 4
    assert needed(0.01, 0.5) == 2 and needed(50.0, 0.5) == math.inf
    assert math.isnan(needed(0.0, 0.5)) and math.isnan(needed(math.nan, 0.5))
    assert detectable(1 / math.sqrt(10), 10) <= 1.0 < detectable(1 / 3, 9)  # the other way round


def test_no_spread_is_no_certainty() -> None:
    got = paired([0.2, 0.2, 0.2])
    assert math.isnan(got.p) and verdict(got.effect, got.p) == "undecided" and math.isnan(detectable(got.error, got.n))


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


def test_holm_counts_what_is_undefined_and_stops_at_one() -> None:
    # Four tests, of which one is undefined: 0.01 * 4, then 0.2 * 3, then 0.9 * 2 at most 1.
    got = holm([0.9, math.nan, 0.01, 0.2])
    assert got[:1] + got[2:] == pytest.approx([1.0, 0.04, 0.6]) and math.isnan(got[1]) and holm([]) == []


def test_the_level_itself_is_not_significant() -> None:
    assert [verdict(1, 0.05), verdict(1, 0.0499), verdict(1, math.nan)] == ["undecided", "supported", "undecided"]


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
    # What one side alone tells apart is averaged.
    layers = pd.concat([runs("cpu", [3, 5]).assign(layer=0), runs("cpu", [5, 9]).assign(layer=1)])
    assert seed_differences(layers, runs("cpu", [1, 2]), "test").tolist() == [3, 5]


def test_differences_are_averaged_within_a_seed_over_what_both_sides_have() -> None:
    def accuracies(values: dict[tuple[str, int, float], float]) -> pd.DataFrame:
        return pd.DataFrame([{"network": n, "seed": s, "ratio": r, "test": v} for (n, s, r), v in values.items()])

    ours = accuracies({("a", 0, 0.3): 5, ("a", 0, 0.5): 9, ("b", 0, 0.3): 4, ("a", 1, 0.3): 3, ("a", 2, 0.3): 50})
    theirs = accuracies({("a", 0, 0.3): 1, ("b", 0, 0.3): 2, ("a", 1, 0.3): 7, ("b", 1, 0.3): 100, ("a", 3, 0.3): 9})
    # Seed 0: (5 - 1 + 4 - 2) / 2 without ratio 0.5; seed 1: 3 - 7; seeds 2 and 3 have one side only.
    assert seed_differences(ours, theirs, "test").tolist() == [3, -4]
    twice = pd.concat([ours, ours.assign(test=ours.test + 2)])  # two runs of one kind are averaged
    assert seed_differences(twice, theirs, "test").tolist() == [4, -3]
    with pytest.raises(StudyError, match="reference networks"):
        seed_differences(ours.assign(reference_sha256="x"), theirs.assign(reference_sha256="y"), "test")
