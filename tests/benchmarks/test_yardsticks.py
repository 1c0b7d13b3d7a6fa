"""What people wait for, against yardsticks: the table by hand, and one small measurement of every pair."""

from __future__ import annotations

import pytest
import torch

from fcs_utils.benchmarks import yardsticks
from fcs_utils.benchmarks.operators import operator_shares, operator_table
from fcs_utils.benchmarks.yardsticks import Yardsticks, measure_yardsticks, yardstick_table
from fcs_utils.errors import StudyError
from fcs_utils.study.contents import MEASUREMENTS, conform

SMALL = Yardsticks(
    scored=(("resnet20", "all", 32, 4),), decomposed=("resnet20",), few=3, trained=("vgg16", 0.125), batch_size=2, steps=2, files=70
)
FOUND = {
    "machine": {"device_type": "cpu", "device": "a CPU", "threads": 2, "torch": "2"},
    "date": "2026-01-01",
    "precision": "fp32",
    "asked": {"rounds": 3},
    "rows": [
        {
            "what": "a pass",
            "against": "another",
            "seconds": [2.0, 3.0, 2.0],
            "other_seconds": [1.0, 2.0, 4.0],
            "operators": {"mm": 75.0, "all others": 25.0},
        }
    ],
}


def test_the_table_by_hand() -> None:
    # Ratios of the same round: 2, 1.5 and 0.5.
    row = {"what": "a pass", "compared with": "another", "times as long": "1.50", "lowest to highest": "0.50 to 2.00"}
    assert yardstick_table(FOUND).to_dict("records") == [row]


@pytest.mark.slow
def test_every_pair_does_its_work_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(yardsticks, "decode_image", lambda content, size: read.append((content[1:4], size)))
    found = measure_yardsticks(SMALL)
    conform(MEASUREMENTS, {"yardsticks": {"measured": [found]}}, "here")
    assert all(len(row["seconds"]) == len(row["other_seconds"]) == 5 for row in found["rows"])
    assert read == [(b"PNG", 32)] * 70 * (
        2 * 6 + 2
    )  # both ways in every round, of which one warms up; then once for the operators, warmed up too
    against = {row["what"]: row["against"] for row in found["rows"]}
    assert list(against) == [
        "one scoring pass of ResNet-20, all layers, 4 images of 32 pixels",
        "HRank of ResNet-20, 3 images",
        "CHIP of ResNet-20, 3 images",
        "Torch-Pruning's group Taylor of ResNet-20, 3 images",
        "Torch-Pruning's group Hessian of ResNet-20, 3 images",
        "MLFT of VGG-16 x0.125 at half of the MACs",
        "KD of VGG-16 x0.125 at half of the MACs",
        "decoding 70 pictures of 32 pixels from a .tar.xz file",
        "fcs-mlft --help",
    ]
    assert len(yardstick_table(found)) == 9
    named = {row["what"] for row in found["rows"] if row["operators"]}
    assert named == {what for what in against if not what.startswith(("decoding", "fcs-mlft"))}


def test_operators_share_the_time_of_a_call() -> None:
    one = torch.ones(300, 300)
    shares = operator_shares(lambda: [one @ one for _ in range(50)])
    assert max(shares, key=shares.__getitem__) == "mm" and sum(shares.values()) == pytest.approx(100)
    assert operator_shares(lambda: None) == {}
    rows = [*FOUND["rows"], {"what": "a command", "operators": {}}]
    assert operator_table(rows).to_numpy().tolist() == [["a pass", "mm 75.0, all others 25.0"]]


@pytest.mark.parametrize(("field", "new"), [("seconds", []), ("other_seconds", [0.0]), ("what", 5)])
def test_wrong_measurements_are_refused(field: str, new: object) -> None:
    wrong = {**FOUND, "rows": [{**FOUND["rows"][0], field: new}]}
    with pytest.raises(StudyError, match=f"yardsticks.measured.0.rows.0.{field}"):
        conform(MEASUREMENTS, {"yardsticks": {"measured": [wrong]}}, "here")
