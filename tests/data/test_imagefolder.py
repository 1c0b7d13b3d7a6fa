"""Layouts of image folders and archives, and what is said of what is not read."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from fcs_utils.data import imagefolder
from fcs_utils.data.archives import Entry
from fcs_utils.errors import StudyError
from tests.data.pictures import FILES, plain, put, quietly, read, said, saved


def as_tar(mode: str) -> Callable[[Path, Path], None]:
    def pack(folder: Path, to: Path) -> None:
        with tarfile.open(to, mode) as archive:
            archive.add(folder, "./pets" if mode == "w" else "")

    return pack


def as_zip(folder: Path, to: Path) -> None:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder.parent))


def as_zip_of_windows(folder: Path, to: Path) -> None:
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            info = zipfile.ZipInfo("x")
            info.filename = str(path.relative_to(folder)).replace("/", "\\")
            archive.writestr(info, path.read_bytes())


ARCHIVES = {
    "a.tar": as_tar("w"),
    "b.tar.gz": as_tar("w:gz"),
    "c.tgz": as_tar("w:gz"),
    "d.tar.bz2": as_tar("w:bz2"),
    "e.tar.xz": as_tar("w:xz"),
    "f.zip": as_zip,
    "g.zip": as_zip_of_windows,
    "gzipped.tar": as_tar("w:gz"),  # the ending does not say so
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_archive_reads_like_the_folder(tmp_path: Path, name: str) -> None:
    folder = put(tmp_path / "pets", FILES)
    ARCHIVES[name](folder, tmp_path / name)
    want, classes = quietly(folder)
    found, same = quietly(tmp_path / name.partition(".")[0])
    assert classes == same == ("cat", "dog") and all(map(np.array_equal, want, found))
    assert want[0][:, 0, 0, 0].tolist() == [0, 1, 10, 11] and want[1].tolist() == [0, 0, 1, 1]  # in the order of the names


def test_what_systems_leave_behind_is_no_data(tmp_path: Path) -> None:
    left = ["train/.ipynb_checkpoints/cat.png", "train/cat/.ipynb_checkpoints/0-checkpoint.png", "__MACOSX/train/cat/._0.png",
            "train/cat/._1.png", ".DS_Store", "train/.DS_Store", "test/dog/Thumbs.db", "._train", "test/desktop.ini"]  # fmt: skip
    want = quietly(put(tmp_path / "pets", FILES))
    found = quietly(put(tmp_path / "full", FILES | dict.fromkeys(left, b"no picture")))
    assert found[1] == want[1] and all(map(np.array_equal, want[0], found[0]))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"train/cat/a.gif": b"", "train/dog/b.gif": b""}, "files ending in .gif (2, such as 'train/cat/a.gif')"),
        ({"train/cat/a.tif": b"", "README": b""}, "files without an ending (1, such as 'README'); files ending in .tif (1,"),
        ({"train/cat/young/a.png": plain(7)}, "test/CLASS/ or val/CLASS/ (1, such as 'train/cat/young/a.png')"),
        ({"train/a.png": plain(7), "train/b.txt": b""}, "val/CLASS/ (1, such as 'train/a.png'); files ending in .txt (1, such"),
        ({"a.png": plain(7), "Test/cat/b.JPG": plain(8)}, "images that are not in train/CLASS/, test/CLASS/ or val/CLASS/ (2"),
        (
            {"val/cat/a.png": plain(7), "val/dog/a.png": plain(8)},
            "images in val/, since there is test/ (2, such as 'val/cat/a.png')",
        ),
    ],
)
def test_what_is_not_read_is_counted_and_said_each_time(tmp_path: Path, more: dict[str, bytes], words: str) -> None:
    folder = put(tmp_path / "pets", FILES | more)
    for text in (said(folder), said(folder)):  # decoded, and from the cache
        assert "pets: not read: " in text and words in text


def test_val_stands_for_test_where_there_is_none(tmp_path: Path) -> None:
    found = quietly(put(tmp_path / "pets", {name.replace("test/", "val/"): content for name, content in FILES.items()}))
    want = quietly(put(tmp_path / "zoo", FILES))
    assert found[1] == want[1] and all(map(np.array_equal, want[0], found[0]))


def test_pipes_devices_and_broken_links_are_said_and_not_waited_for(tmp_path: Path) -> None:
    folder = put(tmp_path / "pets", FILES)
    os.mkfifo(folder / "train/cat/pipe.png")
    (folder / "train/cat/zero.png").symlink_to("/dev/zero")
    (folder / "train/dog/nothing.png").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str((folder / "s.png").relative_to(Path.cwd())) if len(str(folder)) > 90 else str(folder / "s.png"))
        text = said(folder)
    assert "pipes, sockets and devices (3," in text and "broken links (1, such as 'train/dog/nothing.png')" in text


def test_linked_folders_and_files_are_read_and_circles_end(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere", {"0.png": plain(70), "1.png": plain(71)})
    (elsewhere / "back").symlink_to(tmp_path / "pets")
    folder = put(tmp_path / "pets", FILES | {"test/owl/0.png": plain(80)})
    (folder / "train/owl").symlink_to(elsewhere)
    (tmp_path / "cat.png").write_bytes(plain(72))
    (folder / "train/cat/2.png").symlink_to(tmp_path / "cat.png")
    (train, labels, *_), classes = quietly(folder)
    assert classes == ("cat", "dog", "owl") and labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert train[:, 0, 0, 0].tolist() == [0, 1, 72, 10, 11, 70, 71]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {f"{fold}/{name}": content for fold in "ab" for name, content in FILES.items()},
            "'a/test', 'a/train', 'b/test', 'b/train'",
        ),
        (FILES | {"docs/train/shots/1.png": plain(9)}, "'test', 'train', 'docs/train'"),
        ({f"x/{name}" if "train" in name else f"y/{name}": content for name, content in FILES.items()}, "'x/train', 'y/test'"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_images_in_several_places_are_refused_with_both_named(
    tmp_path: Path, files: dict[str, bytes], words: str, packed: bool
) -> None:
    folder = put(tmp_path / "pets", files)
    if packed:
        as_zip(folder, tmp_path / "packed.zip")
        words = ", ".join(f"'pets/{place[1:]}" for place in words.split(", "))
    with pytest.raises(StudyError, match=f"has images in several places, {words}: keep one"):
        read(tmp_path / "packed" if packed else folder)


@pytest.mark.parametrize(
    ("more", "less", "words"),
    [
        ({"train/owl/x.txt": b"", "test/owl/0.png": plain(9)}, "", r"'owl' has 0 and 1; not read: files ending in \.txt"),
        ({"train/owl/0.png": plain(8), "test/owl/0.png": plain(9)}, "", "'owl' has 1 and 1"),
        ({"train/owl/0.png": plain(8), "train/owl/1.png": plain(9)}, "", "'owl' has 2 and 0"),
        ({"test/owl/0.png": plain(9), "test/elk/0.png": plain(8)}, "", "'elk' has 0 and 1, 'owl' has 0 and 1"),
        (
            {"train/owl/deep/0.png": plain(8), "test/owl/0.png": plain(9)},
            "",
            "'owl' has 0 and 1; not read: images that are not in",
        ),
        ({}, "dog", "two classes or more, .*; it has 1"),
    ],
)
def test_a_class_with_too_few_images_is_an_error(tmp_path: Path, more: dict[str, bytes], less: str, words: str) -> None:
    files = {name: content for name, content in FILES.items() if not less or less not in name}
    with pytest.raises(StudyError, match=words):
        read(put(tmp_path / "pets", files | more))


def test_an_empty_class_folder_is_an_error(tmp_path: Path) -> None:
    folder = put(tmp_path / "pets", FILES)
    quietly(folder)
    (folder / "train/owl").mkdir()
    with pytest.raises(StudyError, match="'owl' has 0 and 0"):  # though the images are in the cache
        read(folder)
    as_zip(folder, tmp_path / "packed.zip")
    with pytest.raises(StudyError, match="'owl' has 0 and 0"):
        read(tmp_path / "packed")


@pytest.mark.parametrize(
    "name", ["a\nb", "bell\a", "tab\tbed", "\x1b[31mred", b"\xff\xfe".decode(errors="surrogateescape"), "a\u2028b"]
)
def test_a_class_name_that_cannot_be_shown_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="class name .* has characters that cannot be shown") as refused:
        read(
            put(
                tmp_path / "pets",
                FILES | {f"{part}/{name}/{i}.png": plain(50 + i) for i, part in ((1, "train"), (2, "train"), (3, "test"))},
            )
        )
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["Katze, groß", "猫", "a b's"])
def test_other_class_names_stay_as_they_are(tmp_path: Path, name: str) -> None:
    folder = put(tmp_path / "pets", {path.replace("cat", name): content for path, content in FILES.items()})
    assert set(quietly(folder)[1]) == set(quietly(folder)[1]) == {name, "dog"}


def test_a_file_that_is_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for name, content in [*FILES.items(), ("train/cat/0.png", plain(9))]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(StudyError, match="has 'train/cat/0.png' twice"):
        read(tmp_path / "twice")


def test_images_in_both_train_and_test_are_said(tmp_path: Path) -> None:
    again = saved(Image.open(io.BytesIO(plain(10))).quantize(2), "BMP")  # the same pixels in another format
    folder = put(tmp_path / "pets", FILES | {"test/cat/seen.png": plain(1), "test/dog/seen.bmp": again})
    for text in (said(folder), said(folder)):
        assert "2 of 6 test images are training images, too (such as 'test/cat/seen.png' and 'train/cat/1.png')" in text


def test_training_images_of_two_classes_are_said(tmp_path: Path) -> None:
    again = {
        "train/dog/cat.png": plain(1),
        "train/dog/cats.png": plain(1),
        "train/cat/double.png": plain(1),
    }  # the last is of its own class
    for text in (
        said(put(tmp_path / "pets", FILES | again)),
        said(put(tmp_path / "zoo", FILES | {"train/cat/dog.png": plain(10)})),
    ):
        assert " training images are in another class, too (such as 'train/" in text
    assert "2 of 7 training images are in another class, too (such as 'train/dog/cat.png' and 'train/cat/1.png')" in said(
        tmp_path / "pets"
    )


def test_images_that_take_more_than_8_gib_once_they_are_decoded_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1,024 pixels an image takes 3 MiB: 2,730 of them take 8,190 MiB, and one more takes 8,193."""
    for count in (2730, 2731):
        listed = [Entry(PurePosixPath(f"train/cat/{number}.png"), b"") for number in range(count)]
        monkeypatch.setattr(imagefolder, "entries", lambda source, suffixes, listed=listed: listed)
        monkeypatch.setattr(imagefolder, "decode_image", lambda content, size: np.zeros((1, 1, 3), np.uint8))
        if count == 2730:
            found, folders, unread = imagefolder._collect(Path("pets"), 1024)
            assert len(found[PurePosixPath(".")]["train"]) == 2730 and not unread and folders == {PurePosixPath("train/cat")}
        else:
            with pytest.raises(StudyError, match="pets: decoded images take more than 8,589,934,592 bytes"):
                imagefolder._collect(Path("pets"), 1024)
