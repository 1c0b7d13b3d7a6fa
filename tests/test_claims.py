"""The statistics against hand-computed and simulated cases."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fcs_utils.claims import overall
from fcs_utils.errors import StudyError
from fcs_utils.inference import holm, paired, seed_differences, verdict
from fcs_utils.report import add_targets, choose_learning_rates


def test_paired_t_by_hand() -> None:
    # Mean 2, standard deviation 1, error 1 / sqrt 3 = 0.57735; t(0.975, 2) = 4.30265: 2 +- 2.48414.
    got = paired([1.0, 2.0, 3.0])
    assert (got.low, got.high) == (pytest.approx(-0.48414, abs=1e-4), pytest.approx(4.48414, abs=1e-4))
    assert got.n == 3 and got.p == pytest.approx(0.07418, abs=1e-4)


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
    with pytest.raises(StudyError, match="seeds differ"):
        seed_differences(runs("cpu", [3, 5]), runs("cpu", [1]), "test")


def arm(method: str, rate: float, curve: list[float], test: float) -> dict[str, object]:
    history = [{"epoch": e, "validation": v, "training_macs": 10 * e} for e, v in enumerate(curve, 1)]
    return {"network": "n", "seed": 0, "method": method, "epochs": len(curve), "learning_rate": rate, "history": history,
            "validation": curve[-1], "test": test, "training_macs": 10 * len(curve)}  # fmt: skip


def test_learning_rates_are_chosen_on_validation_not_on_test() -> None:
    frame = pd.DataFrame([arm("tft", 0.1, [80, 90], 99.0), arm("tft", 0.01, [80, 95], 50.0)])
    assert choose_learning_rates(frame).learning_rate.tolist() == [0.01]


def test_epochs_to_target() -> None:
    frame = pd.DataFrame([arm("tft", 0.1, [80, 90], 0), arm("mlft", 0.1, [89.9, 95], 0), arm("kd", 0.1, [70, 80], 0)])
    got = add_targets(frame, validation_images=1000)  # target 90 - 0.2
    assert got.epochs_to_target.tolist() == [2, 1, 3] and got.reached.tolist() == [True, True, False]
