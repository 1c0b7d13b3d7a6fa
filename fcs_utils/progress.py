"""Progress bars: one place that decides how they look and when they are silent."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def bar(**options: Any) -> tqdm:
    """A progress bar on stderr; silent when FCS_QUIET is set, calm (every 10 s) where nobody watches."""
    options.setdefault("disable", bool(os.environ.get("FCS_QUIET")))
    options.setdefault("mininterval", 0.2 if sys.stderr.isatty() else 10)
    return tqdm(file=sys.stderr, dynamic_ncols=True, **options)


def progress(items: Iterable[T], description: str, unit: str = "it") -> Iterable[T]:
    """Iterate with a bar."""
    return bar(iterable=items, desc=description, unit=unit, leave=False)
