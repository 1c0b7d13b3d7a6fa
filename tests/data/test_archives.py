"""How large an archive and the files in it may be."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from fcs_utils.data import archives
from fcs_utils.data.archives import NOT_PLAIN, _Metered, entries
from fcs_utils.errors import StudyError

LIMIT = 68_719_476_736  # bytes, 64 GiB


@pytest.mark.parametrize("name", ["large.tar", "large.zip"])
def test_an_archive_of_more_than_64_gib_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    os.truncate(path, LIMIT + 1)  # which takes no place on the disk
    with pytest.raises(StudyError, match=f"{name} has {LIMIT + 1:,} bytes"):
        list(entries(path, {".png"}))
    os.truncate(path, LIMIT)  # a size that is allowed, of zeros
    with pytest.raises(StudyError, match="16,777,216 bytes behind its end mark|not a zip file|asks for"):
        list(entries(path, {".png"}))


@pytest.mark.parametrize("size", [LIMIT, LIMIT - 1536])
def test_a_file_in_an_archive_that_would_end_behind_64_gib_is_refused(tmp_path: Path, size: int) -> None:
    member = tarfile.TarInfo("a.txt")  # a file that nobody reads: its headers take 1,536 bytes
    member.size = size
    (tmp_path / "one.tar").write_bytes(member.tobuf())
    with pytest.raises(StudyError, match="ends after 68,719,476,736 bytes" if size == LIMIT else "unexpected end|cut short"):
        list(entries(tmp_path / "one.tar", {".png"}))


def test_a_file_of_64_mib_is_read_and_a_larger_one_is_not(tmp_path: Path) -> None:
    for size in (2**26, 2**26 + 1):
        with tarfile.open(tmp_path / "one.tar", "w") as archive:
            member = tarfile.TarInfo("a.png")
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
        if size == 2**26:
            (entry,) = entries(tmp_path / "one.tar", {".png"})
            assert len(entry.content or b"") == size
        else:
            with pytest.raises(StudyError, match="'a.png' has 67,108,865 bytes; at most 67,108,864 are read"):
                list(entries(tmp_path / "one.tar", {".png"}))


def test_each_file_of_a_zip_may_be_as_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ZIP_DIRECTORY", 3000)  # bytes: enough for the directory, not for the files
    monkeypatch.setattr(archives, "LARGEST_FILE", 2000)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", bytes([number]) * 2000)
    assert [entry.content for entry in entries(tmp_path / "some.zip", {".png"})] == [bytes([number]) * 2000 for number in range(5)]


def test_a_metered_stream_gives_what_is_asked_for_and_no_more(tmp_path: Path) -> None:
    stream = _Metered(io.BytesIO(b"abcdef"))  # type: ignore[arg-type]
    stream.left = 5
    assert (stream.read(0), stream.read(2), stream.read(), stream.left) == (b"", b"ab", b"cde", 0)
    with pytest.raises(ValueError, match="a header asks for 1 bytes"):
        stream.read(1)


def test_a_header_may_ask_for_a_mebibyte_also_behind_a_file(tmp_path: Path) -> None:
    picture, name = tarfile.TarInfo("a.png"), tarfile.TarInfo("long")
    name.type = tarfile.GNUTYPE_LONGNAME
    for size, said in ((2**20 - 1024, "end|header"), (2**20, "a header asks for 1,048,576 bytes")):
        name.size = size
        for before in (b"", picture.tobuf()):
            (tmp_path / "one.tar").write_bytes(before + name.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
            with pytest.raises(StudyError, match=f"one.tar cannot be read: .*{said}") as refused:
                list(entries(tmp_path / "one.tar", {".png"}))
            assert ("asks for" in str(refused.value)) is (size == 2**20)


def test_the_directory_of_a_zip_file_may_take_32_mib(tmp_path: Path) -> None:
    end = bytearray(b"PK\x05\x06").ljust(22, b"\0")
    for size, asked in ((2**25 - 1024, False), (2**25, True)):
        end[12:16] = size.to_bytes(4, "little")
        with (tmp_path / "one.zip").open("wb") as file:
            file.truncate(size)  # which takes no place on the disk
            file.seek(size)
            file.write(end)
        with pytest.raises(StudyError, match="one.zip cannot be read") as refused:
            list(entries(tmp_path / "one.zip", {".png"}))
        assert ("asks for 33,554,432 bytes" in str(refused.value)) is asked


def test_files_of_a_zip_file_may_take_more_than_its_directory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("a.png", bytes(2**25 + 1))
    (entry,) = entries(tmp_path / "one.zip", {".png"})
    assert len(entry.content or b"") == 2**25 + 1


def test_up_to_16_mib_may_stand_behind_the_end_of_a_tar_file(tmp_path: Path) -> None:
    for more, allowed in ((2**24 - 1024, True), (2**24 + 1024, False)):
        (tmp_path / "one.tar").write_bytes(tarfile.TarInfo("a.png").tobuf() + bytes(1024 + more))
        if allowed:
            assert [entry.content for entry in entries(tmp_path / "one.tar", {".png"})] == [b""]
        else:
            with pytest.raises(StudyError, match="goes on for more than 16,777,216 bytes"):
                list(entries(tmp_path / "one.tar", {".png"}))


def test_links_pipes_and_sparse_files_of_a_tar_file_are_not_read_and_said(tmp_path: Path) -> None:
    kinds = {"a": tarfile.REGTYPE, "b": tarfile.SYMTYPE, "c": tarfile.LNKTYPE, "d": tarfile.FIFOTYPE, "e": tarfile.GNUTYPE_SPARSE}
    content = b""
    for name, kind in kinds.items():
        member = tarfile.TarInfo(f"{name}.png")
        member.type, member.linkname = kind, "a.png"
        content += member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "one.tar").write_bytes(content + bytes(1024))
    found = {str(entry.path): entry.unread for entry in entries(tmp_path / "one.tar", {".png"})}
    assert found == {"a.png": "", **dict.fromkeys(("b.png", "c.png", "d.png", "e.png"), NOT_PLAIN)}


@pytest.mark.parametrize(("code", "refused"), [(31, False), (32, True)])  # of the window's size: 192 and 256 MiB
def test_an_xz_file_may_ask_for_a_window_of_less_than_256_mib(tmp_path: Path, code: int, refused: bool) -> None:
    content = bytearray(lzma.compress(tarfile.TarInfo("a.png").tobuf() + bytes(1024)))
    length = 4 * (content[12] + 1)  # of the block's header
    content[content.index(b"\x21\x01", 12) + 2] = code
    content[8 + length : 12 + length] = zlib.crc32(content[12 : 8 + length]).to_bytes(4, "little")
    (tmp_path / "one.tar.xz").write_bytes(content)
    if refused:
        with pytest.raises(StudyError, match="Memory usage limit exceeded"):
            list(entries(tmp_path / "one.tar.xz", {".png"}))
    else:
        assert [entry.content for entry in entries(tmp_path / "one.tar.xz", {".png"})] == [b""]


def test_folders_of_a_linked_folder_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "elsewhere/cat/young").mkdir(parents=True)
    (tmp_path / "elsewhere/cat/young/a.png").touch()
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/train").symlink_to(tmp_path / "elsewhere")
    assert [str(entry.path) for entry in entries(tmp_path / "pets", {".png"}) if entry.content is not None] == [
        "train/cat/young/a.png"
    ]
