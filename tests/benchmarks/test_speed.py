"""The fast path does the same steps as a loop written out; the tables of speed and growth."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fcs_utils.benchmarks.speed import SpeedJob, images_per_second, measure_speed
from fcs_utils.benchmarks.speed_tables import growth_table, machine_name, speed_table
from fcs_utils.cli import main
from fcs_utils.cli.process import ALLOCATOR
from fcs_utils.data.dataset import Dataset
from fcs_utils.errors import StudyError
from fcs_utils.files import write_checksummed
from fcs_utils.models import build_seeded
from fcs_utils.report.planning import found_with_parents
from fcs_utils.report.tables import grid_cost_table
from fcs_utils.study.measurements import by_machine, measure_here, speeds
from fcs_utils.study.study import Study
from fcs_utils.training.loop import Callbacks, fit
from fcs_utils.training.optimiser import Training
from tests.conftest import ROOT


@pytest.mark.parametrize("network", ["vgg16", "resnet20"])
def test_the_fast_path_and_a_loop_written_out_agree_step_by_step(digits: Dataset, network: str) -> None:
    training = Training(epochs=2, learning_rate=0.01, batch_size=100)
    fast, plain = (build_seeded(0, network, num_classes=10, width=0.125, in_channels=1) for _ in range(2))
    before_step: list[list[torch.Tensor]] = []
    callbacks = Callbacks(on_batch=lambda: before_step.append(weights(fast)))
    (first, *_) = fit([fast], training, digits.batches(100), seed=5, callbacks=callbacks)
    optimiser = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=20, cycle_momentum=False)
    losses, after_step = [], [weights(plain)]
    for epoch in (1, 2):
        plain.train()
        for images, labels in digits.batches(100)(5, epoch):
            loss = F.cross_entropy(plain(images.contiguous()), labels)  # NCHW
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            cycle.step()
            after_step.append(weights(plain))
    assert first.loss == pytest.approx(sum(losses[:10]) / 10, rel=1e-4)
    steps = [*before_step, weights(fast)]
    assert len(steps) == len(after_step) == 21 and not steps[1][0].equal(steps[0][0])
    for number, (ours, theirs) in enumerate(zip(steps, after_step, strict=True)):
        for one, other in zip(ours, theirs, strict=True):
            # Rounding differs from the first step on, and grows as training goes on.
            assert torch.allclose(one, other, rtol=1e-4 * max(1, number / 2), atol=1e-5 * max(1, number / 2)), number


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has another allocator")
def test_memory_that_a_step_frees_serves_the_next_step() -> None:
    code = """
import resource, torch
def step(): torch.ones(16, 2**20).sum()  # 64 MB
for _ in range(10): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
    faults = {}
    for tunables in (ALLOCATOR, ""):
        environment = {**os.environ, "GLIBC_TUNABLES": tunables}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        faults[tunables] = int(done.stdout)
    assert faults[ALLOCATOR] * 10 < faults[""]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's C library reads it")
@pytest.mark.parametrize("own", [None, "glibc.malloc.check=1"])
def test_the_command_line_starts_itself_again_with_the_allocators_settings(own: str | None) -> None:
    code = """
import os, sys
from unittest import mock
from fcs_utils import cli
with mock.patch.object(cli, "main", lambda **_: print(os.environ["GLIBC_TUNABLES"]) or 0): sys.exit(cli.console())"""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": own} if own else {}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (own or ALLOCATOR)  # the user's own setting stays


def test_a_measurement_that_fails_says_why() -> None:
    job = SpeedJob(network="vgg99", width=0.125, batch_size=8, images=16, what="training", way="study")
    with pytest.raises(StudyError, match="measuring network='vgg99' .*way='study'.* failed: .*network='vgg99' is not allowed"):
        measure_speed(job)


def test_a_loop_that_falls_back_is_no_measurement_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda network: broken)
    job = SpeedJob(network="resnet20", width=0.125, batch_size=8, images=16, what="training", way="study, compiled")
    with pytest.raises(UserWarning, match="goes on without it: No working"):
        images_per_second(job)


