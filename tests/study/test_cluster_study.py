"""A study on a cluster leaves the records of a study on one machine, whatever is killed and whether the disk is shared."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("distributed", reason="Dask is not installed: pip install -e '.[cluster]'")

from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors
from fcs_utils.study.cluster import Away, marked
from fcs_utils.study.dask_engine import Lost
from fcs_utils.study.pool import Here
from fcs_utils.study.records import Store
from fcs_utils.study.schedule import Schedule, perform
from fcs_utils.study.study import Study
from tests.conftest import FEW, GUARD, ROOT
from tests.promises.same import SOME, assert_same_records
from tests.study.nodes import Nodes, until

HOSTS = ("127.0.0.2", "127.0.0.3")
# Every epoch is kept, so that a kill in the middle of a training meets a checkpoint.
EAGER = "import fcs_utils.training.checkpoint as checkpoint\ncheckpoint.EVERY = 0\n"
# As on a machine that has no disk in common with the client.
UNSHARED = "import fcs_utils.study.cluster as cluster\ncluster.Mark.seen = lambda mark: False\n"
# The first worker is killed in the middle of a training, when it has written its first checkpoint.
KILLED_ONCE = (
    EAGER
    + """
import os, pathlib, signal
mark = pathlib.Path("killed")
def save_and_die(*arguments, save=checkpoint.Checkpoint.save):  # a worker and its nanny both run this
    save(*arguments)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Checkpoint.save = save_and_die
