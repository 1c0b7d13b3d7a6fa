"""Pictures of any size as batches for networks that take 224 pixels or so: decoded when they are needed, or kept in memory.

torchvision's transforms and a DataLoader do the work. What chance decides for a picture follows from (seed, epoch, index) alone, so
batches are the same for any number of workers, and the same whether pictures are kept in memory or not.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Pixels
from tqdm import tqdm

from fcs_utils.config import Amount, checked
from fcs_utils.data.archives import LARGEST_FILE
from fcs_utils.data.classes import in_two_places
from fcs_utils.data.dataset import Batch
from fcs_utils.data.imagefolder import as_rgb
from fcs_utils.data.listing import Listing, check_present, list_pictures
from fcs_utils.data.side_by_side import in_order
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import read_bytes, write_atomic
from fcs_utils.machine import free_memory
from fcs_utils.running import seed_draws

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of images in 0..1
MARGIN = 256 / 224  # the shorter side of a decoded picture, in sizes of a crop
AREA = (0.25, 1.0)  # of a picture, which a random crop shows
SHARE = 0.25  # of the free memory, up to which pictures are kept


def decode(path: Path, size: int) -> Tensor:
    """A picture as uint8 (3, H, W), its shorter side ``MARGIN`` times the size. Raises StudyError, naming it, for a broken one."""
    from torchvision.transforms import v2  # takes seconds, for which an explorer without own pictures need not wait

    content, wanted = read_bytes(path, LARGEST_FILE), [round(MARGIN * size)]
    try:
        resized = as_rgb(content, lambda image: v2.functional.resize(image, wanted, antialias=True))
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise StudyError(f"picture {str(path)!r} cannot be decoded: {error}; replace or remove it") from error
    return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)


class _Draws(Pixels):  # type: ignore[type-arg]
    """The pictures of one pass, each with its own draws. transform: of uint8 (3, H, W). kept: decoded ones, where there are."""

    def __init__(
        self,
        listed: Sequence[tuple[Path, int]],
        kept: Sequence[Tensor] | None,
        size: int,
        transform: Callable[[Tensor], Tensor],
        seeds: tuple[int, ...],
    ) -> None:
        self.listed, self.kept, self.size, self.transform, self.seeds = listed, kept, size, transform, seeds

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.listed[index]
        pixels = decode(path, self.size) if self.kept is None else self.kept[index]
        with torch.random.fork_rng(devices=[]):
            seed_draws(int(np.random.SeedSequence((*self.seeds, index)).generate_state(1)[0]))
            return self.transform(pixels), label


@dataclass(frozen=True)
class OnePass:
    """Batches of one pass: normalised images (B, 3, S, S) float32 and labels (B,) int64."""

    pixels: _Draws
    order: Sequence[int]
    batch_size: int
    workers: int
    whole: bool  # whether an incomplete last batch counts

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size) if self.whole else max(1, len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        batch = min(self.batch_size, len(self.order))
        # With a generator of its own, a loader draws nothing from torch's.
        options: dict[str, Any] = {"num_workers": self.workers, "drop_last": not self.whole, "generator": torch.Generator()}
        loader = DataLoader(self.pixels, batch, sampler=self.order, **options)
        try:
            yield from loader
        except StudyError as error:  # a worker's error comes with the text of its traceback
            raise StudyError(str(error).strip().splitlines()[-1].rpartition("StudyError: ")[2]) from error


@dataclass(frozen=True)
class PictureSet:
    """Training and validation pictures, for networks that take squares of ``size`` pixels.

    mean, std: of images in 0..1, by which they are normalised. kept: decoded pictures by part, where they fit in memory. workers:
    processes that decode beside this one.
    """

    name: str
    listing: Listing
    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    workers: int = 0
    kept: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def resident(self) -> bool:
        """Whether the decoded pictures are in memory."""
        return bool(self.kept)

    def _transform(self, augment: bool) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms import v2

        some, centre = v2.RandomResizedCrop(self.size, AREA, antialias=True), v2.CenterCrop(self.size)
        crop = [some, v2.RandomHorizontalFlip()] if augment else [centre]
        return v2.Compose([*crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)])

    def _pass(self, part: str, seeds: tuple[int, ...], augment: bool, **batches: object) -> OnePass:
        listed = self.listing.train if part == "train" else self.listing.val
        pixels = _Draws(listed, self.kept.get(part), self.size, self._transform(augment), seeds)
        return OnePass(pixels, workers=self.workers, **batches)  # type: ignore[arg-type]

    def batches(self, batch_size: int) -> Callable[[int, int], OnePass]:
        """``(seed, epoch)`` -> one pass over the training pictures, shuffled, cropped and mirrored at random; for ``fit``."""

        def one(seed: int, epoch: int) -> OnePass:
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
            order = torch.randperm(len(self.listing.train), generator=generator).tolist()
            return self._pass("train", (seed, epoch), True, order=order, batch_size=batch_size, whole=False)

        return one

    def in_order(self, batch_size: int, part: str = "val", most: int | None = None) -> OnePass:
        """The pictures of a part in order, their centres cropped; ``most``: that many, spread over the part."""
        count = len(self.listing.train if part == "train" else self.listing.val)
        order = np.linspace(0, count - 1, min(count, most or count)).astype(int).tolist()
        return self._pass(part, (), False, order=order, batch_size=batch_size, whole=True)

    def calibration(self, count: int, seed: int = 0) -> Batch:
        """Some pictures to train on, fixed by the seed and not augmented: (N, 3, S, S) and (N,). Raises StudyError for too many."""
        if not 1 <= count <= len(self.listing.train):
            raise refuse("calibration", count, f"1 to {len(self.listing.train)}, the pictures to train on")
        chosen = torch.randperm(len(self.listing.train), generator=torch.Generator().manual_seed(seed))[:count].tolist()
        found = [*self._pass("train", (), False, order=chosen, batch_size=64, whole=True)]
        return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])


@checked
def load_pictures(
    source: str | Path,
    *,
    size: Amount = 224,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    resident: bool | None = None,
    workers: Amount = 0,
) -> PictureSet:
    """A set of pictures from a folder or a CSV file, in one of the layouts of ``listing.list_pictures``.

    size: pixels of the squares that the network sees. mean, std: of images in 0..1, by which they are normalised; by default
    ImageNet's. resident: whether decoded pictures are kept in memory; None: where they take less than a quarter of what is free.
    workers: processes that decode beside this one, where pictures are not kept.

    Raises StudyError for another layout, pictures that are missing, and where they are kept, for broken ones.

        pictures = load_pictures("photos", size=224)
        fit([compact], training, pictures.batches(32))
    """
    if not 8 <= size <= 4096:
        raise refuse("size", size, "8 to 4096 pixels")
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise refuse("mean and std", (mean, std), "three finite numbers each, for images in 0..1, and std above 0")
    listing = list_pictures(Path(source))
    check_present(path for path, _ in (*listing.train, *listing.val))
    needed = (len(listing.train) + len(listing.val)) * 3 * round(MARGIN * size) ** 2
    if resident is None:
        resident = needed < SHARE * free_memory()
    shown = partial(tqdm, desc=f"decoding {Path(source).name}", unit="picture", leave=False)
    parts = {"train": listing.train, "val": listing.val} if resident else {}
    decoded = partial(in_order, work=lambda picture: decode(picture[0], size), weight=lambda picture: 0, together=4)
    kept = {part: [*decoded(shown(listed))] for part, listed in parts.items()}
    if kept:
        train, val = (
            [(label, str(path), one.numpy()) for (path, label), one in zip(parts[part], kept[part], strict=True)] for part in parts
        )
        for note in in_two_places(train, val, "validation"):
            warnings.warn(f"{source}: {note}", stacklevel=3)
    return PictureSet(Path(source).name, listing, size, mean, std, 0 if resident else workers, kept)


def write_digits(folder: Path) -> Path:
    """Scikit-learn's digits as a folder of pictures, 40 a class for training and 10 for validation; returns the folder."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, seen = load_digits(), Counter[int]()
    for pixels, label in zip(digits.images, digits.target.tolist(), strict=True):
        if seen[label] < 50:
            picture = Image.fromarray((pixels * (255 / 16)).astype("uint8")).resize((32, 32), Image.Resampling.BILINEAR)
            content = io.BytesIO()
            picture.save(content, "PNG")
            part = "train" if seen[label] < 40 else "val"
            write_atomic(folder / part / str(label) / f"{seen[label]:02}.png", content.getvalue())
            seen[label] += 1
    return folder
