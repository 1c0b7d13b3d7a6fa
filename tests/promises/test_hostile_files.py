"""What is read from disk is a regular file of bounded size, whoever reads it; archives cannot ask for memory or programs."""

from __future__ import annotations

import ast
import gzip
import io
import lzma
import os
import resource
import signal
import socket
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import nn

from fcs_utils import files
from fcs_utils.data.dataset import load_dataset
from fcs_utils.data.readers import read_idx
from fcs_utils.errors import StudyError
from fcs_utils.files import read_bytes, read_checksummed, read_json, read_or_set_aside, read_tensors, write_atomic
from fcs_utils.pruning.export import load_compact
from fcs_utils.study import catalogue
from fcs_utils.study.packed import read_lines
from fcs_utils.study.records import Store, read_record
from fcs_utils.study.runs import Reference, Run
from fcs_utils.training.optimiser import Training
from tests.conftest import GUARD, ROOT
from tests.data.pictures import FILES, plain, put
from tests.data.test_datasets import image_folder


@pytest.fixture(autouse=True)
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends a test that waits for a pipe for ever, or takes more memory than there should be."""
    monkeypatch.setenv("FCS_CACHE", str(tmp_path / "cache"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 0
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    signal.alarm(GUARD)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, before)


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
    own = {"files.py", "machine.py", "benchmarks/scoring.py", "pruning/export.py"}  # /proc, temporary files
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


# -- archives -------------------------------------------------------------------------------------------------------


def header(name: str, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


SPARSE = header("train/cat/x.png", tarfile.GNUTYPE_SPARSE, 0)
SPARSE = SPARSE[:482] + b"\1" + SPARSE[483:]  # its map goes on in the next block
SPARSE = SPARSE[:148] + b"%06o\0 " % (256 + sum(SPARSE[:148]) + sum(SPARSE[156:512])) + SPARSE[156:]
ENDLESS = (b"00000000001\0" * 42 + b"\1").ljust(512, b"\0")  # and on

TARS = {
    "a name of 6 GB": header("x", tarfile.GNUTYPE_LONGNAME, 6 * 2**30) + bytes(1024),
    "a target of 6 GB": header("x", tarfile.GNUTYPE_LONGLINK, 6 * 2**30) + bytes(1024),
    "attributes of 6 GB": header("x", tarfile.XHDTYPE, 6 * 2**30) + bytes(1024),
    "attributes of all of 6 GB": header("x", tarfile.XGLTYPE, 6 * 2**30) + bytes(1024),
    "a map without an end": SPARSE + ENDLESS * 50_000,
}


@pytest.mark.parametrize("attack", TARS)
@pytest.mark.parametrize("ending", ["tar", "tgz"])
def test_a_tar_header_cannot_ask_for_memory(tmp_path: Path, attack: str, ending: str) -> None:
    path = tmp_path / f"evil.{ending}"
    path.write_bytes(gzip.compress(TARS[attack], 1) if ending == "tgz" else TARS[attack])
    with pytest.raises(StudyError, match=rf"evil\.{ending} cannot be read: a header asks for"):
        load_dataset("imagefolder:evil", tmp_path)


def test_an_image_of_terabytes_and_a_file_beyond_the_archive_are_refused(tmp_path: Path) -> None:
    for size, words in ((2**40, "ends after"), (2**27, "has 134,217,728 bytes; at most 67,108,864")):
        (tmp_path / "evil.tar").write_bytes(header("train/cat/x.png", tarfile.REGTYPE, size) + bytes(1024))
        with pytest.raises(StudyError, match=rf"evil\.tar cannot be read: 'train/cat/x\.png' {words}"):
            load_dataset("imagefolder:evil", tmp_path)


def test_a_window_of_gigabytes_is_not_allocated(tmp_path: Path) -> None:
    content = bytearray(lzma.compress(TARS["a name of 6 GB"]))
    length = 4 * (content[12] + 1)  # of the block's header
    place = content.index(b"\x21\x01", 12)
    content[place + 2] = 40  # 4 GiB - 1
    content[12 + length - 4 : 12 + length] = struct.pack("<I", zlib.crc32(content[12 : 12 + length - 4]))
    (tmp_path / "evil.tar.xz").write_bytes(content)
    with pytest.raises(StudyError, match="evil.tar.xz cannot be read: Memory usage limit exceeded"):
        load_dataset("imagefolder:evil", tmp_path)


def zipped(path: Path, change: Callable[[zipfile.ZipFile], None] = lambda _: None) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
        change(archive)
    return path.read_bytes()


def lie_about_size(archive: zipfile.ZipFile) -> None:
    archive.writestr("train/cat/bomb.png", bytes(2**24))
    archive.getinfo("train/cat/bomb.png").file_size = 100


def claim_terabytes(archive: zipfile.ZipFile) -> None:
    archive.writestr("train/cat/bomb.png", plain(9))
    archive.getinfo("train/cat/bomb.png").file_size = 2**40


def claim_a_password(archive: zipfile.ZipFile) -> None:
    archive.writestr("train/cat/bomb.png", plain(9))
    archive.getinfo("train/cat/bomb.png").flag_bits |= 1


ZIPS: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "a size that is too small": (lie_about_size, "cannot be read: Bad CRC-32"),
    "a size of terabytes": (claim_terabytes, "bomb.png' has 1,099,511,627,776 bytes; at most"),
    "a bomb of bzip2": (lambda a: a.writestr("train/cat/bomb.png", bytes(2**24), zipfile.ZIP_BZIP2), "compressed by method 12"),
    "a bomb of LZMA": (lambda a: a.writestr("train/cat/bomb.png", bytes(2**24), zipfile.ZIP_LZMA), "compressed by method 14"),
    "a password": (claim_a_password, "is encrypted"),
}


@pytest.mark.parametrize("attack", ZIPS)
def test_members_of_a_zip_file_cannot_lie(tmp_path: Path, attack: str) -> None:
    change, words = ZIPS[attack]
    zipped(tmp_path / "evil.zip", change)
    with pytest.raises(StudyError, match=f"evil.zip.*{words}"):
        load_dataset("imagefolder:evil", tmp_path)


def test_a_zip_directory_cannot_ask_for_memory_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "evil.zip")
    with (tmp_path / "evil.zip").open("wb") as file:  # a sparse file whose directory has a gigabyte
        file.truncate(2**30)
        file.seek(2**30)
        file.write(whole[-22:-10] + struct.pack("<II", 2**30, 0) + b"\0\0")
    with pytest.raises(StudyError, match="evil.zip cannot be read: a header asks for 1,073,741,824 bytes"):
        load_dataset("imagefolder:evil", tmp_path)
    for damaged in (whole[:-30], whole[100:], whole[:40] + bytes(20) + whole[60:], b"", b"PK"):
        (tmp_path / "evil.zip").write_bytes(damaged)
        with pytest.raises(StudyError, match="evil.zip"):
            load_dataset("imagefolder:evil", tmp_path)


def test_links_in_a_zip_file_are_not_read(tmp_path: Path) -> None:
    def link(archive: zipfile.ZipFile) -> None:
        for name, kind in (("link", 0o120777), ("pipe", 0o010666), ("device", 0o020666)):
            info = zipfile.ZipInfo(f"train/cat/{name}.png")
            info.external_attr = kind << 16
            archive.writestr(info, "/etc/passwd")
        archive.writestr("../outside.png", plain(9))

    zipped(tmp_path / "evil.zip", link)
    with pytest.warns(
        UserWarning, match=r"links, devices and sparse files of the archive \(3, .*images that are not in .*\(1, such as '\.\./"
    ):
        data = load_dataset("imagefolder:evil", tmp_path)
    assert len(data.train) + len(data.validation) == 4 and sorted(p.name for p in tmp_path.iterdir()) == ["cache", "evil.zip"]


def test_more_images_than_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcs_utils.data.imagefolder.LARGEST_DATA", 9 * 3 * 32 * 32)
    image_folder(tmp_path / "pets")
    with pytest.raises(StudyError, match="pets: decoded images take more than 27,648 bytes; NAME@SIZE makes them smaller"):
        load_dataset("imagefolder:pets", tmp_path)
    monkeypatch.setattr("fcs_utils.data.archives.MOST_FILES", 20)
    with pytest.raises(StudyError, match="pets has more than 20 files"):
        load_dataset("imagefolder:pets@8", tmp_path)


@pytest.mark.parametrize("size", ["0", "7", "1025", "99999999999"])
def test_a_size_that_no_network_takes_is_refused(tmp_path: Path, size: str) -> None:
    put(tmp_path / "pets", FILES)
    with pytest.raises(StudyError, match=f"dataset='imagefolder:pets@{size}' is not allowed; .* from 8 to 1024 pixels"):
        load_dataset(f"imagefolder:pets@{size}", tmp_path)


def test_an_archive_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for ending, make in (("tar", os.mkfifo), ("zip", lambda path: os.symlink("/dev/zero", path))):
        make(tmp_path / f"{ending}s.{ending}")
        with pytest.raises(StudyError, match=rf"{ending}s\.{ending} is not a regular file"):
            load_dataset(f"imagefolder:{ending}s", tmp_path)
