"""What the first start of a results folder fixes for all later ones, wherever they happen."""

from __future__ import annotations

from typing import Any, Literal

from fcs_utils.bench import Bench
from fcs_utils.design import Profile
from fcs_utils.errors import refuse
from fcs_utils.provenance import pick_precision
from fcs_utils.sealed import read_or_set_aside, write_sealed
from fcs_utils.store import Store


class Settings:
    """A folder's precision, and of its data what tables need without having the data.

    The precision is part of every run's identity, so it belongs to the folder and not to the machine that opens it: records that
    come home from a GPU must be found on a laptop. Raises StudyError for a precision that there is not.
    """

    def __init__(self, store: Store, profile: Profile, bench: Bench) -> None:
        self._path, self._profile, self._bench = store.settings(), profile, bench
        self._kept: dict[str, Any] = read_or_set_aside(self._path) or {}
        known = self._kept
        if not known:  # no runs yet, or a damaged file: the records still tell
            records = (read_or_set_aside(record) for record in store.all_records())
            known = next((record["config"]["reference"] for record in records if record), {})
        precision = known.get("precision") or (pick_precision(bench.device) if profile.precision == "auto" else profile.precision)
        if precision not in ("fp32", "bf16"):
            raise refuse(f"{self._path}: precision", precision, "fp32, bf16")
        self.precision: Literal["fp32", "bf16"] = precision

    @property
    def title(self) -> str:
        """Of the data set."""
        title: str = self._kept.get("dataset") or self._bench.dataset.title
        return title

    @property
    def validation_images(self) -> int:
        """How many images the validation split has: its grain decides what counts as equal."""
        images: int = self._kept.get("validation_images") or len(self._bench.dataset.validation)
        return images

    def keep(self) -> None:
        """Write them, where they are not yet."""
        if not self._path.exists():
            self._kept = {"precision": self.precision, "profile": self._profile.name, "dataset": self.title,
                          "validation_images": self.validation_images}  # fmt: skip
            write_sealed(self._path, self._kept)
