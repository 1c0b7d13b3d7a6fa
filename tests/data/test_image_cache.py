"""Decoded images are cached, and nothing else is ever taken for them."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcs_utils.data.imagefolder import cache_folder
from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, write_tensors
from tests.data.pictures import FILES, SIZE, plain, put, quietly, read, saved


@pytest.mark.parametrize("place", ["a file", "read-only", "no home"])
def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder = put(tmp_path / "pets", FILES)
    want = quietly(folder)
    if place == "a file":
        (tmp_path / "taken").write_text("")
        monkeypatch.setenv("FCS_CACHE", str(tmp_path / "taken"))
    elif place == "read-only":
        monkeypatch.setenv("FCS_CACHE", "/proc/fcs-mlft")
    else:
        monkeypatch.delenv("FCS_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(
            Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
        )
    with pytest.warns(UserWarning, match="cannot write .*decoded images are not cached; name a folder for them with FCS_CACHE"):
        found = read(folder)
    assert found[1] == want[1] and all(map(np.array_equal, want[0], found[0]))


def test_the_cache_follows_the_files(tmp_path: Path, cache: Path) -> None:
    folder = put(tmp_path / "pets", FILES)
    assert len(quietly(folder)[0][0]) == 4
    (folder / "train/cat/9.png").write_bytes(plain(99))
    assert len(quietly(folder)[0][0]) == 5 and len(list(cache.iterdir())) == 2
    (folder / "train/cat/9.png").write_bytes(plain(98) + b" ")
    assert 98 in quietly(folder)[0][0] and len(list(cache.iterdir())) == 3
    os.utime(folder / "train", (1_000_000_000, 1_000_000_000))  # a folder's own time does not count
    assert len(quietly(folder)[0][0]) == 5 and len(list(cache.iterdir())) == 3


def test_the_cache_lies_where_the_user_says_or_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FCS_CACHE", "/mine"), ("XDG_CACHE_HOME", "/caches"), ("HOME", "/home/ann")):
        monkeypatch.setenv(name, value)
    found = []
    for name in ("FCS_CACHE", "XDG_CACHE_HOME", ""):
        found.append(cache_folder())
        if name:
            monkeypatch.setenv(name, "")  # as good as none
    assert found == [Path("/mine"), Path("/caches/fcs-mlft"), Path("/home/ann/.cache/fcs-mlft")]


def in_bmp(red: int) -> dict[str, bytes]:
    """Files of equal names and sizes, whatever the colour."""
    return {
        name.replace(".png", ".bmp"): saved(Image.new("RGB", (SIZE, SIZE), (red + number, 0, 0)), "BMP")
        for number, name in enumerate(FILES)
    }


def as_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def of_one_time(place: Path) -> None:
    for path in (place, *place.rglob("*")):
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.mark.parametrize("kind", ["other folder", "other archive", "overwritten", "link"])
def test_files_of_equal_names_sizes_and_times_are_not_taken_for_one_another(tmp_path: Path, kind: str) -> None:
    one, other = tmp_path / "one" / "pets", tmp_path / "other" / "pets"
    for place, red in ((one, 0), (other, 100)):
        if kind == "other archive":
            as_tar(place.with_name("pets.tar"), in_bmp(red))
        else:
            put(place, in_bmp(red))
        of_one_time(place.parent)
    if kind == "link":
        link = tmp_path / "pets"
        link.symlink_to(one)
        assert quietly(link)[0][0].max() < 100
        link.unlink()
        link.symlink_to(other)
        other = link
    else:
        assert quietly(one)[0][0].max() < 100
        if kind == "overwritten":
            put(one, in_bmp(100))
            of_one_time(one)
            other = one
    red = quietly(other)[0][0][:, 0]
    assert set(red.flatten().tolist()) == {100, 101, 102, 103}  # the four training images of the second set


@pytest.mark.parametrize("wrong", ["labels", "size", "missing", "classes"])
def test_a_whole_cache_with_wrong_content_is_decoded_again(tmp_path: Path, cache: Path, wrong: str) -> None:
    folder = put(tmp_path / "pets", FILES)
    want = quietly(folder)
    (cached,) = cache.iterdir()
    tensors, metadata = read_tensors(cached)
    if wrong == "labels":
        tensors["train_labels"] += 1
    elif wrong == "size":
        tensors["test_images"] = tensors["test_images"][..., :-1].contiguous()
    elif wrong == "missing":
        del tensors["test_labels"]
    else:
        metadata["classes"] = json.dumps(["cat"])
    write_tensors(cached, tensors, metadata)
    with pytest.warns(UserWarning, match="decoded again .set aside as"):
        found = read(folder)
    assert found[1] == want[1] and all(map(np.array_equal, want[0], found[0]))


@pytest.mark.parametrize("cut", ["between two files", "without the checksum", "in the checksum"])
def test_the_end_of_an_archive_is_looked_at(tmp_path: Path, cut: str) -> None:
    as_tar(tmp_path / "pets.tar", FILES)
    whole = (tmp_path / "pets.tar").read_bytes()
    quietly(tmp_path / "pets")
    if cut == "between two files":
        with tarfile.open(tmp_path / "pets.tar") as archive:
            last = archive.getmembers()[-1]
        assert last.name == "test/dog/1.png"  # the second of two: without it, no class lacks an image
        (tmp_path / "pets.tar").write_bytes(whole[: last.offset])
    else:
        (tmp_path / "pets.tar").unlink()
        packed = bytearray(gzip.compress(whole + bytes(2**16)))  # the end is not read by the way
        packed[-6] ^= 1
        (tmp_path / "pets.tar.gz").write_bytes(packed[:-8] if cut == "without the checksum" else packed)
    with pytest.raises(StudyError, match="pets.tar.* cannot be read"):
        read(tmp_path / "pets")


def test_an_archive_with_much_behind_its_end_is_refused(tmp_path: Path) -> None:
    as_tar(tmp_path / "pets.tar", FILES)
    with (tmp_path / "pets.tar").open("ab") as file:
        file.write(bytes(2**24 + 1))
    with pytest.raises(StudyError, match="goes on for more than 16,777,216 bytes behind its end mark"):
        read(tmp_path / "pets")
