"""A Dask cluster as an executor: who may take part, where work goes, and what becomes of it when its worker is lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("distributed", reason="Dask is not installed: pip install -e '.[cluster]'")

from distributed.protocol.pickle import dumps, loads
from tqdm import tqdm

from fcs_utils.errors import StudyError
from fcs_utils.study import dask_engine, guards
from fcs_utils.study.catalogue import HEADLINE
from fcs_utils.study.cluster import on_cluster, scheduler_address
from fcs_utils.study.cluster_cost import LONG, idle_runs
from fcs_utils.study.dask_engine import Engine, Lost, refusal, versions
from fcs_utils.study.guards import Deadline
from fcs_utils.study.measurements import kept
from fcs_utils.study.records import Store
from tests.conftest import GUARD, ROOT, command_here
from tests.study.nodes import Nodes, until
from tests.study.work import die, fail_oddly, images_of_a_loader, train_for_ever, wait_for, where


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One node without a GPU, and one that says that it has one."""
    made = Nodes(tmp_path_factory.mktemp("cluster"))
    try:
        made.start_scheduler()
        made.start_node("127.0.0.2")
        made.start_node("127.0.0.3", "--resources", "GPU=1", CUDA_VISIBLE_DEVICES="0")
        with on_cluster(str(made.file)) as engine:
            until(lambda: engine.everywhere(os.getpid)[1:])
        yield made
    finally:
        made.close()


@pytest.fixture
def engine(nodes: Nodes) -> Iterator[Engine]:
    with on_cluster(str(nodes.file)) as found:
        yield found


def test_where_a_worker_has_a_gpu_work_goes_to_such_workers_alone(engine: Engine) -> None:
    places = {future.result(GUARD) for future in [engine.submit(where) for _ in range(8)]}
    ((address, gpu),) = places
    assert address.startswith("tcp://127.0.0.3:") and gpu == "0"


def test_the_cost_of_a_profile_is_estimated_on_a_worker(nodes: Nodes, tmp_path: Path) -> None:
    done = command_here("estimate", "--profile", "smoke", "--out", str(tmp_path), "--cluster", str(nodes.file))
    assert done.returncode == 0, done.stderr
    # Of two workers one says that it has a GPU, and runs go to such workers alone.
    assert "smoke on 1 worker of a cluster" in done.stdout and re.search(r"^ *all +\d+ ", done.stdout, re.MULTILINE)
    assert not [*tmp_path.rglob("*.json")]


def test_a_worker_may_have_processes_of_its_own(engine: Engine) -> None:
    assert engine.submit(images_of_a_loader).result(GUARD) == 6


