"""What a listing of pictures leaves out is said; what it could read in two ways is refused."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from fcs_utils.data import listing
from fcs_utils.data.listing import list_pictures
from fcs_utils.data.pictures import load_pictures
from fcs_utils.errors import StudyError
from tests.data.test_pictures import folder, picture

__all__ = ["folder"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["0.png,a,train", "0.png,b,train"], "line 11: 0.png is on line 2, too: one class and one split are needed"),
        (["0.png,a,val"], "line 10: 0.png is on line 2, too"),
        (["x/../1.png,b,val"], r"line 10: x/../1.png is on line 3, too"),
        (["9.png,a,train,more"], "line 10: a picture's path, a label and a split"),
    ],
)
def test_a_csv_puts_a_picture_into_one_class_and_one_split(tmp_path: Path, lines: list[str], said: str) -> None:
    listed = tmp_path / "set.csv"
    good = [f"{number}.png,{'ab'[number % 2]},{'val' if number > 5 else 'train'}" for number in range(8)]
    listed.write_text("\n".join(["path,label,split", *good, "4.png,a,train"]))  # a row that stands there twice counts twice
    assert len(list_pictures(listed).train) == 7
    listed.write_text("\n".join(["path,label,split", *good, *lines]))
    with pytest.raises(StudyError, match=said):
        list_pictures(listed)


def test_odd_csv_files_are_refused(tmp_path: Path) -> None:
    listed = tmp_path / "set.csv"
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(12)]
    for text, said in {
        "\r".join(["path,label", *rows]): "is not a whole CSV file",
        "\n".join(["path,label,label", *(f"{row},a" for row in rows)]): "has the column 'label' twice",
        "\n".join(["path,label", *rows, rows[0]]): "line 14: 0.png is on line 2, too",
    }.items():
        listed.write_bytes(text.encode())
        with pytest.raises(StudyError, match=said):
            list_pictures(listed)


@pytest.mark.parametrize("layout", ["train and val", "classes"])
def test_what_is_not_read_is_counted_and_said(layout: str, tmp_path: Path) -> None:
    base = tmp_path / "photos"
    for label in ("cat", "dog"):
        for number in range(10):
            picture(base / ("train" if layout == "train and val" else "") / label / f"{number}.png", number)
        if layout == "train and val":
            picture(base / "val" / label / "0.png", 20)
    train = base / "train" if layout == "train and val" else base
    (train / "cat/a.gif").write_bytes(b"x")
    (train / "cat/b.TIF").write_bytes(b"x")
    (train / "cat/._1.png").write_bytes(b"x")  # macOS leaves such files behind
    (train / "dog/gone.png").symlink_to(tmp_path / "nowhere")
    picture(train / "stray.png", 0)
    with pytest.warns(UserWarning) as caught:
        list_pictures(base)
    said = str(caught[0].message)
    assert len(caught) == 1 and said.startswith(f"{base}: not read: ") and "._1" not in said
    at = train.name
    for part in (f"files ending in .gif (1, such as '{at}/cat/a.gif')", "files ending in .tif (1,", "broken links (1,"):
        assert part in said
    assert f"pictures without a class (1, such as '{at}/stray.png')" in said
    (train / "emu").mkdir()
    (train / "emu/c.gif").write_bytes(b"x")
    with pytest.raises(StudyError, match=r"class 'emu' has no pictures; not read: files ending in .gif \(2,"):
        list_pictures(base)


def test_class_names_that_cannot_be_shown_and_too_many_pictures_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val"):
        for label in ("cat", "d\aog"):
            picture(tmp_path / part / label / "0.png", 0)
    with pytest.raises(StudyError, match="has 2 classes that can be shown; two or more"):
        list_pictures(tmp_path)
    monkeypatch.setattr(listing, "MOST_FILES", 14)  # in one part
    assert len(list_pictures(folder).train) == 14
    monkeypatch.setattr(listing, "MOST_FILES", 13)
    with pytest.raises(StudyError, match="train has more than 13 pictures"):
        list_pictures(folder)


def test_a_second_part_for_validation_is_said_to_be_left_out(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "photos")
    picture(tmp_path / "photos/test/cat/0.png", 7)
    with pytest.warns(UserWarning, match=r"pictures in test/, since there is val/ \(1, such as 'test/cat/0.png'\)"):
        assert len(list_pictures(tmp_path / "photos").val) == 4
    listed = tmp_path / "set.csv"
    rows = [f"{part}{number}.png,{'ab'[number]},{part}" for part in ("train", "val", "test") for number in range(2)]
    listed.write_text("\n".join(["path,label,split", *rows]))
    with pytest.warns(UserWarning, match=r"pictures of the split test, since there is val \(2, such as '.*test0.png'\)"):
        assert [path.name for path, _ in list_pictures(listed).val] == ["val0.png", "val1.png"]


def test_validation_pictures_that_are_trained_on_are_counted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "photos")
    for number in range(2):
        shutil.copy(folder / f"train/cat/{number}.png", tmp_path / f"photos/val/dog/copy{number}.png")
    said = "2 of 6 validation images are training images, too .such as .*val/dog/copy0.png. and .*train/cat/0.png"
    with pytest.warns(UserWarning, match=said) as caught:
        load_pictures(tmp_path / "photos", size=16)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pictures(folder, size=16)
