"""An interrupted study goes on to the same records; runs done side by side equal runs done one by one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file

from fcs_utils.errors import OutOfTime, StudyError
from fcs_utils.files import read_tensors, tensors_sum
from fcs_utils.machine import pick_workers
from fcs_utils.study.guards import Deadline, file_lock
from fcs_utils.study.pool import Here
from fcs_utils.study.profiles import studies
from fcs_utils.study.records import write_record
from fcs_utils.study.runs import Run
from fcs_utils.study.schedule import Schedule, perform
from fcs_utils.study.study import Study
from fcs_utils.training.optimiser import Training
from tests.conftest import FEW, ROOT, command_here


def test_a_study_stops_in_time_and_goes_on_to_the_same_record(smoke: Path, tmp_path: Path) -> None:
    study = Study("smoke", tmp_path)
    (run, *_) = study.runs(["reference"])
    study.bench.deadline = Deadline(time.monotonic())
    with pytest.raises(OutOfTime):
        study.run(["reference"])
    assert not study.store.all_records()

    def spend(macs: int) -> None:
        study.bench.deadline.at = time.monotonic()  # the first epoch has used it up

    study.bench.deadline = Deadline()
    with pytest.raises(OutOfTime):
        study.ensure(run, spend)
    assert study.record(run) is None and study.store.unfinished(run.identity).exists()
    again = Study("smoke", tmp_path)
    seen: list[int] = []
    again.ensure(run, seen.append)
    assert len(seen) == run.reference.training.epochs - 1
    assert again.record(run)["result"] == Study("smoke", smoke).record(run)["result"]
    assert not again.store.unfinished(run.identity).exists()


def test_a_run_that_was_given_up_does_not_count_as_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, shown = Study("smoke", tmp_path), MagicMock()
    shown.return_value.n = 0
    monkeypatch.setattr("fcs_utils.study.study.tqdm", shown)
    ends: list[StudyError | None] = [None, OutOfTime("enough")]

    def ensure(run: Run, *, wait: bool) -> None:
        if error := ends.pop(0):
            raise error

    monkeypatch.setattr(study, "ensure", ensure)
    with pytest.raises(OutOfTime):
        study.run(["reference"])
    (said,) = shown.return_value.set_postfix_str.call_args_list
    assert said.args[0].startswith("1 of 2 runs") and not ends


def test_workers_are_at_least_one(tmp_path: Path) -> None:
    assert pick_workers(None, torch.device("cuda")) == 1 and pick_workers(None, torch.device("cpu")) >= 1
    with pytest.raises(StudyError, match="workers=0"):
        Study("smoke", tmp_path).run(["reference"], workers=0)


@pytest.mark.slow
def test_a_part_of_the_runs_by_fields(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--profile", "smoke"]
    listed = command_here("run", *out, "--only", "network=resnet20", "ratio=0.5", "criterion=fcs", "method=tft", "--list")
    assert listed.returncode == 0 and not list(tmp_path.iterdir()), listed.stderr
    assert listed.stdout.splitlines() == [
        "resnet20 x0.25 seed 0",
        "resnet20 x0.25 seed 0, fcs ratio 0.5",
        "resnet20 x0.25 seed 0, fcs ratio 0.5, tft 1 epoch lr 0.02",
    ]
    done = command_here("run", *out, "--stages", "reference", "--only", "network=resnet20", "--workers", "1")
    assert done.returncode == 0 and "records of 1 run of profile smoke" in done.stdout, done.stderr
    assert [path.name.split("-")[0] for path in Study("smoke", tmp_path).store.all_records()] == ["reference"]
    # What the one wanted run builds on is done with it; stage arms, of which nothing is wanted, stays open.
    done = command_here("run", *out, "--only", "network=resnet20", "ratio=0.5", "criterion=fcs", "kind=tuned", "--workers", "1")
    assert done.returncode == 0 and "records of 1 run of profile smoke" in done.stdout, done.stderr
    assert len(Study("smoke", tmp_path).store.all_records()) == 3
    done = command_here("run", *out, "--stages", "reference", "--only", "network=resnet56")
    assert done.returncode == 1 and "only='reference.network=resnet56' is not allowed; allowed: vgg16, resnet20" in done.stderr


@pytest.mark.slow
def test_a_profile_of_several_data_sets_is_a_study_of_each(tmp_path: Path) -> None:
    assert studies("paper") == ["paper", "paper:cifar100"] and studies("paper", ["cifar10"]) == ["paper"]
    assert studies("paper", ["imagefolder:x", "cifar10"]) == ["paper:imagefolder:x", "paper"] and studies("quick") == ["quick"]
    command = ["run", "--out", str(tmp_path), "--profile", "smoke", "--stages", "reference", "--only", "network=resnet20"]
    refused = command_here(*command, "--datasets", "digits,imagefolder:nothing")
    assert refused.returncode == 1 and "'imagefolder:nothing' not found" in refused.stderr
    assert not list(tmp_path.rglob("*.json"))  # known before the first one took its hours
    (tmp_path / "smoke-imagefolder-nothing").mkdir()
    refused = command_here("run", "--out", str(tmp_path), "--profile", "smoke:imagefolder:nothing", "--fresh")
    assert refused.returncode == 1 and [path.name for path in tmp_path.iterdir()] == ["smoke-imagefolder-nothing"]  # not set aside
    done = command_here(*command, "--workers", "1", "--datasets", "digits,digits[:500]")
    assert done.returncode == 0 and done.stdout.count("records of 1 run of profile smoke") == 2, done.stderr
    folders = [Study(name, tmp_path).store.root for name in ("smoke", "smoke:digits[:500]")]
    assert [len(list((folder / "work" / "records").glob("*.json"))) for folder in folders] == [1, 1] and folders[0] != folders[1]


@pytest.mark.parametrize("budget", ["0m", "-1h", "soon", "5", "nanh", "infh"])
def test_time_budgets_are_times(budget: str) -> None:
    done = command_here("run", f"--time-budget={budget}")
    assert done.returncode == 2 and "is not allowed; allowed: a number with s, m or h" in done.stderr


def test_a_used_up_time_budget_is_no_failure(tmp_path: Path) -> None:
    done = command_here("run", "--profile", "smoke", "--out", str(tmp_path), "--workers", "1", "--time-budget", "0.001s")
    assert done.returncode == 0 and "the time budget is used up; finished runs are kept" in done.stderr


def test_a_failed_reference_fails_its_runs_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("smoke", tmp_path)
    tried = []

    def broken(run: Run, *, wait: bool) -> None:
        tried.append(run.reference.network)
        if run.reference.network == "vgg16":
            raise StudyError("vgg16 broke")

    monkeypatch.setattr(study, "ensure", broken)
    count = len([run for run in study.runs(["pruned"]) if run.reference.network == "vgg16"])
    message = f"1 run failed and {count} that build on them were not done, the others have their records. First: vgg16 broke"
    with pytest.raises(StudyError, match=message):
        study.run(["reference", "pruned"])
    assert sorted(tried) == ["resnet20"] * (count + 1) + ["vgg16"]


def test_a_network_of_the_study_is_what_its_file_holds(tmp_path: Path) -> None:
    study = Study(FEW, tmp_path)
    reference = study.runs(["reference"])[0].reference
    run = Run(reference=reference.model_copy(update={"training": Training(epochs=1, learning_rate=0.01, batch_size=100)}))
    network = study.bench.untrained(run.reference)
    study.bench.train_reference(run, network)
    held = load_file(study.store.weights(run.identity))
    assert {tensor.dtype for name, tensor in held.items() if tensor.dim() > 1} == {torch.float16}
    assert all(tensor.equal(held[name].to(tensor.dtype)) for name, tensor in network.state_dict().items())


def test_two_starts_share_the_work(smoke: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fcs_utils",
        "run",
        "--profile",
        "smoke",
        "--stages",
        "reference",
        "--out",
        str(tmp_path),
        "--workers",
        "1",
    ]
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert all("2 runs of profile smoke" in out for out, _ in ends)
    alone, shared = Study("smoke", smoke), Study("smoke", tmp_path)
    for run in shared.runs(["reference"]):
        assert shared.record(run)["result"] == alone.record(run)["result"]


def hold(path: Path) -> subprocess.Popen[bytes]:
    """Another process that has a lock until it is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = f"import filelock, time; lock = filelock.FileLock({str(path)!r}); lock.acquire(); print(1, flush=True); time.sleep(3600)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"1\n"
    return holder


