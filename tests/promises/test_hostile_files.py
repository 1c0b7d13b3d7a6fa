"""What is read from disk is a regular file of bounded size, whoever reads it."""

from __future__ import annotations

import ast
import io
import os
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import nn

from fcs_utils import files
from fcs_utils.data.readers import read_idx
from fcs_utils.errors import StudyError
from fcs_utils.files import read_bytes, read_checksummed, read_json, read_or_set_aside, read_tensors, write_atomic
from fcs_utils.pruning.export import load_compact
from fcs_utils.study import catalogue
from fcs_utils.study.packed import read_lines
from fcs_utils.study.records import Store, read_record
from fcs_utils.study.runs import Reference, Run
from fcs_utils.training.optimiser import Training
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("guard")


@contextmanager
def not_a_file(path: Path, kind: str) -> Iterator[None]:
    if kind == "a link to /dev/zero":
        path.symlink_to("/dev/zero")
    elif kind == "a link to a link to /dev/urandom":
        path.with_name("link").symlink_to("/dev/urandom")
        path.symlink_to("link")
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a file of a terabyte":
        with path.open("wb") as file:
            file.truncate(2**40)
    elif kind == "a circle of links":
        path.symlink_to(path.name)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # the name of a socket must be short
            try:
                server.bind(path.name)
            finally:
                os.chdir(here)
            yield
        return
    yield


def profile(path: Path) -> None:
    """Read a profile that stands in another folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "FOLDER", path.parent)
        patch.setattr(catalogue, "profile_names", lambda: (path.stem,))
        catalogue.read_profile(path.stem)


KINDS = ["a link to /dev/zero", "a link to a link to /dev/urandom", "a pipe", "a folder", "a socket", "a file of a terabyte",
         "a circle of links"]  # fmt: skip
READERS: dict[str, Callable[[Path], object]] = {
    "any": read_bytes,
    "json": read_json,
    "record": read_checksummed,
    "tensors": read_tensors,
    "records": read_lines,
    "images": read_idx,
    "compact": lambda path: load_compact(path, nn.Sequential(nn.Linear(1, 1))),
    "profile": profile,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_of_bounded_size_is_refused(tmp_path: Path, kind: str, reader: str) -> None:
    path = tmp_path / f"file.{'toml' if reader == 'profile' else 'xyz'}"
    with not_a_file(path, kind), pytest.raises(StudyError, match=r"file\.(toml|xyz)") as refused:
        READERS[reader](path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_record_that_is_no_file_is_set_aside_and_never_replaces_an_earlier_one(tmp_path: Path, kind: str) -> None:
    training = Training(epochs=1, learning_rate=0.1)
    run = Run(reference=Reference(dataset="digits", network="vgg16", seed=0, training=training, precision="fp32"))
    path = Store(tmp_path, "quick").record(run.kind, run.identity)
    path.parent.mkdir(parents=True)
    for number in ("", "-2", "-3"):
        words = rf"{path.stem}\.json.*set aside as {path.stem}\.corrupt{number}\)"
        with not_a_file(path, "a pipe" if number == "-2" else kind), pytest.warns(UserWarning, match=words):
            assert read_record(Store(tmp_path, "quick"), run) is None
        path.with_name("link").unlink(missing_ok=True)
    assert sorted(p.name for p in path.parent.iterdir()) == [f"{path.stem}.corrupt{number}" for number in ("", "-2", "-3")]


def test_a_file_that_grows_while_it_is_read_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "grows.json"
    path.write_bytes(b"{" + b" " * 99)
    real = files.open_regular

    def grow(path: Path, most: int) -> io.BufferedReader:
        opened = real(path, most)
        path.write_bytes(b"{" + b" " * 999)
        return opened

    monkeypatch.setattr(files, "open_regular", grow)
    with pytest.raises(StudyError, match="grows.json has 101 bytes; at most 100 are read"):
        read_bytes(path, 100)
    monkeypatch.setattr(files, "open_regular", real)
    assert read_bytes(path, 1000) == b"{" + b" " * 999
    assert len(read_bytes(Path("/proc/self/status"))) > 100  # the system says that it has no bytes


def test_a_small_file_takes_little_memory_whatever_may_be_read(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "small", files.LARGEST_TENSORS) == b"x" * 1000
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_a_file_that_cannot_be_moved_is_named_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("damaged")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.warns(UserWarning, match=r"a\.json is not valid JSON.*cannot be set aside: Permission denied"):
        assert read_or_set_aside(path) is None
    assert path.read_text() == "damaged"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_decides_who_may_read_a_file(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == mode


def test_only_files_py_and_archives_py_open_files() -> None:
    """Readers of what a user, another machine or the network gave; what the package brings itself may be opened anywhere."""
    calls = {"open", "read_bytes", "read_text", "fdopen"}
    own = {
        "files.py",
        "machine.py",
        "benchmarks/scoring.py",
        "pruning/export.py",
        "study/cluster_cost.py",
    }
    for path in sorted((ROOT / "fcs_utils").rglob("*.py")):
        name = path.relative_to(ROOT / "fcs_utils").as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if name in own or not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name):
                assert node.func.id != "open", f"{name}:{node.lineno}"
            elif ast.unparse(node.func) == "nbformat.read":  # of the package, or just made
                assert ast.unparse(node.args[0]) in ("notebook.source", "executed"), f"{name}:{node.lineno}"
            elif isinstance(node.func, ast.Attribute) and node.func.attr in calls:
                library = ast.unparse(node.func)
                known = ("Image.open", "tarfile.open", "archive.open")
                assert library in known or name == "report/pages.py" and library.endswith(".read_text"), f"{name}:{node.lineno}"
                assert library != "Image.open" or any(keyword.arg == "formats" for keyword in node.keywords), (
                    f"{name}:{node.lineno}"
                )
