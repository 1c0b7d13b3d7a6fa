"""What is said to be up to date is: an interruption or an error at any write leaves something that the next start heals."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from fcs_utils import files, unchanged
from fcs_utils.errors import StudyError
from fcs_utils.report import frames, pages, publish, states
from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.study.records import Store
from fcs_utils.study.study import Study
from tests.report.test_publish import content

CHAPTERS = ("01",)
WANTED = {number: NOTEBOOKS[number] for number in CHAPTERS}


class Killed(BaseException):
    """Nothing is written from here on, as after ``kill -9``."""


class Disk:
    """Passes writes on, and from the ``count``-th write of a file of the given kind on refuses them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.error, self.kind, self.left, self.broken = files.write_atomic, None, "", 0, False
        for module in (files, pages, publish, frames.tables, pages.figures):
            if hasattr(module, "write_atomic"):
                monkeypatch.setattr(module, "write_atomic", self.write)
        monkeypatch.setattr("fcs_utils.report.notebook.write_atomic", self.write)

    def refuse(self, error: BaseException | None, kind: str = "", count: int = 1) -> None:
        self.error, self.kind, self.left, self.broken = error, kind, count, False

    def write(self, path: Path, text: bytes) -> None:
        if self.error is not None and path.match(self.kind):
            self.left -= 1
            self.broken |= self.left <= 0
        if self.broken and self.error is not None:
            if isinstance(self.error, StudyError):
                self.broken = False  # one error, then the disk is well again
            raise self.error
        self.real(path, text)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture(scope="module")
def report(smoke: Path) -> frames.Report:
    return frames.make_report(Study("smoke", smoke))


