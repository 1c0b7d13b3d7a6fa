"""How much faster large networks are: tables by hand, and one small measurement."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from fcs_utils.benchmarks.deployed import (
    Deployed,
    bound_table,
    deployed_table,
    goals_table,
    measure_deployed,
    median_miss,
    time_by_kind,
)
from fcs_utils.cli import main
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.pruning.export import export_onnx
from fcs_utils.study import measurements
from fcs_utils.study.contents import MEASUREMENTS, conform
from fcs_utils.study.records import Store
from tests.benchmarks.test_widths import FOUND as SMALL
from tests.benchmarks.test_yardsticks import FOUND as MEASURED
from tests.conftest import warm

FOUND = {
    "machine": {"device_type": "cpu", "device": "a CPU", "threads": 2, "torch": "2"},
    "date": "2026-01-01",
    "precision": "fp32",
    "asked": {"macs": 0.5},
    "rows": [
        {
            "network": "torchvision/resnet50",
            "macs": {"dense": 200, "multiple-8": 104},
            "milliseconds": {"onnxruntime dense 32": [80.0, 90.0, 100.0], "onnxruntime multiple-8 32": [40.0, 60.0, 40.0]},
        }
    ],
    "layers": [
        {
            "network": "torchvision/mobilenet_v2",
            "kinds": {
                "pointwise": {"milliseconds": 30.0, "macs": 90.0},
                "depthwise": {"milliseconds": 30.0, "macs": 10.0},
                "the rest": {"milliseconds": 40.0, "macs": 0.0},
            },
        }
    ],
    "goals": [
        {"network": "torchvision/resnet18", "asked": 0.5, "reached": 0.55, "macs": 0.4},
        {"network": "torchvision/resnet18", "asked": 0.8, "reached": 0.792, "macs": 0.7},
    ],
}


def test_tables_by_hand() -> None:
    # Ratios of the same round: 2, 1.5 and 2.5.
    assert deployed_table(FOUND).to_dict("records") == [
        {
            "network": "ResNet-50",
            "channels in multiples of": "8",
            "MACs left (%)": "52.0",
            "onnxruntime, batch 32": "2.00x (1.75 to 2.25)",
        }
    ]
    bound = bound_table(FOUND)
    # 40 ms stay, and half of 60: 100 / 70.
    assert [*bound["bound at 50 % of the MACs"]] == ["1.43x"] * 3 and [*bound["time (%)"]] == ["30.0", "30.0", "40.0"]
    assert [*bound["MACs (%)"]] == ["90.0", "10.0", "0.0"]
    assert [*goals_table(FOUND)["off (%)"]] == ["+10.0", "-1.0"] and median_miss(FOUND) == pytest.approx(5.5)


def test_time_by_kind_of_layer_counts_every_mac() -> None:
    net, image = build_seeded(0, "torchvision/mobilenet_v2", num_classes=3).eval(), torch.zeros(1, 3, 32, 32)
    kinds = time_by_kind(net, image, 1, 1)
    assert kinds.keys() == {"depthwise", "pointwise", "other convolutions", "linear", "BatchNorm", "the rest"}
    assert sum(kind["macs"] for kind in kinds.values()) == count_macs(net, image)
    assert all(kind["milliseconds"] > 0 for kind in kinds.values()) and not any(m._forward_hooks for m in net.modules())


@pytest.mark.slow
def test_a_small_measurement() -> None:
    wanted = Deployed(
        networks=(("torchvision/resnet18", "all"),),
        size=32,
        batches=(1,),
        threads=1,
        rounds=1,
        timed=("torchvision/resnet18",),
        goals=(0.8,),
    )
    found = measure_deployed(wanted)
    conform(MEASUREMENTS, {"deployed": {"measured": [found]}}, "here")
    (row,) = found["rows"]
    assert row["macs"]["multiple-8"] / row["macs"]["dense"] == pytest.approx(0.5, abs=0.05)
    assert len(deployed_table(found)) == 2 and len(goals_table(found)) == 1 and len(bound_table(found))


@pytest.mark.slow
def test_batchnorm_is_folded_at_export(tmp_path: object) -> None:
    network = warm(build_seeded(0, "resnet20", num_classes=3, width=0.25), images=8)
    path = export_onnx(network, f"{tmp_path}/net.onnx", torch.randn(2, 3, 32, 32))
    assert not [node for node in onnx.load(path).graph.node if node.op_type == "BatchNormalization"]


def test_the_command_measures_keeps_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measurements, "measure_deployed", lambda wanted: FOUND)
    monkeypatch.setattr(measurements, "measure_widths", lambda wanted: SMALL)
    monkeypatch.setattr(measurements, "measure_yardsticks", lambda wanted: MEASURED)
    assert main(["latency", "--profile", "smoke", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "2.00x (1.75 to 2.25)" in said and "1.43x" in said and "+10.0" in said
    assert measurements.by_machine(Store(tmp_path, "smoke"), "deployed") == [FOUND]
