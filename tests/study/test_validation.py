"""What runs say of validation images is measured on these and on no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.data.dataset import Batch
from fcs_utils.study import kinds, networks
from fcs_utils.study.kinds import do
from fcs_utils.study.networks import Bench
from fcs_utils.study.records import Store
from fcs_utils.training.evaluate import evaluate
from tests.study.test_memory import RUNS


def test_runs_watch_the_validation_split_while_they_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(models: Sequence[nn.Module], batches: Iterable[Batch], precision: str = "fp32") -> dict[str, float | None]:
        kept = list(batches)
        seen.append(torch.cat([images for images, _ in kept]))
        return evaluate(models, kept, precision)

    for module in (kinds, networks):
        monkeypatch.setattr(module, "evaluate", watched)
    bench = Bench(Store(tmp_path, "small"), "digits[:400]", None, torch.device("cpu"))
    reference, _ = do(bench, RUNS["reference"], None, lambda macs: None)
    pruned, _ = do(bench, RUNS["pruned"], None, lambda macs: None)
    tuned, _ = do(bench, RUNS["tuned"], {"result": pruned}, lambda macs: None)
    data = bench.data(RUNS["tuned"].reference)
    wanted = data.normalise(data.validation.images)
    assert len(seen) == 3 and all(images.equal(wanted) for images in seen)  # two epochs, and before the tuning
    assert reference["history"][0]["validation"] != reference["test"] and tuned["start"]["validation"] is not None