@pytest.fixture
def out(smoke: Path, report: frames.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The records of a smoke study and no pages yet; executing a notebook takes over the copy that the study made."""
    for part in ("records", "weights"):
        shutil.copytree(smoke / "smoke" / "work" / part, tmp_path / "smoke" / "work" / part)
    for name in ("study.json", "measurements.json"):
        shutil.copy(smoke / "smoke" / "work" / name, tmp_path / "smoke" / "work" / name)
    there = Store(smoke, "smoke")

    def execute_all(store: Store, notebooks: Mapping[str, Any], *more: Any, **_options: object) -> None:
        for number, notebook in notebooks.items():
            files.write_atomic(store.executed(notebook.name), there.executed(notebook.name).read_bytes())
            files.write_atomic(store.figure("training_curves"), there.figure("training_curves").read_bytes())
            more[2](number, notebook)

    monkeypatch.setattr(publish, "execute_all", execute_all)
    # What records say and which figures are drawn are other tests' subjects, and take seconds.
    monkeypatch.setattr(frames, "make_report", lambda _, **__: report)
    monkeypatch.setattr(frames.Report, "figures", lambda _: {"claims": partial(blank)})
    monkeypatch.setattr(frames.figures, "cost_growth", blank)
    return tmp_path


def blank(*_: object) -> Figure:
    return plt.figure(figsize=(1, 1))


def build(out: Path) -> dict[str, bytes]:
    publish.build("smoke", out, None, ",".join(CHAPTERS), 1)
    return files_of(out)


def files_of(out: Path) -> dict[str, bytes]:
    return {name: text for name, text in content(out / "smoke" / "work").items() if not name.startswith("locks/")}


def interrupted(out: Path, disk: Disk, error: BaseException, kind: str, count: int) -> bool:
    """Whether a start that ended so left what counts as up to date."""
    disk.refuse(error, kind, count)
    with pytest.raises(type(error)):
        build(out)
    disk.refuse(None)
    return publish._current(Store(out, "smoke"), WANTED)


# Of each kind of file a write: the table of ``Store`` has no others that a page shows.
STEPS = [
    ("tables/*", 3), ("claims.json", 1), ("figures/*", 1), ("notebooks/*", 1), ("state/01", 1), ("pages/*", 1),
    ("pages/*", 2), ("index.html", 1), ("index.html", 2), ("index.html", 3), ("state/pages", 1),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "steps"), [(Killed(), STEPS), (StudyError("the disk is full"), STEPS[::3])], ids=["kill", "error"]
)
def test_after_an_interruption_at_any_write_the_next_start_makes_it_whole(
    out: Path, disk: Disk, error: BaseException, steps: list[tuple[str, int]]
) -> None:
    whole, work = build(out), Store(out, "smoke").work
    for kind, count in steps:
        for made in (*work.glob("pages/*"), *work.glob("notebooks/*"), *work.glob("figures/*"), work / "index.html"):
            made.write_bytes(b"of another state")
        # The second writing of a page may find all of it as it should be.
        assert not interrupted(out, disk, error, kind, count) or files_of(out) == whole, (kind, count)
        assert build(out) == whole, (kind, count)


@pytest.mark.parametrize(
    ("error", "kind", "count"), [(Killed(), "pages/*", 1), (StudyError("full"), "index.html", 3)], ids=["kill", "error"]
)
def test_a_start_that_ended_between_a_notebook_its_page_and_the_index_is_healed(
    out: Path, disk: Disk, capsys: pytest.CaptureFixture[str], error: BaseException, kind: str, count: int
) -> None:
    assert not interrupted(out, disk, error, kind, count)
    capsys.readouterr()
    whole = build(out)
    assert "up to date" not in capsys.readouterr().err
    assert build(out) == whole and "everything is up to date" in capsys.readouterr().err


def test_what_is_missing_or_of_another_state_is_made_again(out: Path) -> None:
    whole, store = build(out), Store(out, "smoke")

    def holds() -> bool:
        return publish._current(store, WANTED)

    assert holds()
    for name in sorted(whole.keys() - {"measurements.json", "study.json"}):
        if name.startswith(("records/", "weights/")):
            continue
        file, text = store.work / name, whole[name]
        file.unlink()
        assert not holds(), name
        file.write_bytes(text[: len(text) // 2])
        assert not holds(), name
        file.write_bytes(text)
    assert holds()
    for name in ("pages/01_reference_networks.html", "figures/claims.png", "figures/training_curves.png", "claims.json"):
        (store.work / name).unlink()
    assert build(out) == whole


def test_a_record_that_comes_while_notebooks_run_is_not_taken_for_read(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(out)
    store, execute_all = Store(out, "smoke"), publish.execute_all
    record = store.all_records()[0]

    def meanwhile(*arguments: Any, **_options: object) -> None:
        record.write_bytes(record.read_bytes() + b" ")  # another checksum
        execute_all(*arguments)

    for page in store.work.glob("notebooks/*"):
        page.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(publish, "execute_all", meanwhile)
        build(out)
    assert publish._stale(store, WANTED).keys() == WANTED.keys()


def test_ten_notebooks_ask_for_the_records_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, summed, read = Store(tmp_path, "smoke"), [], []
    paths = [store.record("pruned", f"{number:016}") for number in range(3)]
    for path in paths:
        files.write_atomic(path, b"{}")
    real_sum, real_read = states._file_sum, unchanged.read_bytes
    monkeypatch.setattr(states, "_file_sum", lambda path: summed.append(path) or real_sum(path))
    monkeypatch.setattr(unchanged, "read_bytes", lambda path, most: read.append(path) or real_read(path, most))
    publish._stale(store, NOTEBOOKS)
    assert [summed.count(path) for path in paths] == [1, 1, 1] == [read.count(path) for path in paths]
    monkeypatch.setattr(unchanged, "TICK", 0)  # as if the files had been there for long
    publish._stale(store, NOTEBOOKS)
    publish._stale(store, NOTEBOOKS)
    before, count = states.inputs_of(store), len(read)
    assert states.inputs_of(store, NOTEBOOKS["01"]) == states.inputs_of(store, NOTEBOOKS["01"], states.common_inputs(store))
    assert len(read) == count  # nothing has changed
    state = paths[1].stat()
    paths[1].write_bytes(b"[]")  # of the same size, and with the same time
    os.utime(paths[1], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert states.inputs_of(store) != before and read[count:] == [paths[1]]
