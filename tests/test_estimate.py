"""What a profile's missing runs will take, before they are done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fcs_utils import estimate as estimates
from fcs_utils.design import Network
from fcs_utils.estimate import estimate, lacking, larger_studies, training_throughput
from fcs_utils.grid import expected_macs
from fcs_utils.measure import count_macs
from fcs_utils.models import build_seeded
from fcs_utils.profiles import get_profile
from fcs_utils.speed import Job
from fcs_utils.study import Study
from tests.conftest import study_command


def test_what_is_lacking_is_what_a_study_then_does(smoke: Path, tmp_path: Path) -> None:
    done = Study("smoke", smoke)
    assert not any(lacking(done).values())
    fresh = lacking(Study("smoke", tmp_path))
    listed = [run for runs in fresh.values() for run in runs]
    assert len({run.identity for run in listed}) == len(listed)
    # Which arms there are depends on the chosen rates; all else is known beforehand, the pilots' networks included.
    before = {run.identity for stage, runs in fresh.items() if stage != "arms" for run in runs}
    made = {path.stem.rsplit("-", 1)[1] for path in (smoke / "smoke" / "records").glob("*.json")}
    assert made == before | {run.identity for run in done.grid["arms"]}


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
    assert not any(tmp_path.iterdir())  # asking leaves no trace


def test_larger_studies_are_counted_and_their_gpu_hours_follow_from_the_assumed_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study("smoke", tmp_path)
    whole = estimate(Study("paper:digits", tmp_path), lambda network: 1e12).set_index("stage").loc["all"]
    paper = larger_studies(study, 1e9, "a machine").set_index("profile").loc["paper"]
    assert paper.runs == f"{whole.runs:,.0f}" and paper["10^15 MACs"] == f"{whole['10^12 MACs'] / 1e3:,.1f}"
    hours = float(paper["hours on a machine (ESTIMATE)"].replace(",", ""))
    assert hours == pytest.approx(1000 * whole["hours (ESTIMATE)"], rel=0.05)  # two digits are shown
    # Images a second that are 10^9 multiply-adds a second, three for each of the forward pass: the same hours.
    dense = {name: count_macs(build_seeded(0, name, num_classes=10), torch.zeros(1, 3, 32, 32)) for name in estimates.ASSUMED}
    monkeypatch.setattr(estimates, "ASSUMED", {name: 1e9 / (3 * macs) for name, macs in dense.items()})
    same = larger_studies(study, 1e9, "a machine").set_index("profile").loc["paper"]
    (there,) = (value for name, value in same.items() if re.match("GPU-hours at 1 images/s of vgg16", name))
    least, most = (float(value.replace(",", "")) for value in there.split(" to "))
    assert least == pytest.approx(hours, rel=0.1) and 1.2 * least < most < 5 * least  # the second if pruning saves no time
    assert not any(tmp_path.iterdir())


def test_without_shrinking_an_image_costs_what_it_costs_the_dense_network(tmp_path: Path) -> None:
    bench = (study := Study("smoke", tmp_path)).bench
    assert study.profile.ratios == (0.3, 0.5)
    images = len(bench.dataset.train)
    for run in study.runs(["tuned", "headstart"]):
        dense = 3 * run.tuning.training.epochs * images * count_macs(bench.untrained(run.reference), bench.example)
        (small,), (large,) = expected_macs(bench, [run]), expected_macs(bench, [run], shrink=False)
        assert large == dense and small == pytest.approx(dense * (1 - run.pruning.ratio), rel=1e-6)


def test_the_command_measures_and_prints_a_line_a_stage(tmp_path: Path) -> None:
    done = study_command("estimate", "--profile", "smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ *all +\d+ +[\d.]+ +\d+\.\d\d$", done.stdout, re.MULTILINE), done.stdout
    missing = study_command("estimate", "--profile", "smoke:imagefolder:nowhere", "--out", str(tmp_path), "--data", str(tmp_path))
    assert missing.returncode == 1 and "nowhere" in missing.stderr and "Traceback" not in missing.stderr


@pytest.mark.parametrize(("passes", "way"), [("plain", "study, two at once"), ("compiled", "study, compiled, two at once")])
def test_passes_are_measured_as_a_study_does_its_runs(monkeypatch: pytest.MonkeyPatch, passes: str, way: str) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(estimates, "pick_workers", lambda wanted, device: 2)
    monkeypatch.setattr(estimates, "measure_apart", lambda job: jobs.append(job) or 1.0)
    training_throughput(torch.device("cpu"), passes)(get_profile("paper").networks[0])
    assert [job.way for job in jobs] == [way]
