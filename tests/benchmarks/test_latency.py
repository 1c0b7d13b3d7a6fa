"""The table's speed-ups are quotients of what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fcs_utils.benchmarks import latency as deploy
from fcs_utils.benchmarks.latency import deployment_table
from fcs_utils.models import build_seeded
from fcs_utils.study import measurements
from fcs_utils.study.study import Study

pytest.importorskip("onnxruntime")


def test_the_table_divides_what_was_measured(smoke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("smoke", smoke)
    monkeypatch.setattr(measurements, "latencies", lambda *_: pytest.fail("measured again"))
    found = measurements.deployment(study)  # notebook 08 left it
    table = deployment_table(found)
    assert len(table) == len(study.profile.networks) * len(study.profile.ratios)
    row, taken, ratio = table.iloc[0], found["rows"][0]["milliseconds"], study.profile.ratios[0]
    assert all(len(times) == deploy.ROUNDS and min(times) > 0 for times in taken.values())
    for runtime, title, batch in (("pytorch", "PyTorch", 64), ("onnxruntime", "onnxruntime", 1)):
        gains = sorted(a / b for a, b in zip(taken[f"{runtime} dense {batch}"], taken[f"{runtime} {ratio:g} {batch}"], strict=True))
        assert row[f"speed-up, {title}, batch {batch}"].startswith(f"{gains[len(gains) // 2]:.2f}x (")
    assert 0 < float(row["MACs left (%)"]) < 100 and found["machine"]["threads"] == 1


def test_without_the_extra_the_table_has_pytorch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "has_onnx", lambda: False)
    monkeypatch.setattr(deploy, "ROUNDS", 1)
    network = build_seeded(0, "vgg16", num_classes=5, width=0.125)
    taken = deploy.latencies({"dense": network, "0.5": network}, torch.zeros(1, 3, 32, 32))
    table = deployment_table({"rows": [{"network": "n", "macs": {"dense": 4, "0.5": 2}, "milliseconds": taken}]})
    assert [column for column in table if "speed-up" in column] == ["speed-up, PyTorch, batch 1", "speed-up, PyTorch, batch 64"]
