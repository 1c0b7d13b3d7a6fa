"""A profile names a network of the user's own, with weights from a file; runs, tables and the explorer take it like any other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from fcs_utils.builders import code_of_network
from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded
from fcs_utils.pruning.export import load_compact
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.frames import make_report
from fcs_utils.report.subject import study_subject
from fcs_utils.study.profiles import Network, Profile, get_profile
from fcs_utils.study.runs import Pruning, Run, parse_run
from fcs_utils.study.study import Study
from fcs_utils.training.optimiser import Training
from tests.conftest import warm

MODULE = """
from torch import nn

def build(num_classes, in_channels):
    def block(before, after):
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(block(in_channels, 8), block(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, num_classes))
"""
SCHEDULE = Training(epochs=1, learning_rate=0.02, batch_size=50)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ownnet.py").write_text(MODULE)
    code_of_network.cache_clear()
    network = warm(build_seeded(1, "ownnet:build", num_classes=10, in_channels=1), size=32, channels=1, images=16)
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    yield tmp_path
    sys.modules.pop("ownnet", None)


def profile(**source: object) -> Profile:
    smoke = get_profile("smoke")
    own = Network(network="ownnet:build", **source)  # type: ignore[arg-type]
    arms = smoke.arms.model_copy(update={"networks": ()})
    few = smoke.ablations.model_copy(update={"bins": (2,), "calibrations": (), "draws": 1, "binning_seeds": 0, "merged": ("fcs",)})
    changes = {
        "name": "own",
        "ablations": few,
        "dataset": "digits[:100]",
        "calibration": 20,
        "networks": (own,),
        "tuning": SCHEDULE,
        "arms": arms,
    }
    return smoke.model_copy(update={**changes, "criteria": ("kernel_l1", "fcs")})


def test_runs_tables_and_the_explorer_take_it(here: Path) -> None:
    study = Study(profile(weights="own.safetensors", mean=[0.3], std=[0.6]), here / "out", here)
    assert all(run.reference.code == code_of_network("ownnet:build") for run in study.grid["tuned"])
    study.run(["reference", "similarity", "pruned", "tuned", "ablation"])
    report = make_report(study, allow_missing=True)
    assert (
        {*report.tuned.network} == {"ownnet:build (given)"}
        and {*report.tuned.criterion} == {"kernel_l1", "fcs"}
        and report.tables()
    )
    explorer = Exploration(study_subject(study, "ownnet:build", 0))
    choice = Choice(explorer.first, "fcs", "pooled", 4, 0.5)
    path = explorer.save(choice, merge=True)
    assert path.is_file() and "build_model('ownnet:build'" in explorer.loading_code(path)
    load_compact(path, build_seeded(0, "ownnet:build", num_classes=10, in_channels=1))


def test_edited_code_is_another_run_and_is_refused_in_the_midst(here: Path) -> None:
    study = Study(profile(training=SCHEDULE), here / "out", here)
    (run,) = study.grid["reference"]
    (here / "ownnet.py").write_text(MODULE + "# edited\n")
    code_of_network.cache_clear()
    with pytest.raises(StudyError, match="code of network ownnet:build=.*its module was edited; start again"):
        study.ensure(run)
    (other,) = Study(profile(training=SCHEDULE), here / "out", here).grid["reference"]
    assert run.identity != other.identity
    again = parse_run(run.model_dump(mode="json"))
    assert again == run and again.identity == run.identity
    pruned = Run(reference=other.reference, pruning=Pruning(criterion="kernel_l1", ratio=0.5, calibration=20))
    assert study.ensure(pruned)["result"]["plan"]["channels"] == {"0.0": 8, "1.0": 12}