"""
)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    (tmp_path / "cluster").mkdir()
    made = Nodes(tmp_path / "cluster")
    try:
        yield made
    finally:
        made.close()


def client(nodes: Nodes, out: Path) -> subprocess.Popen[str]:
    words = ["run", "--profile", "smoke", "--out", str(out), "--cluster", str(nodes.file), "--only", *SOME]
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "fcs_utils", *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def past_first_epoch(store: Store) -> list[int]:
    """The epochs that trainings in progress have behind them."""
    found = []
    for path in store.work.glob("unfinished/*.safetensors"):
        try:
            found.append(len(json.loads(read_tensors(path)[1]["training"])["history"]))
        except StudyError:  # it has just been removed, for the training has ended
            continue
    return [epochs for epochs in found if epochs >= 1]


@pytest.mark.slow
def test_a_study_survives_a_worker_a_node_and_the_scheduler(smoke: Path, tmp_path: Path, nodes: Nodes) -> None:
    store, chance = Store(tmp_path / "out", "smoke"), random.Random(0)
    nodes.start_scheduler()
    for host in HOSTS:
        nodes.start_node(host, preload=EAGER)
    process = client(nodes, tmp_path / "out")

    def records(more: int) -> None:
        enough = len(store.all_records()) + more
        until(lambda: len(store.all_records()) >= enough, process)

    # A worker, while a training is past its first epoch; its nanny starts another.
    until(lambda: past_first_epoch(store), process)
    victims = [worker for host in HOSTS for worker in nodes.workers(host)]
    assert len(victims) == 2
    chance.choice(victims).kill()
    records(chance.randint(2, 5))
    # A whole node, and a new one in its place.
    lost = chance.choice(HOSTS)
    nodes.kill_node(lost)
    records(chance.randint(1, 4))
    nodes.start_node(lost, preload=EAGER)
    records(chance.randint(1, 4))
    # The scheduler: the client ends with one line, and the workers end, too.
    family = nodes.family()
    nodes.kill_scheduler()
    _, said = process.communicate(timeout=GUARD)
    assert process.returncode == 1 and "Traceback" not in said, said
    assert said.splitlines()[-1].startswith("error: the scheduler at tcp://127.0.0.1:") and said.count("error") == 1
    assert said.count("a worker was lost: what it did is begun again") >= 1
    assert len(family) >= 4 and not psutil.wait_procs(family, timeout=GUARD)[1]
    kept = {path: path.stat().st_mtime_ns for path in store.all_records()}
    # All of it again: what is done is not done again.
    nodes.start_scheduler()
    for host in HOSTS:
        nodes.start_node(host, preload=EAGER)
    process = client(nodes, tmp_path / "out")
    said, complained = process.communicate(timeout=GUARD)
    assert process.returncode == 0 and "runs of profile smoke are in " in said, complained
    assert_same_records(smoke, tmp_path / "out", only=SOME)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert not list(store.work.glob("unfinished/*.safetensors")) and not list(store.work.glob("state/cluster-*"))


@pytest.mark.slow
def test_without_a_shared_disk_records_and_weights_come_home(
    tmp_path: Path, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    out, chosen = tmp_path / "out", ["network=vgg16", "criterion=fcs"]
    Study(FEW, tmp_path / "here").run(["tuned"], only=chosen)
    study = Study(FEW, out)
    nodes.start_scheduler()
    nodes.start_node(HOSTS[0], preload=UNSHARED + KILLED_ONCE)
    (record,) = study.run(["reference"], only=chosen[:1], cluster=str(nodes.file))
    assert study.store.weights(record["id"]).exists()
    assert (nodes.folder / HOSTS[0] / "killed").exists()
    assert capsys.readouterr().err.count("a worker was lost: what it did is begun again") == 1
    # Another node has no weights, and asks for them.
    os.killpg(nodes.nodes[HOSTS[0]].pid, signal.SIGTERM)
    nodes.nodes.pop(HOSTS[0]).wait(GUARD)
    nodes.start_node(HOSTS[1], preload=UNSHARED)
    study.run(["tuned"], only=chosen, cluster=str(nodes.file))
    assert_same_records(tmp_path / "here", out, all_of_them=True)
    names = {path.relative_to(study.store.work).parts[0] for path in study.store.work.rglob("*") if path.is_file()}
    assert names == {"records", "weights", "study.json"}  # no lock and no checkpoint: nobody else writes here
    own = nodes.folder / HOSTS[1]
    assert list(own.rglob("locks/*.lock"))  # that is where it was done
    os.killpg(nodes.nodes[HOSTS[1]].pid, signal.SIGTERM)
    nodes.nodes.pop(HOSTS[1]).wait(GUARD)
    assert not list(own.rglob("locks/*.lock")) and not list((nodes.folder / HOSTS[0]).rglob("locks/*.lock"))


class Losing(Executor):
    """Loses the workers of one network's runs, and does the others here."""

    def __init__(self, network: str) -> None:
        self.network = network

    def submit(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if args[0].runs[0].reference.network != self.network:
            return Here().submit(function, *args, **keywords)
        future.set_exception(Lost("its worker was lost 4 times"))
        return future


def test_a_lost_run_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    study = Study(FEW, tmp_path)
    both, identities = study.grid["reference"], {run.identity: 1 for run in study.grid["reference"]}
    schedule = Schedule()
    schedule.add(both, identities)
    with ThreadPoolExecutor(1) as desk, marked(study.store) as mark:
        ends = list(perform(schedule, Away(study, Losing("vgg16"), mark, desk), lambda: 2, study.ensure))
    errors = {run.reference.network: error and str(error) for run, error in ends}
    assert errors == {"vgg16": "vgg16 x0.125 seed 0: its worker was lost 4 times", "resnet20": None}
    assert len(study.store.all_records()) == 1 and not list(study.store.work.glob("state/*"))


@pytest.mark.slow
def test_notebooks_are_executed_on_the_cluster(
    smoke: Path, tmp_path: Path, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    from fcs_utils.report import execution
    from fcs_utils.report.chapters import NOTEBOOKS

    shutil.copytree(smoke / "smoke", tmp_path / "out" / "smoke")
    store, done = Store(tmp_path / "out", "smoke"), []
    executed = store.executed(NOTEBOOKS["09"].name)
    executed.unlink(missing_ok=True)
    nodes.start_scheduler()
    nodes.start_node(HOSTS[0])
    parameters, chosen = {"profile": "smoke", "out": str(tmp_path / "out")}, {"09": NOTEBOOKS["09"]}
    execution.execute_all(store, chosen, parameters, 1, lambda number, notebook: done.append(number), str(nodes.file))
    assert done == ["09"] and "claim" in executed.read_text()
    line = "notebook 09_paper_tables ..."
    assert line in (nodes.folder / HOSTS[0] / "log").read_text() and line not in capsys.readouterr().err