def test_lost_work_is_begun_again_three_times_and_then_fails(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes"
    future = engine.submit(die, str(notes))
    for time in range(1, 5):
        until(lambda lost=time - 1: engine._begun and engine.again >= lost)
        (tmp_path / f"notes.{time}").touch()
    with pytest.raises(Lost, match=r"its worker was lost 4 times, the last time tcp://127.0.0.3:\d+"):
        future.result(GUARD)
    assert notes.read_text().count("begun") == 4 and engine.again == 3
    assert capsys.readouterr().err.count("a worker was lost: what it did is begun again") == 3
    assert engine.submit(sum, [1, 2]).result(GUARD) == 3  # its nanny has started another worker


def test_cancelled_work_has_failed_though_it_has_no_exception(engine: Engine, tmp_path: Path) -> None:
    future = engine.submit(wait_for, str(tmp_path / "never"))
    until(lambda: engine._begun)
    engine._client.cancel([*engine._open])
    with pytest.raises(Lost, match="the cluster cancelled it"):
        future.result(GUARD)
    (tmp_path / "never").touch()  # nothing ends what has begun, but for its own looking up at an epoch's end


class Going:
    """A client of Dask, and the one future that it gives, whose scheduler goes while work is handed over or a result on its way."""

    def __init__(self, after: str) -> None:
        self.status, self.after, self.done = "running", after, list[Any]()
        self.add_done_callback, self.subscribe_topic = self.done.append, lambda *_: None
        self.scheduler_info = lambda n_workers: {"workers": {}, "n_workers": 1}

    def submit(self, *_: Any, **options: Any) -> Going:
        self.status = self.after
        return self

    def result(self) -> None:
        self.status = "connecting"
        raise OSError("the connection is lost")


def test_nobody_waits_for_work_in_hand_when_the_scheduler_goes() -> None:
    with pytest.raises(BrokenExecutor, match="the scheduler is gone"):
        Engine(cast(Any, Going("connecting")), print).submit(where)
    client: Any = Going("running")
    future = Engine(client, print).submit(where)
    client.done[0](client)
    with pytest.raises(OSError, match="the connection is lost"):
        future.result(0)


def test_whatever_goes_wrong_there_arrives_here(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="(?s)in fail_oddly.*ValueError: .'odd', <unlocked"):
        engine.submit(fail_oddly).result(GUARD)


def test_epochs_are_heard_here_and_nothing_goes_on_for_a_client_that_left(nodes: Nodes, tmp_path: Path) -> None:
    heard: list[int] = []
    with on_cluster(str(nodes.file), heard.append) as engine:
        engine.submit(train_for_ever, str(tmp_path / "notes"))
        until(lambda: len(heard) >= 3)
    assert set(heard) == {7}
    until((tmp_path / "notes").exists)


def test_a_worker_that_comes_later_and_does_not_fit_goes_again(engine: Engine, nodes: Nodes) -> None:
    assert nodes.start_node("127.0.0.4", "--nthreads", "2").wait(GUARD) is not None
    assert "this worker cannot take part: it has 2 threads" in (nodes.folder / "127.0.0.4" / "log").read_text()
    del nodes.nodes["127.0.0.4"]


def test_lines_about_the_cluster_stand_apart_from_the_progress_bar(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=2, desc="runs", file=sys.stderr, disable=False), on_cluster(str(nodes.file)) as engine:
        engine._begun.add(1)
        engine._hear((0.0, (1, 0)))  # it begins again
    said = re.split(r"[\r\n]", capsys.readouterr().err)
    assert [line for line in said if "dashboard" in line] == [line for line in said if line.startswith("cluster ")] != []
    assert "a worker was lost: what it did is begun again" in said


@pytest.mark.parametrize("name", ["torch", "fcs_utils"])
def test_other_versions_are_refused_at_the_start(nodes: Nodes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = versions()
    monkeypatch.setattr(dask_engine, "versions", lambda: {**own, name: "0.1"})
    match = rf"worker tcp://127.0.0.\d:\d+ cannot take part: it has {name} .*, the client 0.1"
    with pytest.raises(StudyError, match=match), on_cluster(str(nodes.file)):
        pass


FIT: dict[str, Any] = {"nthreads": 1, "death_timeout": 60.0, "spill": False, "target": False, "resources": {}, "gpus": ""}
UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"nthreads": 4}, "it has 4 threads; start it with --nthreads 1"),
    ({"death_timeout": None}, "it would outlive its scheduler; start it with --death-timeout"),
    ({"spill": 0.7}, "it was started without DASK_CONFIG"),
    ({"target": 0.6}, "it was started without DASK_CONFIG"),
    ({"resources": {"GPU": 1.0}}, "it has GPU=1 and CUDA_VISIBLE_DEVICES=''"),
    ({"resources": {"GPU": 1.0}, "gpus": "0,1"}, "it has GPU=1 and CUDA_VISIBLE_DEVICES='0,1'"),
    ({"resources": {"GPU": 2.0}, "gpus": "0,1"}, "it has GPU=2"),
]


