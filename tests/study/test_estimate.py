"""The estimated cost of a profile's missing runs."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fcs_utils.benchmarks.speed import SpeedJob
from fcs_utils.study import estimate as estimates
from fcs_utils.study.catalogue import STAGES
from fcs_utils.study.estimate import cluster_throughput, estimate, training_throughput
from fcs_utils.study.grid import grid
from fcs_utils.study.profiles import get_profile
from fcs_utils.study.sections import Network
from fcs_utils.study.study import Study
from tests.conftest import command_here


def test_what_is_lacking_is_what_a_study_then_does(smoke: Path, tmp_path: Path) -> None:
    done = Study("smoke", smoke)
    assert not done.pending()
    fresh = Study("smoke", tmp_path)
    listed = fresh.pending()
    assert len({run.identity for run in listed}) == len(listed)
    known = {run.identity: place for place, run in enumerate(listed)}
    assert all(known[parent.identity] < known[run.identity] for run in listed if (parent := run.parent()))
    # Which arms there are depends on the chosen rates; all else is known beforehand, the pilots' networks included.
    before = {run.identity for run in fresh.pending([stage for stage in STAGES if stage != "arms"])}
    made = {path.stem.rsplit("-", 1)[1] for path in (smoke / "smoke" / "work" / "records").glob("*.json")}
    assert made == before | {run.identity for run in done.grid["arms"]}
    # While the rates are open, the first of the list stands for each.
    first = dict.fromkeys(done.rates(), done.profile.arms.learning_rates[0])
    assert known.keys() == before | {run.identity for run in grid(done.profile, done.precision, first)["arms"]}


def test_hours_are_multiply_adds_over_throughput_network_by_network(tmp_path: Path) -> None:
    def throughput(network: Network) -> float:
        return {"vgg16": 1e9, "resnet20": 2e9}[network.network]

    study = Study("smoke", tmp_path)
    table = estimate(study, throughput).set_index("stage")
    arms = table.loc["arms"]  # of the VGG alone
    assert arms["hours (ESTIMATE)"] == pytest.approx(arms["10^12 MACs"] * 1e12 / 1e9 / 3600)
    all_same = estimate(study, lambda network: 1e9).set_index("stage")
    slow, mixed = (hours.loc["all", "hours (ESTIMATE)"] for hours in (all_same, table))
    assert slow / 2 < mixed < slow
    assert table.loc["all", "runs"] == table.runs[:-1].sum()
    assert not any(tmp_path.iterdir())  # the estimate writes nothing


def test_a_cluster_is_as_fast_as_one_worker_times_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[SpeedJob] = []
    monkeypatch.setattr(estimates, "measure_speed", lambda job: jobs.append(job) or 10.0)
    network = get_profile("paper").networks[0]
    with ThreadPoolExecutor(1) as worker:
        found = cluster_throughput(worker, lambda: 5)(network)
    assert [job.way for job in jobs] == ["study"]
    assert found == pytest.approx(5 * estimates.pace(network, device="cpu"))


@pytest.mark.slow
def test_the_command_measures_and_prints_a_line_a_stage(tmp_path: Path) -> None:
    done = command_here("estimate", "--profile", "smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ *all +\d+ +[\d.]+ +\d+\.\d\d$", done.stdout, re.MULTILINE), done.stdout
    missing = command_here("estimate", "--profile", "smoke:imagefolder:nowhere", "--out", str(tmp_path), "--data", str(tmp_path))
    assert missing.returncode == 1 and "nowhere" in missing.stderr and "Traceback" not in missing.stderr


@pytest.mark.parametrize(("passes", "way"), [("plain", "study, two at once"), ("compiled", "study, compiled, two at once")])
def test_passes_are_measured_as_a_study_does_its_runs(monkeypatch: pytest.MonkeyPatch, passes: str, way: str) -> None:
    jobs: list[SpeedJob] = []
    monkeypatch.setattr(estimates, "pick_workers", lambda wanted, device: 2)
    monkeypatch.setattr(estimates, "measure_speed", lambda job: jobs.append(job) or 1.0)
    training_throughput(torch.device("cpu"), passes)(get_profile("paper").networks[0])
    assert [job.way for job in jobs] == [way]
