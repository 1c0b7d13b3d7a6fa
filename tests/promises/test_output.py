"""Output whose reader has gone ends a command without a word; what a start of JupyterLab hands to its kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fcs_utils.cli.process import ALLOCATOR
from tests.conftest import ROOT

COMMANDS = ["--help", "--version", "study --help", "run --profile smoke --list", "tables --profile quick --out OUT", "runn"]


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("closed", ["the reader has gone", "stdout is closed", "both are closed"])
def test_no_command_shows_a_traceback_when_nobody_reads(words: str, closed: str, tmp_path: Path) -> None:
    if "OUT" in words:
        shutil.copytree(ROOT / "results" / "quick", tmp_path / "quick", ignore=shutil.ignore_patterns("weights"))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fcs_utils", *words.replace("OUT", str(tmp_path)).split()]
    if closed == "stdout is closed":
        command = ["/bin/sh", "-c", '"$@" >&-', "sh", *command]
    streams = {"stdout": writer, "stderr": writer if closed == "both are closed" else subprocess.PIPE}
    done = subprocess.run(command, cwd=ROOT, text=True, **streams)  # type: ignore[call-overload]
    os.close(writer)
    said = (done.stderr or "").removeprefix("error: command='runn'")
    assert done.returncode in (0, 2, 120, 141) and "Traceback" not in said and "Exception ignored" not in said, said


def test_jupyterlab_gets_the_allocators_settings_and_an_absolute_data_folder(tmp_path: Path) -> None:
    for name in ("run_all.sh", "fcs_utils", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "images").mkdir()
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "venv.sh").write_text(f"find_python() {{ echo {sys.executable}; }}\nmake_venv() {{ :; }}\n")
    jupyter = tmp_path / ".venv" / "bin" / "jupyter"
    jupyter.parent.mkdir(parents=True)
    jupyter.write_text('#!/bin/sh\necho "$GLIBC_TUNABLES|$FCS_DATA|$*"\n')
    jupyter.chmod(0o755)
    (tmp_path / "run.sh").write_text((ROOT / "run_all.sh").read_text())
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    for more, want in (({}, ALLOCATOR), ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0")):
        environment = {**plain, "FCS_DATA": "images", **more}
        command = ["bash", str(tmp_path / "run.sh"), "lab"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        tunables, data, words = done.stdout.strip().split("|")
        assert data == str(tmp_path / "images") and words.startswith("lab ") and "explore.ipynb" in words
        assert tunables == want or sys.platform != "linux"
