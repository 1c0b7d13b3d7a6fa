"""Records do not depend on the memory that is free while they are made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fcs_utils import machine
from fcs_utils.machine import steady_batch
from fcs_utils.study.kinds import do
from fcs_utils.study.networks import Bench
from fcs_utils.study.records import Store
from fcs_utils.study.runs import Pruning, Reference, Run, Similarity, Tuning
from fcs_utils.training.optimiser import Training

TRAINING = Training(epochs=1, learning_rate=0.05)
REFERENCE = Reference(dataset="digits[:400]", network="resnet20", width=0.25, seed=0, training=TRAINING, precision="fp32")
PRUNED = Run(reference=REFERENCE, pruning=Pruning(criterion="fcs", calibration=150, ratio=0.5, recalibrate=True))
RUNS = {
    "reference": Run(reference=REFERENCE),
    "similarity": Run(reference=REFERENCE, similarity=Similarity(calibration=150)),
    "pruned": PRUNED,
    "tuned": PRUNED.model_copy(update={"tuning": Tuning(method="mlft", training=TRAINING)}),
}


def results(folder: Path) -> dict[str, object]:
    bench, found = Bench(Store(folder, "small"), "digits[:400]", None, torch.device("cpu")), {}
    for kind, run in RUNS.items():
        found[kind] = do(bench, run, {"result": found["pruned"]} if kind == "tuned" else None, lambda macs: None)[0]
    return found


def test_records_are_equal_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = results(tmp_path / "plenty")
    monkeypatch.setattr(machine, "free_memory", lambda device=None: 1_000_000)  # some three images at once
    short = results(tmp_path / "short")
    assert short == plenty


def test_a_studys_batches_follow_from_the_size_of_images() -> None:
    sizes = {8: 256, 32: 256, 64: 256, 128: 64, 224: 20, 2048: 1}
    assert {size: steady_batch(torch.empty(1, 3, size, size, device="meta")) for size in sizes} == sizes
    assert steady_batch(torch.empty(1, 3, 32, 128, device="meta"), 500) == 500
    assert steady_batch(torch.empty(1, 3, 224, 224, device="meta"), 500) == 40