def a_worker(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    has = {**FIT, **changes}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", has["gpus"])
    return SimpleNamespace(
        death_timeout=has["death_timeout"],
        state=SimpleNamespace(nthreads=has["nthreads"], total_resources=has["resources"]),
        memory_manager=SimpleNamespace(memory_spill_fraction=has["spill"], memory_target_fraction=has["target"]),
    )


@pytest.mark.parametrize(("changes", "why"), UNFIT)
def test_an_unfit_worker_is_told_why(changes: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(versions(), a_worker(monkeypatch, **changes)).startswith(why)


def test_a_fit_worker_may_take_part_unless_it_is_a_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in ({}, {"resources": {"GPU": 1.0}, "gpus": "3"}):
        assert not refusal(versions(), a_worker(monkeypatch, **changes))
    monkeypatch.setattr(dask_engine.multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    assert refusal(versions(), a_worker(monkeypatch)).startswith("it was started without DASK_CONFIG")


def test_only_private_addresses_or_tls(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    for address in ("tcp://127.0.0.1:8786", "tcp://10.1.2.3:8786", "tls://8.8.8.8:8786"):
        file.write_text(json.dumps({"address": address}))
        assert scheduler_address(address) == scheduler_address(str(file)) == address
    for address in ("tcp://8.8.8.8:8786", "inproc://8.8.8.8:1"):
        with pytest.raises(
            StudyError, match="cluster='.*8.8.8.8:.*' is not allowed; allowed: tcp:// at a private address, or tls://"
        ):
            scheduler_address(address)
    file.write_text("[]" if file.exists() else "")
    with pytest.raises(StudyError):
        scheduler_address(str(file))
    file.write_text("{}")
    with pytest.raises(StudyError, match="the file that dask scheduler --scheduler-file wrote"):
        scheduler_address(str(file))


def test_refusals_come_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ("run", "--profile", "smoke", "--out", str(tmp_path))
    monkeypatch.setattr(dask_engine, "PATIENCE", 0.5)
    said = {
        (
            "--cluster",
            "nowhere.json",
        ): "cluster='nowhere.json' is not allowed; allowed: the file of a running scheduler, tcp://HOST:PORT, tls://HOST:PORT",
        ("--cluster", "tcp://127.0.0.1:1", "--workers", "2"): "not allowed with argument",
        ("--cluster", "tcp://127.0.0.1:1"): "cluster='tcp://127.0.0.1:1': no scheduler answers",
    }
    for words, line in said.items():
        done = command_here(*run, *words)
        assert done.returncode and line in done.stderr and done.stderr.count("\n") == 1, done.stderr
    monkeypatch.setenv("FCS_CLUSTER", "tcp://127.0.0.1:1")
    assert "no scheduler answers" in command_here(*run).stderr
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "fcs_utils.study.dask_engine")
    assert "pip install -e '.[cluster]'" in command_here(*run).stderr


def test_the_costs_in_the_documents_are_those_that_were_measured() -> None:
    command = [sys.executable, "-m", "cogapp", "--check", "docs/cluster.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, "docs/cluster.md is stale; renew it with: python -m cogapp -r docs/cluster.md"
    (found, *_) = kept(Store(ROOT / "results", HEADLINE), "cluster")
    assert found["overhead_seconds"] <= 0.02 * LONG and found["grid"]["runs"] == 10_000 and found["grid"]["per_second"] >= 100
    assert [row["workers"] for row in found["rows"]] == [1, 2, 4]


def test_runs_that_do_nothing_go_the_whole_way(nodes: Nodes, tmp_path: Path) -> None:
    seconds, held = idle_runs(str(nodes.file), 40, 2, tmp_path, (20, 40))
    assert seconds > 0 and len(held) == 2 and min(held) > 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # the mark is gone, and nothing was made


def test_a_deadline_goes_to_another_machine_by_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def clocks(monotonic: float, wall: float) -> None:
        monkeypatch.setattr(guards, "time", SimpleNamespace(monotonic=lambda: monotonic, time=lambda: wall))

    clocks(1000.0, 5_000_000.0)
    sent, never = dumps(Deadline(1060.0)), dumps(Deadline())
    clocks(7.0, 5_000_010.0)  # a machine that was started seconds ago, ten seconds later
    assert loads(sent).left == 50.0 and loads(never).at is None
