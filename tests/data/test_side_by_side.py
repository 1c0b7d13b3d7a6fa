"""Pictures are decoded side by side, and everything comes out as if one came after the other: order, pixels, errors, memory."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcs_utils.data import imagefolder, side_by_side
from fcs_utils.data.imagefolder import as_rgb, decode_image, read_image_folder
from fcs_utils.data.pictures import decode, load_pictures
from fcs_utils.data.side_by_side import in_order
from fcs_utils.errors import StudyError
from tests.data.pictures import FILES, SIZE, put, saved


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "cores", lambda: 2)


def test_two_work_at_once_and_results_keep_their_order() -> None:
    both = threading.Barrier(2, timeout=60)

    def work(number: int) -> int:
        both.wait()  # nobody passes alone
        return number**2

    assert [*in_order(range(20), work, lambda number: 1, together=1)] == [number**2 for number in range(20)]


def test_errors_come_where_they_would_one_after_the_other() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise StudyError("reading")

    def work(number: int) -> int:
        if number == 3:
            raise StudyError("work")
        return number

    for together in (1, 3, 64):
        with pytest.raises(StudyError, match="work"):
            [*in_order(items(), work, lambda number: 1, together)]
        done: list[int] = []
        with pytest.raises(StudyError, match="reading"):
            done.extend(in_order(items(), lambda number: number, lambda number: 1, together))


def test_what_is_read_ahead_is_bounded() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(40):
            read.append(number)
            yield number

    def ahead(weight: int, together: int) -> int:
        """How many items are read at most when one of them comes back."""
        read.clear()
        found = [len(read) - done for done in in_order(items(), lambda number: number, lambda number: weight, together)]
        assert len(read) == 40
        return max(found)

    # Items are heavy from 64 MiB on: three of 32 MiB, and five of 8 MiB, since two threads have four batches to wait for them.
    assert [ahead(2**megabytes, 64) for megabytes in (26, 25, 24, 23)] == [2, 3, 5, 5]
    assert ahead(0, 2) == 10  # five batches of two


def test_a_batch_weighs_4_mib_or_a_little_more() -> None:
    def items() -> Iterator[int]:
        yield from range(7)
        raise StudyError("reading")

    batches = list(side_by_side._batches(items(), lambda number: 2**20, 64))
    assert [(heavy // 2**20, len(batch)) for heavy, batch in batches] == [(5, 5), (2, 3)]  # the error weighs nothing
    assert all(heavy % 2**20 == 0 for heavy, _ in batches)


def test_one_large_picture_is_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[int] = []
    inside, lock, together = [0], threading.Lock(), threading.Barrier(2, timeout=60)

    def counted(opened: Any, real: Any = imagefolder._rgb) -> Any:
        with lock:
            inside[0] += 1
            at_once.append(inside[0])
        if opened.width * opened.height <= imagefolder.LARGE_IMAGE:
            together.wait()  # small ones meet another one here
        found = real(opened)
        with lock:
            inside[0] -= 1
        return found

    monkeypatch.setattr(imagefolder, "_rgb", counted)
    contents = [saved(Image.new("RGB", (SIZE, SIZE), (value, 0, 0))) for value in range(8)]
    for largest, wanted in ((SIZE * SIZE, 2), (SIZE * SIZE - 1, 1)):
        monkeypatch.setattr(imagefolder, "LARGE_IMAGE", largest)
        at_once.clear()
        pixels = [*in_order(contents, lambda content: decode_image(content, SIZE), len, together=1)]
        assert [int(one[0, 0, 0]) for one in pixels] == [*range(8)] and max(at_once) == wanted
    with pytest.raises(ZeroDivisionError):
        as_rgb(contents[0], lambda image: 1 // 0)
    assert as_rgb(contents[0]).size == (SIZE, SIZE)  # the next one is not kept waiting


def test_an_archive_gives_the_pixels_of_its_files_in_their_order(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    files = {
        f"{part}/{label}/{number:03}.png": saved(Image.fromarray(chance.integers(0, 256, (SIZE, SIZE, 3), np.uint8)))
        for part, count in (("train", 150), ("test", 40))
        for label in ("cat", "dog")
        for number in range(count)
    }
    put(tmp_path / "files", files)
    with tarfile.open(tmp_path / "many.tar.xz", "w:xz") as tar:
        for name in chance.permutation(list(files)):
            tar.add(tmp_path / "files" / str(name), str(name))
    arrays, classes = read_image_folder(tmp_path, "many", SIZE)
    assert classes == ["cat", "dog"]
    for part in ("train", "test"):
        wanted = [decode_image(files[name], SIZE).transpose(2, 0, 1) for name in sorted(files) if name.startswith(part)]
        assert (arrays[f"{part}_images"] == np.stack(wanted)).all()


def test_the_first_broken_image_is_named_also_where_the_archive_breaks_off_behind_it(tmp_path: Path) -> None:
    names = [*FILES]
    broken = {**FILES, names[3]: b"no picture", names[5]: b"none either"}
    path = tmp_path / "broken.tar"
    put(tmp_path / "files", broken)
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(tmp_path / "files" / name, name)
    content = path.read_bytes()
    for kept in (len(content), 512 * 2 * len(names)):
        path.write_bytes(content[:kept].rstrip(b"\0"))
        with pytest.raises(StudyError, match=f"image '{names[3]}' in .*broken.tar cannot be decoded: cannot identify image file"):
            read_image_folder(tmp_path, "broken", SIZE)


def test_pictures_that_are_kept_are_those_that_are_decoded_one_by_one(tmp_path: Path) -> None:
    put(tmp_path / "photos", {name.replace("test/", "val/"): content for name, content in FILES.items()})
    pictures = load_pictures(tmp_path / "photos", size=8, resident=True)
    for part, listed in (("train", pictures.listing.train), ("val", pictures.listing.val)):
        assert all(kept.equal(decode(path, 8)) for kept, (path, _) in zip(pictures.kept[part], listed, strict=True))
    pictures.listing.val[0][0].write_bytes(b"no picture")
    with pytest.raises(StudyError, match="cannot be decoded: cannot identify image file"):
        load_pictures(tmp_path / "photos", size=8, resident=True)
