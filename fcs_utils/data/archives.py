"""The files of a folder or an archive, one after the other. Nothing is unpacked, so no path inside an archive can reach the disk.

tarfile and zipfile read at once as many bytes as a header says. They are given a stream that counts what a header reads.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fcs_utils.errors import StudyError
from fcs_utils.files import open_regular, read_bytes

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
JUNK = {"__MACOSX", ".ipynb_checkpoints", ".DS_Store", "Thumbs.db", "desktop.ini"}  # what systems leave behind, never data
LARGEST_FILE = 2**26  # bytes of a file that is read
LARGEST_ARCHIVE = 2**36  # bytes, unpacked too
MOST_FILES = 4_000_000
NOT_PLAIN = "links, devices and sparse files of the archive"
BEHIND_TAR = 2**24  # bytes behind a tar archive's end mark, which fill up its last block
TAR_HEADER, ZIP_DIRECTORY = 2**20, 2**25  # bytes; a zip file holds the names of all its files in one place
BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, OSError, EOFError, ValueError, RuntimeError)


class Entry(NamedTuple):
    """A file with its content, a file that is not read and the reason, or a folder, which has neither."""

    path: PurePosixPath
    content: bytes | None = None
    unread: str = ""


def entries(source: Path, suffixes: Collection[str]) -> Iterator[Entry]:
    """All files and folders below a folder or in an archive, with the content of those whose names end in ``suffixes``.

    In a folder, links to files and folders are followed, but no link below a followed one. In an archive, links are not read.
    Raises StudyError for what is damaged, too large or not a regular file.
    """
    read = _of_folder if source.is_dir() else _of_zip if source.suffix == ".zip" else _of_tar
    try:
        for number, entry in enumerate(read(source, suffixes)):
            if number == MOST_FILES:
                raise StudyError(f"{source} has more than {MOST_FILES:,} files")
            if not is_junk(entry.path):
                yield entry
    except BROKEN as error:
        raise StudyError(f"{source} cannot be read: {error}; repair or replace it") from error


def unread_in_words(unread: Mapping[str, Sequence[PurePosixPath]]) -> list[str]:
    """What is not read, by reason, in a line; none where everything is."""
    said = "; ".join(f"{why} ({len(paths):,}, such as {str(paths[0])!r})" for why, paths in unread.items())
    return [f"not read: {said}"] if said else []


def is_junk(path: PurePosixPath) -> bool:
    """Whether a system left a file behind, or a folder that it lies in."""
    return any(part in JUNK or part.startswith("._") for part in path.parts)


def why_unread(path: PurePosixPath, state: os.stat_result | None, suffixes: Collection[str]) -> str:
    """Why a file of a folder is not read; nothing for one that is, and for a folder. state: None for a broken link."""
    if state is None:
        return "broken links"
    if stat.S_ISDIR(state.st_mode):
        return ""
    return _unread(path, suffixes) if stat.S_ISREG(state.st_mode) else "pipes, sockets and devices"


def _unread(path: PurePosixPath, suffixes: Collection[str]) -> str:
    """Why a regular file is not read; nothing for one that is."""
    suffix = path.suffix.lower()
    return "" if suffix in suffixes else f"files ending in {suffix}" if suffix else "files without an ending"


def walk_folder(folder: Path) -> Iterator[tuple[PurePosixPath, os.DirEntry[str], os.stat_result | None]]:
    """Everything below a folder in a fixed order: relative path, entry, and its state, None for a broken link."""

    def below(place: Path, inside: PurePosixPath, linked: bool) -> Iterator[tuple[PurePosixPath, os.DirEntry[str], Any]]:
        with os.scandir(place) as found:
            for entry in sorted(found, key=lambda one: one.name):
                try:
                    state = entry.stat()
                except OSError:
                    state = None
                yield inside / entry.name, entry, state
                # Links may form circles. One link on a path is enough for folders that lie elsewhere.
                if state and stat.S_ISDIR(state.st_mode) and not (linked and entry.is_symlink()):
                    yield from below(place / entry.name, inside / entry.name, linked or entry.is_symlink())

    return below(folder, PurePosixPath(), False)


def _of_folder(folder: Path, suffixes: Collection[str]) -> Iterator[Entry]:
    for path, entry, state in walk_folder(folder):
        if why := why_unread(path, state, suffixes):
            yield Entry(path, unread=why)
        elif state and stat.S_ISDIR(state.st_mode):
            yield Entry(path)
        else:
            yield Entry(path, read_bytes(Path(entry.path), LARGEST_FILE))


class _Metered(io.BufferedReader):
    """A stream that gives at most ``left`` bytes until that is set again. ended: whether the last read found none."""

    left: int
    ended: bool

    def read(self, size: int | None = None) -> bytes:
        wanted = self.left if size is None or size < 0 else size
        if wanted > self.left:
            raise ValueError(f"a header asks for {wanted:,} bytes")
        content = super().read(wanted)
        self.left -= len(content)
        self.ended = not content
        return content


def _of_tar(path: Path, suffixes: Collection[str]) -> Iterator[Entry]:
    with open_regular(path, LARGEST_ARCHIVE) as file, _decompressed(file) as plain, _Metered(plain) as stream:
        stream.left = TAR_HEADER
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                vars(archive)["members"].clear()  # tarfile would keep them all
                name = PurePosixPath(member.name)
                if member.offset_data + member.size > LARGEST_ARCHIVE:
                    raise ValueError(f"{str(name)!r} ends after {LARGEST_ARCHIVE:,} bytes")
                if member.isdir():
                    yield Entry(name)
                elif not member.isreg() or member.issparse():
                    yield Entry(name, unread=NOT_PLAIN)
                elif why := _unread(name, suffixes):
                    yield Entry(name, unread=why)
                else:
                    stream.left = 2 * LARGEST_FILE
                    yield Entry(name, _content(archive.extractfile(member), name, member.size))
                stream.left = TAR_HEADER
        if stream.ended:  # tarfile takes any end between two files for the archive's
            raise ValueError("it has no end mark: it was cut short")
        stream.left = BEHIND_TAR
        while stream.read(min(stream.left, 2**20)):  # checksums of compressed files stand at their end
            if not stream.left:
                raise ValueError(f"it goes on for more than {BEHIND_TAR:,} bytes behind its end mark")


def _decompressed(file: io.BufferedReader) -> Any:
    head = file.read(4096)
    file.seek(0)
    if head.startswith(b"\xfd7zXZ"):  # a header of a few bytes can ask for a window of gigabytes
        lzma.LZMADecompressor(memlimit=2**28).decompress(head, max_length=1)
    openers: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    return next((opener(file) for magic, opener in openers.items() if head.startswith(magic)), file)


def _of_zip(path: Path, suffixes: Collection[str]) -> Iterator[Entry]:
    with open_regular(path, LARGEST_ARCHIVE) as file, _Metered(file) as stream:
        stream.left = ZIP_DIRECTORY
        with zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename.replace("\\", "/"))  # some programs on Windows write it so
                if member.is_dir():
                    yield Entry(name)
                elif stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                    yield Entry(name, unread=NOT_PLAIN)
                elif why := _unread(name, suffixes):
                    yield Entry(name, unread=why)
                elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
                    raise StudyError(
                        f"{str(name)!r} in {path} is compressed by method {member.compress_type}; allowed: stored, deflated"
                    )
                else:
                    stream.left = 2 * LARGEST_FILE
                    yield Entry(name, _content(archive.open(member), name, member.file_size))


def _content(member: Any, name: PurePosixPath, size: int) -> bytes:
    if size > LARGEST_FILE:
        raise ValueError(f"{str(name)!r} has {size:,} bytes; at most {LARGEST_FILE:,} are read")
    with member as file:
        content: bytes = file.read(size + 1)  # no more than that: it takes at once the memory that it is asked for
    if len(content) != size:
        raise ValueError(f"{str(name)!r} has {len(content):,} bytes of {size:,}")
    return content
