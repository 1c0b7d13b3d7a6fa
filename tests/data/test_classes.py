"""Which folders are classes."""

from __future__ import annotations

from pathlib import PurePosixPath

from fcs_utils.data.classes import labels_of


def test_a_class_is_a_folder_in_train_or_test_with_images_or_without() -> None:
    inside = ["train", "train/cat", "train/dog/young", "test/emu", "val/fox", "docs", "docs/train/gnu", "."]
    folders = {PurePosixPath("pets", path) for path in inside} | {PurePosixPath("other/train/hen"), PurePosixPath(".")}
    assert labels_of(folders, PurePosixPath("pets"), "test") == {"cat", "dog", "emu"}
    assert labels_of(folders, PurePosixPath("pets"), "val") == {"cat", "dog", "fox"}