@pytest.mark.parametrize(
    ("way", "processes", "allocator"),
    [
        ("usual", 1, None),
        ("study", 1, ALLOCATOR),
        ("study, two at once", 2, ALLOCATOR),
    ],
)
def test_two_at_once_are_measured_like_workers(
    monkeypatch: pytest.MonkeyPatch, way: str, processes: int, allocator: str | None
) -> None:
    seen: list[dict[str, str]] = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            seen.append(env)

        def communicate(self) -> tuple[str, str]:
            return "10.0", ""

        def kill(self) -> None:
            pass

    monkeypatch.setenv("GLIBC_TUNABLES", ALLOCATOR)  # as the command line starts itself
    monkeypatch.setattr(subprocess, "Popen", Process)
    job = SpeedJob(network="resnet20", width=0.125, batch_size=8, images=16, what="training", way=way)
    assert measure_speed(job) == 10 * processes
    assert [env.get("GLIBC_TUNABLES") for env in seen] == [allocator] * processes
    assert processes == 1 or all(env["OMP_NUM_THREADS"] == "1" for env in seen)


def test_speed_and_growth_come_from_the_measurements(smoke: Path) -> None:
    study = Study("smoke", smoke)
    (found,) = by_machine(study.store, "speed")
    table = speed_table([found])
    assert set(table.machine) == {machine_name(found)} and found["machine"]["device"] in machine_name(found)
    assert set(table.way) == {"usual", "study", "study, two at once", "convolutions alone"} and set(table.what) == {
        "training",
        "evaluation",
    }
    assert table[table.way == "usual"]["times the usual loop"].tolist() == ["1.00", "1.00"]
    doubled = {
        **found,
        "rows": [{**r, "images_per_second": r["images_per_second"] * (2 if r["way"] == "usual" else 1)} for r in found["rows"]],
    }
    ratios = [t[t.way == "study"]["times the usual loop"].astype(float).to_numpy() for t in (table, speed_table([doubled]))]
    assert ratios[1] == pytest.approx(ratios[0] / 2, abs=0.01)
    grows = growth_table(found)
    assert grows.network.tolist()[-1] == "ResNet-50" and "ESTIMATE" in grows.iloc[-1]["hours for one epoch"]


def test_each_machine_has_its_measurement_and_renews_only_its_own(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study("smoke", tmp_path)
    (found,) = by_machine(Study("smoke", smoke).store, "speed")
    other = {**found, "machine": {**found["machine"], "device": "another"}}
    stale = {**other, "jobs": other["jobs"][:-1]}
    write_checksummed(study.store.measurements(), {"speed": {"measured": [stale, other]}})
    monkeypatch.setattr("fcs_utils.benchmarks.speed.measure_speed", lambda job: 10.0)
    assert speeds(study.store, study.profile.speed, "cpu") == [other]  # what others measured is not measured again unasked
    for rate in (10.0, 20.0):
        monkeypatch.setattr("fcs_utils.benchmarks.speed.measure_speed", lambda job, rate=rate: rate)
        assert main(["speed", "--profile", "smoke", "--device", "cpu", "--out", str(tmp_path)]) == 0
        first, mine = by_machine(study.store, "speed")
        assert first == other and {row["images_per_second"] for row in mine["rows"]} == {rate}
        assert f"{50_000 / rate:,.2f}" in capsys.readouterr().out
    assert [len(rows) for _, rows in speed_table([first, mine]).groupby("machine")] == [len(speed_table([found]))] * 2


def test_a_folder_that_takes_no_measurement_refuses_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcs_utils.benchmarks.speed.measure_speed", lambda job: pytest.fail("measured nevertheless"))
    study = Study("smoke", tmp_path)
    study.store.root.write_text("a file where the folder should be")
    with pytest.raises(StudyError, match="cannot write .*measurements.json"):
        measure_here(study.store, study.profile.speed, "cpu")


def test_the_grid_counts_shared_runs_once(smoke: Path) -> None:
    study = Study("smoke", smoke)
    found = found_with_parents(study)
    table = grid_cost_table(found).set_index("stage")
    assert table.runs.sum() == len(study.store.all_records())  # the pilots' references and pruned networks, too
    own = grid_cost_table(study.found()).set_index("stage").runs
    assert own.sum() == len({run.identity for run in study.runs()}) < table.runs.sum()
    assert table.runs["reference"] == own["reference"] and table.runs["rates"] > own["rates"]  # where the pilots are needed first
    assert (table["training (10^12 MACs)"].str.replace(",", "").astype(float) > 0).sum() >= 2
