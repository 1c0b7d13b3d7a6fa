"""Small networks with and without counts that fit vectors: the table by hand, one small measurement, and where it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcs_utils.benchmarks import widths
from fcs_utils.benchmarks.widths import Widths, measure_widths, widths_table
from fcs_utils.cli import main
from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed
from fcs_utils.study import measurements
from fcs_utils.study.contents import MEASUREMENTS, conform
from fcs_utils.study.records import Store
from tests.benchmarks.test_yardsticks import FOUND as MEASURED

SMALL = Widths(networks=(("vgg16", 0.125), ("resnet20", 1.0)), batch_size=2, steps=1, rounds=5)
FOUND = {
    "machine": {"device_type": "cpu", "device": "a CPU", "threads": 1, "torch": "2"},
    "date": "2026-01-01",
    "precision": "fp32",
    "asked": {"rounds": 5},
    "rows": [
        {
            "network": "vgg16 x0.25",
            "macs": {"dense": 200, "multiple-1": 100, "multiple-8": 104},
            "seconds": {
                "training dense": [8.0, 9.0, 10.0, 8.0, 8.0],
                "training multiple-1": [8.0, 9.0, 8.0, 10.0, 8.0],
                "training multiple-8": [4.0, 3.0, 5.0, 4.0, 8.0],
                "inference dense": [1.0] * 5,
                "inference multiple-1": [1.0, 0.8, 2.0, 1.0, 1.0],
                "inference multiple-8": [0.5] * 5,
            },
        }
    ],
}


def test_the_table_by_hand() -> None:
    # Ratios of the same round: 1, 1, 1.25, 0.8, 1 and 2, 3, 2, 2, 1 of training; 1, 1.25, 0.5, 1, 1 and 2 of inference.
    assert widths_table(FOUND).to_dict("records") == [
        {
            "network": "VGG-16 x0.25",
            "channels in multiples of": "1",
            "MACs left (%)": "50.0",
            "training": "1.00x (0.80 to 1.25)",
            "inference": "1.00x (0.50 to 1.25)",
        },
        {
            "network": "VGG-16 x0.25",
            "channels in multiples of": "8",
            "MACs left (%)": "52.0",
            "training": "2.00x (1.00 to 3.00)",
            "inference": "2.00x (2.00 to 2.00)",
        },
    ]


def test_a_small_measurement_takes_turns_and_prunes_to_the_multiples(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    kept = []

    def noted(calls: dict, rounds: int, warm_up: int) -> dict[str, list[float]]:
        for _ in range(warm_up + rounds):
            for name, call in calls.items():
                call()
                turns.append(name)
        return {name: [1.0] * rounds for name in calls}

    monkeypatch.setattr(widths, "in_turns", noted)
    monkeypatch.setattr(widths, "prune", lambda dense, plan, real=widths.prune: kept.append(plan) or real(dense, plan))
    found = measure_widths(SMALL)
    conform(MEASUREMENTS, {"widths": {"measured": [found]}}, "here")
    one_round = [f"{what} {name}" for name in ("dense", "multiple-1", "multiple-8") for what in ("training", "inference")]
    assert turns == one_round * 6 * 2  # one warms up; two networks
    assert [row["network"] for row in found["rows"]] == ["vgg16 x0.125", "resnet20 x1"] and len(widths_table(found)) == 4
    assert all(abs(row["macs"]["multiple-8"] / row["macs"]["dense"] - 0.55) < 0.15 for row in found["rows"])
    plain, eights = kept[:2]
    assert any(len(channels) % 8 for channels in plain.kept.values())
    assert not any(len(channels) % 8 for channels in eights.kept.values())


def test_the_command_measures_keeps_and_prints_small_networks_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(wanted: object) -> None:
        raise StudyError("the large networks were not reached")

    monkeypatch.setattr(measurements, "measure_yardsticks", lambda wanted: MEASURED)
    monkeypatch.setattr(measurements, "measure_widths", lambda wanted: FOUND)
    monkeypatch.setattr(measurements, "measure_deployed", interrupted)
    assert main(["latency", "--profile", "smoke", "--out", str(tmp_path)]) == 1
    assert "2.00x (1.00 to 3.00)" in capsys.readouterr().out
    store = Store(tmp_path, "smoke")
    assert measurements.by_machine(store, "widths") == [FOUND] == read_checksummed(store.measurements())["widths"]["measured"]


@pytest.mark.parametrize(
    ("field", "new"), [("seconds", {"training dense": []}), ("seconds", {"training dense": [0.0]}), ("macs", 5)]
)
def test_wrong_measurements_are_refused(field: str, new: object) -> None:
    wrong = {**FOUND, "rows": [{**FOUND["rows"][0], field: new}]}
    with pytest.raises(StudyError, match=f"widths.measured.0.rows.0.{field}"):
        conform(MEASUREMENTS, {"widths": {"measured": [wrong]}}, "here")
