"""Defaults and limits of pictures, and what a data set draws in whatever order it is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fcs_utils.data import dataset as dataset_module
from fcs_utils.data import imagefolder
from fcs_utils.data.dataset import Dataset, data_folder
from fcs_utils.data.imagefolder import as_rgb
from fcs_utils.data.listing import Listing
from fcs_utils.data.pictures import PictureSet, decode, load_pictures
from fcs_utils.errors import StudyError
from tests.data.pictures import saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three white pictures of each of two classes for training, one of each for validation; the classes differ in their sides."""
    base = tmp_path_factory.mktemp("white")
    for part, count in (("train", 3), ("val", 1)):
        for label, size in (("high", (30, 40)), ("wide", (50, 30))):
            for number in range(count):
                path = base / part / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", size, "white").save(path)
    return base


def test_by_default_white_is_that_of_imagenet_at_224_pixels(folder: Path) -> None:
    assert load_pictures(folder, size=4096, resident=False).size == 4096  # the largest
    pictures = load_pictures(folder, resident=False)
    assert (pictures.size, pictures.workers, PictureSet("n", pictures.listing, 16).workers) == (224, 0, 0)
    ((images, labels),) = pictures.in_order(4)
    assert images.shape == (2, 3, 224, 224) and labels.tolist() == [0, 1]
    # (1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225
    white = torch.tensor([2.248908, 2.428571, 2.64]).view(3, 1, 1)
    torch.testing.assert_close(images, white.expand(2, 3, 224, 224), atol=1e-5, rtol=0)
    paths = [path for path, _ in pictures.listing.val]
    assert [decode(path, 224).shape for path in paths] == [(3, 341, 256), (3, 256, 426)]  # 256 of the shorter side's pixels


def test_calibration_is_drawn_by_its_seed_from_pictures_as_they_are(folder: Path) -> None:
    pictures = load_pictures(folder, size=16, resident=True)
    ((whole, labels),) = pictures.in_order(6, "train")
    for seed in (0, 1, 2):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        for count in (1, 6):
            images, found = pictures.calibration(count, seed)
            assert images.equal(whole[order[:count]]) and found.equal(labels[order[:count]])
    assert pictures.calibration(4)[1].equal(pictures.calibration(4, 0)[1])
    for count in (0, 7):
        with pytest.raises(StudyError, match=f"calibration={count} is not allowed; allowed: 1 to 6"):
            pictures.calibration(count)
    (only,) = passes = pictures.batches(100)(0, 1)  # more than there are: one batch of all
    assert len(passes) == 1 and len(only[1]) == 6
    assert [len(found) for _, found in pictures.batches(4)(0, 1)] == [4] and len(pictures.batches(4)(0, 1)) == 1


def test_all_of_many_pictures_are_taken_to_calibrate() -> None:
    listing = Listing(("a", "b"), tuple((Path(f"{number}.png"), number % 2) for number in range(70)), ())
    kept = {"train": [torch.full((3, 9, 9), number, dtype=torch.uint8) for number in range(70)]}
    pictures = PictureSet("n", listing, 8, kept=kept)
    images, labels = pictures.calibration(70)
    assert len(images[:, 0].unique()) == 70 and labels.bincount().tolist() == [35, 35]
    assert pictures.resident and len(pictures.batches(30)(0, 1)) == 2


def test_a_crop_shows_a_quarter_of_a_picture_or_more_by_draws_of_its_own() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8))
    listing = Listing(("a",), tuple((Path(f"{number}.png"), number) for number in range(20)), ())
    pictures = PictureSet("n", listing, 16, (0.0,) * 3, (1.0,) * 3, kept={"train": [pixels] * 20})
    ((images, labels),) = pictures.batches(20)(5, 2)

    def seed(*numbers: int) -> int:
        return int(np.random.SeedSequence(numbers).generate_state(1)[0])

    assert labels.equal(torch.randperm(20, generator=torch.Generator().manual_seed(seed(5, 2))))
    crop = v2.Compose([v2.RandomResizedCrop(16, (0.25, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    for image, label in zip(images, labels.tolist(), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed(5, 2, label))
            torch.testing.assert_close(image, crop(pixels) / 255, atol=1e-6, rtol=0)


def test_pictures_of_more_than_64_mi_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="8192 x 8193 pixels are too many"):
        as_rgb(saved(Image.new("1", (8192, 8193))))
    monkeypatch.setattr(imagefolder, "LARGEST_IMAGE", 64)
    assert as_rgb(saved(Image.new("RGB", (16, 4), "red"))).getcolors() == [(64, (255, 0, 0))]
    with pytest.raises(StudyError, match="13 x 5 pixels are too many"):
        as_rgb(saved(Image.new("RGB", (13, 5))))


def test_sizes_and_means_of_pictures_at_their_limits(folder: Path) -> None:
    assert [load_pictures(folder, size=size, resident=False).size for size in (8, 4096)] == [8, 4096]
    for options in ({"size": 7}, {"size": 4097}, {"mean": (0.5, 0.5, float("nan"))}, {"std": (0.5, 0.5, 0.0)}, {"std": (0.5, 0.5)}):
        with pytest.raises(StudyError, match=f"{'size' if 'size' in options else 'mean and std'}="):
            load_pictures(folder, resident=False, **options)


def test_an_image_of_more_than_4_mi_pixels_is_decoded_while_no_other_large_one_is() -> None:
    for height, alone in ((2048, False), (2049, True)):
        assert as_rgb(saved(Image.new("1", (2048, height))), lambda _: imagefolder.ONE_LARGE.locked()) is alone
    assert not imagefolder.ONE_LARGE.locked()


def test_epochs_are_the_same_in_whatever_order_they_are_asked_for(digits: Dataset) -> None:
    fresh = {(seed, epoch): digits.batches(100)(seed, epoch) for seed in (4, 5) for epoch in (1, 2, 3, 4)}
    batches = digits.batches(100)
    for seed, epoch in ((4, 1), (4, 3), (4, 4), (4, 2), (4, 1), (4, 1), (5, 2), (4, 2), (5, 3)):
        found, wanted = batches(seed, epoch), fresh[seed, epoch]
        assert found.order.equal(wanted.order) and found.shifts.equal(wanted.shifts) and found.mirrored.equal(wanted.mirrored)
    orders = [one.order.tolist() for one in fresh.values()]
    assert all(orders.count(order) == 1 for order in orders)
    with pytest.raises(StudyError, match="epoch=0 is not allowed; allowed: 1 and more"):
        batches(4, 0)


def test_data_beside_the_package_is_taken_where_the_folder_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FCS_DATA", raising=False)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(dataset_module, "__file__", str(tmp_path / "there/fcs_utils/data/dataset.py"))
    assert data_folder() == Path("data")  # there is neither
    (tmp_path / "there/data").mkdir(parents=True)
    assert data_folder() == tmp_path / "there/data" and data_folder("mine") == Path("mine")
    (here / "data").mkdir()
    assert data_folder() == Path("data")


def test_a_data_set_moves_as_a_whole(digits: Dataset) -> None:
    moved = digits.to(torch.device("meta"))
    splits = (moved.train, moved.validation, moved.test)
    found = [moved.mean, moved.std, *(split.images for split in splits), *(split.labels for split in splits)]
    assert {tensor.device.type for tensor in found} == {"meta"} and digits.mean.device.type == "cpu"
    assert [len(split) for split in splits] == [1000, 297, 500] and moved.classes == digits.classes
