"""Kills and signals at any moment leave the records of an undisturbed study, and no process behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fcs_utils.files import read_tensors
from fcs_utils.study.records import Store
from tests.conftest import GUARD, ROOT, command_here
from tests.promises.same import SOME, assert_same_records, differences

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


def test_differences_are_named() -> None:
    one = {"result": {"history": [{"loss": 1.0}, {"loss": 2.0}]}, "volatile": {"seconds": 1}}
    other = {"result": {"history": [{"loss": 1.0}, {"loss": 2.5}]}, "volatile": {"seconds": 2}, "extra": 1}
    assert sorted(differences(one, other)) == ["extra: None != 1", "result.history[1].loss: 2.0 != 2.5"]


def test_kills_at_random_moments_leave_the_records_of_an_undisturbed_run(smoke: Path, tmp_path: Path) -> None:
    chance, store, kills = random.Random(0), Store(tmp_path, "smoke"), 4
    command = ["run", "--profile", "smoke", "--out", str(tmp_path), "--only", *SOME]
    written: dict[Path, int] = {}  # what is done is not done again
    for kill in range(kills):
        eager = kill % 2 == 0  # one worker that keeps every epoch, or two that keep whole runs
        process = start(*command, "--workers", "1" if eager else "2", eager=eager)
        # Moments are counted in work done, not on a clock: some after a record, some within a training.
        enough = len(store.all_records()) + chance.randint(1, 4)
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
    done = command_here(*command, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "set aside" not in done.stderr and not list(store.root.rglob("*.corrupt"))
    assert_same_records(smoke, tmp_path, only=SOME)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items()) and len(written) >= kills
    assert not list((store.work / "unfinished").glob("*.safetensors"))


@pytest.mark.parametrize("sign", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_sigint_and_sigterm_keep_the_epoch_and_say_so(smoke: Path, tmp_path: Path, sign: signal.Signals) -> None:
    store = Store(tmp_path, "smoke")
    command = ["run", "--profile", "smoke", "--stages", "reference", "--out", str(tmp_path), "--workers", "1", "--only", SOME[0]]
    process = start(*command, eager=True)
    while not list((store.work / "unfinished").glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(sign)
    _, said = process.communicate(timeout=GUARD)
    assert process.returncode == 128 + sign and said.startswith("interrupted: ") and said.count("\n") == 1
    (kept,) = (store.work / "unfinished").glob("*.safetensors")
    before = len(json.loads(read_tensors(kept)[1]["training"])["history"])
    assert before >= 1
    assert command_here(*command).returncode == 0
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
    assert process.returncode == 130 and "Traceback" not in said and "Warning" not in said
    assert family and not psutil.wait_procs(family, timeout=GUARD)[1]
    assert command_here(*command, "--stages", "reference", "--workers", "1").returncode == 0
    assert_same_records(smoke, tmp_path, all_of_them=False)
