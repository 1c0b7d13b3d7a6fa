"""A Dask cluster on this machine's loopback addresses, for tests: one scheduler, and nodes of one worker each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.conftest import GUARD, ROOT


def until(there: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for something that will be; ``process`` must not end before it."""
    end = time.monotonic() + GUARD
    while not there():
        assert process is None or process.poll() is None, f"it ended: {process.communicate()[1] if process else ''}"
        assert time.monotonic() < end
        time.sleep(0.02)


class Nodes:
    """Every process has a folder of its own under ``folder`` and starts as docs/cluster.md says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.scheduler: subprocess.Popen[str] | None = None
        self.nodes: dict[str, subprocess.Popen[str]] = {}
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DASK_CONFIG": str(ROOT / "fcs_utils" / "study" / "cluster.yaml"),
        }

    def _start(self, name: str, *words: str, **environment: str) -> subprocess.Popen[str]:
        place = self.folder / name
        place.mkdir(exist_ok=True)
        with (place / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=place,
                env=self.environment | environment,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def start_scheduler(self) -> None:
        self.file.unlink(missing_ok=True)
        words = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file))
        self.scheduler = self._start("scheduler", "distributed.cli.dask_scheduler", *words)
        until(self._written, self.scheduler)

    def _written(self) -> bool:
        try:
            return "address" in json.loads(self.file.read_text())
        except (OSError, ValueError):
            return False

    def start_node(self, host: str, *words: str, preload: str = "", **environment: str) -> subprocess.Popen[str]:
        """preload: Python that the worker runs before it begins."""
        if preload:
            file = self.folder / f"preload_{host.replace('.', '_')}.py"
            file.write_text(preload)
            words = (*words, "--preload", str(file))
        if "--nthreads" not in words:
            words = (*words, "--nthreads", "1")
        own = ("--host", host, "--local-directory", str(self.folder / host), "--no-dashboard", "--death-timeout", "30")
        given = ("--scheduler-file", str(self.file))
        self.nodes[host] = self._start(host, "distributed.cli.dask_worker", *given, *own, *words, **environment)
        return self.nodes[host]

    def workers(self, host: str) -> list[psutil.Process]:
        """The worker itself, which its nanny starts again when it is killed."""
        children = psutil.Process(self.nodes[host].pid).children()
        return [one for one in children if "spawn_main" in " ".join(one.cmdline())]

    def family(self) -> list[psutil.Process]:
        """Every process of every node that still runs."""
        running = [psutil.Process(node.pid) for node in self.nodes.values() if node.poll() is None]
        return [one for node in running for one in (*node.children(recursive=True), node)]

    def kill_node(self, host: str) -> None:
        os.killpg(self.nodes[host].pid, signal.SIGKILL)
        self.nodes.pop(host).wait(GUARD)

    def kill_scheduler(self) -> None:
        assert self.scheduler
        self.scheduler.kill()
        self.scheduler.wait(GUARD)

    def close(self) -> None:
        for process in [*self.nodes.values(), *([self.scheduler] if self.scheduler else [])]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(GUARD)
