"""A study ends with the same records after kills, full disks, missing memory and damaged files."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import torch

from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed, read_tensors, write_atomic
from fcs_utils.report import chapters, publish
from fcs_utils.study import study as study_module
from fcs_utils.study.catalogue import STAGES
from fcs_utils.study.guards import file_lock
from fcs_utils.study.records import ABANDONED, Store
from fcs_utils.study.study import Study
from tests.conftest import GUARD, ROOT, study_command

# Every epoch is kept, so that a kill in the middle of a training meets a checkpoint.
EAGER = """
import signal, sys
import fcs_utils.training.checkpoint as checkpoint
from fcs_utils.cli import main

checkpoint.EVERY = 0
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & switches it off for all that start below it
sys.exit(main(sys.argv[1:]))
"""


def start(*arguments: str, eager: bool = False) -> subprocess.Popen[str]:
    how = ["-c", EAGER] if eager else ["-m", "fcs_utils"]
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *how, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The fields in which two records differ, except ``volatile``."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if path or key != "volatile":
                yield from differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{path}[{number}]")
    elif one != other:
        yield f"{path}: {one!r} != {other!r}"


def assert_same_records(expected: Path, found: Path, *, all_of_them: bool = True) -> None:
    """Asserts that records are equal byte for byte except for ``volatile``; names the record and field that differ."""
    names = {path.name for path in (found / "smoke" / "work" / "records").glob("*.json")}
    if all_of_them:
        assert names == {path.name for path in (expected / "smoke" / "work" / "records").glob("*.json")}
    assert names
    for name in sorted(names):
        both = [read_checksummed(root / "smoke" / "work" / "records" / name) for root in (expected, found)]
        assert not list(differences(*both)), name
        texts = [json.dumps({k: v for k, v in record.items() if k != "volatile"}) for record in both]
        assert texts[0] == texts[1], f"{name}: the order of fields differs"


def test_differences_are_named() -> None:
    one = {"result": {"history": [{"loss": 1.0}, {"loss": 2.0}]}, "volatile": {"seconds": 1}}
    other = {"result": {"history": [{"loss": 1.0}, {"loss": 2.5}]}, "volatile": {"seconds": 2}, "extra": 1}
    assert sorted(differences(one, other)) == ["extra: None != 1", "result.history[1].loss: 2.0 != 2.5"]


@pytest.mark.parametrize(
    ("kills", "stages"),
    [(3, ["reference", "similarity", "pruned"]), pytest.param(10, list(STAGES), marks=pytest.mark.slow)],
    ids=["three", "ten"],
)
def test_kills_at_random_moments_leave_the_records_of_an_undisturbed_run(
    smoke: Path, tmp_path: Path, kills: int, stages: list[str]
) -> None:
    chance, store = random.Random(0), Store(tmp_path, "smoke")
    command = ["run", "--profile", "smoke", "--out", str(tmp_path), "--stages", *stages]
    written: dict[Path, int] = {}  # what is done is not done again
    for kill in range(kills):
        eager = kill % 2 == 0  # one worker that keeps every epoch, or two that keep whole runs
        process = start(*command, "--workers", "1" if eager else "2", eager=eager)
        # Moments are counted in work done, not on a clock: some after a record, some within a training.
        enough = len(store.all_records()) + chance.randint(1, 6)
        within = kill == 0 or (eager and chance.random() < 0.5)
        while not (list(store.work.glob("unfinished/*.safetensors")) if within else len(store.all_records()) >= enough):
            assert process.poll() is None, "the study ended before it was killed"
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        victim = chance.choice([one for one in family if "resource_tracker" not in " ".join(one.cmdline())] or [process])
        if kill == kills - 1 or chance.random() < 0.5:
            victim = process
        victim.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=GUARD)
        assert process.returncode == (-9 if victim is process else 1), said
        if victim is not process:
            assert "a worker process died" in said and "Traceback" not in said
        _, orphans = psutil.wait_procs(family, timeout=GUARD)
        assert not orphans
        written = {path: written.get(path, path.stat().st_mtime_ns) for path in store.all_records()}
    done = study_command(*command, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "set aside" not in done.stderr and not list(store.root.rglob("*.corrupt"))
    assert_same_records(smoke, tmp_path, all_of_them=kills == 10)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items()) and len(written) >= kills
    assert not list((store.work / "unfinished").glob("*.safetensors"))


@pytest.mark.parametrize("sign", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_sigint_and_sigterm_keep_the_epoch_and_say_so(smoke: Path, tmp_path: Path, sign: signal.Signals) -> None:
    store, command = Store(tmp_path, "smoke"), ["run", "--profile", "smoke", "--stages", "reference", "--out", str(tmp_path)]
    process = start(*command, "--workers", "1", eager=True)
    while not list((store.work / "unfinished").glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(sign)
    _, said = process.communicate(timeout=GUARD)
    assert process.returncode == 128 + sign and said.startswith("interrupted: ") and said.count("\n") == 1
    (kept,) = (store.work / "unfinished").glob("*.safetensors")
    before = len(json.loads(read_tensors(kept)[1]["training"])["history"])
    assert before >= 1
    assert study_command(*command).returncode == 0
    assert_same_records(smoke, tmp_path, all_of_them=False)


@pytest.mark.slow
def test_a_second_interrupt_shows_no_traceback(smoke: Path, tmp_path: Path) -> None:
    store, command = Store(tmp_path, "smoke"), ["run", "--profile", "smoke", "--out", str(tmp_path)]
    process = start(*command, "--workers", "2", eager=True)
    while not list(store.all_records()):
        assert process.poll() is None
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)  # signals that arrive together count as one
    _, said = process.communicate(timeout=GUARD)
    assert process.returncode == 130 and "Traceback" not in said
    assert family and not psutil.wait_procs(family, timeout=GUARD)[1]
    assert study_command(*command, "--stages", "reference").returncode == 0
    assert_same_records(smoke, tmp_path, all_of_them=False)


# -- the disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB; skipped where mounting is not allowed."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], capture_output=True)  # noqa: S607
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # noqa: S607


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_the_next_start_goes_on(smoke: Path, small_disk: Path) -> None:
    command = ["run", "--profile", "smoke", "--stages", "reference", "similarity", "--out", str(small_disk), "--workers", "1"]
    assert study_command(*command, "--only", "network=vgg16").returncode == 0
    kept = {path: path.read_bytes() for path in Store(small_disk, "smoke").all_records()}
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    done = study_command(*command)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr and "No space left on device" in done.stderr
    assert kept == {path: path.read_bytes() for path in Store(small_disk, "smoke").all_records()}
    assert not list(small_disk.rglob("*.tmp"))
    filler.unlink()
    assert study_command(*command).returncode == 0
    assert_same_records(smoke, small_disk, all_of_them=False)


def test_a_write_that_the_system_cuts_short_is_refused(tmp_path: Path) -> None:
    """Needs no privileges: the process is not allowed to write files of more than 1,000 bytes."""
    code = (
        "import resource, sys; from pathlib import Path; from fcs_utils.files import write_atomic;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_atomic(Path(sys.argv[1]), bytes(5000))"
    )
    path = tmp_path / "file"
    write_atomic(path, b"old")
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and f"cannot write {path}: File too large; what was there before is kept" in done.stderr
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_what_a_power_cut_leaves_is_swept_or_set_aside(smoke: Path, tmp_path: Path) -> None:
    """Half-written temporary files, and a record whose name reached the disk before its content."""
    study = Study("smoke", tmp_path)
    run = study.runs(["similarity"])[0]
    path = study.store.record(run.kind, run.identity)
    write_atomic(path, b"")
    old, young = path.with_name(path.name + "x.tmp"), path.with_name(path.name + "y.tmp")
    for left, age in ((old, ABANDONED + 60), (young, 0.0)):
        left.write_bytes(b'{"half')
        os.utime(left, (time.time() - age,) * 2)
    with pytest.warns(UserWarning, match="set aside as"):
        study.run(["similarity"])
    assert not old.exists() and young.exists()  # a recent one may belong to another process
    assert path.with_suffix(".corrupt").exists()
    assert_same_records(smoke, tmp_path, all_of_them=False)


# -- memory and kernels --------------------------------------------------------------------------------------------


def test_a_run_without_memory_fails_alone_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = study_module.do

    def greedy(bench, run, *rest):
        if run.reference.network == "vgg16":
            torch.empty(2**50)  # the real error of the real allocator
        return real(bench, run, *rest)

    monkeypatch.setattr(study_module, "do", greedy)
    study = Study("smoke", tmp_path)
    with pytest.raises(StudyError, match="1 runs failed.*vgg16 x0.125 seed 0: memory ran out; take fewer --workers"):
        study.run(["reference"])
    assert len(study.store.all_records()) == 1


def notebook_of(folder: Path, code: str, name: str = "planted") -> publish.Notebook:
    cell = nbformat.v4.new_code_cell("profile: str = 'smoke'  # one", metadata={"tags": ["parameters"]})
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [cell, nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb")
    return publish.Notebook(name, (), measures_time=True)  # in this process, where SOURCES is another


@pytest.mark.parametrize(
    ("code", "message"),
    [("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "its kernel was killed"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_killed_kernel_and_a_failing_cell_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(chapters, "SOURCES", tmp_path)
    store, notebook = Store(tmp_path, "smoke"), notebook_of(tmp_path, code)
    with pytest.raises(StudyError, match=f"notebook planted.*{message}"):
        publish.execute(store, notebook, {"profile": "smoke"})
    assert not store.executed("planted").exists()
    assert store.failed("planted").exists() or "killed" in message  # the copy up to the failing cell
    with pytest.raises(StudyError, match="parameter of planted='profil' is not allowed; allowed: profile"):
        publish.execute(store, notebook, {"profil": "smoke"})


def test_one_failing_chapter_does_not_keep_the_others_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chapters, "SOURCES", tmp_path)
    store = Store(tmp_path, "smoke")
    done: list[str] = []
    both = {"01": notebook_of(tmp_path, "1 / 0"), "02": notebook_of(tmp_path, "1 + 1", "sound")}
    with pytest.raises(StudyError, match="notebook planted failed: ZeroDivisionError"):
        publish.execute_all(store, both, {"profile": "smoke"}, 1, lambda number, notebook: done.append(number))
    assert store.executed("sound").exists() and done == ["02"]


def test_a_stale_lock_file_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "x.lock"
    path.parent.mkdir()
    path.write_text("left behind by a kill")
    with warnings.catch_warnings(), file_lock(path, "the run"):
        warnings.simplefilter("error")
