"""What ``mutants.py`` asks of pytest: which lines of the code each test runs, and some tests in an order, until one fails."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

OPTIONS = ("-x", "-p", "no:cacheprovider", "-m", "not slow")
PASSED = (0, 5)  # what pytest says where no test failed, or none was chosen
FAILED, OUTPUT, WATCHED = "failed.txt", "output.txt", "watched.json"  # files that a process leaves in its copy
Lines = dict[str, list[int]]  # by file


class Watch:
    """A plugin that notes which lines of the code each test runs, and its seconds of computing.

    What fixtures and the import of the test file run counts for all of its tests: they may share it.
    """

    def __init__(self, place: Path) -> None:
        self.code = str(place / "fcs_utils")
        self.before: set[tuple[str, int]] = set()
        self.now = self.before
        self.lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self.seconds: dict[str, float] = {}

    def enter(self, frame: Any, _event: str, _argument: object) -> Any:
        return self.line if frame.f_code.co_filename.startswith(self.code) else None

    def line(self, frame: Any, event: str, _argument: object) -> Any:
        if event == "line":
            self.now.add((frame.f_code.co_filename, frame.f_lineno))
        return self.line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        start = sum(os.times()[:4])
        done = yield
        self.seconds[item.nodeid] = sum(os.times()[:4]) - start
        return done

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self.now = self.lines[item.nodeid]
        try:
            return (yield)
        finally:
            self.now = self.before

    def run(self, test: str) -> int:
        threading.settrace(self.enter)
        sys.settrace(self.enter)
        try:
            return int(pytest.main([*OPTIONS, test], plugins=[self]))
        finally:
            sys.settrace(None)
            table = {name: (seconds, self.by_file(self.lines[name])) for name, seconds in self.seconds.items()}
            Path(WATCHED).write_text(json.dumps({"before": self.by_file(self.before), "tests": table}))

    def by_file(self, lines: set[tuple[str, int]]) -> Lines:
        found: Lines = defaultdict(list)
        for file, line in sorted(lines):
            found["fcs_utils" + file.removeprefix(self.code)].append(line)
        return found


class Choose:
    """A plugin that runs some tests in an order, and notes which one fails."""

    def __init__(self, names: Sequence[str]) -> None:
        self.places = {name: place for place, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.places), key=lambda item: self.places[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            Path(FAILED).write_text(report.nodeid)

    def run(self) -> int:
        files = dict.fromkeys(name.partition("::")[0] for name in self.places)
        return int(pytest.main([*OPTIONS, *files], plugins=[self]))


def collect(files: Iterable[str]) -> int:
    """Import test files, which also writes their bytecode."""
    return int(pytest.main([*OPTIONS, "--collect-only", *files]))


def start(place: Path, runs: Sequence[tuple[Callable[[], int], float]]) -> int:
    """Fork a process that makes runs of pytest in a copy until one fails. It ends with pytest's status, or by a signal.

    runs: each with the seconds of computing after which it is ended.
    """
    sys.stdout.flush()
    (place / FAILED).unlink(missing_ok=True)
    if child := os.fork():
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        output = os.open(place / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(place)
        os.environ["PYTHONPATH"] = str(place)
        own = Path(__file__).parent
        sys.path[:] = [str(place), *(entry for entry in sys.path if Path(entry).resolve() not in (own.parent, own))]
        status = 0
        for run, most in runs:
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + most), resource.RLIM_INFINITY))
            signal.alarm(20 * int(most))  # which ends what only waits
            status = run()
            if status not in PASSED:
                break
    finally:
        os._exit(status)


def finish(child: int, status: int) -> int:
    """Pytest's status of an ended process; what it started ends, too."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)
