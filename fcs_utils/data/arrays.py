"""What a reader of a data set returns, and what it does where the data is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from fcs_utils.errors import StudyError

Fetched = TypeVar("Fetched")


@dataclass(frozen=True)
class Arrays:
    """A data set as published: uint8 images (N, C, H, W) and int64 labels (N,), not yet split for validation."""

    title: str
    classes: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    flip: bool  # whether a mirrored image keeps its meaning


def download(fetch: Callable[[], Fetched], name: str, places: Sequence[Path], other_way: str) -> Fetched:
    """Let torchvision fetch a data set; returns what ``fetch`` returns.

    Raises StudyError with the places looked in and the ways to get it.
    """
    try:
        places[0].parent.mkdir(parents=True, exist_ok=True)
        return fetch()
    except Exception as error:  # noqa: BLE001 - urllib, ssl and torchvision raise many kinds; each means "no data"
        looked = ", ".join(str(place) for place in places)
        raise StudyError(
            f"data set {name!r} not found. Looked in: {looked}. torchvision's download failed "
            f"({type(error).__name__}). Ways to get it: start again with internet access; name the folder that has "
            f"it with --data DIR or FCS_DATA; {other_way}"
        ) from error
