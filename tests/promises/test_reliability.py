"""A study ends with the same records after full disks, missing memory and failing notebooks."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import torch

from fcs_utils.errors import StudyError
from fcs_utils.files import write_atomic
from fcs_utils.report import chapters, execution
from fcs_utils.study import study as study_module
from fcs_utils.study.guards import file_lock
from fcs_utils.study.records import ABANDONED, Store
from fcs_utils.study.study import Study
from tests.conftest import ROOT, command_here, study_command
from tests.promises.same import assert_same_records

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
    assert command_here(*command, "--only", "network=vgg16").returncode == 0
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
    assert command_here(*command).returncode == 0
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
    with pytest.raises(StudyError, match="1 run failed.*vgg16 x0.125 seed 0: memory ran out; take fewer --workers"):
        study.run(["reference"])
    assert len(study.store.all_records()) == 1


def notebook_of(folder: Path, code: str, name: str = "planted") -> chapters.Notebook:
    cell = nbformat.v4.new_code_cell("profile: str = 'smoke'  # one", metadata={"tags": ["parameters"]})
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [cell, nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb")
    return chapters.Notebook(name, (), measures_time=True)  # in this process, where SOURCES is another


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
        execution.execute(store, notebook, {"profile": "smoke"})
    assert not store.executed("planted").exists()
    assert store.failed("planted").exists() or "killed" in message  # the copy up to the failing cell
    with pytest.raises(StudyError, match="parameter of planted='profil' is not allowed; allowed: profile"):
        execution.execute(store, notebook, {"profil": "smoke"})


def test_one_failing_chapter_does_not_keep_the_others_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chapters, "SOURCES", tmp_path)
    store = Store(tmp_path, "smoke")
    done: list[str] = []
    both = {"01": notebook_of(tmp_path, "1 / 0"), "02": notebook_of(tmp_path, "1 + 1", "sound")}
    with pytest.raises(StudyError, match="notebook planted failed: ZeroDivisionError"):
        execution.execute_all(store, both, {"profile": "smoke"}, 1, lambda number, notebook: done.append(number))
    assert store.executed("sound").exists() and done == ["02"]


def test_a_stale_lock_file_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "x.lock"
    path.parent.mkdir()
    path.write_text("left behind by a kill")
    with warnings.catch_warnings(), file_lock(path, "the run"):
        warnings.simplefilter("error")
