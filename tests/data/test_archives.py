"""How large an archive and the files in it may be."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from fcs_utils.data import archives
from fcs_utils.data.archives import _Metered, entries
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
