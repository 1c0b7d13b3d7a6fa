"""The script for SLURM in docs/cluster.md, with stand-ins for its commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

from tests.conftest import GUARD, ROOT

STUBS = {
    # It writes its file when somebody waits for it.
    "dask": 'until [ -e waited ]; do /bin/sleep 0.02; done; echo "{}" > scheduler.json; exec /bin/sleep 60',
    "sleep": "touch waited; exec /bin/sleep 0.02",
    "srun": ": > workers",
    "fcs-mlft": 'ls scheduler.json > client; echo "$@" >> client',
}


def test_the_script_for_slurm_starts_the_client_when_the_scheduler_has_written_its_file(tmp_path: Path) -> None:
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.S)
    (tmp_path / "bin").mkdir()
    for name, words in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    (tmp_path / "scheduler.json").write_text("of an earlier job")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    process = subprocess.Popen(["/bin/bash", "-c", script], env=environment, cwd=tmp_path, start_new_session=True)
    try:
        assert process.wait(GUARD) == 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the scheduler goes on, as until a job's end
    said = (tmp_path / "client").read_text().splitlines()
    assert said == ["scheduler.json", "run --profile paper --cluster scheduler.json"]