def test_what_another_process_has_in_hand_comes_last(tmp_path: Path) -> None:
    study = Study(FEW, tmp_path)
    first, second = study.runs(["reference"])
    with hold(study.store.lock(first.identity)) as holder:
        schedule, done = Schedule(), []
        schedule.add([first, second], {first.identity: 2, second.identity: 1})
        for run, error in perform(schedule, Here(), 1, study.ensure):
            done.append((run, error))
            holder.kill()
    assert done == [(second, None), (first, None)]


def test_a_lock_is_waited_for_and_ends_with_its_holder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(FEW, tmp_path)
    run = study.runs(["reference"])[0]
    path = study.store.lock(run.identity)
    with hold(path) as holder:
        study.bench.deadline = Deadline(time.monotonic() + 0.2)
        with pytest.raises(OutOfTime):
            study.ensure(run)
        assert "is being done by another process: waiting" in capsys.readouterr().err
        holder.kill()
    with file_lock(path, "the run", Deadline()):
        pass


def test_weights_that_are_missing_are_waited_for_within_the_time_budget(tmp_path: Path) -> None:
    study = Study(FEW, tmp_path)
    run = study.runs(["reference"])[0]
    study.ensure(run)
    study.store.weights(run.identity).unlink()
    with hold(study.store.lock(run.identity)) as holder:
        study.bench.deadline = Deadline(time.monotonic() + 0.2)
        with pytest.raises(OutOfTime):
            study.bench.trained(run.reference)
        holder.kill()


def test_weights_that_are_missing_are_trained_again_as_the_record_says(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(FEW, tmp_path)
    run = study.runs(["reference"])[1]
    record, path = study.ensure(run), study.store.weights(run.identity)
    path.unlink()
    study.bench.trained(run.reference)
    assert tensors_sum(read_tensors(path)[0]) == record["result"]["weights_sha256"] and not recwarn.list
    assert "training them again" in capsys.readouterr().err and not study.store.unfinished(run.identity).exists()
    path.unlink()
    record["result"]["weights_sha256"] = "of another machine"
    write_record(study.store, record)
    with pytest.warns(UserWarning, match="not bit-equal to the one behind the records"):
        Study(FEW, tmp_path).bench.trained(run.reference)
