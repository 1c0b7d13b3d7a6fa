"""Archives cannot ask for memory or name places outside; what they hold that is no plain file is not read."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fcs_utils.data.dataset import load_dataset
from fcs_utils.errors import StudyError
from tests.data.pictures import FILES, plain, put
from tests.data.test_datasets import image_folder

pytestmark = pytest.mark.usefixtures("guard")


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
