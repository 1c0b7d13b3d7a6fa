"""Scikit-learn's digits as pictures: which of them, where, and how large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from fcs_utils.data import pictures as pictures_module
from fcs_utils.data.listing import list_pictures
from fcs_utils.data.pictures import write_digits


def test_the_first_fifty_of_each_digit_forty_to_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes) -> None:  # without a wait for the disk after each of 500 files
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(pictures_module, "write_atomic", write)
    folder = write_digits(tmp_path / "digits")
    assert folder == tmp_path / "digits" and {path.name for path in folder.iterdir()} == {"train", "val"}
    digits = load_digits()
    for label in range(10):
        pictures = [*sorted((folder / "train" / str(label)).iterdir()), *sorted((folder / "val" / str(label)).iterdir())]
        assert [path.name for path in pictures] == [f"{number:02}.png" for number in range(50)]
        assert [path.parts[-3] for path in pictures] == ["train"] * 40 + ["val"] * 10
        small = torch.from_numpy(digits.images[digits.target == label][:50])[:, None]  # 0 to 16
        large = F.interpolate(small * 255 / 16, (32, 32), mode="bilinear")[:, 0].numpy()
        for path, want in zip(pictures, large, strict=True):
            with Image.open(path) as image:
                assert image.format == "PNG" and image.size == (32, 32)
                assert np.abs(np.asarray(image, float) - want).max() <= 1.5  # both round
    listing = list_pictures(folder)
    assert (len(listing.train), len(listing.val)) == (400, 100) and listing.classes == tuple("0123456789")
